"""Mini-batches: made ahead in threads, of a size that chunks do not decide, and checked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np

from nedx.errors import ModelError

Made = TypeVar("Made")


def batches(count: int, size: int) -> list[slice]:
    """Return slices of at most ``size`` that cover ``count``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def prefetch(
    make: Callable[[slice], Made], parts: Iterable[slice], *, ahead: int | None = None
) -> Iterator[Made]:
    """Make the next batches in threads while the caller works on this one.

    Parameters
    ----------
    make : callable (slice) -> batch
        Reads, decodes and preprocesses one batch.
    parts : iterable of slice
        The batches, in the order wanted.
    ahead : int, optional
        Batches under way at a time: they bound the memory. As many as there are threads by
        default.

    Yields
    ------
    batch
        In order. An error in a thread is raised here.
    """
    waiting: deque[Future[Made]] = deque()
    try:
        for part in parts:
            waiting.append(_pool().submit(make, part))
            if len(waiting) > (ahead or _threads()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def checked(
    array: Any, shape: Sequence[int], dtype: Any, what: str, *, names: Sequence[object] = ()
) -> np.ndarray:
    """Return an array if it is what was promised.

    Parameters
    ----------
    array : array-like
        What a kernel got or made.
    shape : sequence of int
        What its shape must be.
    dtype : dtype-like
        What its dtype must be.
    what : str
        What to call it in the error.
    names : sequence, optional
        Names of the entries along the first axis, for the error.

    Raises
    ------
    ModelError
        If shape or dtype differ, or a value is NaN or infinite.
    """
    array = np.asarray(array)
    if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
        raise ModelError(
            f"{what} should be {np.dtype(dtype)} {tuple(shape)}, got {array.dtype} {array.shape}"
        )
    if array.dtype.kind == "f":
        # Two passes are faster than a mask: the sum is finite where all values are, nearly always.
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(array.sum())
        if suspect:
            _refuse_non_finite(array, what, names)
    return array


def _refuse_non_finite(array: np.ndarray, what: str, names: Sequence[object]) -> None:
    rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if rows.size:
        named = [str(names[int(row)]) if len(names) else str(row) for row in rows]
        shown = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
        raise ModelError(
            f"{what} has NaN or infinite values for {len(named)} of {len(array)} entries: {shown}. "
            "Look at these images and at the weights; with 'fp16', try precision='bf16'"
        )


def _threads() -> int:
    return max(2, min(4, os.cpu_count() or 1))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), "nedx-prefetch", initializer=_one_core)


def _one_core() -> None:
    """Keep a thread of the pool to one core: teams of its own would stall the forward pass.

    Not with ``torch.set_num_threads``, which threads that start later would inherit.
    """
    import torch
    from threadpoolctl import threadpool_limits

    # Torch sets a thread up at its first call, and would undo the limit then.
    torch.get_num_threads()
    threadpool_limits(1, user_api="openmp")
