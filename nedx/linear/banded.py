"""Banded ridge: one penalty for each feature space, chosen for each target.

With a weight g_b for each band, ``sum_b |B_b|^2 alpha / g_b`` is penalised: a plain ridge on bands
scaled by ``sqrt(g_b)``. The features are decomposed once, ``X = U Z`` over their principal axes,
and the targets summed once in these; whatever the weights, scaled features stay in the span of U
and are described by ``sum_b g_b Z_b Z_b'``, a matrix as wide as there are axes. So all candidates
of the search are scored without another look at the data, with more features than samples too.

Nunez-Elizalde, Huth & Gallant 2019 (NeuroImage 197:482) for banded ridge; Dupre la Tour et al. 2022
(NeuroImage 264:119728) for the random search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from nedx.compute.devices import resolve_device
from nedx.errors import ModelError
from nedx.linear.design import Design
from nedx.linear.distributing import in_order
from nedx.linear.edge import PenaltyEdge
from nedx.linear.folds import fold_numbers
from nedx.linear.moments import FoldScorer, Sums, gcv_errors, r2, sum_targets, variance
from nedx.linear.refinement import Inverse, Refinement, solve_bands
from nedx.linear.ridge import MEMORY, checked_penalties
from nedx.linear.streaming import Matrix, check_paired, column_blocks

if TYPE_CHECKING:
    import torch

CONCENTRATIONS = (0.1, 1.0)
"""Of the Dirichlet distributions that weights are drawn from in turn: sparse, then even."""


@dataclass(frozen=True)
class BandedRidgeFit:
    """A fitted banded ridge: ``Y = sum_b X_b coef_b + intercept``.

    Attributes
    ----------
    coef : ndarray (feature, target)
        Weights of the bands behind each other; float64 where the targets are, else float32.
    intercept : ndarray of float64, (target,)
        Not penalised.
    penalty : ndarray of float64, (band, target)
        The penalty of each band, alpha over its weight; infinite for a band of no weight.
    score : ndarray of float64, (target,)
        Cross-validated R2 of these penalties, over all samples; 0 for a target that does not vary.
    mean : ndarray of float64, (feature,)
        Means of the features in training.
    widths : tuple of int
        Features of each band.
    """

    coef: np.ndarray
    intercept: np.ndarray
    penalty: np.ndarray
    score: np.ndarray
    mean: np.ndarray
    widths: tuple[int, ...]

    def predict(self, bands: Sequence[Any]) -> Any:
        """Predict responses.

        Parameters
        ----------
        bands : sequence of ndarray or dask array, (sample, feature of the band)

        Returns
        -------
        ndarray or dask array, (sample, target)
        """
        each = [x @ coef for x, coef, _ in self._parts(bands)]
        return sum(each[1:], each[0]) + self.intercept

    def predict_bands(self, bands: Sequence[Any]) -> Any:
        """Predict what each band contributes, as deviations from the mean response in training.

        Parameters
        ----------
        bands : sequence of ndarray or dask array, (sample, feature of the band)

        Returns
        -------
        ndarray or dask array, (band, sample, target)
            Their sum is the prediction less the mean response in training.
        """
        each = [(x - mean) @ coef for x, coef, mean in self._parts(bands)]
        return (da if isinstance(each[0], da.Array) else np).stack(each)

    def _parts(self, bands: Sequence[Any]) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        found = tuple(x.shape[-1] for x in bands)
        if found != self.widths:
            raise ModelError(f"bands of {found} features were given, fitted were {self.widths}")
        edges = np.cumsum(self.widths)[:-1]
        return list(zip(bands, np.split(self.coef, edges), np.split(self.mean, edges), strict=True))


def fit_banded_ridge(
    bands: Sequence[Any],
    y: Any,
    alphas: Sequence[float],
    weights: int | np.ndarray = 20,
    cv: Any = 5,
    *,
    groups: np.ndarray | None = None,
    refine: int = 0,
    seed: int = 0,
    device: str = "auto",
    memory: int = MEMORY,
) -> BandedRidgeFit:
    """Choose a penalty of each band for each target by cross-validation and fit with them.

    Parameters
    ----------
    bands : sequence of ndarray or dask array, (sample, feature of the band)
        The feature spaces; standardised features give penalties that can be compared.
    y : ndarray or dask array, (sample, target)
        Responses, read once, block by block.
    alphas : sequence of float
        Penalties tried with each weighting.
    weights : int or ndarray (candidate, band)
        Weightings tried: how many to draw (the first is even), or these.
    cv : int, "gcv" or ndarray of int (sample,)
        Contiguous folds, generalised cross-validation, or the fold of each sample.
    groups : ndarray (sample,), optional
        What must not be split across folds.
    refine : int
        Steps of gradient descent on the cross-validated error from the best of the search, each
        target's penalties by themselves.
    seed : int
        Of the draw.
    device : str
        Where to compute.
    memory : int
        Bytes that a block of targets may take.

    Returns
    -------
    BandedRidgeFit

    Raises
    ------
    ModelError
        If shapes differ, values are not finite, or folds, penalties or weights cannot be.

    Warns
    -----
    NedxWarning
        If scores still rise at the edge of the penalties.
    """
    solver = _Solver(bands, alphas, weights, cv, groups, refine, seed, y, device)
    targets = Matrix(y, "responses", solver.dtype, solver.design.x.device)
    columns = [targets.columns(block) for block in column_blocks(targets, solver.width(memory))]
    parts, edge = [], PenaltyEdge(solver.alphas)
    for *part, curve in in_order(_Solver.fit, solver, columns):
        edge.look(curve)
        parts.append(part)
    edge.warn()
    coef, intercept, penalty, score = (
        np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)
    )
    mean = solver.design.mean.cpu().numpy()
    return BandedRidgeFit(coef, intercept, penalty, score, mean, solver.widths)


def random_weights(count: int, bands: int, seed: int = 0) -> np.ndarray:
    """Draw weightings that sum to 1, sparse and even ones in turn, the first all equal.

    Returns
    -------
    ndarray of float64, (candidate, band)
    """
    rng = np.random.default_rng(seed)
    drawn = [
        rng.dirichlet(np.full(bands, CONCENTRATIONS[i % len(CONCENTRATIONS)])) for i in range(count)
    ]
    return np.array([np.full(bands, 1 / bands), *drawn[1:]])


class _Solver:
    """The features' side, and the choice and fit of a block of targets."""

    def __init__(
        self,
        bands: Sequence[Any],
        alphas: Sequence[float],
        weights: int | np.ndarray,
        cv: Any,
        groups: np.ndarray | None,
        refine: int,
        seed: int,
        y: Any,
        device: str,
    ):
        import torch

        self.widths = _widths(bands)
        check_paired(len(bands[0]), Matrix(y, "responses"))
        self.weights = _checked_weights(weights, len(bands), seed)
        self.alphas = checked_penalties(alphas)
        if isinstance(cv, str) and (cv != "gcv" or refine):
            raise ModelError(
                f"cv is {cv!r}" + " with refine" * bool(refine) + "; type a number of folds"
            )
        self.folds = fold_numbers(len(bands[0]), cv, groups)
        self.refine = refine
        single = np.dtype(getattr(y, "dtype", np.asarray(y).dtype)) != np.float64
        self.dtype = np.dtype(np.float32 if single else np.float64)
        self.design = Design(_joined(bands), self.dtype, resolve_device(device))
        values = self.design.values
        exact = torch.float32 if single and self.design.wide else torch.float64
        spread = self.design.weights(torch.diag(values).to(exact)).double()
        self.kernels = torch.stack([part.T @ part for part in spread.split(self.widths)])
        self.penalties = torch.from_numpy(self.alphas).to(values.device)

    def width(self, memory: int) -> int:
        """Return how many targets fit into some memory."""
        folds = 1 if self.folds is None else int(self.folds.max()) + 1
        each = (2 * folds + 4) * len(self.design.values) + 2 * self.design.features
        return max(64, memory // (each * self.dtype.itemsize))

    def fit(self, targets: Matrix) -> tuple[np.ndarray, ...]:
        """Return weights, intercept, penalties and score of some targets, and all its R2."""
        import torch

        sums = sum_targets(self.design, targets, self.folds)
        curve, candidate = self._searched(sums)
        errors, best = curve.min(0)
        alpha = self.penalties[best]
        scale = torch.from_numpy(self.weights).to(errors.device)[candidate].T / alpha
        solved = torch.empty_like(sums.cross[0], dtype=torch.float64)
        for chosen in candidate.unique().tolist():
            which = (candidate == chosen).nonzero()[:, 0]
            some = Sums(sums.cross[..., which], *(each[..., which] for each in _rest(sums)))
            weights = torch.from_numpy(self.weights[chosen]).to(errors.device)
            cross = some.cross.sum(0).double()
            inverse = Inverse(self._kernel(weights), alpha[which])
            solved[:, which] = inverse(cross)
            if self.refine:
                found = self._refinement.run(some, weights, scale[:, which], self.refine)
                scale[:, which], errors[which] = found
                solved[:, which] = solve_bands(self.kernels, found[0], cross, inverse)
        spread = variance(sums, self.design.samples)
        coef = self.design.weights((self.design.values[:, None] * solved).to(sums.cross.dtype))
        of_feature = torch.repeat_interleave(torch.tensor(self.widths, device=scale.device))
        coef = coef * scale[of_feature].to(coef.dtype)
        mean = sums.origin + sums.y.sum(0) / self.design.samples
        intercept = mean - self.design.of_mean(coef)
        score, curve = r2(errors, spread), r2(curve, spread)
        return tuple(part.cpu().numpy() for part in (coef, intercept, 1 / scale, score, curve))

    def _searched(self, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the errors (alpha, target) of the best weighting, and which that is (target,)."""
        import torch

        curve = sums.yy.new_full((len(self.alphas), sums.yy.shape[1]), torch.inf)
        candidate = torch.zeros_like(curve[0]).long()
        for i, weights in enumerate(torch.from_numpy(self.weights).to(curve)):
            weighted = _Weighted(self.design, self._kernel(weights))
            errors = self._errors(weighted, sums)
            better = errors.min(0).values < curve.min(0).values
            curve = errors.where(better, curve)
            candidate[better] = i
        return curve, candidate

    def _errors(self, weighted: _Weighted, sums: Sums) -> torch.Tensor:
        """Return the squared error on the samples held out, (alpha, target)."""
        turned = Sums(weighted.axes.T.to(sums.cross.dtype) @ sums.cross, *_rest(sums))
        if self.folds is None:
            return gcv_errors(weighted, turned, self.penalties)
        errors = sums.yy.new_zeros(len(self.alphas), sums.yy.shape[1])
        for fold in range(int(self.folds.max()) + 1):
            held = np.flatnonzero(self.folds == fold)
            errors += FoldScorer(weighted, held, self.penalties).errors(turned, fold)
        return errors

    @cached_property
    def _refinement(self) -> Refinement:
        assert self.folds is not None
        return Refinement(self.design, self.kernels, self.folds)

    def _kernel(self, weights: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.tensordot(weights, self.kernels, 1)


class _Weighted(Design):
    """A design whose bands are weighted: its axes, turned."""

    def __init__(self, design: Design, kernel: torch.Tensor):
        import torch

        self.design, self.x, self.samples = design, design.x, design.samples
        values, axes = torch.linalg.eigh(kernel)
        kept = values > values[-1].clamp(min=0) * len(values) * np.finfo(np.float64).eps
        self.values, self.axes = values[kept], axes[:, kept]

    def some_rows(self, which: np.ndarray) -> torch.Tensor:
        return self.design.some_rows(which).double() @ self.axes


def _rest(sums: Sums) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return sums.y, sums.yy, sums.origin


def _widths(bands: Sequence[Any]) -> tuple[int, ...]:
    shapes = [tuple(x.shape) for x in bands]
    if not shapes or any(len(shape) != 2 for shape in shapes) or len({s[0] for s in shapes}) > 1:
        raise ModelError(
            f"bands have shapes {shapes}; expected (sample, feature) each, of the same samples"
        )
    return tuple(width for _, width in shapes)


def _joined(bands: Sequence[Any]) -> Any:
    if any(isinstance(x, da.Array) for x in bands):
        return da.concatenate([da.asarray(x) for x in bands], axis=1)
    return bands[0] if len(bands) == 1 else np.concatenate(bands, axis=1)


def _checked_weights(weights: int | np.ndarray, bands: int, seed: int) -> np.ndarray:
    if isinstance(weights, int | np.integer):
        if weights < 1:
            raise ModelError(f"{weights} weightings were asked for; type one or more")
        return random_weights(int(weights), bands, seed)
    found = np.array(weights, np.float64, order="C")
    if found.ndim != 2 or found.shape[1] != bands:
        raise ModelError(f"weights have shape {found.shape}; expected (candidate, {bands} bands)")
    if not (np.isfinite(found).all() and (found >= 0).all() and found.any(1).all()):
        raise ModelError("weights must be finite, none negative, and not all zero in a candidate")
    return found
