"""Cross-validation of a ridge from sums: no prediction is formed, no sample is kept.

With the rows U_k of the principal axes and Y_k of a fold, only ``U_k'Y_k`` and the sums of Y_k and
its squares are kept, so memory does not grow with the number of samples. For the fold held out,
the others have axes with squared singular values s; in these, scaled to length 1, A is the
cross-product of the training samples, B that of the samples held out, and M their Gram matrix.
With ``f = s / (s + alpha)``,

    SSE = y'y - 2 sum_j f_j A_j B_j + (f * A)' M (f * A).

Hoerl & Kennard 1970 (Technometrics 12:55) for ridge; Golub, Heath & Wahba 1979 (Technometrics
21:215) for generalised cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nedx.errors import ModelError
from nedx.linear.design import Design
from nedx.linear.streaming import Matrix

if TYPE_CHECKING:
    import torch

_COLUMNS = 2560
_TILE = 1024
_ROWS = 125
_TOLERANCE = 1e-7


@dataclass
class Sums:
    """What is kept of the targets: sums over each fold, about an origin.

    Attributes
    ----------
    cross : tensor (fold, axis, target)
        U_k'Y_k.
    y, yy : float64 tensor (fold, target)
        Sums of Y_k and of its squares.
    origin : float64 tensor (target,)
        What was taken from Y first, near its mean, so that no digits are lost.
    """

    cross: torch.Tensor
    y: torch.Tensor
    yy: torch.Tensor
    origin: torch.Tensor


def sum_targets(design: Design, targets: Matrix, folds: np.ndarray | None) -> Sums:
    """Go through the targets once.

    Parameters
    ----------
    design : Design
        Of the same samples.
    targets : Matrix (sample, target)
    folds : ndarray of int (sample,), optional
        The fold of each sample; all one by default.
    """
    sums: Sums | None = None
    codes = np.zeros(design.samples, np.int64) if folds is None else folds
    for part, read in targets.pieces():
        if sums is None:
            sums = _empty(design, read, int(codes.max()) + 1)
        u = design.rows(part)
        for fold in np.unique(codes[part]):
            inside = np.flatnonzero(codes[part] == fold)
            whole = len(inside) == inside[-1] - inside[0] + 1
            some = slice(inside[0], inside[-1] + 1) if whole else inside
            _add(sums, int(fold), u[some], read[some])
    assert sums is not None
    return sums


def _add(sums: Sums, fold: int, u: torch.Tensor, read: torch.Tensor) -> None:
    """Add samples of one fold, so few targets at a time that they stay in the processor's cache."""
    import torch

    rows, width = read.shape
    step = min(_TILE, width) if read.device.type == "cpu" else width
    work, ones = read.new_empty(rows * step), read.new_ones(rows)
    for start in range(0, width, step):
        block = slice(start, min(start + step, width))
        y = work[: rows * (block.stop - start)].view(rows, -1)
        torch.sub(read[:, block], sums.origin[block].to(read.dtype), out=y)
        sums.cross[fold, :, block].addmm_(u.T, y)
        # As products: sums along the rows take several times as long.
        sums.y[fold, block] += ones @ y
        sums.yy[fold, block] += ones @ y.square_()


def _empty(design: Design, y: torch.Tensor, folds: int) -> Sums:
    import torch

    width = y.shape[1]
    zero = torch.zeros(folds, width, dtype=torch.float64, device=y.device)
    cross = y.new_zeros(folds, len(design.values), width)
    return Sums(cross, zero, zero.clone(), near_mean(y).double())


