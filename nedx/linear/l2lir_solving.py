"""The arithmetic of L2LiR: many small systems out of one Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GATHERED_BYTES = 2**26


def gram_matrix(x: torch.Tensor) -> torch.Tensor:
    """Return the products of inputs (input, input) of ``x (sample, input)``."""
    return x.T @ x


def strengths(cross: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return how well inputs correlate with units, up to a factor for each unit.

    Parameters
    ----------
    cross : tensor (input + 1, unit)
        Products of inputs and a constant with units.
    mean, scale : tensor (input,)
        Of the inputs; scale is 1 over the deviation, 0 of constant ones.

    Returns
    -------
    tensor (unit, input)
    """
    # The spread of a unit is the same for all inputs and does not change their order.
    covariance = cross[:-1].double() - mean[:, None] * cross[-1].double()
    return covariance.mul_(scale[:, None]).abs_().T


def ranked(strength: torch.Tensor, count: int) -> torch.Tensor:
    """Return the strongest inputs (unit, count) of ``strength (unit, input)``, rising."""
    return strength.topk(count, dim=1, sorted=False).indices.sort(1).values


def solved(
    gram: torch.Tensor, cross: torch.Tensor, index: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Solve ``(G_JJ + alpha) w = c_J`` for each unit, J its inputs and the constant.

    Parameters
    ----------
    gram : tensor (input + 1, input + 1)
        Without penalty.
    cross : tensor (input + 1, unit)
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

    bias = index.new_full((len(index), 1), len(cross) - 1)
    joined = torch.cat([index, bias], 1)
    weights = cross.new_empty(joined.shape)
    step = max(1, _GATHERED_BYTES // (joined.shape[1] ** 2 * cross.element_size()))
    for part in _steps(len(joined), step):
        rows = joined[part]
        gathered = gram[rows[:, :, None], rows[:, None, :]]
        gathered.diagonal(dim1=1, dim2=2).add_(alpha)
        right = cross.T[part].gather(1, rows)[..., None]
        weights[part] = torch.cholesky_solve(right, torch.linalg.cholesky(gathered))[..., 0]
    return weights


def _steps(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, start + step)
