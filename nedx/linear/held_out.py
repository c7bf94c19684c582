"""Cross-validation of a ridge from its samples: exact errors of every fold, from one fit.

Leaving out a fold k changes its residuals to ``(I - H_kk)^-1 r_k``, where H is the hat matrix of
the fit to all samples, intercept included, and r its residuals (Cook & Weisberg 1982, Residuals and
Influence in Regression, section 3.2; for one sample it is the leave-one-out formula of Allen
1974, Technometrics 16:125). It needs the targets of all samples at once, and pays where folds are
many, or features more than samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nedx.linear.design import Design
from nedx.linear.streaming import Matrix

if TYPE_CHECKING:
    import torch


class SampleScorer:
    """Scores penalties on all folds.

    Parameters
    ----------
    design : Design
    folds : ndarray of int (sample,)
        The fold of each sample.
    alphas : float64 tensor (alpha,)
    """

    def __init__(self, design: Design, folds: np.ndarray, alphas: torch.Tensor):
        self.u = design.all_rows()
        # What a penalty leaves of each axis; what lies outside of the axes it leaves whole.
        self.left = alphas[:, None] / (design.values + alphas[:, None])
        self.full = len(design.values) == design.samples - 1
        self.members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
        self.inverses = [self._inverses(which) for which in self.members]

    def errors(self, targets: Matrix) -> tuple[torch.Tensor, ...]:
        """Go through the targets once.

        Returns
        -------
        tuple of tensors
            Squared errors, summed over folds, float64 (alpha, target); U'Y (axis, target); the
            means of the targets, and their squared deviations, summed, float64 (target,).
        """
        y = targets.whole()
        mean = y.mean(0, dtype=self.left.dtype)
        y = y - mean.to(y.dtype)
        cross = self.u.T @ y
        outside = None if self.full else y - self.u @ cross
        errors = mean.new_empty(len(self.left), y.shape[1])
        for i, left in enumerate(self.left.to(y.dtype)):
            residual = self.u @ (left[:, None] * cross)
            if outside is not None:
                residual += outside
            errors[i] = self._held_out(residual, i)
        return errors, cross, mean, y.square().sum(0, dtype=mean.dtype)

    def _held_out(self, residual: torch.Tensor, alpha: int) -> torch.Tensor:
        if len(self.members) == len(residual):
            scale = self._alone[alpha]
            return (residual * scale[:, None]).square().sum(0, dtype=self.left.dtype)
        total = self.left.new_zeros(residual.shape[1])
        for which, inverses in zip(self.members, self.inverses, strict=True):
            total += (inverses[alpha] @ residual[which]).square().sum(0, dtype=total.dtype)
        return total

    @property
    def _alone(self) -> torch.Tensor:
        import torch

        return torch.cat([inverse[:, 0, :] for inverse in self.inverses], 1)

    def _inverses(self, which: np.ndarray) -> torch.Tensor:
        """Return ``(I - H_kk)^-1`` of each penalty, (alpha, held out, held out)."""
        import torch

        u = self.u[which].double()
        outside = torch.zeros(len(u), len(u), dtype=u.dtype, device=u.device)
        if not self.full:
            outside = torch.eye(len(u), dtype=u.dtype, device=u.device) - u @ u.T
            outside -= 1 / len(self.u)
        kept = torch.stack([outside + (u * left) @ u.T for left in self.left])
        return torch.linalg.inv(kept).to(self.u.dtype)