class FoldScorer:
    """Scores penalties on one fold held out.

    Parameters
    ----------
    design : Design
    held : ndarray of int (sample,)
        The samples held out.
    alphas : float64 tensor (alpha,)
    """

    def __init__(self, design: Design, held: np.ndarray, alphas: torch.Tensor):
        import torch

        u = design.some_rows(held).double()
        self.count, samples = len(held), design.samples
        self.train = samples - self.count
        inner, total = u.T @ u, u.sum(0)
        mean = -total / self.train
        root = design.values.sqrt()
        gram = torch.diag(design.values) - root[:, None] * inner * root
        scaled = root * mean
        gram -= self.train * torch.outer(scaled, scaled)
        values, vectors = torch.linalg.eigh(gram)
        kept = values > values[-1].clamp(min=0) * len(values) * np.finfo(np.float64).eps
        values, vectors = values[kept], vectors[:, kept]
        to_axes = root[:, None] * vectors / values.sqrt()
        inner = inner - torch.outer(total, mean) - torch.outer(mean, total)
        inner += self.count * torch.outer(mean, mean)
        inner = to_axes.T @ inner @ to_axes
        # A held-out fold with fewer samples than axes leaves directions without any.
        inner.diagonal().add_(1e-10 * inner.diagonal().mean().clamp(min=1e-300))
        dtype = torch.float64 if design.x.dtype == np.float64 else torch.float32
        self.mean, self.total = mean, total
        self.to_axes = to_axes.T.contiguous().to(dtype)
        self.root = torch.linalg.cholesky(inner, upper=True).to(dtype)
        self.shrinkage = (values / (values + alphas[:, None])).to(dtype)
        self.mixing, self.profiles = _low_rank(self.shrinkage)

    def errors(self, sums: Sums, fold: int) -> torch.Tensor:
        """Return the squared error on the fold, float64 (alpha, target)."""
        import torch

        width = max(64, _COLUMNS // len(self.profiles))
        targets = sums.y.shape[1]
        found = sums.y.new_empty(len(self.shrinkage), targets)
        for start in range(0, targets, width):
            block = slice(start, min(start + width, targets))
            found[:, block] = self._block_errors(sums, fold, block)
        return torch.clamp(found, min=0)

    def _block_errors(self, sums: Sums, fold: int, block: slice) -> torch.Tensor:
        cross, y = sums.cross[:, :, block], sums.y[:, block]
        held_y, yy = y[fold], sums.yy[fold, block]
        mean_y = (y.sum(0) - held_y) / self.train
        held = cross[fold]
        train = cross.sum(0) - held
        dtype = held.dtype
        mean, total = self.mean.to(dtype)[:, None], self.total.to(dtype)[:, None]
        of_y = mean_y.to(dtype)
        train = train - self.train * mean * of_y
        held = held - total * of_y - mean * (held_y - self.count * mean_y).to(dtype)
        a, b = self.to_axes @ train, self.to_axes @ held
        errors = yy - 2 * held_y * mean_y + self.count * mean_y**2
        return errors - 2 * (self.shrinkage @ (a * b)).double() + self._squares(a).double()

    def _squares(self, a: torch.Tensor) -> torch.Tensor:
        """Return the squared length of what each penalty predicts, (alpha, target)."""
        size, width = a.shape
        profiles = len(self.profiles)
        weights = (self.profiles.T[:, :, None] * a[:, None, :]).reshape(size, profiles * width)
        squares = a.new_zeros(len(self.shrinkage), width)
        for start in range(0, size, _ROWS):
            rows = slice(start, start + _ROWS)
            # The root is triangular: what lies before the diagonal is not gone through.
            predicted = (self.root[rows, start:] @ weights[start:]).view(-1, profiles, width)
            if self.mixing is not None:
                flat = predicted.transpose(0, 1).reshape(profiles, -1)
                predicted = (self.mixing @ flat).view(len(self.mixing), -1, width)
                squares += predicted.square_().sum(1)
            else:
                squares += predicted.square_().sum(0)
        return squares


def _low_rank(shrinkage: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return (alpha, profile) and (profile, axis) whose product is the shrinkage.

    Many penalties shrink in almost the same ways, so that few products serve for all.
    """
    import torch

    left, values, right = torch.linalg.svd(shrinkage.double(), full_matrices=False)
    rank = int((values > _TOLERANCE * values[0]).sum())
    if shrinkage.dtype == torch.float64 or rank > 0.7 * len(shrinkage):
        return None, shrinkage
    mixing, profiles = left[:, :rank] * values[:rank], right[:rank]
    return mixing.to(shrinkage.dtype), profiles.to(shrinkage.dtype)


def gcv_errors(design: Design, sums: Sums, alphas: torch.Tensor) -> torch.Tensor:
    """Return the generalised cross-validation error (alpha, target), as a sum over samples."""
    squared = sums.cross[0].double().square()
    left = alphas[:, None] / (design.values + alphas[:, None])
    outside = (variance(sums, design.samples) - squared.sum(0)).clamp(min=0)
    freedom = 1 + (1 - left).sum(1)
    # With as many parameters as samples nothing is left to judge by.
    rest = (1 - freedom / design.samples).clamp(min=1e-12)
    return (outside + left.square() @ squared) / rest[:, None] ** 2


def variance(sums: Sums, samples: int) -> torch.Tensor:
    """Return the squared deviations of each target from its mean, summed, (target,)."""
    return sums.yy.sum(0) - sums.y.sum(0) ** 2 / samples


def near_mean(y: torch.Tensor) -> torch.Tensor:
    """Return a number near the mean of each target (sample, target), to take from it first.

    Of a target that does not vary its very value: the mean of many equal numbers is rounded, and
    what it left would be scored as if it were a response.
    """
    low = y.amin(0)
    return low.where(low == y.amax(0), y.mean(0))


def r2(errors: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Return one minus the errors over the squared deviations (target,); 0 where there are none.

    Raises
    ------
    ModelError
        If squares of the targets were too large for their precision.
    """
    import torch

    if not bool(torch.isfinite(spread).all()):
        raise ModelError(
            "squares of the responses do not fit into float32: scale them, or give them as float64"
        )
    varies = spread > 0
    found = 1 - errors / spread.where(varies, spread.new_ones(()))
    return found.where(varies, found.new_zeros(()))
