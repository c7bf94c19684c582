"""Ridge regression, exact, with a penalty for each target, from one pass over lazy targets.

The features are decomposed once (`nedx.linear.design`). A pass over the targets, in blocks of
columns, then keeps sums for each fold from which every penalty is scored (`nedx.linear.moments`);
where folds are many or features more than samples, residuals are cheaper (`nedx.linear.held_out`).
Memory does not grow with the number of samples or, through `RidgeSolver.blocks`, of targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.compute.devices import resolve_device
from nedx.errors import ModelError
from nedx.linear.design import Design
from nedx.linear.distributing import in_order
from nedx.linear.edge import PenaltyEdge
from nedx.linear.folds import CrossValidation, fold_numbers
from nedx.linear.held_out import SampleScorer
from nedx.linear.moments import FoldScorer, gcv_errors, r2, sum_targets, variance
from nedx.linear.streaming import Matrix, check_paired, column_blocks

if TYPE_CHECKING:
    import torch

MEMORY = 2**28
"""Bytes that a block of targets may take by default."""


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge: ``Y = X coef + intercept``.

    Attributes
    ----------
    coef : ndarray (feature, target)
        Weights; float64 where the targets are, else float32.
    intercept : ndarray of float64, (target,)
        Not penalised.
    alpha : ndarray of float64, (target,)
        The penalty chosen for each target.
    score : ndarray of float64, (alpha, target)
        Cross-validated R2 of each penalty: one minus the squared error on the samples held out,
        or that of generalised cross-validation, over the squared deviation from the mean. 0 for a
        target that does not vary.
    """

    coef: np.ndarray
    intercept: np.ndarray
    alpha: np.ndarray
    score: np.ndarray


def fit_ridge(
    x: Any,
    y: Any,
    alphas: Sequence[float],
    cv: CrossValidation = 5,
    *,
    groups: np.ndarray | None = None,
    per_target: bool = True,
    device: str = "auto",
    memory: int = MEMORY,
) -> RidgeFit:
    """Choose a penalty for each target by cross-validation and fit with it.

    Parameters
    ----------
    x : ndarray or dask array, (sample, feature)
        Features.
    y : ndarray or dask array, (sample, target)
        Responses, read once, block by block.
    alphas : sequence of float
        Penalties, as in scikit-learn's ``Ridge``: ``|Y - XB|^2 + alpha |B|^2``.
    cv : int, "loo", "gcv" or ndarray of int (sample,)
        As `nedx.linear.folds.fold_numbers` takes it.
    groups : ndarray (sample,), optional
        What must not be split across folds.
    per_target : bool
        A penalty for each target, or the one that is best for their mean R2.
    device : str
        Where to compute.
    memory : int
        Bytes that a block of targets may take.

    Returns
    -------
    RidgeFit

    Raises
    ------
    ModelError
        If shapes differ, values are not finite, or folds or penalties cannot be.

    Warns
    -----
    NedxWarning
        If scores still rise at the edge of the penalties.
    """
    check_paired(len(x), Matrix(y, "responses"))
    solver = RidgeSolver(x, alphas, cv, groups=groups, y_dtype=_dtype(y), device=device)
    parts = list(solver.blocks(y, per_target=per_target, memory=memory))
    return RidgeFit(
        *(np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(RidgeFit))
    )


