"""Gradient descent on the cross-validated error of a banded ridge, each target by itself.

Over the principal axes U of all features ``X = U Z``, band b has the kernel ``K_b = Z_b Z_b'``.
With the training samples' ``U_t'U_t = F F'`` and weights g over penalty of each band, what is
predicted is ``U q`` where ``q = sum_b g_b K_b F w`` and
``(sum_b g_b F'K_b F + 1) w = F^-1 U_t'Y_t``. The error on the samples held out and, by the adjoint
of that system, its gradient in ``log g`` take two solutions; conjugate gradients find these for all
targets at once, from the inverse at the weights that the search has found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nedx.linear.design import Design
from nedx.linear.moments import Sums

if TYPE_CHECKING:
    import torch

_ITERATIONS = 50
_FIRST_STEP = 0.5
_GROWN, _SHRUNK = 1.5, 0.4


class Refinement:
    """Refines the penalties of targets.

    Parameters
    ----------
    design : Design
    kernels : float64 tensor (band, axis, axis)
        ``Z_b Z_b'``.
    folds : ndarray of int (sample,)
    """

    def __init__(self, design: Design, kernels: torch.Tensor, folds: np.ndarray):
        self.kernels = kernels
        members = [np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]
        self.held_out = [_HeldOut(design, held, kernels) for held in members]

    def run(
        self, sums: Sums, weights: torch.Tensor, scale: torch.Tensor, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Descend; a step that does not lower the error of a target is not taken.

        Parameters
        ----------
        sums : Sums
            Of targets that the search gave the same weights.
        weights : float64 tensor (band,)
            These.
        scale : float64 tensor (band, target)
            Weight over penalty, to begin with.
        steps : int
            Each at most half as long again as the last, the first of length 0.5 in ``log scale``.

        Returns
        -------
        scale : float64 tensor (band, target)
        errors : float64 tensor (target,)
            On the samples held out.
        """
        import torch

        alpha = weights.sum() / scale.sum(0)
        starts = [Inverse(torch.tensordot(weights, h.kernels, 1), alpha) for h in self.held_out]
        logarithm, size = scale.log(), torch.full_like(scale[0], _FIRST_STEP)
        errors, slope = self._errors(sums, logarithm, starts)
        for _ in range(steps):
            length = slope.norm(dim=0).clamp(min=torch.finfo(slope.dtype).tiny)
            trial = logarithm - size * slope / length
            found, downhill = self._errors(sums, trial, starts)
            better = found < errors
            errors = found.where(better, errors)
            logarithm, slope = trial.where(better, logarithm), downhill.where(better, slope)
            size *= torch.where(better, _GROWN, _SHRUNK)
        return logarithm.exp(), errors

    def _errors(
        self, sums: Sums, logarithm: torch.Tensor, starts: list[Inverse]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        errors, slope = (
            logarithm.new_zeros(logarithm.shape[1]),
            logarithm.new_zeros(logarithm.shape),
        )
        for fold, (held, start) in enumerate(zip(self.held_out, starts, strict=True)):
            of_fold, of_slope = held.error(sums, fold, logarithm.exp(), start)
            errors += of_fold
            slope += of_slope
        return errors, slope


class Inverse:
    """``(kernel / alpha + 1)^-1`` for a penalty alpha of each target.

    Parameters
    ----------
    kernel : float64 tensor (axis, axis)
    alpha : float64 tensor (target,)
    """

    def __init__(self, kernel: torch.Tensor, alpha: torch.Tensor):
        import torch

        values, self.axes = torch.linalg.eigh(kernel)
        self.shrunk = alpha / (values.clamp(min=0)[:, None] + alpha)

    def __call__(self, right: torch.Tensor) -> torch.Tensor:
        """Return the solutions, (axis, target)."""
        axes = self.axes.to(right.dtype)
        return axes @ (self.shrunk.to(right.dtype) * (axes.T @ right))


def solve_bands(
    kernels: torch.Tensor, scale: torch.Tensor, right: torch.Tensor, start: Inverse
) -> torch.Tensor:
    """Solve ``(sum_b scale_b K_b + 1) w = right`` for each target.

    Parameters
    ----------
    kernels : tensor (band, axis, axis)
    scale : tensor (band, target)
    right : tensor (axis, target)
    start : Inverse
        Near the solution.

    Returns
    -------
    tensor (axis, target)
    """

    def apply(x: torch.Tensor) -> torch.Tensor:
        return x + (scale[:, None].to(x.dtype) * (kernels.to(x.dtype) @ x)).sum(0)

    return _conjugate_gradients(apply, start, right)


@dataclass
class _Centred:
    """Sums of a fold about the means of the training samples."""

    train: torch.Tensor
    held: torch.Tensor
    squares: torch.Tensor


class _HeldOut:
    """One fold held out, over the axes of the samples that are left."""

    def __init__(self, design: Design, held: np.ndarray, kernels: torch.Tensor):
        import torch

        u = design.some_rows(held).double()
        self.count, self.train = len(held), design.samples - len(held)
        inner, self.total = u.T @ u, u.sum(0)
        self.mean = -self.total / self.train
        left = torch.eye(len(inner), dtype=inner.dtype, device=inner.device) - inner
        values, vectors = torch.linalg.eigh(left - self.train * torch.outer(self.mean, self.mean))
        # Samples held out leave directions without any where features are many.
        kept = values > 1e-9
        self.root = vectors[:, kept] * values[kept].sqrt()
        self.inverse = (vectors[:, kept] / values[kept].sqrt()).T
        across = torch.outer(self.total, self.mean)
        self.inner = inner - across - across.T + self.count * torch.outer(self.mean, self.mean)
        self.across = kernels @ self.root
        self.kernels = self.root.T @ self.across

    def error(
        self, sums: Sums, fold: int, scale: torch.Tensor, start: Inverse
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the squared error (target,) and its gradient in ``log scale`` (band, target)."""
        import torch

        y = self._centred(sums, fold)
        dtype = y.train.dtype
        kernels, across = self.kernels.to(dtype), self.across.to(dtype)
        of_band = scale.to(dtype)[:, None]
        w = solve_bands(kernels, scale, self.inverse.to(dtype) @ y.train, start)
        predicted = of_band * (across @ w)
        q = predicted.sum(0)
        spread = self.inner.to(dtype) @ q
        errors = y.squares + (q * (spread - 2 * y.held)).sum(0).double()
        residual = 2 * (spread - y.held)
        back = (of_band * (across.mT @ residual)).sum(0)
        adjoint = solve_bands(kernels, scale, back, start)
        slope = (residual * predicted).sum(1) - (adjoint * of_band * (kernels @ w)).sum(1)
        return errors.clamp(min=0), torch.nan_to_num(slope.double())

    def _centred(self, sums: Sums, fold: int) -> _Centred:
        of_held, dtype = sums.y[fold], sums.cross.dtype
        mean_y = (sums.y.sum(0) - of_held) / self.train
        held = sums.cross[fold]
        train = sums.cross.sum(0) - held
        mean, total = self.mean.to(dtype)[:, None], self.total.to(dtype)[:, None]
        train = train - self.train * mean * mean_y.to(dtype)
        moved = (of_held - self.count * mean_y).to(dtype)
        held = held - total * mean_y.to(dtype) - mean * moved
        squares = sums.yy[fold] - 2 * of_held * mean_y + self.count * mean_y**2
        return _Centred(train, held, squares)


def _conjugate_gradients(
    apply: Callable[[torch.Tensor], torch.Tensor], inverse: Inverse, right: torch.Tensor
) -> torch.Tensor:
    """Solve a symmetric system for each column, from an inverse that is nearly right."""
    import torch

    tiny = torch.finfo(right.dtype).tiny
    enough = 100 * torch.finfo(right.dtype).eps * right.norm(dim=0)
    x = inverse(right)
    residual = right - apply(x)
    direction = z = inverse(residual)
    product = (residual * z).sum(0)
    for _ in range(_ITERATIONS):
        if bool((residual.norm(dim=0) <= enough).all()):
            break
        applied = apply(direction)
        step = product / (direction * applied).sum(0).clamp(min=tiny)
        x = x + step * direction
        residual = residual - step * applied
        z = inverse(residual)
        last, product = product, (residual * z).sum(0)
        direction = z + product / last.clamp(min=tiny) * direction
    return x
