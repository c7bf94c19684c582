"""The features' side of a ridge: their principal axes, found once for all targets and penalties.

With the centred features ``X = U sqrt(S) V'``, the weights of a penalty are
``V sqrt(S)^-1 (f * U'Y)`` where ``f = s / (s + alpha)``. The axes come from the Gram matrix of the
features where these are fewer than the samples (primal), else from that of the samples (dual);
both are summed in float64.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.errors import ModelError
from nedx.linear.streaming import Matrix

if TYPE_CHECKING:
    import torch

HELD_BYTES = 2**28
"""Principal axes of the samples up to this size are held in memory, else made again when needed."""
_COLUMNS = 512


class Design:
    """Features, centred and decomposed.

    Parameters
    ----------
    x : ndarray or dask array, (sample, feature)
        Read twice, by pieces of rows.
    dtype : numpy dtype
        What products with targets are computed in.
    device : str
        A torch device.

    Attributes
    ----------
    mean : float64 tensor (feature,)
    values : float64 tensor (axis,)
        Squared singular values S, falling, none of them zero.
    """

    def __init__(self, x: Any, dtype: Any = None, device: str = "cpu"):
        self.x = Matrix(x, "features", dtype, device)
        self.samples, self.features = self.x.shape
        if self.samples < 2:
            raise ModelError(f"a ridge needs two samples or more, not {self.samples}")
        self.wide = self.features >= self.samples
        self.mean = self._mean()
        self.values, self._vectors = self._decomposed()

    def weights(self, shrunk: torch.Tensor) -> torch.Tensor:
        """Return ``V sqrt(S)^-1 (f * U'Y)``, (feature, target).

        Parameters
        ----------
        shrunk : tensor (axis, target)
            ``f * U'Y``.
        """
        if not self.wide:
            return self._to_axes.to(shrunk.dtype) @ shrunk
        scaled = (shrunk.double() / self.values[:, None]).to(shrunk.dtype)
        of_samples = self._vectors.to(shrunk.dtype) @ scaled
        weights = shrunk.new_zeros(self.features, shrunk.shape[1])
        mean = self.mean.to(shrunk.dtype)
        for part, rows in self.x.pieces():
            # Axes are orthogonal to a constant but for rounding, which a mean far from zero shows.
            weights.addmm_((rows - mean).T, of_samples[part])
        return weights

    def of_mean(self, weights: torch.Tensor) -> torch.Tensor:
        """Return what weights (feature, target) make of the mean, float64 (target,).

        A few features at a time, so that no copy of all weights in float64 is made.
        """
        found = self.mean.new_zeros(weights.shape[1])
        for start in range(0, self.features, _COLUMNS):
            some = slice(start, start + _COLUMNS)
            found += self.mean[some] @ weights[some].double()
        return found

    def rows(self, part: slice) -> torch.Tensor:
        """Return some rows of U, (row, axis)."""
        if self._held is not None:
            return self._held[part]
        return self._rotated(self.x.read(part))

    def some_rows(self, which: np.ndarray) -> torch.Tensor:
        """Return rows of U by number, (row, axis)."""
        if self._held is not None:
            return self._held[which]
        import torch

        inside = np.zeros(self.samples, bool)
        inside[which] = True
        found = [
            self._rotated(x[inside[part]]) for part, x in self.x.pieces() if inside[part].any()
        ]
        return torch.cat(found)

    def all_rows(self) -> torch.Tensor:
        """Return U, (sample, axis)."""
        return self.some_rows(np.arange(self.samples))

    @cached_property
    def _held(self) -> torch.Tensor | None:
        import torch

        dtype = torch.float64 if self.x.dtype == np.float64 else torch.float32
        if self.wide:
            return self._vectors.to(dtype)
        if self.samples * len(self.values) * self.x.dtype.itemsize > HELD_BYTES:
            return None
        return torch.cat([self._rotated(x) for _, x in self.x.pieces()])

    @cached_property
    def _to_axes(self) -> torch.Tensor:
        """V sqrt(S)^-1 of few features, float64 (feature, axis)."""
        return self._vectors / self.values.sqrt()

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        # In float64: the axes of small variance would drown in the rounding of the large.
        return ((x.double() - self.mean) @ self._to_axes).to(x.dtype)

    def _mean(self) -> torch.Tensor:
        import torch

        total = torch.zeros(self.features, dtype=torch.float64, device=self.x.device)
        for _, rows in self.x.pieces():
            total += rows.sum(0, dtype=torch.float64)
        return total / self.samples

    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        gram = self._gram_of_samples() if self.wide else self._gram_of_features()
        values, vectors = torch.linalg.eigh(gram)
        least = values[-1].clamp(min=0) * len(gram) * np.finfo(np.float64).eps
        kept = int((values > least).sum())
        if not kept:
            raise ModelError("all features are constant over the samples; there is nothing to fit")
        return values[-kept:].flip(0), vectors[:, -kept:].flip(1)

    def _gram_of_features(self) -> torch.Tensor:
        gram = self.mean.new_zeros(self.features, self.features)
        for _, rows in self.x.pieces():
            centred = rows.double() - self.mean
            gram.addmm_(centred.T, centred)
        return gram

    def _gram_of_samples(self) -> torch.Tensor:
        gram = self.mean.new_zeros(self.samples, self.samples)
        rows = self.x.whole()
        mean = self.mean.to(rows.dtype)
        for start in range(0, self.features, _COLUMNS):
            some = slice(start, start + _COLUMNS)
            part = rows[:, some] - mean[some]
            gram += part @ part.T
        # Rounding of the products must not give the constant an axis of its own.
        gram -= gram.mean(0)
        gram -= gram.mean(1, keepdim=True)
        return gram
