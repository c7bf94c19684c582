"""Rows and columns of what is fitted, from memory or lazy stores, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 2**25
"""What is read at a time, at least one row."""


class Matrix:
    """A matrix that is read in pieces of rows, in one dtype on a device.

    Parameters
    ----------
    values : ndarray or dask array, (sample, column)
        Numbers; a vector is one column.
    name : str
        What messages call it.
    dtype : numpy dtype, optional
        float64 as it is and float32 for all else by default.
    device : str
        A torch device.
    """

    def __init__(self, values: Any, name: str, dtype: Any = None, device: str = "cpu"):
        if not isinstance(values, da.Array):
            values = np.asarray(values)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.dtype.kind not in "fiub":
            raise ModelError(
                f"{name} are {values.dtype} of shape {values.shape}; expected numbers "
                "(sample, column)"
            )
        if not values.shape[1]:
            raise ModelError(f"{name} have no columns, of {values.shape[0]} samples: select some")
        single = np.float64 if values.dtype == np.float64 else np.float32
        self.dtype = np.dtype(dtype or single)
        self.values, self.name, self.device = values, name, device
        self.shape: tuple[int, int] = values.shape
        self._finite = False

    def columns(self, block: slice) -> Matrix:
        """Return some of the columns."""
        return Matrix(self.values[:, block], self.name, self.dtype, self.device)

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Read the rows in order, one piece ahead where they are lazy.

        Yields
        ------
        tuple of slice and tensor (row, column)

        Raises
        ------
        ModelError
            If a value is not finite.
        """
        parts = list(self._parts())
        if not isinstance(self.values, da.Array):
            for part in parts:
                yield part, self._tensor(part, self.values[part])
            self._finite = True
            return
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._read, parts[0])
            for i, part in enumerate(parts):
                values = coming.result()
                if i + 1 < len(parts):
                    coming = ahead.submit(self._read, parts[i + 1])
                yield part, self._tensor(part, values)

    def read(self, part: slice) -> torch.Tensor:
        """Return some rows, (row, column)."""
        return self._tensor(part, self._read(part))

    def whole(self) -> torch.Tensor:
        """Return all rows, (sample, column)."""
        import torch

        return torch.cat([rows for _, rows in self.pieces()])

    def _parts(self) -> Iterator[slice]:
        """Cut the rows between chunks, so that each chunk is read once."""
        samples, width = self.shape
        step = max(1, PIECE_BYTES // max(1, self.dtype.itemsize * width))
        lengths = self.values.chunks[0] if isinstance(self.values, da.Array) else ()
        start = stop = 0
        for length in lengths:
            if stop > start and stop + length - start > step:
                yield slice(start, stop)
                start = stop
            stop += length
        for first in range(start, samples, step) if not lengths else [start]:
            yield slice(first, min(first + step, samples) if not lengths else samples)

    def _read(self, part: slice) -> np.ndarray:
        if not isinstance(self.values, da.Array):
            return self.values[part]
        # In this thread: each thread that unpacks chunks keeps memory of its own.
        values: np.ndarray = self.values[part].compute(scheduler="synchronous")
        return values

    def _tensor(self, part: slice, values: np.ndarray) -> torch.Tensor:
        import torch

        values = np.require(values, self.dtype, ["C", "W"])
        rows = torch.from_numpy(values).to(self.device)
        # The sum of finite values may overflow, so that it only says where to look closely.
        if not self._finite and not bool(torch.isfinite(rows.sum())):
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if bad.size:
                first = (part.start + bad[:5]).tolist()
                raise ModelError(
                    f"{self.name} hold NaN or infinity, first in samples {first}: drop these, or "
                    "average over the repetitions that are there"
                )
        return rows


def check_paired(samples: int, targets: Matrix, name: str = "features") -> None:
    """Refuse targets of other samples than the features, before anything is computed of these.

    Raises
    ------
    ModelError
        If they are not as many.
    """
    if targets.shape[0] != samples:
        raise ModelError(f"{name} have {samples} samples, {targets.name} {targets.shape[0]}")


def column_blocks(matrix: Matrix, width: int) -> Iterator[slice]:
    """Cut the columns into blocks of about a width, between chunks where that is possible.

    Where chunks are tall, blocks are so narrow that one row of chunks is no more than a piece.
    """
    count = matrix.shape[1]
    edges = [0]
    if isinstance(matrix.values, da.Array):
        tallest = max(matrix.values.chunks[0])
        width = max(1, min(width, PIECE_BYTES // (tallest * matrix.dtype.itemsize)))
        ends = np.cumsum(matrix.values.chunks[1])
        while edges[-1] < count:
            within = ends[(ends > edges[-1]) & (ends <= edges[-1] + width)]
            edges.append(int(within[-1]) if within.size else min(edges[-1] + width, count))
    else:
        edges = [*range(0, count, width), count]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        yield slice(start, stop)
