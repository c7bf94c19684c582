"""The features' side of a ridge: their principal axes, found once for all targets and penalties.

With the centred features ``X = U sqrt(S) V'``, the weights of a penalty are
``V sqrt(S)^-1 (f * U'Y)`` where ``f = s / (s + alpha)``. The axes come from the Gram matrix of the
features where these are fewer than the samples (primal), else from that of the samples (dual);
both are summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.errors import ModelError
from nedx.linear.streaming import Matrix

if TYPE_CHECKING:
    import torch

HELD_BYTES = 2**28
"""Principal axes of the samples up to this size are held in memory, else made again when needed."""


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

    @cached_property
    def to_weights(self) -> torch.Tensor:
        """``V sqrt(S)^-1``, float64 (feature, axis)."""
        if not self.wide:
            return self._vectors / self.values.sqrt()
        scaled = self._vectors / self.values
        weights = self.mean.new_zeros(self.features, len(self.values))
        for part, rows in self._centred():
            weights += rows.T @ scaled[part]
        return weights

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

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        # In float64: the axes of small variance would drown in the rounding of the large.
        return ((x.double() - self.mean) @ self.to_weights).to(x.dtype)

    def _mean(self) -> torch.Tensor:
        import torch

        total = torch.zeros(self.features, dtype=torch.float64, device=self.x.device)
        for _, rows in self.x.pieces():
            total += rows.double().sum(0)
        return total / self.samples

    def _centred(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for part, rows in self.x.pieces():
            yield part, rows.double() - self.mean

    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        size = min(self.samples, self.features)
        gram = self.mean.new_zeros(size, size)
        if self.wide:
            rows = self.x.whole()
            step = max(1, 2**24 // self.samples)
            for start in range(0, self.features, step):
                part = rows[:, start : start + step].double() - self.mean[start : start + step]
                gram.addmm_(part, part.T)
        else:
            for _, centred in self._centred():
                gram.addmm_(centred.T, centred)
        values, vectors = torch.linalg.eigh(gram)
        least = values[-1].clamp(min=0) * size * np.finfo(np.float64).eps
        kept = int((values > least).sum())
        if not kept:
            raise ModelError("all features are constant over the samples; there is nothing to fit")
        return values[-kept:].flip(0), vectors[:, -kept:].flip(1)
