"""200 embeddings searched in a million, against the bare read and the bare product.

The gallery is a float16 Zarr store of random rows, not compressed: such rows hardly can be. The
bare read is of the same store by zarr alone, in two threads; the bare product is torch's, of
float16 rows that lie in memory and are made float32, as it needs them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import zarr

import nedx
from benchmarks.measuring import Row, at_most, interleave, ratio

QUERIES, IMAGES, FEATURES = 200, 1_000_000, 1024
_STEP, _CHUNK = 2**15, 2**11

# A child's ru_maxrss begins with that of its parent, the kernel's high-water mark does not.
_SCRIPT = """
import re, sys
from benchmarks.retrieval import ours, opened
ours(*opened(sys.argv[1]))
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20)
"""


def measure() -> list[Row]:
    """Search once in a process of its own, then in turns with the bare ways; a few minutes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "gallery.zarr")
        _write(place)
        command = [sys.executable, "-c", _SCRIPT, str(place)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        embeddings, gallery = opened(place)
        found = ours(embeddings, gallery)
        wrong = int((found["rank"].values != _ranks(embeddings, gallery)).sum())
        queries = torch.from_numpy(embeddings["embedding"].values)
        rows = torch.from_numpy(gallery["features"].values)
        seconds = interleave(
            {
                "read": lambda: _read(place),
                "product": lambda: _multiply(queries, rows),
                "nedx": lambda: ours(embeddings, gallery),
            },
            rounds=7,
        )
    medians = {way: float(np.median(values)) for way, values in seconds.items()}
    slower = max(("read", "product"), key=lambda way: medians[way])
    note = ", ".join(f"{way} {value:.1f} s" for way, value in medians.items())
    what = f"{QUERIES} embeddings in {IMAGES:,} x {FEATURES}"
    return [
        at_most(f"{what}: peak memory", float(done.stdout), 2, "GiB"),
        at_most(
            f"{what}: time over the slower of bare read and bare product",
            ratio(seconds["nedx"], seconds[slower]),
            1.2,
            note=note,
        ),
        at_most(f"{what}: ranks that differ from float64", wrong, 0, unit=""),
    ]


def opened(place: Path | str) -> tuple[xr.Dataset, xr.Dataset]:
    """Return embeddings of images that lie anywhere in the gallery, and the gallery."""
    gallery = nedx.open_store(place)
    names = np.array([f"bench:{i:07d}" for i in range(gallery.sizes["image"])], dtype=object)
    gallery = gallery.assign_coords(image_id=("image", names))
    rng = np.random.default_rng(0)
    shown = np.sort(rng.choice(len(names), QUERIES, replace=False))
    noise = 5 * rng.standard_normal((QUERIES, FEATURES), dtype=np.float32)
    values = gallery["features"][shown].values.astype(np.float32) + noise
    embedding = {"embedding": (("image", "feature"), values)}
    return xr.Dataset(embedding, {"image_id": ("image", names[shown])}), gallery


def ours(embeddings: xr.Dataset, gallery: xr.Dataset) -> xr.Dataset:
    """Search."""
    return nedx.retrieve(embeddings, gallery, k=5).compute(scheduler="threads", num_workers=2)


def _write(place: Path) -> None:
    group = zarr.open_group(place, mode="w")
    array = group.create_array(
        "features",
        shape=(IMAGES, FEATURES),
        chunks=(_CHUNK, FEATURES),
        dtype="float16",
        compressors=None,
        dimension_names=("image", "feature"),
    )
    rng = np.random.default_rng(1)
    for start in range(0, IMAGES, _STEP):
        rows = min(_STEP, IMAGES - start)
        values = rng.standard_normal((rows, FEATURES), dtype=np.float32)
        array[start : start + rows] = values.astype(np.float16)


def _read(place: Path) -> None:
    array = zarr.open_array(place, path="features", mode="r")
    with ThreadPoolExecutor(2) as pool:
        parts = (slice(start, start + _STEP) for start in range(0, IMAGES, _STEP))
        for _ in pool.map(lambda part: array[part].shape, parts):
            pass


def _multiply(queries: torch.Tensor, rows: torch.Tensor) -> None:
    scratch, scores = torch.empty(_CHUNK, FEATURES), torch.empty(QUERIES, _CHUNK)
    for tile in rows.split(_CHUNK):
        values = scratch[: len(tile)].copy_(tile)
        torch.mm(queries, values.T, out=scores[:, : len(tile)])


def _ranks(embeddings: xr.Dataset, gallery: xr.Dataset) -> np.ndarray:
    """Count in float64 how many rows are at least as close as the true one, block by block."""
    queries = embeddings["embedding"].values.astype(np.float64)
    names = gallery["image_id"].values
    where = np.searchsorted(names.astype(str), embeddings["image_id"].values.astype(str))
    true = _cosine_pairs(queries, gallery["features"][where].values.astype(np.float64))
    ranks = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(names), _STEP):
        rows = gallery["features"][start : start + _STEP].values.astype(np.float64)
        scores = queries @ rows.T / np.linalg.norm(rows, axis=1)
        scores /= np.linalg.norm(queries, axis=1)[:, np.newaxis]
        # The true row is one of them, and may differ from itself by a rounding.
        ranks += (scores >= true[:, np.newaxis] - 1e-13).sum(axis=1)
    return ranks


def _cosine_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
