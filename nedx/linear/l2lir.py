"""Linear regression with a ridge penalty on the inputs that correlate best with each unit.

For each unit the ``n_features`` inputs of largest ``|r|`` are chosen, and with a constant beside
them ``w = (J'J + alpha)^-1 J'y`` is solved: the constant is penalised too. One Gram matrix of all
inputs serves all units, each of which takes its rows and columns.

This is the method of feature decoding of Horikawa & Kamitani 2017 (Nature Communications 8:15037)
and Shen et al. 2019 (PLOS Computational Biology 15:e1006633).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.compute.devices import resolve_device
from nedx.errors import ModelError
from nedx.linear.l2lir_solving import gram_matrix, ranked, solved
from nedx.linear.streaming import Matrix, check_paired, column_blocks

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 2**29
"""For blocks of units, unless something else is said."""

_CONSTANT = 1e-8
_UNITS = 2048
_WHOLE = 1024
_CENTRED = 1e-3
_NEAR = 2e-7
"""Correlations in float32 that differ by less are compared again in float64."""
_COLUMNS = 1024


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
    rows: np.ndarray | None = None,
    memory: int = BLOCK_BYTES,
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
    rows : ndarray of int, (sample,), optional
        The row of `y` of each sample, where samples share rows as repeats of an image do; by
        default each has its own.
    memory : int
        Bytes for a block of units, beside the inputs, their Gram matrix and the result.
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
    single = np.dtype(getattr(y, "dtype", np.asarray(y).dtype)) != np.float64
    dtype = np.dtype(np.float32 if single else np.float64)
    check_penalty(alpha, n_features)
    inputs = L2LiRInputs(x, rows=rows, dtype=dtype, device=device)
    fits = [fit for _, fit in inputs.fit_blocks(y, alpha, n_features, memory=memory)]
    index, weight, bias = (
        np.concatenate([getattr(fit, name) for fit in fits]) for name in ("index", "weight", "bias")
    )
    return L2LiRFit(index, weight, bias, inputs.count)


def check_penalty(alpha: float, n_features: int | None) -> None:
    """Refuse a penalty or a number of inputs that cannot be."""
    if not 0 < alpha < math.inf:
        raise ModelError(f"alpha is {alpha!r}; expected a positive number")
    if n_features is not None and (not isinstance(n_features, Integral) or n_features < 1):
        raise ModelError(
            f"n_features is {n_features!r}; type a whole number from 1, or None for all"
        )


class L2LiRInputs:
    """Inputs that units are regressed on; their one Gram matrix serves all units and penalties.

    Parameters
    ----------
    x : ndarray or dask array, (sample, input)
        Read once.
    rows : ndarray of int, (sample,), optional
        The row of the units of each sample; by default each has its own.
    dtype : numpy dtype
        Of all arithmetic, float32 or float64.
    device : str
        Where to compute.

    Raises
    ------
    ModelError
        If values are not finite, or there is not a row for each sample.
    """

    def __init__(
        self,
        x: Any,
        *,
        rows: np.ndarray | None = None,
        dtype: Any = np.float32,
        device: str = "auto",
    ):
        import torch

        self._dtype, self._place = np.dtype(dtype), resolve_device(device)
        inputs = Matrix(x, "inputs", self._dtype, self._place)
        if not inputs.shape[0]:
            raise ModelError("inputs are of no samples: select some")
        values = inputs.whole()
        self.samples, self.count = values.shape
        if rows is not None and len(rows) != self.samples:
            raise ModelError(f"there are {len(rows)} rows of units for {self.samples} samples")
        if rows is not None and rows.dtype.kind not in "iu":
            raise ModelError(f"rows are {rows.dtype}, expected whole numbers")
        if rows is not None and rows.min() < 0:
            raise ModelError(f"rows begin at {rows.min()}, expected numbers from 0")
        self._rows = None if rows is None else torch.as_tensor(rows, device=self._place).long()
        self._x = torch.cat([values, values.new_ones(len(values), 1)], 1)
        moments = [
            torch.var_mean(self._x[:, part].double(), 0, correction=0)
            for part in self._some_columns()
        ]
        variance, self._mean = (torch.cat(each) for each in zip(*moments, strict=True))
        self._scale = variance.rsqrt().where(variance >= _CONSTANT, variance.new_zeros(()))
        self._frequent: tuple[torch.Tensor, torch.Tensor] | None = None

    def fit_blocks(
        self,
        y: Any,
        alpha: float,
        n_features: int | None,
        *,
        memory: int = BLOCK_BYTES,
    ) -> Iterator[tuple[slice, L2LiRFit]]:
        """Fit units block by block, as `fit_l2lir` does.

        Yields
        ------
        tuple of slice and L2LiRFit
            Which units, and their fit.
        """
        check_penalty(alpha, n_features)
        units = Matrix(y, "units", self._dtype, self._place)
        check_paired(self.rows_needed, units, "inputs")
        for part in column_blocks(units, self.block_width(memory, n_features)):
            yield part, self.fit(units.columns(part).whole(), alpha, n_features)

    def fit(self, y: torch.Tensor, alpha: float, n_features: int | None) -> L2LiRFit:
        """Fit the units of one block, a tensor (row, unit) of this dtype.

        Raises
        ------
        ModelError
            If the penalty is lost in the rounding of this dtype.
        """
        import torch

        y = y.to(self._place)
        try:
            if n_features is None or n_features >= self.count:
                index, weights = self._with_all(y, alpha)
            else:
                index, weights = self._with_chosen(y, alpha, n_features)
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
            raise ModelError(
                f"alpha {alpha:g} is too small for these inputs in {self._dtype}: the Gram matrix "
                "cannot be factorised. Standardise the inputs, or type a larger alpha; float64 "
                "holds smaller ones"
            ) from error
        return L2LiRFit(index, weights[:, :-1], weights[:, -1], self.count)

    @cached_property
    def rows_needed(self) -> int:
        """How many rows units must have."""
        return self.samples if self._rows is None else int(self._rows.max()) + 1

    def block_width(self, memory: int, n_features: int | None) -> int:
        """Return how many units fit in the memory for a block."""
        chosen = self.count if n_features is None else min(n_features, self.count)
        # Products with the inputs and strengths, which are sorted out as float64; the units in the
        # dtype they are read in; indices and weights.
        each = 24 * self.count + 16 * self.rows_needed + 16 * chosen
        width = max(1, min(_UNITS, memory // each))
        # Blocks that are written to a store had better be whole chunks of it.
        return width - width % _WHOLE if width > _WHOLE else width

    @cached_property
    def _sums(self) -> torch.Tensor:
        """The inputs (row, input and constant), summed over the samples of a row."""
        if self._rows is None:
            return self._x
        return self._x.new_zeros(self.rows_needed, self.count + 1).index_add_(
            0, self._rows, self._x
        )

    @cached_property
    def _gram(self) -> torch.Tensor:
        """Of the inputs in their own order."""
        return gram_matrix(self._x)

    def _with_all(self, y: torch.Tensor, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Solve without a choice, by the Gram matrix of inputs or of samples, whichever is less."""
        import torch

        if self.samples > self.count + 1:
            gram = self._gram.clone()
            gram.diagonal().add_(alpha)
            factor = torch.linalg.cholesky(gram, upper=True)
            weights = torch.cholesky_solve(self._sums.T @ y, factor, upper=True)
        else:
            gram = self._x @ self._x.T
            gram.diagonal().add_(alpha)
            y = y if self._rows is None else y[self._rows]
            weights = self._x.T @ torch.cholesky_solve(y, torch.linalg.cholesky(gram))
        index = np.broadcast_to(np.arange(self.count, dtype=np.int32), (y.shape[1], self.count))
        return index, weights.T.cpu().numpy()

    def _with_chosen(
        self, y: torch.Tensor, alpha: float, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose inputs for each unit and solve with them."""
        cross = (self._sums.T @ y).T.contiguous()
        exact = (lambda *some: self._exact(y, *some)) if y.itemsize < 8 else None
        index = ranked(self._strengths(cross, y), count, exact, _NEAR * self.samples)
        gram, place = self._by_frequency(index)
        weights = solved(gram, place, cross, index, alpha)
        return index.int().cpu().numpy(), weights.cpu().numpy()

    def _by_frequency(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Gram matrix, inputs that are chosen often first, and the place of each.

        Systems are gathered faster from what lies together. The first block decides the order.
        """
        import torch

        if self._frequent is None:
            chosen = torch.bincount(index.ravel(), minlength=self.count + 1)
            chosen[-1] = len(index) + 1
            order = chosen.argsort(descending=True, stable=True)
            self._frequent = gram_matrix(self._x[:, order]), order.argsort()
        return self._frequent

    def _strengths(self, cross: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return correlations (unit, input), times samples and the deviations of the units."""
        import torch

        mean, scale = self._mean.to(y.dtype), self._scale.to(y.dtype)
        if (self._mean * self._scale).abs().max() < _CENTRED:
            covariance = torch.addcmul(cross[:, :-1], cross[:, -1:], mean, value=-1)
        else:
            # A difference of large numbers would leave few digits to compare.
            centred = self._sums[:, :-1] - self._sums[:, -1:] * mean
            covariance = (centred.T @ y).T.contiguous()
        return covariance.mul_(scale).abs_()

    def _exact(self, y: torch.Tensor, units: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the same of few units and inputs in float64."""
        y = (y[:, units] if self._rows is None else y[:, units][self._rows]).double()
        mean, scale = self._mean[inputs], self._scale[inputs]
        covariance = y.T @ self._x[:, inputs].double() - y.sum(0)[:, None] * mean
        return (covariance * scale).abs_()

    def _some_columns(self) -> Iterator[slice]:
        """Yield the inputs so many at a time that they take little memory as float64."""
        for start in range(0, self.count, _COLUMNS):
            yield slice(start, min(start + _COLUMNS, self.count))
