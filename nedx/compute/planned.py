"""A dask array that narrows its own work when it is indexed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import dask.array as da
import numpy as np

Indexer = slice | np.ndarray
"""What remains of an axis: a slice, or an int64 array of positions."""


class Plan(Protocol):
    """How to compute an array, known well enough to compute less of it."""

    def build(self) -> da.Array:
        """Return the dask array of the plan, without computing anything."""

    def narrow(self, indexers: tuple[Indexer, ...]) -> Plan:
        """Return the plan of what remains; one indexer for each axis of the array."""


class _CountsAsDaskArray(type):
    """Makes a subclass equal to `dask.array.Array` where types are compared.

    xarray loads and combines chunked arrays together only if all are of one type, and compares
    the types themselves: a Dataset of planned and of ordinary dask arrays could not be loaded.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is da.Array

    def __hash__(cls) -> int:
        return hash(da.Array)


class PlannedArray(da.Array, metaclass=_CountsAsDaskArray):
    """A dask array that knows its plan, so that selecting first saves the work.

    Slicing an ordinary dask array of predictions computes whole blocks and throws most of
    each away. A `PlannedArray` hands the selection to its plan instead, and the plan reads and
    multiplies only what is left. Any other operation gives an ordinary dask array.

    Parameters
    ----------
    plan : Plan
        What to compute.
    """

    plan: Plan

    def __new__(cls, plan: Plan) -> PlannedArray:
        """Build the array of a plan."""
        built = plan.build()
        self = super().__new__(cls, built.dask, built.name, built.chunks, meta=built._meta)
        self.plan = plan
        return self

    def __getitem__(self, key: Any) -> da.Array:
        normalized = _normalize(key, self.shape)
        if normalized is None:
            return super().__getitem__(key)
        indexers, dropped = normalized
        if all(isinstance(i, slice) and i == slice(None) for i in indexers):
            return self
        narrowed = self.plan.narrow(indexers)
        # An integer drops its axis, which the plan below keeps with length one.
        return PlannedArray(Squeezed(narrowed, self.ndim, dropped) if dropped else narrowed)


@dataclass(frozen=True, eq=False)
class Transposed:
    """A planned array with its axes in another order.

    Parameters
    ----------
    plan : Plan
        Of the array before.
    axes : tuple of int
        As `numpy.transpose` takes them.
    """

    plan: Plan
    axes: tuple[int, ...]

    def build(self) -> da.Array:
        """Return the transposed dask array."""
        return da.transpose(self.plan.build(), self.axes)

    def narrow(self, indexers: tuple[Indexer, ...]) -> Transposed:
        """Narrow the plan below, each of whose axes has one of these indexers."""
        below = dict(zip(self.axes, indexers, strict=True))
        return Transposed(self.plan.narrow(tuple(below[i] for i in range(len(below)))), self.axes)


@dataclass(frozen=True, eq=False)
class Squeezed:
    """A planned array without some of its axes, of length one.

    Parameters
    ----------
    plan : Plan
        Of the array before.
    ndim : int
        Its number of axes.
    dropped : frozenset of int
        The axes that are left out.
    """

    plan: Plan
    ndim: int
    dropped: frozenset[int]

    def build(self) -> da.Array:
        """Return the squeezed dask array."""
        return self.plan.build()[tuple(self._with(0, (slice(None),) * self.ndim))]

    def narrow(self, indexers: tuple[Indexer, ...]) -> Squeezed:
        """Narrow the plan below along the axes that are left."""
        below = self._with(slice(None), indexers)
        return Squeezed(self.plan.narrow(tuple(below)), self.ndim, self.dropped)

    def _with(self, one: Any, indexers: tuple[Indexer, ...]) -> list[Any]:
        """Spell indexers out for all axes of the plan, ``one`` for those left out."""
        left = iter(indexers)
        return [one if axis in self.dropped else next(left) for axis in range(self.ndim)]


def _normalize(
    key: Any, shape: tuple[int, ...]
) -> tuple[tuple[Indexer, ...], frozenset[int]] | None:
    """Spell a key out as one indexer an axis; None for what a plan cannot take."""
    keys = key if isinstance(key, tuple) else (key,)
    if any(k is None or k is Ellipsis for k in keys) or len(keys) > len(shape):
        return None
    indexers: list[Indexer] = []
    dropped = set()
    for axis, size in enumerate(shape):
        k = keys[axis] if axis < len(keys) else slice(None)
        if isinstance(k, slice):
            indexers.append(slice(None) if k.indices(size) == (0, size, 1) else k)
        elif isinstance(k, int | np.integer):
            position = range(size)[int(k)]
            indexers.append(np.array([position]))
            dropped.add(axis)
        elif isinstance(k, list | np.ndarray) and np.ndim(k) == 1:
            positions = np.asarray(k)
            if positions.dtype == bool:
                positions = np.flatnonzero(positions)
            if positions.size and (positions.min() < -size or positions.max() >= size):
                message = f"index out of bounds for axis {axis} of size {size}"
                raise IndexError(message)
            indexers.append(np.where(positions < 0, positions + size, positions).astype(np.int64))
        else:
            return None
    return tuple(indexers), frozenset(dropped)
