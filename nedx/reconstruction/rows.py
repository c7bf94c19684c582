"""The chunked layer of reconstruction: a task for each block of images, narrowed by selection."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.compute.planned import Indexer, PlannedArray
from nedx.encoding.plans import EVERYTHING
from nedx.errors import ModelError, close_matches
from nedx.schema import sample_dim

BLOCK_BYTES = 32 * 2**20
"""The most that what is made of one block should take."""


class RowTask(Protocol):
    """Makes something of some rows; a frozen dataclass, whose fields say what it makes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is made of one row."""

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return ``(row, *shape)`` of ``rows (row, *given)`` and the ``image_id`` of each."""


@dataclass(frozen=True, eq=False)
class RowsPlan:
    """What a task makes of every row, ``(*lead, *task.shape)``.

    Parameters
    ----------
    given : dask array (*lead, *tail)
        Whole along the tail.
    names : ndarray of object
        The ``image_id`` along the axis `axis`.
    axis : int
        The axis of the images, one of the lead.
    lead : int
        How many axes are of rows.
    task : RowTask
        What to do.
    """

    given: da.Array
    names: np.ndarray = field(repr=False)
    axis: int
    lead: int
    task: RowTask

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        chunks = self.given.chunks[: self.lead]
        stops = np.cumsum(chunks[self.axis])
        token = tokenize(self.given.name, self.names, self.axis, self.lead, self.task)
        name = f"{type(self.task).__name__.lower()}-{token}"
        tail_in = (0,) * (self.given.ndim - self.lead)
        tail_out = (0,) * len(self.task.shape)
        # One node holds the task.
        graph: dict[Any, Any] = {f"task-{name}": self.task}
        for index in product(*(range(len(lengths)) for lengths in chunks)):
            stop = stops[index[self.axis]]
            names = self.names[stop - chunks[self.axis][index[self.axis]] : stop]
            key = (self.given.name, *index, *tail_in)
            graph[(name, *index, *tail_out)] = (
                *(_call, f"task-{name}", key, names, self.axis, self.lead),
            )
        layered = HighLevelGraph.from_collections(name, graph, dependencies=[self.given])
        shape = tuple((size,) for size in self.task.shape)
        return da.Array(layered, name, (*chunks, *shape), dtype=self.task.dtype)

    def narrow(self, indexers: tuple[Indexer, ...]) -> Any:
        """Return the plan of what remains; nothing is made of other rows."""
        lead, tail = indexers[: self.lead], indexers[self.lead :]
        given = self.given
        for axis, indexer in enumerate(lead):
            given = given[(*(slice(None),) * axis, indexer)]
        plan = replace(self, given=given, names=self.names[lead[self.axis]])
        if all(isinstance(i, slice) and i == EVERYTHING for i in tail):
            return plan
        return Cut(PlannedArray(plan), self.lead, tail)


@dataclass(frozen=True, eq=False)
class Cut:
    """Some of what is made of each row, taken after it is made.

    Parameters
    ----------
    whole : PlannedArray (*lead, *tail)
        All of it.
    lead : int
        How many axes are of rows.
    kept : tuple of slice or ndarray
        What is left along the tail.
    """

    whole: PlannedArray
    lead: int
    kept: tuple[Indexer, ...]

    def build(self) -> da.Array:
        """Return the cut array."""
        array: da.Array = self.whole
        for axis, indexer in enumerate(self.kept, start=self.lead):
            array = da.Array.__getitem__(array, (*(EVERYTHING,) * axis, indexer))
        return array

    def narrow(self, indexers: tuple[Indexer, ...]) -> Cut:
        """Narrow the rows before, and cut further."""
        lead, tail = indexers[: self.lead], indexers[self.lead :]
        sizes = self.whole.shape[self.lead :]
        kept = tuple(
            np.arange(size)[before][now]
            for size, before, now in zip(sizes, self.kept, tail, strict=True)
        )
        return Cut(self.whole[lead], self.lead, kept)


def over_rows(array: xr.DataArray, tail: Sequence[Hashable], task: RowTask) -> PlannedArray:
    """Return what a task makes of every image of an array, lazily.

    Parameters
    ----------
    array : DataArray (*lead, *tail)
        With ``image_id`` on ``image`` or ``trial``.
    tail : sequence of str
        The dims of one row.
    task : RowTask
        What to do with rows.

    Returns
    -------
    PlannedArray (*lead, *task.shape)

    Raises
    ------
    ModelError
        If images have no ids.
    """
    lead = [dim for dim in array.dims if dim not in tail]
    dim = sample_dim(array)
    if "image_id" not in array.coords:
        raise ModelError(
            f"the rows along {dim!r} have no image_id, by which noise is drawn and images are "
            f"joined; type ds.assign_coords(image_id=({dim!r}, ids))"
        )
    array = array.transpose(*lead, *tail)
    bytes_made = max(1, int(np.prod(task.shape)) * task.dtype.itemsize)
    names = array["image_id"].values.astype(object)
    given = _blocks(array, len(lead), lead.index(dim), bytes_made)
    return PlannedArray(RowsPlan(given, names, lead.index(dim), len(lead), task))


def variable(ds: xr.Dataset, name: str, hint: str) -> xr.DataArray:
    """Return a variable, or say what is there and what to type."""
    if name not in ds:
        near = close_matches(name, ds.data_vars)
        raise ModelError(f"there is no {name!r} here ({near or 'there are no variables'}). {hint}")
    return ds[name]


def _blocks(array: xr.DataArray, lead: int, axis: int, bytes_made: int) -> da.Array:
    """Return rows whole along their tail, in blocks of which not too much is made."""
    data = array.variable._data
    if not isinstance(data, da.Array):
        data = da.from_array(np.asarray(array.values), chunks=-1)
    chunks: dict[int, Any] = dict.fromkeys(range(lead, data.ndim), -1)
    rows = int(np.prod([max(sizes, default=0) for sizes in data.chunks[:lead]]))
    if rows * bytes_made > BLOCK_BYTES:
        most = max(1, BLOCK_BYTES // bytes_made)
        chunks |= {i: 1 for i in range(lead) if i != axis}
        chunks[axis] = min(most, max(data.chunks[axis]))
    return data.rechunk(chunks)


def _call(task: RowTask, block: np.ndarray, names: np.ndarray, axis: int, lead: int) -> np.ndarray:
    shape = block.shape[:lead]
    if 0 in shape:
        return np.empty((*shape, *task.shape), task.dtype)
    along = names.reshape([-1 if i == axis else 1 for i in range(lead)])
    flat = np.broadcast_to(along, shape).reshape(-1)
    rows = np.ascontiguousarray(block).reshape(len(flat), *block.shape[lead:])
    return task(rows, flat.tolist()).reshape(*shape, *task.shape)
