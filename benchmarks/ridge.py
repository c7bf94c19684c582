"""Ridge with cross-validated penalties: against himalaya, scikit-learn and the matrix rate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measuring import Row, at_least, at_most

TALL = {"samples": 9000, "features": 1000, "cv": 5, "penalties": 10, "low": 0, "high": 5}
WIDE = {"samples": 1200, "features": 8192, "cv": 5, "penalties": 10, "low": -1, "high": 4}
_ONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Run:
    """One fit: CPU and wall seconds, MB beyond imports and in all, penalties, predictions."""

    seconds: float
    elapsed: float
    extra: float
    peak: float
    alpha: np.ndarray
    predicted: np.ndarray


def measure() -> list[Row]:
    """Run every comparison, the ways in turn."""
    rate = matrix_rates()
    return [*_tall(rate), *_many(), *_generalised(rate), *_wide(), *_streamed()]


def _tall(rate: dict[str, float]) -> list[Row]:
    batch = _best_batch("himalaya_ridge", {**TALL, "targets": 4000, "penalties": 2}, 2000)
    case = {**TALL, "targets": 20_000}
    first = run("nedx_ridge", **case)
    theirs = run("himalaya_ridge", **case, **batch)
    ours = min(first, run("nedx_ridge", **case), key=lambda each: each.seconds)
    floor = _floor(rate, 20_000)
    note = f"{ours.seconds:.1f} and {theirs.seconds:.1f} CPU s; {_batched(batch)}"
    return [
        at_least(
            "20,000 targets, himalaya / nedx, time", theirs.seconds / ours.seconds, 10, note=note
        ),
        at_least("same penalty", _same(ours, theirs), 99.9, "%"),
        at_most("predictions differ, of the largest", _difference(ours, theirs), 1e-5, ""),
        at_most(
            "extra memory, nedx / himalaya",
            ours.extra / theirs.extra,
            0.67,
            note=f"{ours.extra:.0f} and {theirs.extra:.0f} MB",
        ),
        at_most(
            "time over the counted operations",
            ours.seconds / floor,
            1.6,
            note=f"{floor:.1f} s at {rate['single']:.0f} GFLOP/s",
        ),
    ]


def _many() -> list[Row]:
    case = {**TALL, "targets": 1000, "penalties": 81}
    ours, theirs = run("nedx_ridge", **case), run("himalaya_ridge", **case)
    again = run("nedx_ridge", **case)
    note = f"{ours.seconds:.1f} and {theirs.seconds:.1f} CPU s"
    best = min(ours.seconds, again.seconds)
    return [
        at_least("81 penalties, himalaya / nedx, time", theirs.seconds / best, 50, note=note),
        at_least("81 penalties, same penalty", _same(ours, theirs), 99.9, "%"),
    ]


def _generalised(rate: dict[str, float]) -> list[Row]:
    case = {**TALL, "targets": 20_000}
    ours = [run("nedx_ridge", **{**case, "cv": "gcv"}) for _ in range(2)]
    theirs = run("sklearn_loo", **case)
    best = min(each.seconds for each in ours)
    note = f"{best:.2f} and {theirs.seconds:.1f} CPU s; same penalty {_same(ours[0], theirs):.1f} %"
    return [
        at_least(
            "generalised cross-validation, scikit-learn's leave-one-out / nedx, time",
            theirs.seconds / best,
            20,
            note=note,
        ),
        at_most("time over the counted operations", best / _floor_generalised(rate, 20_000), 1.6),
    ]


def _wide() -> list[Row]:
    case = {**WIDE, "targets": 4000}
    batch = _best_batch("himalaya_kernel", case, 1000)
    pairs = [(run("nedx_ridge", **case), run("himalaya_kernel", **case, **batch)) for _ in range(3)]
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in pairs)
    ours, theirs = pairs[0]
    note = (
        f"same penalty {_same(ours, theirs):.2f} %, predictions within "
        f"{_difference(ours, theirs):.1e}; {ours.extra:.0f} and {theirs.extra:.0f} MB; "
        f"{_batched(batch)}"
    )
    return [
        at_least("8,192 features, 1,200 samples, himalaya / nedx, time", ratios[1], 1, note=note)
    ]


def _streamed() -> list[Row]:
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


def run(way: str, **case: object) -> Run:
    """Run one way in a process of its own, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "fit.npz")
        pairs = [f"{key}={value}" for key, value in case.items()]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ridge_cases", way, str(file)]
        environment = {**os.environ, **_ONE}
        done = subprocess.run(
            [*command, *pairs], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        saved = np.load(file)
        figures = json.loads(done.stdout.splitlines()[-1])
        return Run(**figures, alpha=saved["alpha"], predicted=saved["predicted"])


def matrix_rates() -> dict[str, float]:
    """Return GFLOP/s of large products in both precisions and seconds of an eigh, one thread."""
    script = """
import json, time, torch
torch.set_num_threads(1)
def best(f):
    f(); seconds = []
    for _ in range(5):
        start = time.process_time(); f(); seconds.append(time.process_time() - start)
    return min(seconds)
a = torch.randn(1024, 1024); d = a.double(); s = d @ d.T
print(json.dumps({
    "single": 2 * 1024**3 / best(lambda: a @ a) / 1e9,
    "double": 2 * 1024**3 / best(lambda: d @ d) / 1e9,
    "eigh": best(lambda: torch.linalg.eigh(s[:1000, :1000])),
}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_ONE},
    )
    return json.loads(done.stdout)


def _floor(rate: dict[str, float], targets: int) -> float:
    """Return the seconds of the operations of five folds and ten penalties.

    For each target U'Y, in each fold two changes of axes and a triangle for each penalty, and the
    weights; besides, in double precision, Gram matrices and their axes.
    """
    n, p, folds, penalties = 9000, 1000, 5, 10
    single = targets * (2 * n * p + folds * (4 + penalties) * p**2 + 2 * p**2)
    double = 6 * n * p**2 + folds * 4 * p**3
    return (single / rate["single"] + double / rate["double"]) / 1e9 + (folds + 1) * rate["eigh"]


def _floor_generalised(rate: dict[str, float], targets: int) -> float:
    n, p = 9000, 1000
    single, double = targets * (2 * n * p + 2 * p**2), 4 * n * p**2
    return (single / rate["single"] + double / rate["double"]) / 1e9 + rate["eigh"]


def _best_batch(way: str, case: dict[str, object], size: int) -> dict[str, int]:
    """Return the faster of all targets at once and so many at a time."""
    whole, batched = run(way, **case), run(way, **case, batch=size)
    return {"batch": size} if batched.seconds < whole.seconds else {}


def _batched(batch: dict[str, int]) -> str:
    return f"{batch['batch']} targets at a time there" if batch else "all targets at once there"


def _same(a: Run, b: Run) -> float:
    return 100 * float(np.isclose(a.alpha, b.alpha).mean())


def _difference(a: Run, b: Run) -> float:
    same = np.isclose(a.alpha, b.alpha)[: a.predicted.shape[1]]
    apart = np.abs(a.predicted - b.predicted)[:, same].max()
    return float(apart / np.abs(b.predicted).max())
