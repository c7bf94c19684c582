"""How much of the measured responses a prediction explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.metrics.correlation import compare, from_moments
from nedx.metrics.moments import constant, reduce_pairs


def squared_correlation(measured: xr.DataArray, predicted: xr.DataArray, dim: str) -> xr.DataArray:
    """Return r2, the square of Pearson's r: variance explained after the best line through it.

    It knows neither scale nor offset nor sign of the prediction; `determination` knows them all.

    Parameters
    ----------
    measured, predicted : DataArray
        Both with ``dim``; other dimensions broadcast. Labels must agree exactly.
    dim : str
        The dimension of the samples, for example ``"image"``.

    Returns
    -------
    DataArray
        float64 in [0, 1], "1", without ``dim``; NaN where either is constant or holds a NaN.

    Raises
    ------
    SchemaError
        If ``dim`` is missing, or labels or sizes differ.
    """
    long_name = f"squared Pearson correlation over {dim}"
    return compare(measured, predicted, dim, _squared, long_name)


def determination(measured: xr.DataArray, predicted: xr.DataArray, dim: str) -> xr.DataArray:
    """Return the coefficient of determination, 1 - sum (m - p)^2 / sum (m - mean m)^2.

    Parameters
    ----------
    measured, predicted, dim
        As `squared_correlation` takes them; here it matters which is which.

    Returns
    -------
    DataArray
        float64 up to 1, "1", without ``dim``; 0 of a prediction as good as the mean, below 0 of a
        worse one; NaN where the measured responses are constant or either holds a NaN.

    Raises
    ------
    SchemaError
        If ``dim`` is missing, or labels or sizes differ.
    """
    long_name = f"coefficient of determination over {dim}"
    return compare(measured, predicted, dim, _determination, long_name)


def explained_variance(
    r: xr.DataArray, noise_ceiling: xr.DataArray, *, as_published: bool = False
) -> xr.DataArray:
    """Return how much of the explainable variance is explained: r^2 / noise ceiling.

    Parameters
    ----------
    r : DataArray
        Pearson correlation of predicted with measured responses.
    noise_ceiling : DataArray
        Fraction of variance that is signal, of the same measured responses.
    as_published : bool
        Clip as NED and BERG do: r below 0 counts as 0, a ceiling of 0 as 1e-14, and nothing is
        above 1. Without it a ratio above 1 stays, as chance brings it about, so that means over
        neuroids are not biased downwards, and a ceiling of 0 gives NaN.

    Returns
    -------
    DataArray
        Fraction, "1"; float32.
    """
    if as_published:
        ceiling = noise_ceiling.where(noise_ceiling != 0, 1e-14)
        found = (r.clip(min=0) ** 2 / ceiling).clip(max=1)
    else:
        found = r**2 / noise_ceiling.where(noise_ceiling > 0)
    attrs = {"units": "1", "long_name": "explained share of the explainable variance"}
    clipping = "as published" if as_published else "none"
    return (
        found.astype("f4")
        .rename("explained_variance")
        .drop_attrs(deep=False)
        .assign_attrs({**attrs, "metric": "explained_variance", "clipping": clipping})
    )


def _squared(x: Any, y: Any) -> Any:
    return reduce_pairs(x, y, _squared_from_moments)


def _determination(x: Any, y: Any) -> Any:
    return reduce_pairs(x, y, _determination_from_moments)


def _squared_from_moments(moments: np.ndarray) -> np.ndarray:
    return np.square(from_moments(moments))


def _determination_from_moments(moments: np.ndarray) -> np.ndarray:
    count, mean_x, mean_y, sxx, syy, sxy = moments
    error = sxx + syy - 2 * sxy + count * (mean_x - mean_y) ** 2
    # Only measured responses must vary: a constant prediction is as good as its constant.
    measured = moments[[0, 1, 1, 3, 3, 3]]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(constant(measured), np.nan, 1 - np.maximum(error, 0) / sxx)
