"""Ridge regression in closed form, with a penalty for each target, from streamed Gram matrices.

Only ``X'X`` and ``X'Y`` of each fold are kept, so memory does not grow with the number of images,
and no prediction is formed to score a penalty: with ``X'X = V S V'``, ``A = V'X'Y`` of the
training folds, ``B`` and ``M = V'X'XV`` of the fold held out, and ``d = 1 / (s + alpha)``,

    SSE = y'y - 2 sum_j d_j A_j B_j + (d A)' M (d A).

Hoerl & Kennard 1970 (Technometrics 12:55) for ridge, Golub, Heath & Wahba 1979 (Technometrics
21:215) for generalised cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nedx.errors import ModelError


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge: ``Y = X coef + intercept``.

    Attributes
    ----------
    coef : ndarray of float64, (feature, target)
        Weights.
    intercept : ndarray of float64, (target,)
        Not penalised.
    alpha : ndarray of float64, (target,)
        The penalty chosen for each target.
    score : ndarray of float64, (alpha, target)
        Cross-validated R2 (or one minus GCV over the variance) of each penalty.
    """

    coef: np.ndarray
    intercept: np.ndarray
    alpha: np.ndarray
    score: np.ndarray


@dataclass
class _Moments:
    """Sums over the samples of one fold, all about the same origin."""

    gram: np.ndarray
    cross: np.ndarray
    x: np.ndarray
    y: np.ndarray
    yy: np.ndarray
    count: int = 0

    @classmethod
    def zero(cls, features: int, targets: int) -> _Moments:
        return cls(
            np.zeros((features, features)),
            np.zeros((features, targets)),
            np.zeros(features),
            np.zeros(targets),
            np.zeros(targets),
        )

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += (y * y).sum(0)
        self.count += len(x)

    def without(self, other: _Moments) -> _Moments:
        return _Moments(
            self.gram - other.gram,
            self.cross - other.cross,
            self.x - other.x,
            self.y - other.y,
            self.yy - other.yy,
            self.count - other.count,
        )

    def about(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return X'X, X'Y and the diagonal of Y'Y about another origin."""
        n = self.count
        gram = self.gram - np.outer(self.x, x) - np.outer(x, self.x) + n * np.outer(x, x)
        cross = self.cross - np.outer(self.x, y) - np.outer(x, self.y) + n * np.outer(x, y)
        return gram, cross, self.yy - 2 * self.y * y + n * y * y


class RidgeGram:
    """Accumulates what ridge needs to know of the data, chunk by chunk.

    Parameters
    ----------
    features, targets : int
        Columns of X and of Y.
    folds : int
        Folds of the cross-validation; 1 for generalised cross-validation.
    """

    def __init__(self, features: int, targets: int, folds: int = 5):
        if folds < 1:
            raise ModelError(
                f"folds is {folds}; type cv=5, or cv=1 for generalised cross-validation"
            )
        self._folds = [_Moments.zero(features, targets) for _ in range(folds)]
        self._origin: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, x: np.ndarray, y: np.ndarray, fold: int | np.ndarray = 0) -> None:
        """Add samples.

        Parameters
        ----------
        x : ndarray (sample, feature)
            Summed in float64.
        y : ndarray (sample, target)
            Responses.
        fold : int or ndarray of int, (sample,)
            The fold each sample belongs to.

        Raises
        ------
        ModelError
            If a value is not finite.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        for name, values in (("features", x), ("responses", y)):
            if not np.isfinite(values).all():
                bad = np.flatnonzero(~np.isfinite(values).all(1))[:5]
                raise ModelError(
                    f"{name} hold NaN or infinity, first in samples {bad.tolist()}: drop these, "
                    "or average over the repetitions that are there"
                )
        if self._origin is None:
            # Sums about a point near the mean lose no digits when the mean is taken away.
            self._origin = x.mean(0), y.mean(0)
        x, y = x - self._origin[0], y - self._origin[1]
        which = np.broadcast_to(fold, len(x))
        for index in np.unique(which):
            self._folds[index].add(x[which == index], y[which == index])

    def solve(self, alphas: Sequence[float]) -> RidgeFit:
        """Choose a penalty for each target and fit with it.

        Parameters
        ----------
        alphas : sequence of float
            Penalties, as in scikit-learn's ``Ridge``: ``|Y - XB|^2 + alpha |B|^2``.

        Returns
        -------
        RidgeFit

        Raises
        ------
        ModelError
            If there are no data, a fold is empty, or a penalty is not positive.
        """
        penalties = np.asarray(alphas, np.float64)
        if penalties.ndim != 1 or not penalties.size or not (penalties > 0).all():
            raise ModelError(f"alphas are {alphas!r}; expected one or more positive numbers")
        counts = [fold.count for fold in self._folds]
        if self._origin is None or min(counts) < 1 or sum(counts) < 2:
            raise ModelError(f"the folds hold {counts} samples; each needs one: type a smaller cv")
        total = _Moments.zero(*self._folds[0].cross.shape)
        for fold in self._folds:
            total = _sum(total, fold)
        mean_x, mean_y = total.x / total.count, total.y / total.count
        gram, cross, variance = total.about(mean_x, mean_y)
        values, vectors = _eigh(gram)
        rotated = vectors.T @ cross
        if len(self._folds) == 1:
            errors = _gcv(values, rotated, variance, penalties, total.count)
        else:
            each = [_fold_errors(total, fold, penalties) for fold in self._folds]
            errors = np.sum(each, axis=0)
        score = 1 - errors / np.where(variance > 0, variance, 1)
        best = score.argmax(0)
        alpha = penalties[best]
        coef = vectors @ (rotated / (values[:, None] + alpha))
        origin_x, origin_y = self._origin
        intercept = origin_y + mean_y - (origin_x + mean_x) @ coef
        return RidgeFit(coef, intercept, alpha, score)


def fit_ridge(x: np.ndarray, y: np.ndarray, alphas: Sequence[float], folds: int = 5) -> RidgeFit:
    """Fit a ridge to arrays that lie in memory.

    Parameters
    ----------
    x : ndarray (sample, feature)
        Features.
    y : ndarray (sample, target)
        Responses.
    alphas : sequence of float
        Penalties to choose from.
    folds : int
        Contiguous folds; 1 for generalised cross-validation.

    Returns
    -------
    RidgeFit
    """
    gram = RidgeGram(x.shape[1], y.shape[1], folds)
    gram.add(x, y, contiguous_folds(len(x), folds))
    return gram.solve(alphas)


def contiguous_folds(samples: int, folds: int) -> np.ndarray:
    """Return the fold of each sample, as scikit-learn's ``KFold`` without shuffling.

    Returns
    -------
    ndarray of int64, (sample,)
    """
    return np.concatenate(
        [np.full(len(part), i) for i, part in enumerate(np.array_split(np.arange(samples), folds))]
    )


def _sum(a: _Moments, b: _Moments) -> _Moments:
    return _Moments(
        a.gram + b.gram, a.cross + b.cross, a.x + b.x, a.y + b.y, a.yy + b.yy, a.count + b.count
    )


def _eigh(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, not below zero, and eigenvectors in columns."""
    values, vectors = np.linalg.eigh(gram)
    return np.clip(values, 0, None), vectors


