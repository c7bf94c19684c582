"""The arithmetic of L2LiR: many small systems out of one Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nedx.linear.lapack import PositiveSystem, one_core_each

if TYPE_CHECKING:
    import torch

_GATHERED_BYTES = 2**28
_STRIPES = 8


def gram_matrix(x: torch.Tensor) -> torch.Tensor:
    """Return the products of inputs (input, input) of ``x (sample, input)``."""
    import torch

    if x.device.type != "cpu":
        return x.T @ x
    # numpy computes half of it, with the widest registers of every processor, and asks for huge
    # pages, which gathering from it gains by.
    values = x.numpy()
    return torch.from_numpy(values.T @ values)


def ranked(
    strength: torch.Tensor,
    count: int,
    exact: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    near: float = 0.0,
) -> torch.Tensor:
    """Return the strongest inputs (unit, count), rising.

    Parameters
    ----------
    strength : tensor (unit, input)
        How well inputs correlate with units, up to a factor for each unit.
    count : int
        How many to choose, fewer than there are.
    exact : callable (units, inputs) -> tensor (unit, input), optional
        Computes strengths of some units and inputs better.
    near : float
        Units whose last chosen input is by less than this stronger than the next are looked at
        again.

    Returns
    -------
    tensor of int64
    """
    values, index = strength.topk(count + 1, dim=1, sorted=False)
    smallest = values.argmin(1, keepdim=True)
    last = values.gather(1, smallest)
    chosen = index.scatter(1, smallest, strength.shape[1]).sort(1).values[:, :count]
    if exact is None:
        return chosen
    closest = values.scatter(1, smallest, float("inf")).amin(1, keepdim=True)
    doubtful = (closest - last < near)[:, 0].nonzero()[:, 0]
    if len(doubtful):
        # What is farther from the cut than both may be off is chosen or not all the same.
        better = strength[doubtful].double()
        close = ((better - last[doubtful]).abs() < 2 * near).any(0).nonzero()[:, 0]
        better[:, close] = exact(doubtful, close)
        again = better.topk(count, dim=1, sorted=False).indices
        chosen[doubtful] = again.sort(1).values
    return chosen


def solved(
    gram: torch.Tensor, place: torch.Tensor, cross: torch.Tensor, index: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Solve ``(G_JJ + alpha) w = c_J`` for each unit, J its inputs and the constant.

    Parameters
    ----------
    gram : tensor (input + 1, input + 1)
        Without penalty.
    place : tensor of int64, (input + 1,)
        Where the Gram matrix has each input.
    cross : tensor (unit, input + 1)
    index : tensor of int64, (unit, k)
        The inputs of each unit.
    alpha : float
        The penalty, of the constant too.

    Returns
    -------
    tensor (unit, k + 1)
        Weights, that of the constant last.
    """
    import torch

    bias = index.new_full((len(index), 1), cross.shape[1] - 1)
    joined = torch.cat([index, bias], 1)
    rows, order = place[joined].sort(1)
    right = cross.gather(1, joined.gather(1, order))
    if gram.device.type == "cpu":
        found = torch.from_numpy(
            _solved_in_threads(gram.numpy(), right.numpy(), rows.numpy(), alpha)
        )
    else:
        found = solved_in_batches(gram, right, rows, alpha)
    return torch.empty_like(found).scatter_(1, order, found)


def solved_in_batches(
    gram: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Solve many systems at once, which a GPU gains most by; all of ``gram`` must be there.

    Parameters
    ----------
    gram : tensor (input + 1, input + 1)
    right : tensor (unit, k + 1)
        Right sides.
    rows : tensor of int64, (unit, k + 1)
        Rows of the Gram matrix of each unit.
    alpha : float

    Returns
    -------
    tensor (unit, k + 1)
    """
    import torch

    found = torch.empty_like(right)
    step = max(1, _GATHERED_BYTES // (rows.shape[1] ** 2 * gram.element_size()))
    for part in _steps(len(rows), step):
        some = rows[part]
        gathered = gram[some[:, :, None], some[:, None, :]]
        gathered.diagonal(dim1=1, dim2=2).add_(alpha)
        factor = torch.linalg.cholesky(gathered)
        found[part] = torch.cholesky_solve(right[part, :, None], factor)[..., 0]
    return found


def _solved_in_threads(
    gram: np.ndarray, right: np.ndarray, rows: np.ndarray, alpha: float
) -> np.ndarray:
    """Solve one system at a time in each thread, which small systems gain most by."""
    import torch

    weights = right.copy()
    threads = torch.get_num_threads()
    parts = [part for part in np.array_split(np.arange(len(rows)), threads) if part.size]
    with one_core_each(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda units: _solve_each(gram, rows, alpha, units, weights), parts))
    return weights


def _solve_each(
    gram: np.ndarray, rows: np.ndarray, alpha: float, units: np.ndarray, weights: np.ndarray
) -> None:
    """Solve the systems of some units, whose right sides ``weights (unit, k + 1)`` holds."""
    width, count = len(gram), rows.shape[1]
    flat, system = gram.reshape(-1), PositiveSystem(count, gram.dtype)
    diagonal = np.einsum("ii->i", system.upper)
    edges = np.linspace(0, count, _STRIPES + 1).astype(int).tolist()
    for unit in units.tolist():
        own = rows[unit]
        starts = own[:, None] * width
        for start, stop in pairwise(edges):
            places = starts[start:stop] + own[start:]
            system.upper[start:stop, start:] = flat.take(places, mode="clip")
        diagonal += alpha
        system.solve(weights[unit])


def _steps(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, start + step)
