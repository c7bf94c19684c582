"""Intervals of a mean that are known in closed form."""

from __future__ import annotations

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.repeats import whole


def t_interval(values: xr.DataArray, dim: str = "subject", *, level: float = 0.95) -> xr.DataArray:
    """Return the interval of a mean over independent samples by Student's t, lazily.

    mean +- t((1 + level) / 2; n - 1) s / sqrt(n), with the standard deviation s of n - 1: exact
    where the samples are normal.

    Parameters
    ----------
    values : DataArray
        Such as the score of each subject, with ``dim``.
    dim : str
        The dimension of the independent samples.
    level : float
        How often it should cover the truth, between 0 and 1.

    Returns
    -------
    DataArray
        ``interval (..., bound)`` float64, in the units of ``values``, bound "lower" and "upper";
        NaN where a sample is, or there is only one.

    Raises
    ------
    SchemaError
        If ``dim`` is missing.
    ValueError
        If ``level`` is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, not {level}; 95 % is level=0.95")
    if dim not in values.dims:
        raise SchemaError("the values", [f"no dim {dim!r}; they have {values.dims}"])
    found: xr.DataArray = xr.apply_ufunc(
        _bounds,
        whole(values, [dim]),
        kwargs={"level": level},
        input_core_dims=[[dim]],
        output_core_dims=[["bound"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"bound": 2}},
        keep_attrs="override",
    )
    found.attrs = {
        "units": values.attrs.get("units", "1"),
        "long_name": f"{100 * level:g} % interval",
        "method": f"Student's t over {dim}",
        "level": level,
    }
    return found.assign_coords(bound=np.array(["lower", "upper"], dtype=object)).rename("interval")


def _bounds(values: np.ndarray, *, level: float) -> np.ndarray:
    """Return (..., 2) of (..., sample)."""
    from scipy.stats import t

    count = values.shape[-1]
    if count < 2:
        return np.full((*values.shape[:-1], 2), np.nan)
    values = values.astype(np.float64)
    error = values.std(axis=-1, ddof=1) / np.sqrt(count)
    reach = t.ppf((1 + level) / 2, count - 1) * error
    mean = values.mean(axis=-1)
    return np.stack([mean - reach, mean + reach], axis=-1)