def _fold_errors(total: _Moments, held: _Moments, penalties: np.ndarray) -> np.ndarray:
    """Return the squared error (alpha, target) on a fold of the fit to the others."""
    train = total.without(held)
    mean_x, mean_y = train.x / train.count, train.y / train.count
    gram, cross, _ = train.about(mean_x, mean_y)
    values, vectors = _eigh(gram)
    fitted = vectors.T @ cross
    held_gram, held_cross, held_variance = held.about(mean_x, mean_y)
    product = vectors.T @ held_cross
    inner = vectors.T @ held_gram @ vectors
    errors = np.empty((len(penalties), len(held_variance)))
    for i, penalty in enumerate(penalties):
        shrunk = fitted / (values + penalty)[:, None]
        errors[i] = held_variance + (shrunk * (inner @ shrunk - 2 * product)).sum(0)
    return errors


def _gcv(
    values: np.ndarray, rotated: np.ndarray, variance: np.ndarray, penalties: np.ndarray, count: int
) -> np.ndarray:
    """Return the generalised cross-validation error (alpha, target), as a sum over samples."""
    inverse = 1 / (values + penalties[:, None])
    error = variance - (2 * inverse - values * inverse**2) @ rotated**2
    freedom = 1 + (values * inverse).sum(1)
    # With as many parameters as samples nothing is left to judge by.
    left = np.maximum(1 - freedom / count, 1e-12)
    return error / left[:, None] ** 2
