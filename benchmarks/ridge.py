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
PROFILES = 15
"""Shrinkages of which those of 81 penalties are made, to single precision."""
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
    return [*_tall(rate), *_many(rate), *_generalised(rate)]


def _tall(rate: dict[str, float]) -> list[Row]:
    batch = best_batch("himalaya_ridge", {**TALL, "targets": 4000, "penalties": 2}, 2000)
    case = {**TALL, "targets": 20_000}
    ours, took, theirs = around("himalaya_ridge", case, batch)
    floor = _floor(rate, 20_000)
    note = f"{took:.1f} and {theirs.seconds:.1f} CPU s; {batched(batch)}"
    return [
        at_least("20,000 targets, himalaya / nedx, time", theirs.seconds / took, 10, note=note),
        at_least("same penalty", same(ours, theirs), 99.9, "%"),
        at_most("predictions differ, of the largest", difference(ours, theirs), 1e-5, ""),
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


def _many(rate: dict[str, float]) -> list[Row]:
    case = {**TALL, "targets": 1000, "penalties": 81}
    ours, took, theirs = around("himalaya_ridge", case)
    note = f"{took:.1f} and {theirs.seconds:.1f} CPU s"
    floor = _floor(rate, 1000, penalties=81, profiles=PROFILES)
    return [
        at_least("81 penalties, himalaya / nedx, time", theirs.seconds / took, 50, note=note),
        at_least("81 penalties, same penalty", same(ours, theirs), 99.9, "%"),
        at_most(
            "81 penalties, time over the counted operations",
            ours.seconds / floor,
            1.6,
            note=f"{floor:.1f} s, {PROFILES} products a fold serve all penalties",
        ),
    ]


def _generalised(rate: dict[str, float]) -> list[Row]:
    case = {**TALL, "targets": 20_000}
    ours, took, theirs = around("sklearn_loo", case, cv="gcv")
    note = f"{took:.2f} and {theirs.seconds:.1f} CPU s; same penalty {same(ours, theirs):.1f} %"
    return [
        at_least(
            "generalised cross-validation, scikit-learn's leave-one-out / nedx, time",
            theirs.seconds / took,
            20,
            note=note,
        ),
        at_most(
            "generalised cross-validation, time over the counted operations",
            ours.seconds / _floor_generalised(rate, 20_000),
            1.6,
        ),
    ]


def around(
    other: str, case: dict[str, object], batch: dict[str, int] | None = None, **ours: object
) -> tuple[Run, float, Run]:
    """Run another way once, nedx before and after it.

    Returns
    -------
    tuple of Run, float, Run
        The faster fit of nedx, for its floor; the mean seconds of both, to compare with a fit that
        was run once; the other way.
    """
    first = run("nedx_ridge", **{**case, **ours})
    theirs = run(other, **case, **(batch or {}))
    again = run("nedx_ridge", **{**case, **ours})
    faster = min(first, again, key=lambda each: each.seconds)
    return faster, (first.seconds + again.seconds) / 2, theirs


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


def _floor(
    rate: dict[str, float], targets: int, penalties: int = 10, profiles: int | None = None
) -> float:
    """Return the seconds of the operations of five folds.

    For each target U'Y, in each fold two changes of axes and a triangle for each penalty, or for
    each of fewer profiles and what makes the penalties of these, and the weights; besides, in
    double precision, Gram matrices and their axes.
    """
    n, p, folds = 9000, 1000, 5
    mixed = 0 if profiles is None else 2 * penalties * profiles * p
    triangles = (profiles or penalties) * p**2
    single = targets * (2 * n * p + folds * (4 * p**2 + triangles + mixed) + 2 * p**2)
    double = 6 * n * p**2 + folds * 4 * p**3
    return (single / rate["single"] + double / rate["double"]) / 1e9 + (folds + 1) * rate["eigh"]


def _floor_generalised(rate: dict[str, float], targets: int) -> float:
    n, p = 9000, 1000
    single, double = targets * (2 * n * p + 2 * p**2), 4 * n * p**2
    return (single / rate["single"] + double / rate["double"]) / 1e9 + rate["eigh"]


def best_batch(way: str, case: dict[str, object], size: int) -> dict[str, int]:
    """Return the faster of all targets at once and so many at a time."""
    whole, some = run(way, **case), run(way, **case, batch=size)
    return {"batch": size} if some.seconds < whole.seconds else {}


def batched(batch: dict[str, int]) -> str:
    return f"{batch['batch']} targets at a time there" if batch else "all targets at once there"


def same(a: Run, b: Run) -> float:
    return 100 * float(np.isclose(a.alpha, b.alpha).mean())


def difference(a: Run, b: Run) -> float:
    same = np.isclose(a.alpha, b.alpha)[: a.predicted.shape[1]]
    apart = np.abs(a.predicted - b.predicted)[:, same].max()
    return float(apart / np.abs(b.predicted).max())
