"""Principal components against scikit-learn's: whole, randomised and incremental."""

from __future__ import annotations

import statistics
import time

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.linear.pca import fit_pca

SAMPLES, FEATURES, COMPONENTS, BATCH = 3000, 40_000, 250, 500


def measure() -> list[Row]:
    import torch
    from sklearn.decomposition import PCA, IncrementalPCA

    x = _features()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            ways = {
                "ours": lambda: fit_pca(x, COMPONENTS, standardize=False, device="cpu"),
                "randomised": lambda: PCA(COMPONENTS, random_state=0).fit(x),
            }
            seconds = interleave(ways, rounds=3)
            start = time.perf_counter()
            IncrementalPCA(COMPONENTS, batch_size=BATCH).fit(x)
            incremental = time.perf_counter() - start
            ours, theirs = ways["ours"](), ways["randomised"]()
            exact = _variances(x)
    finally:
        torch.set_num_threads(before)
    found = np.abs(ours.variance / exact - 1).max()
    sketched = np.abs(theirs.explained_variance_ / exact - 1).max()
    note = f"n={SAMPLES}, p={FEATURES}, k={COMPONENTS}, one thread"
    took = f"{statistics.median(seconds['ours']):.1f} s; {note}"
    return [
        at_least(
            "exact PCA against scikit-learn's randomised",
            ratio(seconds["randomised"], seconds["ours"]),
            1,
            note=took,
        ),
        at_least(
            f"exact PCA against IncrementalPCA({BATCH})",
            incremental / statistics.median(seconds["ours"]),
            5,
            note=note,
        ),
        at_most("exact PCA: largest relative error of a variance", float(found), 1e-4, ""),
        Row("scikit-learn's randomised: the same", float(sketched)),
    ]


def _features() -> np.ndarray:
    """Return features (sample, feature) whose variances fall by a power law."""
    rng = np.random.default_rng(0)
    falling = (np.arange(1, 601) ** -0.6).astype(np.float32)
    factors = rng.standard_normal((SAMPLES, 600), np.float32) * falling
    x = factors @ rng.standard_normal((600, FEATURES), np.float32)
    return x + rng.standard_normal(x.shape, np.float32)


def _variances(x: np.ndarray) -> np.ndarray:
    """Return the variances of the components by a decomposition in float64."""
    gram = np.zeros((SAMPLES, SAMPLES))
    for start in range(0, FEATURES, 4000):
        block = x[:, start : start + 4000].astype(np.float64)
        block -= block.mean(0)
        gram += block @ block.T
    return np.linalg.eigvalsh(gram)[::-1][:COMPONENTS] / (SAMPLES - 1)
