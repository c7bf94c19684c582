"""Ridge from a compressed store, reading included, against a regression in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measuring import Row, at_least, at_most
from benchmarks.ridge import run


def measure() -> list[Row]:
    """Fit to 60,000 targets both ways, and to 327,684 from the store."""
    case = {"cv": "gcv", "penalties": 10, "low": 0, "high": 5}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), samples=9000, targets=60_000)
        ours = run("nedx_streamed", store=folder, **case)
        theirs = run("sklearn_regression", store=folder, **case)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), samples=1500, targets=327_684)
        most = run("nedx_streamed", store=folder, **case)
    title = "60,000 targets from a store, scikit-learn's regression in memory / nedx"
    note = f"{ours.seconds:.1f} and {theirs.seconds:.1f} s; {theirs.extra:.0f} MB there"
    return [
        at_least(
            f"{title}, time",
            theirs.elapsed / ours.elapsed,
            5,
            note=f"{ours.elapsed:.1f} and {theirs.elapsed:.1f} s; one BLAS thread each, nedx "
            "unpacks chunks in another",
        ),
        Row(f"{title}, processor time", theirs.seconds / ours.seconds, "x", note=note),
        at_most("memory beyond imports, 60,000 targets", ours.extra, 500, "MB"),
        at_most("memory beyond imports, 327,684 targets", most.extra, 500, "MB"),
    ]


def _write(folder: Path, samples: int, targets: int) -> None:
    """Write features, and responses as nedx stores them: rounded, packed, in chunks of 4 MB."""
    import zarr
    from zarr.codecs import BloscCodec

    from benchmarks.ridge_cases import simulated
    from nedx.store.codecs import round_mantissa

    codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=4)
    y = zarr.create_array(
        folder / "y.zarr",
        shape=(samples, targets),
        chunks=(500, 2000),
        dtype="f4",
        compressors=[codec],
    )
    for start in range(0, targets, 20_000):
        x, part = simulated(samples, 250, min(20_000, targets - start))
        y[:, start : start + part.shape[1]] = round_mantissa(part, 10)
    np.save(folder / "x.npy", x)
