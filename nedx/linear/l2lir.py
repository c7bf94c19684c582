"""Linear regression with a ridge penalty on the inputs that correlate best with each unit.

For each unit the ``n_features`` inputs of largest ``|r|`` are chosen, and with a constant beside
them ``w = (J'J + alpha)^-1 J'y`` is solved: the constant is penalised too. One Gram matrix of all
inputs serves all units, each of which takes its rows and columns.

This is the method of feature decoding of Horikawa & Kamitani 2017 (Nature Communications 8:15037)
and Shen et al. 2019 (PLOS Computational Biology 15:e1006633).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.compute.devices import resolve_device
from nedx.errors import ModelError
from nedx.linear.streaming import Matrix, check_paired, column_blocks

if TYPE_CHECKING:
    import torch

_CONSTANT = 1e-8
_UNITS = 2048
_GATHERED_BYTES = 2**26


@dataclass(frozen=True)
class L2LiRFit:
    """A fitted model: ``y_u = sum_k x[index_uk] weight_uk + bias_u``.

    Attributes
    ----------
    index : ndarray of int32, (unit, k)
        The inputs of each unit, rising.
    weight : ndarray (unit, k)
        Their weights; float64 where the units are, else float32.
    bias : ndarray (unit,)
        Penalised as the weights are.
    inputs : int
        How many inputs there are to choose from.
    """

    index: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    inputs: int

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict units.

        Parameters
        ----------
        x : ndarray (sample, input)

        Returns
        -------
        ndarray (sample, unit)
        """
        if x.shape[-1] != self.inputs:
            raise ModelError(f"{x.shape[-1]} inputs were given, the model has {self.inputs}")
        blocks = np.array_split(np.arange(len(self.bias)), 1 + len(self.bias) // _UNITS)
        return np.concatenate([x @ self.dense(block) for block in blocks], axis=1) + self.bias

    def dense(self, units: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return weights (input, unit) of some units, 0 for inputs that were not chosen."""
        index, weight = self.index[units], self.weight[units]
        found = np.zeros((self.inputs, len(index)), weight.dtype)
        np.put_along_axis(found, index.T, weight.T, axis=0)
        return found


def fit_l2lir(
    x: Any,
    y: Any,
    alpha: float = 100.0,
    n_features: int | None = 500,
    *,
    device: str = "auto",
) -> L2LiRFit:
    """Choose inputs for each unit and regress it on them.

    Standardise `x` and `y` first: nothing is centred here, and the bias is penalised.

    Parameters
    ----------
    x : ndarray or dask array, (sample, input)
        For decoding the responses, for encoding the features.
    y : ndarray or dask array, (sample, unit)
        Units, read once, block by block.
    alpha : float
        The penalty of all weights.
    n_features : int, optional
        Inputs chosen for each unit; all where None, or where there are no more.
    device : str
        Where to compute.

    Returns
    -------
    L2LiRFit

    Notes
    -----
    Inputs whose variance is below 1e-8 correlate with nothing. A unit that is constant, 0 once
    standardised, gets weights and bias 0.

    Raises
    ------
    ModelError
        If shapes differ, values are not finite, or the penalty or number of inputs cannot be.
    """
    if not alpha > 0:
        raise ModelError(f"alpha is {alpha!r}; expected a positive number")
    if n_features is not None and n_features < 1:
        raise ModelError(f"n_features is {n_features}; type a number from 1, or None for all")
    single = np.dtype(getattr(y, "dtype", np.asarray(y).dtype)) != np.float64
    dtype = np.dtype(np.float32 if single else np.float64)
    place = resolve_device(device)
    units = Matrix(y, "units", dtype, place)
    check_paired(len(x), units, "inputs")
    solver = _Solver(Matrix(x, "inputs", dtype, place).whole(), alpha)
    inputs = solver.x.shape[1] - 1
    some = n_features if n_features is not None and n_features < inputs else None
    parts = [
        solver.all_inputs(block) if some is None else solver.chosen(block, some)
        for block in (units.columns(part).whole() for part in column_blocks(units, _UNITS))
    ]
    index, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    return L2LiRFit(index, weights[:, :-1], weights[:, -1], inputs)


class _Solver:
    """The inputs with a constant beside them, and their Gram matrix."""

    def __init__(self, x: torch.Tensor, alpha: float):
        import torch

        self.x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.alpha = alpha
        centred = (x - x.mean(0)).double()
        variance = centred.square().mean(0)
        self.scale = variance.rsqrt().where(variance >= _CONSTANT, variance.new_zeros(()))
        self.mean = x.mean(0, dtype=torch.float64)
        self._gram: torch.Tensor | None = None

    def all_inputs(self, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Solve without a choice, by the Gram matrix of inputs or of samples, whichever is less."""
        import torch

        samples, width = self.x.shape
        if samples > width:
            weights = torch.cholesky_solve(self.x.T @ y, torch.linalg.cholesky(self.gram))
        else:
            gram = self.x @ self.x.T
            gram.diagonal().add_(self.alpha)
            weights = self.x.T @ torch.cholesky_solve(y, torch.linalg.cholesky(gram))
        index = np.broadcast_to(np.arange(width - 1, dtype=np.int32), (y.shape[1], width - 1))
        return index, weights.T.cpu().numpy()

    def chosen(self, y: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Choose inputs for each unit and solve with them."""
        import torch

        cross = self.x.T @ y
        index = self._ranked(cross[:-1], y, count)
        bias = index.new_full((len(index), 1), len(cross) - 1)
        joined = torch.cat([index, bias], 1)
        weights = cross.new_empty(joined.shape)
        step = max(1, _GATHERED_BYTES // (joined.shape[1] ** 2 * cross.element_size()))
        for part in _steps(len(joined), step):
            rows = joined[part]
            gathered = self.gram[rows[:, :, None], rows[:, None, :]]
            right = cross.T[part].gather(1, rows)[..., None]
            factor = torch.linalg.cholesky(gathered)
            weights[part] = torch.cholesky_solve(right, factor)[..., 0]
        return index.to(torch.int32).cpu().numpy(), weights.cpu().numpy()

    def _ranked(self, cross: torch.Tensor, y: torch.Tensor, count: int) -> torch.Tensor:
        """Return the inputs of largest correlation, (unit, count), rising."""
        import torch

        # The spread of a unit is the same for all inputs and does not change their order.
        covariance = cross.double() - torch.outer(self.mean, y.sum(0, dtype=torch.float64))
        strength = (covariance * self.scale[:, None]).abs().T
        return strength.topk(count, dim=1, sorted=False).indices.sort(1).values

    @property
    def gram(self) -> torch.Tensor:
        """The Gram matrix with the penalty on its diagonal, that of the constant included."""
        if self._gram is None:
            self._gram = self.x.T @ self.x
            self._gram.diagonal().add_(self.alpha)
        return self._gram


def _steps(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, start + step)
