"""Converted responses as dask arrays that narrow their own work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.compute import cache
from nedx.compute.batches import checked
from nedx.compute.devices import resolve_device
from nedx.compute.planned import Indexer
from nedx.compute.references import ModelRef, Positions
from nedx.conversion.kernels import converted
from nedx.conversion.recipe import Kernel, Space
from nedx.conversion.storing import PairPart


@dataclass(frozen=True)
class ConvertTask:
    """Converts one block of responses.

    Parameters
    ----------
    model : ModelRef
        The converter.
    pair : str
        Name of the pair.
    kernel, space : str
        As of its recipe.
    device : str
        As the user gave it; resolved where the task runs.
    shape : tuple of int
        Neuroids of the target, and times where neuroids and times are mixed.
    has_time : bool
        Whether the last axis of responses is time.
    """

    model: ModelRef
    pair: str
    kernel: Kernel
    space: Space
    device: str
    shape: tuple[int, ...]
    has_time: bool

    def __call__(
        self,
        block: np.ndarray,
        names: np.ndarray,
        rows: Positions | None,
        times: Positions | None,
    ) -> np.ndarray:
        """Return float32 (sample[, repetition], target[, time]) of some targets and times."""
        x = block.astype(np.float32, copy=False)
        checked(x, x.shape, np.float32, "the response", names=list(names))
        device = resolve_device(self.device)
        mixed = self.space == "neuroid_time"
        if self.has_time and not mixed:
            x = np.moveaxis(x, -1, -2)
        lead = x.shape[: x.ndim - (2 if mixed else 1)]
        flat = x.reshape(-1, *x.shape[len(lead) :])
        if mixed and self.kernel == "linear":
            flat = flat.reshape(len(flat), -1)
        columns = self._columns(rows, times)
        pair = cache.get(self.model, device, PairPart(self.pair, columns))
        found = converted(self.kernel, pair, flat, device)
        if self.kernel != "linear":
            found = _taken(found, rows, times) if mixed else _taken(found, rows, None)
        elif mixed:
            found = found.reshape(len(found), *self._sizes(rows, times))
        found = found.reshape(*lead, *found.shape[1:])
        if self.has_time and not mixed:
            found = np.moveaxis(found, -1, -2)
        return np.ascontiguousarray(found)

    def _columns(self, rows: Positions | None, times: Positions | None) -> Positions | None:
        """Return which columns of the matrix are wanted; all of a network."""
        if self.kernel != "linear" or (rows is None and times is None):
            return None
        if self.space == "neuroid":
            return rows
        grid = np.arange(np.prod(self.shape)).reshape(self.shape)
        return Positions.of(_taken(grid[None], rows, times)[0].ravel())

    def _sizes(self, rows: Positions | None, times: Positions | None) -> tuple[int, ...]:
        sizes = [None if p is None else len(p) for p in (rows, times)]
        return tuple(n if s is None else s for s, n in zip(sizes, self.shape, strict=True))


def _taken(values: np.ndarray, rows: Positions | None, times: Positions | None) -> np.ndarray:
    """Take some targets (axis 1) and times (axis 2)."""
    if rows is not None:
        values = values[:, rows.array]
    return values if times is None else values[:, :, times.array]


@dataclass(frozen=True, eq=False)
class ConvertPlan:
    """Converted responses ``(sample[, repetition], target[, time])``, float32.

    Parameters
    ----------
    responses : dask array (sample[, repetition], source[, time])
        Planned ones are narrowed by indexing them.
    names : ndarray of object, (sample,)
        For errors.
    task : ConvertTask
    rows, times : Positions, optional
        Which targets, and which times where neuroids and times are mixed; all by default.
    """

    responses: da.Array
    names: np.ndarray = field(repr=False)
    task: ConvertTask
    rows: Positions | None = None
    times: Positions | None = None

    @property
    def _last(self) -> int:
        """How many of the last axes are neuroids and times."""
        return 2 if self.task.has_time else 1

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        start = self.responses.ndim - self._last
        mixed = self.task.space == "neuroid_time"
        whole = {start: -1, start + 1: -1} if mixed else {start: -1}
        source = self.responses.rechunk(whole)
        name = f"converted-{tokenize(source.name, self.task, self.rows, self.times)}"
        edges = np.cumsum((0, *source.chunks[0]))
        graph: dict[Any, Any] = {}
        for where in product(*(range(len(lengths)) for lengths in source.chunks)):
            names = self.names[edges[where[0]] : edges[where[0] + 1]]
            graph[name, *where] = (self.task, (source.name, *where), names, self.rows, self.times)
        sizes = self.task.shape if mixed else (self.task.shape[0],)
        given = (self.rows, self.times)[: len(sizes)]
        last = (
            tuple((n if p is None else len(p),) for n, p in zip(sizes, given, strict=True))
            + source.chunks[start + len(sizes) :]
        )
        layered = HighLevelGraph.from_collections(name, graph, dependencies=[source])
        chunks = (*source.chunks[:start], *last)
        return da.Array(layered, name, chunks, meta=np.empty((0,) * len(chunks), np.float32))

    def narrow(self, indexers: tuple[Indexer, ...]) -> ConvertPlan:
        """Return the plan of what remains: other samples and targets are not converted."""
        mixed = self.task.space == "neuroid_time"
        start = self.responses.ndim - self._last
        taken = range(start, start + (2 if mixed else 1))
        responses = self.responses
        for axis, indexer in enumerate(indexers):
            if axis not in taken:
                responses = responses[(slice(None),) * axis + (indexer,)]
        rows = _narrowed(self.rows, self.task.shape[0], indexers[start])
        times = self.times
        if mixed:
            times = _narrowed(self.times, self.task.shape[1], indexers[start + 1])
        names = self.names[indexers[0]]
        return replace(self, responses=responses, names=names, rows=rows, times=times)


def _narrowed(kept: Positions | None, size: int, indexer: Indexer) -> Positions | None:
    if isinstance(indexer, slice) and indexer == slice(None):
        return kept
    before = np.arange(size) if kept is None else kept.array
    return Positions.of(before[indexer])
