"""Writing 10,000 EEG-sized results: against what the disk takes, and what memory that needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio

# The fewest fill the blocks that are under way at a time: one computed, one written.
FEW, MANY = 2_000, 10_000
CHANNELS, TIMES, REPETITIONS = 63, 140, 4

# The peak of this process alone: what the one that starts it held is not counted.
SCRIPT = """
import re, sys
from pathlib import Path
import nedx
from benchmarks import eeg_writing
nedx.to_zarr(eeg_writing.responses(int(sys.argv[1])), sys.argv[2])
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def measure() -> list[Row]:
    """Write results of 1.4 GB in turn as a store and as plain bytes, then measure memory."""
    import nedx

    ds = responses(MANY)
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(100))
        ways = {
            "disk": lambda: _plain(ds, Path(folder, f"{next(count)}.bin")),
            "nedx": lambda: nedx.to_zarr(ds, Path(folder, f"{next(count)}.zarr")),
        }
        seconds = interleave({name: partial(_on_disk, way) for name, way in ways.items()}, rounds=5)
        stored = sum(f.stat().st_size for f in Path(folder, "1.zarr").rglob("*") if f.is_file())
        peaks = {n: _peak(n, Path(folder, f"peak-{n}.zarr")) for n in (FEW, MANY)}
    size = ds["response"].nbytes / 1e9
    speed = {name: size * 1e3 / min(each) for name, each in seconds.items()}
    note = (
        f"{size:.2f} GB of values, {stored / 1e9:.2f} GB stored; {speed['nedx']:.0f} MB of values "
        f"a second, plain bytes {speed['disk']:.0f}; both until all is on the disk"
    )
    return [
        at_least(
            "10,000 EEG results, plain bytes / store, time",
            ratio(seconds["disk"], seconds["nedx"]),
            # As of synthesis against a bare loop: the disk itself varies by more.
            0.85,
            note=note,
        ),
        at_most(
            f"peak memory, {MANY:,} results over {FEW:,}",
            peaks[MANY] / peaks[FEW],
            1.1,
            note=f"{peaks[FEW] / 1e3:.0f} and {peaks[MANY] / 1e3:.0f} MB",
        ),
    ]


def responses(count: int) -> xr.Dataset:
    """Return lazy responses (image, repetition, channel, time) that cost little to make."""
    shape = (count, REPETITIONS, CHANNELS, TIMES)
    block = np.random.default_rng(0).standard_normal((64, *shape[1:]), dtype=np.float32)
    chunks = da.core.normalize_chunks((64, -1, -1, -1), shape)
    response = da.map_blocks(
        lambda block_info=None: block[: block_info[None]["chunk-shape"][0]],
        chunks=chunks,
        dtype=np.float32,
        meta=np.empty((0, 0, 0, 0), np.float32),
    )
    dims = ("image", "repetition", "channel", "time")
    units = {"units": "1", "normalization": "zscore", "normalization_scope": "baseline"}
    return xr.Dataset(
        {"response": (dims, response, units)},
        coords={
            "image_id": ("image", np.array([f"noise:{i:05d}" for i in range(count)], object)),
            "channel": np.array([f"E{c}" for c in range(CHANNELS)], object),
            "time": ("time", np.arange(TIMES) / 200 - 0.1, {"units": "s"}),
        },
        attrs={"modality": "eeg", "source": "synthetic", "subject_ids": ["sub-01"]},
    )


def _on_disk(way: Callable[[], object]) -> None:
    way()
    os.sync()


def _plain(ds: xr.Dataset, path: Path) -> None:
    """Write the values one block after the other."""
    with path.open("wb") as file:
        for block in ds["response"].data.blocks:
            file.write(block.compute(scheduler="sync").tobytes())


def _peak(count: int, place: Path) -> float:
    """Return the peak resident memory, in kB, of a process that does nothing else."""
    command = [sys.executable, "-c", SCRIPT, str(count), str(place)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)
