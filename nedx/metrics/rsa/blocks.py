"""A symmetric matrix of all pairs in blocks: each pair once, never the whole at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement, product
from uuid import uuid4

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph

Kernel = Callable[..., np.ndarray]
"""Compares (..., n, fold, pattern) with (..., m, fold, pattern), or with itself where it is given
one array only: (..., n, m)."""


def all_pairs(data: da.Array, kernel: Kernel, dtype: np.dtype) -> da.Array:
    """Compare all conditions with each other, lazily.

    A block of the result needs two blocks of conditions, and a block below the diagonal is the
    transpose of that above it.

    Parameters
    ----------
    data : dask array, (..., condition, fold, pattern)
        Fold and pattern in one block.
    kernel : callable
        See `Kernel`.
    dtype : dtype
        Of what the kernel returns.

    Returns
    -------
    dask array, (..., condition, condition)
    """
    name = f"all-pairs-{uuid4().hex}"
    *lead, conditions, _, _ = data.chunks
    graph: dict[tuple, tuple] = {}
    for index in product(*(range(len(sizes)) for sizes in lead)):
        for i, j in combinations_with_replacement(range(len(conditions)), 2):
            first, second = ((data.name, *index, k, 0, 0) for k in (i, j))
            graph[(name, *index, i, j)] = (kernel, first) if i == j else (kernel, first, second)
            if i != j:
                graph[(name, *index, j, i)] = (_transposed, (name, *index, i, j))
    layered = HighLevelGraph.from_collections(name, graph, dependencies=[data])
    chunks = (*lead, conditions, conditions)
    meta = np.empty((0,) * len(chunks), dtype=dtype)
    return da.Array(layered, name, chunks, dtype=dtype, meta=meta)


def triangle(matrix: da.Array) -> da.Array:
    """Return what lies above the diagonal of symmetric matrices, block by block, lazily.

    Parameters
    ----------
    matrix : dask array, (..., n, n)
        With the same blocks along both.

    Returns
    -------
    dask array, (..., n (n - 1) / 2)
        In the order of the blocks, which is the same for matrices of the same blocks.
    """
    name = f"triangle-{uuid4().hex}"
    *lead, rows, columns = matrix.chunks
    pairs = list(combinations_with_replacement(range(len(rows)), 2))
    graph: dict[tuple, tuple] = {}
    for index in product(*(range(len(sizes)) for sizes in lead)):
        for position, (i, j) in enumerate(pairs):
            take = _above_diagonal if i == j else _flattened
            graph[(name, *index, position)] = (take, (matrix.name, *index, i, j))
    sizes = tuple(
        rows[i] * (rows[i] - 1) // 2 if i == j else rows[i] * columns[j] for i, j in pairs
    )
    layered = HighLevelGraph.from_collections(name, graph, dependencies=[matrix])
    meta = np.empty((0,) * (matrix.ndim - 1), dtype=matrix.dtype)
    return da.Array(layered, name, (*lead, sizes), dtype=matrix.dtype, meta=meta)


def _transposed(block: np.ndarray) -> np.ndarray:
    return np.swapaxes(block, -1, -2)


def _above_diagonal(block: np.ndarray) -> np.ndarray:
    return block[..., *np.triu_indices(block.shape[-1], 1)]


def _flattened(block: np.ndarray) -> np.ndarray:
    return block.reshape(*block.shape[:-2], -1)
