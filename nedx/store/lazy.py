"""Stored arrays that read exactly the chunks that a selection touches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize
from xarray.backends import BackendArray, ZarrStore
from xarray.core.indexing import LazilyIndexedArray

from nedx.compute.planned import Indexer, PlannedArray
from nedx.store.guard import reading

TARGET_BYTES = 32 * 2**20
"""What one task reads, uncompressed: enough to pay for its overhead, little to hold."""


_PATH = "nedx_path"


@dataclass(frozen=True)
class StoredPlan:
    """How to read what remains of a stored array.

    Parameters
    ----------
    variable : Variable
        The whole stored array, lazily, with its chunks and shards in ``encoding``.
    indexers : tuple of slice or int64 array
        What remains of each axis: a slice of step 1, or positions.
    asked : mapping of str to int
        Block lengths that a person asked for; the other axes are planned.
    token : str
        Stands for the content of the array in the names of dask's tasks.
    """

    variable: xr.Variable
    indexers: tuple[Indexer, ...]
    asked: Mapping[Any, int] = field(default_factory=dict)
    token: str = ""

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        return tokenize("nedx.StoredPlan", self.token, self.indexers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of what remains."""
        sizes = zip(self.indexers, self.variable.shape, strict=True)
        return tuple(_length(indexer, size) for indexer, size in sizes)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values, decoded."""
        return self.variable.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.variable.ndim

    def narrow(self, indexers: tuple[Indexer, ...]) -> StoredPlan:
        """Return the plan of a part of what remains."""
        steps = zip(self.indexers, indexers, self.variable.shape, strict=True)
        return replace(self, indexers=tuple(_compose(a, b, size) for a, b, size in steps))

    def read(self) -> np.ndarray:
        """Read what remains."""
        return np.asarray(self.variable[self.indexers].values)

    def build(self) -> da.Array:
        """Return the dask array: no stored chunk is read by two of its tasks."""
        # Chunks are read once each, in stored order; dask then brings rows into the order wanted.
        orders = [_unsorted(indexer) for indexer in self.indexers]
        plan = self.narrow(tuple(s if o is None else o[0] for s, o in _paired(self, orders)))
        array = da.from_array(plan, chunks=plan.blocks(), getitem=_read_block, meta=self._meta())
        for axis, order in enumerate(orders):
            if order is not None:
                array = da.take(array, order[1], axis=axis)
        return array

    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Choose the block lengths of each axis: whole multiples of the stored chunks."""
        stored = self.variable.encoding.get("chunks") or self.variable.shape
        shards = self.variable.encoding.get("shards") or stored
        touched = [
            _touched(indexer, size, chunk)
            for indexer, size, chunk in zip(self.indexers, self.variable.shape, stored, strict=True)
        ]
        chunk_bytes = int(np.prod(stored, dtype=np.int64)) * self.dtype.itemsize
        budget = max(1, TARGET_BYTES // max(1, chunk_bytes))
        lengths: list[tuple[int, ...]] = []
        # Rows of samples stay whole as long as they fit: the last axes are filled first.
        for axis in reversed(range(self.ndim)):
            asked = self.asked.get(self.variable.dims[axis])
            if asked is not None:
                lengths.append(_regular(self.shape[axis], asked))
                continue
            per_shard = max(1, shards[axis] // max(1, stored[axis]))
            needed = max(1, len(np.unique(touched[axis])))
            count = needed if needed <= budget else _whole_shards(budget, per_shard)
            lengths.append(_lengths(touched[axis], count, self.indexers[axis]))
            budget = max(1, budget // count)
        return tuple(reversed(lengths))

    def _meta(self) -> np.ndarray:
        return np.empty((0,) * self.ndim, self.dtype)


def plan_variable(variable: xr.Variable, asked: Mapping[Any, int], token: str) -> xr.Variable:
    """Return a lazily stored variable as a `PlannedArray`, dims and attributes kept."""
    whole: tuple[Indexer, ...] = tuple(slice(0, size) for size in variable.shape)
    # Groups hold variables of the same name.
    plan = StoredPlan(variable, whole, asked, f"{token}/{variable.encoding.get(_PATH, '')}")
    return xr.Variable(variable.dims, PlannedArray(plan), variable.attrs)


class CheckedStore(ZarrStore):
    """What xarray reads of a group, with checksum errors that say what to type.

    Parameters
    ----------
    group : zarr.Group
        What to read.
    url : str
        The store, for messages.
    """

    __slots__ = ("url",)

    def __init__(self, group: zarr.Group, url: str):
        # In Zarr 2 the fill value is what marks missing values.
        fill_is_missing = group.metadata.zarr_format == 2
        super().__init__(group, mode="r", use_zarr_fill_value_as_mask=fill_is_missing)
        self.url = url

    def open_store_variable(self, name: str) -> xr.Variable:
        """Return a variable whose reading is checked."""
        variable = super().open_store_variable(name)
        path = f"{self.zarr_group.path}/{name}".lstrip("/")
        data = LazilyIndexedArray(_CheckedArray(variable._data.array, path, self.url))
        encoding = {**variable.encoding, _PATH: path}
        return xr.Variable(variable.dims, data, variable.attrs, encoding)


class _CheckedArray(BackendArray):
    def __init__(self, array: Any, name: str, url: str):
        self.array, self.name, self.url = array, name, url
        self.shape = array.shape
        # Zarr gives numpy's new strings, which much of the world does not take yet.
        self.dtype = np.dtype(object) if array.dtype.kind == "T" else array.dtype

    def __getitem__(self, key: Any) -> Any:
        with reading(self.name, self.url):
            return self.array[key].astype(self.dtype, copy=False)

    async def async_getitem(self, key: Any) -> Any:
        with reading(self.name, self.url):
            return (await self.array.async_getitem(key)).astype(self.dtype, copy=False)


def _read_block(plan: StoredPlan, block: tuple[slice, ...]) -> np.ndarray:
    return plan.narrow(block).read()


def _paired(plan: StoredPlan, orders: Sequence[Any]) -> list[tuple[slice, Any]]:
    return [(slice(0, size), order) for size, order in zip(plan.shape, orders, strict=True)]


def _length(indexer: Indexer, size: int) -> int:
    if isinstance(indexer, slice):
        return len(range(*indexer.indices(size)))
    return len(indexer)


def _compose(first: Indexer, second: Indexer, size: int) -> Indexer:
    """Return the indexer that does what ``first`` and then ``second`` do, to an axis."""
    if not isinstance(first, slice):
        return np.asarray(first[second], dtype=np.int64)
    start = range(*first.indices(size))
    if not isinstance(second, slice):
        return (start.start + np.asarray(second, dtype=np.int64)).astype(np.int64)
    rest = start[second]
    if rest.step == 1:
        return slice(rest.start, max(rest.start, rest.stop))
    return np.arange(rest.start, rest.stop, rest.step, dtype=np.int64)


def _unsorted(indexer: Indexer) -> tuple[np.ndarray, np.ndarray] | None:
    """Return positions that read in stored order, and how to restore; None for sorted ones."""
    if isinstance(indexer, slice) or bool(np.all(np.diff(indexer) > 0)):
        return None
    _, first, inverse = np.unique(indexer, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.astype(np.int64)


def _touched(indexer: Indexer, size: int, chunk: int) -> np.ndarray:
    """Return the stored chunk that each remaining position lies in."""
    positions = np.arange(size)[indexer]
    return positions // max(1, chunk)


def _whole_shards(count: int, per_shard: int) -> int:
    """Round a number of chunks so that blocks divide shards, or are made of whole ones."""
    if count >= per_shard:
        return count // per_shard * per_shard
    return max(n for n in range(1, count + 1) if per_shard % n == 0)


def _lengths(touched: np.ndarray, count: int, indexer: Indexer) -> tuple[int, ...]:
    """Return block lengths: ``count`` stored chunks each, aligned where the axis is whole."""
    if not touched.size:
        return (0,)
    rank = np.concatenate([[0], np.cumsum(np.diff(touched) != 0)])
    if isinstance(indexer, slice):
        rank = rank + touched[0] % count
    lengths = np.bincount(rank // count)
    return tuple(int(n) for n in lengths[lengths > 0])


def _regular(size: int, length: int) -> tuple[int, ...]:
    if size == 0:
        return (0,)
    length = size if length < 1 else min(length, size)
    whole, rest = divmod(size, length)
    return (length,) * whole + ((rest,) if rest else ())
