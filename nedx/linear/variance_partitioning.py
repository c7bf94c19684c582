"""What each feature space explains of the responses, by itself and with others.

The product measure splits the R2 of one joint fit among its bands (Hoffman 1960, Psychological
Bulletin 57:116; Pratt 1987). Unique and shared variance compare the R2 on held-out samples of fits
to every combination of the spaces (Borcard, Legendre & Drapeau 1992, Ecology 73:1045; de Heer et
al. 2017, Journal of Neuroscience 37:6539).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, combinations
from typing import Any

import numpy as np

from nedx.errors import ModelError
from nedx.linear.banded import BandedRidgeFit

MOST_SPACES = 4
"""Fits double with each feature space more."""

Spaces = tuple[str, ...]
"""Names of feature spaces, in the order they were given."""


def product_measure(y: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Split the R2 of a joint prediction among its parts.

    With responses y about their mean, a part p of the prediction P is given
    ``sum(p (2 y - P)) / sum(y^2)``. The parts sum to the R2 of P; one that works against the others
    is negative.

    Parameters
    ----------
    y : ndarray (sample, target)
        Measured responses, of samples held out; their mean is taken away.
    predictions : ndarray (band, sample, target)
        About the mean as well, as `BandedRidgeFit.predict_bands` gives them.

    Returns
    -------
    ndarray of float64, (band, target)
        NaN for a target that is constant.

    Raises
    ------
    ModelError
        If shapes differ.
    """
    y, predictions = np.asarray(y, np.float64), np.asarray(predictions, np.float64)
    if predictions.ndim != 3 or predictions.shape[1:] != y.shape:
        raise ModelError(
            f"predictions have shape {predictions.shape}, expected (band, *{y.shape}) beside "
            f"responses of shape {y.shape}"
        )
    y = y - y.mean(0)
    total = (y * y).sum(0)
    parts = np.einsum("bst,st->bt", predictions, 2 * y - predictions.sum(0))
    return parts / np.where(total > 0, total, np.nan)


def nested_r2(
    fit: Callable[[list[Any]], BandedRidgeFit],
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    y_test: np.ndarray,
) -> dict[Spaces, np.ndarray]:
    """Fit every combination of feature spaces; return the R2 of each on samples held out.

    Parameters
    ----------
    fit : callable
        Fits a list of bands, for example ``lambda bands: fit_banded_ridge(bands, y, alphas)``.
    train, test : mapping of str to ndarray or dask array, (sample, feature of the space)
        Features of the samples fitted to, and of those held out.
    y_test : ndarray (sample, target)
        Responses of the samples held out.

    Returns
    -------
    dict of tuple of str to ndarray of float64, (target,)
        NaN for a target that is constant.

    Raises
    ------
    ModelError
        If the spaces are not the same, or fewer than two or more than four.
    """
    names = tuple(train)
    if set(names) != set(test) or not 2 <= len(names) <= MOST_SPACES:
        raise ModelError(
            f"feature spaces are {list(train)} in training, {list(test)} in test; expected the "
            f"same, from 2 to {MOST_SPACES}"
        )
    y_test = np.asarray(y_test, np.float64)
    total = ((y_test - y_test.mean(0)) ** 2).sum(0)
    total[total == 0] = np.nan
    found = {}
    for some in _combinations(names):
        fitted = fit([train[name] for name in some])
        left = y_test - np.asarray(fitted.predict([test[name] for name in some]))
        found[some] = 1 - (left**2).sum(0) / total
    return found


def partition_variance(r2: Mapping[Spaces, np.ndarray]) -> dict[Spaces, np.ndarray]:
    """Split what all feature spaces explain together into unique and shared parts.

    What the spaces S share, and no other space has, follows by inclusion and exclusion from the
    fits without them (the rest Q): ``sum over T in S of (-1)^(|T| + 1) R2(Q and T)``.

    Parameters
    ----------
    r2 : mapping of tuple of str to ndarray (target,)
        R2 of the fit to each combination, as `nested_r2` gives it.

    Returns
    -------
    dict of tuple of str to ndarray of float64, (target,)
        Of one name what is unique to it, of more what these share. The parts sum to the R2 of all;
        some may be negative, where fits suffer from features that do not help.

    Raises
    ------
    ModelError
        If a combination is missing.
    """
    names = max(r2, key=len, default=())
    wanted = _combinations(names)
    missing = [some for some in wanted if some not in r2]
    if missing or not names:
        raise ModelError(f"the R2 of {missing or 'any fit'} is missing; `nested_r2` gives them all")
    nothing = np.zeros_like(np.asarray(r2[names], np.float64))
    parts = {}
    for shared in wanted:
        rest = [name for name in names if name not in shared]
        parts[shared] = nothing.copy()
        for some in [(), *_combinations(shared)]:
            joined = tuple(name for name in names if name in rest or name in some)
            sign = -1 if len(some) % 2 == 0 else 1
            parts[shared] += sign * np.asarray(r2[joined] if joined else nothing, np.float64)
    return parts


def _combinations(names: Spaces) -> list[Spaces]:
    """Return every combination of one name or more."""
    return list(chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1)))
