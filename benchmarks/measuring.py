"""What the benchmarks share: a row of the table, and fair timing of several ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, and what it should be."""

    name: str
    value: float | None
    unit: str = ""
    target: str = ""
    passed: bool | None = None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the row as plain data."""
        return asdict(self)


def at_least(name: str, value: float, bound: float, unit: str = "x", note: str = "") -> Row:
    """Return the row of a figure that should reach ``bound``."""
    return Row(name, value, unit, f">= {bound:g}", value >= bound, note)


def at_most(name: str, value: float, bound: float, unit: str = "x", note: str = "") -> Row:
    """Return the row of a figure that should stay below ``bound``."""
    return Row(name, value, unit, f"<= {bound:g}", value <= bound, note)


def interleave(ways: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Time several ways in turn, A B A B, after one uncounted round of each.

    Returns
    -------
    dict of str to list of float
        Wall seconds of each counted round.
    """
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median of the ratios round by round, which outlives a drift of the machine."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
