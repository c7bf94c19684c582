"""Ridge with more features than samples, against himalaya's kernel ridge."""

from __future__ import annotations

import numpy as np

from benchmarks.measuring import Row, at_least, at_most
from benchmarks.ridge import Run, batched, best_batch, difference, run, same
from benchmarks.ridge_cases import simulated

WIDE = {"samples": 1200, "features": 10_000, "cv": 5, "penalties": 10, "low": -1, "high": 4}
TARGETS, CHECKED = 4000, 200


def measure() -> list[Row]:
    """Run both in turn, three times."""
    case = {**WIDE, "targets": TARGETS}
    batch = best_batch("himalaya_kernel", case, 1000)
    pairs = [(run("nedx_ridge", **case), run("himalaya_kernel", **case, **batch)) for _ in range(3)]
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in pairs)
    ours, theirs = pairs[0]
    note = f"{ours.seconds:.1f} and {theirs.seconds:.1f} CPU s; {batched(batch)}"
    errors = [_error(each) for each in (ours, theirs)]
    return [
        at_least("10,000 features, 1,200 samples, himalaya / nedx, time", ratios[1], 1, note=note),
        at_least("same penalty", same(ours, theirs), 99.9, "%"),
        at_most(
            "predictions differ from those in float64, of the largest",
            errors[0],
            1e-5,
            "",
            note=f"{errors[1]:.1e} there; {difference(ours, theirs):.1e} between the two",
        ),
        at_most(
            "extra memory, to the budget",
            ours.extra / _budget(),
            1,
            "",
            note=f"{ours.extra:.0f} of {_budget():.0f} MB, {theirs.extra:.0f} there: a block of "
            "targets, the features, the weights in blocks and joined",
        ),
    ]


def _error(fitted: Run) -> float:
    """Compare with scikit-learn's ridge of the same penalties in float64, for some targets."""
    from sklearn.linear_model import Ridge

    x, y = simulated(WIDE["samples"], WIDE["features"], TARGETS)
    exact = x.astype(float)
    ridge = Ridge(fitted.alpha[:CHECKED], solver="svd").fit(exact, y[:, :CHECKED].astype(float))
    expected = ridge.predict(exact[: len(fitted.predicted)])
    found = fitted.predicted[:, :CHECKED]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _budget() -> float:
    """Return the MB that a fit may take: its blocks' by default, its copy of x, its result."""
    from nedx.linear.ridge import MEMORY

    values = WIDE["features"] * (WIDE["samples"] + 2 * TARGETS)
    return (MEMORY + 4 * values) / 2**20
