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
from nedx.linear.moments import near_mean
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
        # As products: sums along the rows take several times as long.
        ones = y.new_ones(len(y))
        origin = near_mean(y)
        y -= origin
        # Single precision rounds a mean far from zero; what it leaves is small, and exact.
        rest = ones @ y / len(y)
        y -= rest
        mean = origin.double() + rest
        cross = self.u.T @ y
        outside = None if self.full else y - self.u @ cross
        errors = mean.new_empty(len(self.left), y.shape[1])
        for i in range(len(self.left)):
            held_out = self._map(i) @ cross
            if outside is not None:
                held_out += self._inverted(i, outside)
            errors[i] = ones @ held_out.square_()
        return errors, cross, mean, (ones @ y.square_()).double()

    def _map(self, alpha: int) -> torch.Tensor:
        """Return what makes the residuals of all samples held out of U'Y, (held out, axis)."""
        return self._inverted(alpha, self.u * self.left[alpha].to(self.u.dtype))

    def _inverted(self, alpha: int, rows: torch.Tensor) -> torch.Tensor:
        """Return ``(I - H_kk)^-1`` times the rows of each fold k, fold after fold."""
        import torch

        if len(self.members) == len(rows):
            scale = torch.cat([each[alpha, 0] for each in self.inverses])
            return scale[:, None] * rows[np.concatenate(self.members)]
        pairs = zip(self.members, self.inverses, strict=True)
        return torch.cat([inverses[alpha] @ rows[which] for which, inverses in pairs])

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
