"""The penalty of a decoder of features, chosen by how well left-out images are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nedx.decoding.feature_decoder_layers import TrueFeatures
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
    try:
        given = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ModelError(f"alpha is {alpha!r}; expected positive numbers") from error
    if given.ndim != 1 or not given.size or not (given > 0).all():
        raise ModelError(f"alpha is {alpha!r}; expected positive numbers")
    return tuple(dict.fromkeys(given.tolist()))


def choose_alphas(
    x: np.ndarray,
    trials: Trials,
    layers: Mapping[str, TrueFeatures],
    alphas: Sequence[float],
    n_voxels: int,
    folds: int,
    device: str,
) -> dict[str, float]:
    """Return of each layer the penalty by which features of left-out images are predicted best.

    Each fold is left out once. Means, deviations and voxels are found without it, and without the
    trials that share an image, or a label of ``trials.exclusive``, with it. What is compared is
    the correlation over left-out images, averaged over at most 256 units, evenly spaced, and folds.

    Parameters
    ----------
    x : ndarray (trial, voxel)
        Responses, not standardised.
    trials : Trials
        Which images they are to, and what groups them.
    layers : mapping of str to TrueFeatures
        Features of the images of the trials, and perhaps of others.
    alphas : sequence of float
        To choose among.
    n_voxels, folds, device
        As of `FeatureDecoder`.

    Raises
    ------
    ModelError
        If there are fewer groups than folds, nothing is left to fit to, or features are not
        finite.
    """
    judged = {name: _some_units(name, one, trials.images, x.dtype) for name, one in layers.items()}
    groups = trials.rows if trials.groups is None else trials.groups
    numbers = fold_numbers(len(x), folds, groups)
    assert numbers is not None
    scores = {layer: np.zeros(len(alphas)) for layer in layers}
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
        # The responses of a fold and their Gram matrix serve all layers and penalties.
        without = _Fold.of(x, trials.rows, kept, held, device)
        for layer, y in judged.items():
            scores[layer] += without.scores(y, alphas, n_voxels)
    return {layer: float(alphas[int(np.argmax(found))]) for layer, found in scores.items()}


def _some_units(layer: str, one: TrueFeatures, images: Sequence[str], dtype: Any) -> np.ndarray:
    """Return at most 256 units (image, unit), evenly spaced."""
    units = np.unique(np.linspace(0, one.values.shape[1] - 1, _JUDGED).astype(int))
    found = np.asarray(replace(one, values=one.values[:, units]).of_images(images), dtype)
    if not np.isfinite(found).all():
        raise ModelError(f"features of {layer!r} hold NaN or infinity: leave these images out")
    return found


@dataclass(frozen=True, eq=False)
class _Fold:
    """Responses without one fold, and those of it.

    Attributes
    ----------
    inputs : L2LiRInputs
        Standardised responses to fit to.
    images, test : ndarray of int64
        The rows of features that are fitted to, and those that are judged by.
    x : ndarray (test image, voxel)
        Mean responses to the latter, standardised as the former.
    """

    inputs: L2LiRInputs
    images: np.ndarray
    test: np.ndarray
    x: np.ndarray

    @classmethod
    def of(
        cls, x: np.ndarray, rows: np.ndarray, kept: np.ndarray, held: np.ndarray, device: str
    ) -> _Fold:
        mean, deviation = standardization(x[kept])
        images, own = np.unique(rows[kept], return_inverse=True)
        z = standardized(x[kept], mean, deviation)
        inputs = L2LiRInputs(z, rows=own, dtype=x.dtype, device=device)
        test, shown = np.unique(rows[held], return_inverse=True)
        averaged = np.zeros((len(test), x.shape[1]), x.dtype)
        np.add.at(averaged, shown, standardized(x[held], mean, deviation))
        averaged /= np.bincount(shown)[:, None]
        return cls(inputs, images, test, averaged)

    def scores(self, y: np.ndarray, alphas: Sequence[float], n_voxels: int) -> np.ndarray:
        """Return the mean correlation of each penalty, (alpha,), of features (image, unit)."""
        own = y[self.images]
        z = standardized(own, *standardization(own))
        return np.array(
            [_judged(self.inputs, z, a, n_voxels, self.x, y[self.test]) for a in alphas]
        )


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
