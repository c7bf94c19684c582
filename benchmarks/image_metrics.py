"""FID beside the root of a product of covariances: how fast, and how exact where it is singular."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.linalg import sqrtm

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.metrics.images.fid import frechet, moments

_FEATURES = 1024
# Fewer images than features, and more.
_SETS = {"200 images": 200, "2,048 images": 2048}


def measure() -> list[Row]:
    rows = []
    rng = np.random.default_rng(0)
    for name, count in _SETS.items():
        true = rng.standard_normal((count, _FEATURES))
        other = 1.2 * rng.standard_normal((count, _FEATURES)) + 0.1
        ways = {"ours": partial(_ours, true, other), "root": partial(_by_root, true, other)}
        seconds = interleave(ways, rounds=2)
        what = f"FID of {name} x {_FEATURES:,} features"
        note = f"{np.median(seconds['ours']):.3f} s"
        rows.append(
            at_least(f"{what}: root / ours", ratio(seconds["root"], seconds["ours"]), 1, note=note)
        )
    rows.append(_exactness(rng))
    return rows


def _exactness(rng: np.random.Generator) -> Row:
    """Compare with the same sets in the few axes that they span, where no root is singular."""
    narrow = rng.standard_normal((2, 200, 50))
    rotation = np.linalg.qr(rng.standard_normal((_FEATURES, 50)))[0].T
    exact = _by_root(*narrow)
    ours, root = (abs(way(*(narrow @ rotation)) / exact - 1) for way in (_ours, _by_root))
    name = "FID of singular covariances: error relative to the exact value"
    return at_most(name, ours, 1e-10, "", note=f"by the root of the product {root:.0e}")


def _ours(true: np.ndarray, other: np.ndarray) -> float:
    return frechet(moments(true), moments(other))


def _by_root(true: np.ndarray, other: np.ndarray) -> float:
    first, second = (np.cov(rows, rowvar=False) for rows in (true, other))
    apart = ((true.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    root = np.trace(sqrtm(first @ second)).real
    return float(apart + np.trace(first) + np.trace(second) - 2 * root)
