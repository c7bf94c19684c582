"""A block is whole objects, in and out: what keeps two writers off one object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import xarray as xr
import zarr

from nedx.errors import AlignmentError, StoreError
from nedx.store.codecs import as_stored
from nedx.store.layout import Block, whole_objects
from nedx.store.manifest import StoredObject


def dims_of(array: zarr.Array) -> tuple[str, ...]:
    """Return the names of the dimensions of a stored array."""
    return tuple(str(d) for d in getattr(array.metadata, "dimension_names", None) or ())


def aligned(given: xr.DataArray, array: zarr.Array, block: Block, dim: str) -> np.ndarray:
    """Return the values of a block in the stored order, after checking that they are the block."""
    dims = dims_of(array)
    if set(given.dims) != set(dims):
        raise AlignmentError(f"{given.name!r} has dims {given.dims}, the store has {dims}")
    expected = tuple(
        block.stop - block.start if d == dim else n for d, n in zip(dims, array.shape, strict=True)
    )
    values = np.asarray(given.transpose(*dims).values)
    if values.shape != expected:
        raise AlignmentError(
            f"{given.name!r} has shape {values.shape} for samples {block.start} to {block.stop}, "
            f"expected {expected}: a block is written whole or not at all"
        )
    unit = (array.shards or array.chunks)[dims.index(dim)]
    size = array.shape[dims.index(dim)]
    if block.start % unit or (block.stop % unit and block.stop != size):
        raise AlignmentError(
            f"samples {block.start} to {block.stop} of {given.name!r} are not whole objects of "
            f"{unit}: a second writer would lose data"
        )
    return values


def put_block(
    array: zarr.Array, axis: int, block: Block, values: np.ndarray, keep_bits: int | None
) -> None:
    """Write the values of a block, rounded and packed piece by piece."""
    before = (slice(None),) * axis

    def put(piece: slice) -> None:
        inside = slice(piece.start - block.start, piece.stop - block.start)
        array[(*before, piece)] = as_stored(values[(*before, inside)], array.dtype, keep_bits)

    # While one piece is rounded, the chunks of another are packed.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, whole_objects(array, axis, block.start, block.stop)))


def check_written(
    array: zarr.Array, axis: int, block: Block, written: Mapping[str, StoredObject], path: str
) -> None:
    """Raise where an object of a block was not written, for whatever reason."""
    unit = array.shards or array.chunks
    cells = [range(math.ceil(n / u)) for n, u in zip(array.shape, unit, strict=True)]
    cells[axis] = range(block.start // unit[axis], math.ceil(block.stop / unit[axis]))
    expected = {f"{path}/{array.metadata.encode_chunk_key(cell)}" for cell in product(*cells)}
    if missing := sorted(expected - set(written)):
        raise StoreError(
            f"{len(missing)} objects of block {block.index} were not written, {missing[0]} the "
            "first; report this as a fault of nedx"
        )
