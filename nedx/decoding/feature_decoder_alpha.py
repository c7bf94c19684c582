"""The penalty of a decoder of features, chosen by how well left-out images are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from nedx.decoding.feature_decoder_samples import Trials, standardization, standardized
from nedx.errors import ModelError
from nedx.linear.folds import fold_numbers
from nedx.linear.l2lir import L2LiRInputs

PENALTIES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Those that ``alpha="cv"`` chooses among."""

_JUDGED = 256


def checked_penalties(alpha: float | str | Sequence[float]) -> tuple[float, ...]:
    """Return the penalties that a person means; one is not chosen among.

    Raises
    ------
    ModelError
        If they are not positive numbers.
    """
    if isinstance(alpha, str):
        if alpha == "cv":
            return PENALTIES
        raise ModelError(f"alpha is {alpha!r}; type a positive number, several, or 'cv'")
    given = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    if given.ndim != 1 or not given.size or not (given > 0).all():
        raise ModelError(f"alpha is {alpha!r}; expected positive numbers")
    return tuple(dict.fromkeys(given.tolist()))


def choose_alpha(
    x: np.ndarray,
    trials: Trials,
    features: np.ndarray | da.Array,
    alphas: Sequence[float],
    n_voxels: int,
    folds: int,
    device: str,
) -> float:
    """Return the penalty by which features of left-out images are predicted best.

    Each fold is left out once. Means, deviations and voxels are found without it, and without the
    trials that share an image, or a label of ``trials.exclusive``, with it. What is compared is
    the correlation over left-out images, averaged over at most 256 units, evenly spaced, and folds.

    Parameters
    ----------
    x : ndarray (trial, voxel)
        Responses, not standardised.
    trials : Trials
        Which images they are to, and what groups them.
    features : ndarray or dask array, (image, unit)
        Of the images of the trials.
    alphas : sequence of float
        To choose among.
    n_voxels, folds, device
        As of `FeatureDecoder`.

    Raises
    ------
    ModelError
        If there are fewer groups than folds, or nothing is left to fit to.
    """
    units = np.unique(np.linspace(0, features.shape[1] - 1, _JUDGED).astype(int))
    y = np.asarray(features[:, units], x.dtype)
    groups = trials.rows if trials.groups is None else trials.groups
    numbers = fold_numbers(len(x), folds, groups)
    assert numbers is not None
    scores = np.zeros(len(alphas))
    for fold in np.unique(numbers):
        held = numbers == fold
        kept = ~held & ~np.isin(trials.rows, trials.rows[held])
        if trials.exclusive is not None:
            kept &= ~np.isin(trials.exclusive, trials.exclusive[held])
        if len(np.unique(trials.rows[kept])) < 2 or len(np.unique(trials.rows[held])) < 2:
            raise ModelError(
                f"fold {fold} leaves {len(np.unique(trials.rows[kept]))} images to fit to and "
                f"{len(np.unique(trials.rows[held]))} to judge by, two are needed: type another "
                "number of folds, or groups and exclusive labels with more values"
            )
        scores += _scores(x, y, trials.rows, kept, held, alphas, n_voxels, device)
    return float(alphas[int(np.argmax(scores))])


def _scores(
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    kept: np.ndarray,
    held: np.ndarray,
    alphas: Sequence[float],
    n_voxels: int,
    device: str,
) -> np.ndarray:
    """Return the mean correlation of each penalty, (alpha,), for one fold."""
    mean, deviation = standardization(x[kept])
    images, own = np.unique(rows[kept], return_inverse=True)
    inputs = L2LiRInputs(
        standardized(x[kept], mean, deviation), rows=own, dtype=x.dtype, device=device
    )
    z = standardized(y[images], *standardization(y[images]))
    test, shown = np.unique(rows[held], return_inverse=True)
    averaged = np.zeros((len(test), x.shape[1]), x.dtype)
    np.add.at(averaged, shown, standardized(x[held], mean, deviation))
    averaged /= np.bincount(shown)[:, None]
    return np.array([_judged(inputs, z, a, n_voxels, averaged, y[test]) for a in alphas])


def _judged(
    inputs: L2LiRInputs, z: Any, alpha: float, n_voxels: int, x: np.ndarray, y: np.ndarray
) -> float:
    import torch

    predicted = inputs.fit(torch.from_numpy(z), alpha, n_voxels).predict(x)
    p, t = (values - values.mean(0, dtype=np.float64) for values in (predicted, y))
    size = np.sqrt((p * p).sum(0) * (t * t).sum(0))
    # A unit that does not vary says nothing about penalties.
    r = np.divide((p * t).sum(0), size, out=np.zeros_like(size), where=size > 0)
    return float(r.mean())
