"""Responses in memory, standardised: what converters are fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from nedx.conversion.pairing import Rows
from nedx.conversion.recipe import Space
from nedx.errors import ModelError
from nedx.preprocessing.steps import response_of
from nedx.schema import neuroid_dim, role_dim


@dataclass(frozen=True, eq=False)
class Standardized:
    """z-scores of one subject's responses.

    Attributes
    ----------
    z : ndarray of float32, (row, neuroid)
        Mean 0 and, unless it was not asked for, standard deviation 1 (ddof=1) over rows.
    mean, deviation : ndarray of float32, (neuroid,)
        What responses are centred and divided by.
    """

    z: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    deviation: np.ndarray = field(repr=False)


def read_rows(name: str, ds: xr.Dataset, rows: Rows, *, average: bool, space: Space) -> np.ndarray:
    """Read the samples that are fitted to.

    Parameters
    ----------
    name : str
        Whose, for errors.
    ds : Dataset
        ``response (sample[, repetition], neuroid[, time])``.
    rows : Rows
        Which.
    average : bool
        Whether the rows of an image are averaged.
    space : {"neuroid", "neuroid_time"}
        Whether times are further rows, or further columns.

    Returns
    -------
    ndarray of float32, (row, column)

    Raises
    ------
    ModelError
        If values are NaN or infinite.
    """
    array = response_of(ds).drop_vars(list(ds["response"].coords))
    repetition = role_dim(array, "repetition")
    count = 1 if repetition is None else array.sizes[repetition]
    samples, where = np.unique(rows.position // count, return_inverse=True)
    values = array.isel({array.dims[0]: samples}).values.astype(np.float32, copy=False)
    neuroid = array.dims.index(neuroid_dim(array))
    values = values.reshape(len(samples), count, *values.shape[neuroid:])
    values = values[where, rows.position % count]
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if bad.any():
        images = list(dict.fromkeys(rows.image[bad].tolist()))
        raise ModelError(
            f"responses of {name} are NaN or infinite in {bad.sum()} of {len(bad)} samples, of the "
            f"images {', '.join(map(repr, images[:5]))}: leave these images out, or average over "
            "the repetitions that are there"
        )
    if average:
        starts = np.flatnonzero(rows.image[1:] != rows.image[:-1]) + 1
        starts = np.concatenate([[0], starts])
        sums = np.add.reduceat(values, starts, axis=0, dtype=np.float64)
        per = np.diff(starts, append=len(values)).reshape(-1, *(1,) * (values.ndim - 1))
        values = (sums / per).astype(np.float32)
    if values.ndim == 3 and space == "neuroid":
        values = np.moveaxis(values, 1, 2)
        return values.reshape(-1, values.shape[-1])
    return values.reshape(len(values), -1)


def standardized(name: str, values: np.ndarray, *, scale: bool = True) -> Standardized:
    """Standardise columns over rows, with ddof=1.

    Parameters
    ----------
    name : str
        Whose, for errors.
    values : ndarray of float32, (row, column)
    scale : bool
        Whether to divide by the standard deviation; else only the mean is taken away.

    Raises
    ------
    ModelError
        If a column is constant.
    """
    mean = values.mean(0, dtype=np.float64)
    deviation = values.std(0, ddof=1, dtype=np.float64)
    constant = np.flatnonzero(~(deviation > 1e-7 * np.maximum(np.abs(mean), 1e-30)))
    if constant.size:
        raise ModelError(
            f"{constant.size} of {len(mean)} neuroids of {name} are constant over the training "
            f"samples, first those at {constant[:5].tolist()}: leave them out, as by "
            "ds.isel(voxel=ds.response.std('image') > 0)"
        )
    if not scale:
        deviation = np.ones_like(deviation)
    z = ((values - mean) / deviation).astype(np.float32)
    return Standardized(z, mean.astype(np.float32), deviation.astype(np.float32))
