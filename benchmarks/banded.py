"""Banded ridge against himalaya's random search."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.linear.banded import fit_banded_ridge, random_weights

SAMPLES, WIDTHS, TARGETS, CANDIDATES, FOLDS = 6000, (300, 300), 2000, 5, 5
ALPHAS = np.logspace(0, 6, 10)


def measure() -> list[Row]:
    import torch
    from himalaya.backend import set_backend
    from himalaya.ridge import solve_group_ridge_random_search

    bands, y = _data()
    weights = random_weights(CANDIDATES, len(bands), seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    set_backend("torch")

    found: dict[str, Any] = {}

    def theirs() -> None:
        found["himalaya"] = solve_group_ridge_random_search(
            bands,
            y,
            n_iter=weights.astype(np.float32),
            alphas=ALPHAS.astype(np.float32),
            cv=FOLDS,
            fit_intercept=True,
            return_weights=True,
            progress_bar=False,
        )

    def ours() -> None:
        found["ours"] = fit_banded_ridge(bands, y, ALPHAS, weights, FOLDS, device="cpu")

    try:
        with threadpool_limits(1):
            seconds = interleave({"ours": ours, "himalaya": theirs}, rounds=1)
    finally:
        torch.set_num_threads(before)
        set_backend("numpy")
    fit, (deltas, coef, *_) = found["ours"], found["himalaya"]
    same = np.isclose(-np.log(fit.penalty), deltas.numpy(), atol=1e-3).all(0).mean()
    error = np.abs(fit.coef - coef.numpy()).max() / np.abs(coef.numpy()).max()
    took = statistics.median(seconds["ours"])
    note = f"{took:.1f} s; n={SAMPLES}, bands {WIDTHS}, v={TARGETS}, one thread"
    return [
        at_least(
            "banded ridge against himalaya",
            ratio(seconds["himalaya"], seconds["ours"]),
            12,
            note=note,
        ),
        at_least("banded ridge: targets with himalaya's penalties", 100 * float(same), 100, "%"),
        at_most("banded ridge: largest relative difference of weights", float(error), 1e-5, ""),
    ]


def _data() -> tuple[list[np.ndarray], np.ndarray]:
    """Return bands (sample, feature) with falling variances, and targets (sample, target)."""
    rng = np.random.default_rng(0)
    bands = []
    signal = np.zeros((SAMPLES, TARGETS))
    for width, share in zip(
        WIDTHS, (np.linspace(0, 1, TARGETS), np.linspace(1, 0, TARGETS)), strict=True
    ):
        x = rng.standard_normal((SAMPLES, width)) * np.arange(1, width + 1) ** -0.5
        x = x @ np.linalg.qr(rng.standard_normal((width, width)))[0]
        part = x @ rng.standard_normal((width, TARGETS))
        signal += share * part / part.std(0)
        bands.append(x.astype(np.float32))
    noise = rng.standard_normal(signal.shape) * rng.uniform(0.3, 3, TARGETS)
    return bands, (signal + noise).astype(np.float32)
