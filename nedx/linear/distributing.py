"""Blocks of targets here, one after the other, or as tasks of the dask cluster that is at hand."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from nedx.linear.streaming import Matrix

Result = TypeVar("Result")


def in_order(
    compute: Callable[..., Result], solver: Any, columns: Sequence[Matrix], *rest: Any
) -> Iterator[Result]:
    """Yield ``compute(solver, matrix, *rest)`` of every matrix, in order.

    Parameters
    ----------
    compute : callable
    solver : object
        Sent to each worker once.
    columns : sequence of Matrix
        Blocks of targets; a lazy one is read where it is computed.
    *rest
        Small arguments.
    """
    client = _client()
    if client is None:
        for matrix in columns:
            yield compute(solver, matrix, *rest)
        return
    import dask

    # By its hash it would be forgotten while it is sent again.
    there = client.scatter(solver, broadcast=True, hash=False)
    waiting = deque(columns)
    running: deque[Any] = deque()
    # What was computed lies in memory until its turn comes.
    ahead = 2 * max(1, len(client.nthreads()))
    while waiting or running:
        while waiting and len(running) < ahead:
            matrix = waiting.popleft()
            task = dask.delayed(_there)(
                compute, there, matrix.values, matrix.name, matrix.dtype, matrix.device, *rest
            )
            running.append(client.compute(task))
        yield running.popleft().result()


def _there(
    compute: Callable[..., Result],
    solver: Any,
    values: Any,
    name: str,
    dtype: Any,
    device: str,
    *rest: Any,
) -> Result:
    return compute(solver, Matrix(values, name, dtype, device), *rest)


def _client() -> Any:
    """Return the client of the cluster at hand, if there is one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None
