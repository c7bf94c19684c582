"""RDMs, searchlights and pairwise decoding against rsatoolbox and scikit-learn.

The same arrays, float32 as responses are, one BLAS thread for each way; ratios are of rounds that
take turns. What nedx does includes the laying out of its graph.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.metrics.rsa import pairwise_decoding, rdm, searchlight_rdm

TOLERANCE = 1e-6
FITS_COMPARED = 400
"""How many pairs at one time point are also fitted one by one."""


def measure() -> list[Row]:
    """Compare the three; about two minutes on two cores."""
    with threadpool_limits(1), dask.config.set(scheduler="sync"):
        rows = [*_correlation(), *_searchlight()]
    with threadpool_limits(1):
        return [*rows, *_decoding()]


def _correlation(images: int = 1000, voxels: int = 5000) -> list[Row]:
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    values = np.random.default_rng(0).standard_normal((images, voxels), dtype=np.float32)
    responses = xr.DataArray(values, dims=("image", "voxel"), name="response")
    return _against(
        f"correlation RDM {images} x {voxels}",
        8,
        lambda: calc_rdm(Dataset(values), "correlation").dissimilarities[0],
        lambda: rdm(responses).values,
    )


def _searchlight(
    images: int = 50, centers: int = 2000, neighbours: int = 100, voxels: int = 20_000
) -> list[Row]:
    from rsatoolbox.util.searchlight import get_searchlight_RDMs

    rng = np.random.default_rng(0)
    values = rng.standard_normal((images, voxels), dtype=np.float32)
    responses = xr.DataArray(values, dims=("image", "voxel"), name="response")
    around = [rng.choice(voxels, neighbours, replace=False) for _ in range(centers)]
    where = np.arange(centers)

    def toolbox() -> np.ndarray:
        # It reports its progress.
        with contextlib.redirect_stderr(io.StringIO()):
            found = get_searchlight_RDMs(values, where, around, np.arange(images), "correlation")
        return found.dissimilarities.T

    return _against(
        f"searchlight {centers} x {neighbours} voxels x {images} images",
        12,
        toolbox,
        lambda: searchlight_rdm(responses, around, centers=where).values,
    )


def _against(
    name: str, bound: float, toolbox: Callable[[], Any], ours: Callable[[], Any]
) -> list[Row]:
    """Return how much faster than rsatoolbox it is, and how far apart the results are."""
    # It keeps what lies above the diagonal, row by row.
    matrices = ours()
    above = np.triu_indices(len(matrices), 1)
    largest = float(np.abs(toolbox() - matrices[above]).max())
    seconds = interleave({"rsatoolbox": toolbox, "nedx": ours})
    found = {way: float(np.median(values)) for way, values in seconds.items()}
    note = f"{found['rsatoolbox']:.3f} s and {found['nedx']:.3f} s"
    return [
        at_least(f"{name}: speed over rsatoolbox", ratio(*seconds.values()), bound, note=note),
        at_most(f"{name}: largest difference", largest, TOLERANCE, unit=""),
    ]


def _decoding(
    images: int = 50, channels: int = 63, times: int = 140, repetitions: int = 4
) -> list[Row]:
    rng = np.random.default_rng(0)
    shape = (images, repetitions, channels, times)
    signal = 0.4 * rng.standard_normal((images, 1, channels, times))
    values = (signal + rng.standard_normal(shape)).astype(np.float32)
    dims = ("image", "repetition", "channel", "time")
    responses = xr.DataArray(values, dims=dims, name="response")
    start = time.perf_counter()
    found = pairwise_decoding(responses).values
    seconds = time.perf_counter() - start
    fits = images * (images - 1) // 2 * repetitions * times
    start = time.perf_counter()
    wrong = _differences(values[..., 0].astype(np.float64), found[..., 0])
    each = (time.perf_counter() - start) / (FITS_COMPARED * repetitions)
    name = f"pairwise decoding, {fits:,} support vector machines"
    note = f"scikit-learn one by one: {each * fits:.0f} s (from {FITS_COMPARED * repetitions})"
    return [
        at_most(name, seconds, 20, "s", note),
        at_least(f"{name}: speed over scikit-learn", each * fits / seconds, 50),
        at_most(f"{name}: accuracies that differ, of {FITS_COMPARED}", wrong, 0, unit=""),
    ]


def _differences(values: np.ndarray, found: np.ndarray) -> int:
    """Count the pairs of (image, repetition, channel) that scikit-learn decodes otherwise."""
    from sklearn.svm import SVC

    every = np.arange(values.shape[1])
    pairs = np.argwhere(np.triu(np.ones(found.shape, dtype=bool), 1))[:FITS_COMPARED]
    wrong = 0
    for i, j in pairs:
        scores = []
        for test in every:
            train = every != test
            fitted = SVC(kernel="linear")
            labels = np.repeat([0, 1], train.sum())
            fitted.fit(np.concatenate([values[i, train], values[j, train]]), labels)
            scores.append(fitted.score(values[[i, j], test], [0, 1]))
        wrong += int(abs(np.mean(scores) - found[i, j]) > TOLERANCE)
    return wrong
