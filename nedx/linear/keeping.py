"""Features that are made once and read more than once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import numpy as np

from nedx.errors import ModelError

Features: TypeAlias = np.ndarray | da.Array | Iterable[np.ndarray]
"""A matrix (sample, feature), lazy or not, or blocks of its rows as they are made."""

HELD_BYTES = 2**28
"""What is made lazily is held in memory up to this size, beyond it in a file."""

_READ_BYTES = 2**24


@contextmanager
def rereadable(
    features: Features, folder: str | Path | None = None
) -> Iterator[np.ndarray | da.Array]:
    """Give features as a matrix whose columns can be read any number of times.

    Parameters
    ----------
    features : ndarray, dask array or iterator of ndarray, (sample, feature)
        A dask array cut along features is given back as it is: it can be read by columns. One in
        a single block of features, or an iterator, is gone through once.
    folder : path, optional
        Where a temporary file goes, while the context lasts.

    Yields
    ------
    ndarray or dask array, (sample, feature)

    Raises
    ------
    ModelError
        If blocks differ in width, none come, or the disk has no room for them.
    """
    lazy = features if isinstance(features, da.Array) else None
    if isinstance(features, np.ndarray):
        yield features
    elif lazy is not None and lazy.numblocks[-1] > 1:
        yield lazy
    elif lazy is not None and lazy.nbytes <= HELD_BYTES:
        yield lazy.compute()
    else:
        with tempfile.TemporaryDirectory(prefix="nedx-features-", dir=folder) as place:
            yield _kept(_blocks(features, place), Path(place) / "features")


def _blocks(features: Iterable[np.ndarray], place: str) -> Iterator[np.ndarray]:
    if not isinstance(features, da.Array):
        yield from (np.asarray(block) for block in features)
        return
    free = shutil.disk_usage(place).free
    if features.nbytes > free:
        raise ModelError(
            f"{features.nbytes / 1e9:.1f} GB of features are read twice, so kept in {place} "
            f"meanwhile, where {free / 1e9:.1f} GB are free; give folder= a place with room, or "
            "features as a dask array cut along features"
        )
    for row in range(features.numblocks[0]):
        yield features.blocks[row].compute()


def _kept(blocks: Iterator[np.ndarray], path: Path) -> da.Array:
    """Write blocks of rows behind each other; return them lazily, cut along features."""
    samples, width = 0, 0
    dtype: np.dtype[Any] = np.dtype(np.float32)
    with path.open("wb") as file:
        for block in blocks:
            if not samples:
                width = block.shape[-1]
                dtype = np.dtype(np.float64 if block.dtype == np.float64 else np.float32)
            if block.ndim != 2 or block.shape[1] != width:
                raise ModelError(
                    f"a block of features has shape {block.shape}; expected (image, {width}), as "
                    "the first"
                )
            np.ascontiguousarray(block, dtype).tofile(file)
            samples += len(block)
    if not samples:
        raise ModelError("there are no features: no block of images came")
    columns = max(1, _READ_BYTES // (samples * dtype.itemsize))
    rows = _RowsOnDisk(path, (samples, width), dtype)
    return da.from_array(rows, chunks=(samples, columns), name=False, asarray=False)


class _RowsOnDisk:
    """A matrix in a file, read without mapping it: mapped pages would count as memory taken."""

    ndim = 2

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype):
        self.path, self.shape, self.dtype = path, shape, dtype

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (range(*part.indices(n)) for part, n in zip(key, self.shape, strict=True))
        found = np.empty((len(rows), len(columns)), self.dtype)
        with self.path.open("rb", buffering=0) as file:
            for row, into in zip(rows, found, strict=True):
                file.seek((row * self.shape[1] + columns.start) * self.dtype.itemsize)
                file.readinto(into)
        return found