class RidgeSolver:
    """A ridge whose features are decomposed, for targets that come in blocks or later.

    Parameters
    ----------
    x, alphas, cv, groups, device
        As `fit_ridge` takes them.
    y_dtype : numpy dtype
        float64 computes in float64, all else in float32.
    """

    def __init__(
        self,
        x: Any,
        alphas: Sequence[float],
        cv: CrossValidation = 5,
        *,
        groups: np.ndarray | None = None,
        y_dtype: Any = np.float32,
        device: str = "auto",
    ):
        import torch

        self.alphas = checked_penalties(alphas)
        samples = len(x)
        self.folds = fold_numbers(samples, cv, groups)
        self.device = resolve_device(device)
        self.dtype = np.dtype(np.float64 if np.dtype(y_dtype) == np.float64 else np.float32)
        self.design = Design(x, self.dtype, self.device)
        penalties = torch.from_numpy(self.alphas).to(self.device)
        self._penalties = penalties
        self._samples: SampleScorer | None = None
        self._folds: list[FoldScorer] = []
        if self.folds is None:
            return
        counts = np.bincount(self.folds)
        if self._by_sample(counts):
            self._samples = SampleScorer(self.design, self.folds, penalties)
        else:
            members = (np.flatnonzero(self.folds == fold) for fold in range(len(counts)))
            self._folds = [FoldScorer(self.design, held, penalties) for held in members]

    def blocks(
        self, y: Any, *, per_target: bool = True, memory: int = MEMORY
    ) -> Iterator[RidgeFit]:
        """Fit block after block of targets, each a task where a dask cluster is at hand.

        Yields
        ------
        RidgeFit
            Of the next targets, in order.
        """
        targets = Matrix(y, "responses", self.dtype, self.device)
        check_paired(self.design.samples, targets)
        blocks = list(column_blocks(targets, self._width(memory)))
        columns = [targets.columns(block) for block in blocks]
        chosen = None
        if not per_target:
            scores = in_order(RidgeSolver._score, self, columns)
            chosen = int(np.sum(list(scores), axis=0).argmax())
        edge = PenaltyEdge(self.alphas)
        for fit in in_order(RidgeSolver._fit, self, columns, chosen):
            edge.look(fit.score)
            yield fit
        edge.warn()

    def _score(self, targets: Matrix) -> np.ndarray:
        """Return R2 summed over targets, (alpha,)."""
        summed: np.ndarray = self._scored(targets)[0].sum(1).cpu().numpy()
        return summed

    def _fit(self, targets: Matrix, chosen: int | None = None) -> RidgeFit:
        import torch

        score, cross, mean = self._scored(targets)
        best = score.argmax(0) if chosen is None else torch.full_like(score[0], chosen).long()
        values = self.design.values
        shrinkage = (values / (values + self._penalties[:, None])).to(cross.dtype)
        coef = self.design.weights(shrinkage[best].T * cross)
        intercept = mean - self.design.of_mean(coef)
        alpha = self.alphas[best.cpu().numpy()]
        return RidgeFit(coef.cpu().numpy(), intercept.cpu().numpy(), alpha, score.cpu().numpy())

    def _scored(self, targets: Matrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return R2 (alpha, target), U'Y (axis, target) and the means (target,)."""
        import torch

        if self._samples is not None:
            errors, cross, mean, spread = self._samples.errors(targets)
        else:
            sums = sum_targets(self.design, targets, self.folds)
            cross, spread = sums.cross.sum(0), variance(sums, self.design.samples)
            mean = sums.origin + sums.y.sum(0) / self.design.samples
            if self.folds is None:
                errors = gcv_errors(self.design, sums, self._penalties)
            else:
                each = [fold.errors(sums, i) for i, fold in enumerate(self._folds)]
                errors = torch.stack(each).sum(0)
        return r2(errors, spread), cross, mean

    def _by_sample(self, counts: np.ndarray) -> bool:
        """Say whether residuals take fewer operations for each target than sums."""
        axes, samples, penalties = len(self.design.values), self.design.samples, len(self.alphas)
        sums = 2 * samples * axes + len(counts) * (4 + penalties) * axes**2
        products = 2 * samples * axes + 2 * (counts.astype(float) ** 2).sum()
        return bool(2 * samples * axes + penalties * products < sums)

    def _width(self, memory: int) -> int:
        kept = 4 if self.folds is None else 6 + len(self._folds)
        each = kept * len(self.design.values) + self.design.features
        if self._samples is not None:
            each += 4 * self.design.samples
        # Matrix products of other widths take half as long again.
        return 64 * max(1, memory // (64 * each * self.dtype.itemsize))


def checked_penalties(alphas: Sequence[float]) -> np.ndarray:
    """Return penalties as float64 (alpha,), or say why they are none."""
    try:
        # A copy: tensors cannot share what is read-only or runs backwards.
        penalties = np.array(alphas, np.float64, order="C")
    except (TypeError, ValueError):
        penalties = np.empty(0)
    if penalties.ndim != 1 or not penalties.size or not (penalties > 0).all():
        raise ModelError(f"alphas are {alphas!r}; expected one or more positive numbers")
    if not np.isfinite(penalties).all():
        raise ModelError(f"alphas are {alphas!r}; an infinite penalty leaves no weights to fit")
    return penalties


def _dtype(y: Any) -> Any:
    return getattr(y, "dtype", None) or np.asarray(y).dtype
