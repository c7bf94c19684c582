"""Ridge with more features than samples, against himalaya's kernel ridge."""

from __future__ import annotations

from benchmarks.measuring import Row, at_least
from benchmarks.ridge import batched, best_batch, difference, run, same

WIDE = {"samples": 1200, "features": 8192, "cv": 5, "penalties": 10, "low": -1, "high": 4}


def measure() -> list[Row]:
    """Run both in turn, three times."""
    case = {**WIDE, "targets": 4000}
    batch = best_batch("himalaya_kernel", case, 1000)
    pairs = [(run("nedx_ridge", **case), run("himalaya_kernel", **case, **batch)) for _ in range(3)]
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in pairs)
    ours, theirs = pairs[0]
    note = (
        f"same penalty {same(ours, theirs):.2f} %, predictions within "
        f"{difference(ours, theirs):.1e}; {ours.extra:.0f} and {theirs.extra:.0f} MB; "
        f"{batched(batch)}"
    )
    return [
        at_least("8,192 features, 1,200 samples, himalaya / nedx, time", ratios[1], 1, note=note)
    ]
