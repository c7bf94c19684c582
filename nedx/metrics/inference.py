"""Is it more than chance, and how sure is it: permutations, bootstrap, false discovery rate.

Random numbers depend on the seed alone: all neuroids share the same permutations and resamples,
and chunks make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.correlation import paired
from nedx.metrics.repeats import whole

Alternative = Literal["greater", "less", "two-sided"]

# Columns that are permuted or resampled at a time.
_STRIP = 256


def permutation_p(
    measured: xr.DataArray,
    predicted: xr.DataArray,
    dim: str = "image",
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> xr.DataArray:
    """Return the p-value of the correlation of two arrays if images were exchangeable.

    The predictions are permuted along ``dim``. With b of B permutations at least as extreme as
    the data, p = (b + 1) / (B + 1), which is never 0 (Phipson & Smyth 2010, Statistical
    Applications in Genetics and Molecular Biology 9:39). Average repeats first: they are not
    exchangeable.

    Parameters
    ----------
    measured, predicted : DataArray
        Both with ``dim``; other dimensions broadcast. Labels must agree exactly.
    dim : str
        The dimension of the samples.
    n_permutations, seed : int
        How many, and of the random numbers.
    alternative : {"greater", "less", "two-sided"}
        What counts as extreme.

    Returns
    -------
    DataArray
        ``p`` float64, "1", without ``dim``; NaN where either is constant or holds a NaN.

    Raises
    ------
    SchemaError
        If ``dim`` is missing, or labels or sizes differ.
    """
    options = {"n_permutations": n_permutations, "seed": seed, "alternative": alternative}
    return _p_value(_permuted, (measured, predicted), dim, f"permutation of {dim}", **options)


def sign_flip_p(
    values: xr.DataArray,
    dim: str = "subject",
    *,
    null: float = 0.0,
    n_permutations: int = 10_000,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> xr.DataArray:
    """Return the p-value of a mean over subjects, if values were symmetric about ``null``.

    The signs of the differences from ``null`` are flipped at random, as `permutation_p` counts; all
    2^n flips are made where they are no more than ``n_permutations`` (Nichols & Holmes 2002, Human
    Brain Mapping 15:1).

    Parameters
    ----------
    values : DataArray
        Such as the accuracy of each subject, with ``dim``.
    dim : str
        The dimension of the independent samples.
    null : float
        The mean without an effect.
    n_permutations, seed : int
        How many, and of the random numbers.
    alternative : {"greater", "less", "two-sided"}
        What counts as extreme.

    Returns
    -------
    DataArray
        ``p`` float64, "1", without ``dim``; NaN where a subject is.

    Raises
    ------
    SchemaError
        If ``dim`` is missing.
    """
    options = {"n_permutations": n_permutations, "seed": seed, "alternative": alternative}
    return _p_value(_flipped, (values,), dim, f"sign flips of {dim}", null=null, **options)


def bootstrap_r(
    measured: xr.DataArray,
    predicted: xr.DataArray,
    dim: str = "image",
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.DataArray:
    """Return the bootstrap interval of the correlation, images drawn with replacement.

    The percentile interval (Efron & Tibshirani 1993, chapter 13) of the resamples that have a
    correlation: of few images, or a neuron that few images drive, some are constant.

    Parameters
    ----------
    measured, predicted, dim
        As `permutation_p` takes them.
    n_resamples, seed : int
        How many, and of the random numbers.
    level : float
        How often it should cover the truth, between 0 and 1.

    Returns
    -------
    DataArray
        ``interval (..., bound)`` float64, "1", bound "lower" and "upper"; NaN where either is
        constant or holds a NaN.

    Raises
    ------
    SchemaError
        If ``dim`` is missing, or labels or sizes differ.
    """
    return _interval(_resampled_r, (measured, predicted), dim, n_resamples, level, seed)


def bootstrap_mean(
    values: xr.DataArray,
    dim: str = "subject",
    *,
    n_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.DataArray:
    """Return the bootstrap interval of a mean over subjects, drawn with replacement.

    The percentile interval (Efron & Tibshirani 1993, chapter 13), which is too narrow for few
    subjects: by a factor of about sqrt((n - 1) / n).

    Parameters
    ----------
    values : DataArray
        Such as the accuracy of each subject, with ``dim``.
    dim : str
        The dimension of the independent samples.
    n_resamples, seed : int
        How many, and of the random numbers.
    level : float
        How often it should cover the truth, between 0 and 1.

    Returns
    -------
    DataArray
        ``interval (..., bound)`` float64, in the units of ``values``, bound "lower" and "upper";
        NaN where a subject is.

    Raises
    ------
    SchemaError
        If ``dim`` is missing.
    """
    found = _interval(_resampled_mean, (values,), dim, n_resamples, level, seed)
    return found.assign_attrs(units=values.attrs["units"]) if "units" in values.attrs else found


def fdr(p: xr.DataArray, dim: str | Sequence[str] | None = None) -> xr.DataArray:
    """Adjust p-values so that ``q <= 0.05`` keeps the false discovery rate at 5 %.

    Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57:289.

    Parameters
    ----------
    p : DataArray
        p-values; those that are NaN are not counted as tests and stay NaN.
    dim : str or sequence of str, optional
        The tests that belong together, for example the neuroids; all dims by default.

    Returns
    -------
    DataArray
        ``q`` float64, "1", of the same dims.

    Raises
    ------
    SchemaError
        If a dim is missing.
    """
    dims = list(p.dims) if dim is None else [dim] if isinstance(dim, str) else list(dim)
    missing = [name for name in dims if name not in p.dims]
    if missing:
        raise SchemaError(
            "what is adjusted", [f"no dim {name!r}; it has {p.dims}" for name in missing]
        )
    found = xr.apply_ufunc(
        _adjusted,
        whole(p, [str(name) for name in dims]),
        kwargs={"n_dims": len(dims)},
        input_core_dims=[dims],
        output_core_dims=[dims],
        dask="parallelized",
        output_dtypes=[np.float64],
        keep_attrs="override",
    )
    found.attrs = {
        "units": "1",
        "long_name": "p-value adjusted for the false discovery rate",
        "method": "Benjamini-Hochberg",
        "dims": [str(name) for name in dims],
    }
    return found.transpose(*p.dims).rename("q")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is at least 1, not {count}; type {name}=1000")


def _p_value(
    kernel: Callable[..., np.ndarray],
    arrays: Sequence[xr.DataArray],
    dim: str,
    method: str,
    **options: Any,
) -> xr.DataArray:
    """Return ``p``; its attributes say what ``options`` the kernel was given."""
    _check_counts(n_permutations=options["n_permutations"])
    alternative = options["alternative"]
    if alternative not in ("greater", "less", "two-sided"):
        raise ValueError(f"alternative is 'greater', 'less' or 'two-sided', not {alternative!r}")
    found = _over_pairs(kernel, arrays, dim, **options)
    attrs = {"units": "1", "long_name": "p-value", "method": method}
    return found.rename("p").assign_attrs({**attrs, **options})


def _over_pairs(
    kernel: Callable[..., np.ndarray],
    arrays: Sequence[xr.DataArray],
    dim: str,
    new_dim: str | None = None,
    **options: Any,
) -> xr.DataArray:
    """Apply ``kernel(strips (sample, column), **options)`` to columns of all samples."""
    arrays = [whole(array, [dim]) for array in xr.broadcast(*paired(arrays, dim))]
    found: xr.DataArray = xr.apply_ufunc(
        _by_strip,
        *arrays,
        kwargs={"kernel": kernel, **options},
        input_core_dims=[[dim]] * len(arrays),
        output_core_dims=[[new_dim] if new_dim else []],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {new_dim: 2}} if new_dim else None,
        keep_attrs="override",
    )
    found.attrs = {}
    return found


def _by_strip(*arrays: np.ndarray, kernel: Callable[..., np.ndarray], **options: Any) -> np.ndarray:
    shape = arrays[0].shape[:-1]
    columns = [np.moveaxis(array, -1, 0).reshape(array.shape[-1], -1) for array in arrays]
    strips = []
    for start in range(0, max(1, columns[0].shape[1]), _STRIP):
        parts = (array[:, start : start + _STRIP].astype(np.float64) for array in columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            strips.append(kernel(*parts, **options))
    found = np.concatenate(strips, axis=-1)
    if found.ndim == 1:
        return found.reshape(shape)
    return np.moveaxis(found.reshape(len(found), *shape), 0, -1)


def _interval(
    kernel: Callable[..., np.ndarray],
    arrays: Sequence[xr.DataArray],
    dim: str,
    n_resamples: int,
    level: float,
    seed: int,
) -> xr.DataArray:
    _check_counts(n_resamples=n_resamples)
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, not {level}; 95 % is level=0.95")
    options = {"n_resamples": n_resamples, "level": level, "seed": seed}
    found = _over_pairs(kernel, arrays, dim, "bound", **options)
    found = found.assign_coords(bound=np.array(["lower", "upper"], dtype=object))
    long_name = f"{100 * level:g} % interval"
    attrs = {"units": "1", "long_name": long_name, "method": f"percentile bootstrap over {dim}"}
    return found.rename("interval").assign_attrs({**attrs, **options})


def _permuted(
    x: np.ndarray, y: np.ndarray, *, n_permutations: int, seed: int, alternative: Alternative
) -> np.ndarray:
    """Return p (column) of x and y (sample, column)."""
    rng = np.random.default_rng(seed)
    x, y = _standard(x), _standard(y)
    r = np.einsum("ij,ij->j", x, y)
    extreme = np.zeros(r.size)
    for _ in range(n_permutations):
        permuted = np.einsum("ij,ij->j", x, y[rng.permutation(len(y))])
        extreme += _is_extreme(permuted, r, alternative)
    return np.where(np.isfinite(r), (extreme + 1) / (n_permutations + 1), np.nan)


def _flipped(
    values: np.ndarray,
    *,
    null: float,
    n_permutations: int,
    seed: int,
    alternative: Alternative,
) -> np.ndarray:
    """Return p (column) of values (sample, column)."""
    difference = values - null
    count = len(values)
    every = 2**count <= n_permutations
    if every:
        # Without the first, which flips nothing: it is the data.
        bits = np.arange(1, 2**count)[:, np.newaxis] >> np.arange(count) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (n_permutations, count))
    sums = (1.0 - 2.0 * bits) @ difference
    observed = difference.sum(axis=0)
    extreme = _is_extreme(sums, observed, alternative).sum(axis=0)
    return np.where(np.isfinite(observed), (extreme + 1) / (len(bits) + 1), np.nan)


def _is_extreme(chance: np.ndarray, observed: np.ndarray, alternative: Alternative) -> np.ndarray:
    """Say where chance is at least as extreme; what is equal but for rounding counts."""
    if alternative == "two-sided":
        chance, observed = np.abs(chance), np.abs(observed)
    elif alternative == "less":
        chance, observed = -chance, -observed
    found: np.ndarray = chance >= observed - 1e-12 * np.abs(observed)
    return found


def _resampled_r(
    x: np.ndarray, y: np.ndarray, *, n_resamples: int, level: float, seed: int
) -> np.ndarray:
    """Return the interval (2, column) of r of x and y (sample, column)."""
    x, y = _standard(x), _standard(y)
    moments = np.concatenate([x, y, x * x, y * y, x * y], axis=1)
    found = []
    for weights in _weights(len(x), n_resamples, seed):
        mean_x, mean_y, xx, yy, xy = np.split(weights @ moments, 5, axis=1)
        variances = (xx - mean_x**2) * (yy - mean_y**2)
        # Rounding noise of a mean is not a variance; the mean square of all is 1 / n.
        constant = np.minimum(xx - mean_x**2, yy - mean_y**2) < 1e-13 / len(x)
        r = (xy - mean_x * mean_y) / np.sqrt(np.where(constant, np.nan, variances))
        found.append(np.clip(r, -1, 1))
    return _percentiles(np.concatenate(found), level)


def _resampled_mean(values: np.ndarray, *, n_resamples: int, level: float, seed: int) -> np.ndarray:
    """Return the interval (2, column) of the mean of values (sample, column)."""
    means = [weights @ values for weights in _weights(len(values), n_resamples, seed)]
    return _percentiles(np.concatenate(means), level)


def _weights(count: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often samples are drawn, (resample, sample), of sum 1, a hundred at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, 100):
        size = min(100, n_resamples - start)
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, np.newaxis]
        times = np.bincount(drawn.ravel(), minlength=size * count)
        yield times.reshape(size, count) / count


def _percentiles(resampled: np.ndarray, level: float) -> np.ndarray:
    outside = (1 - level) / 2
    bounds = np.full((2, resampled.shape[1]), np.nan)
    undefined = np.isnan(resampled)
    some = undefined.any(axis=0) & ~undefined.all(axis=0)
    for chosen, quantile in ((~undefined.any(axis=0), np.quantile), (some, np.nanquantile)):
        if chosen.any():
            bounds[:, chosen] = quantile(resampled[:, chosen], [outside, 1 - outside], axis=0)
    return bounds


def _standard(values: np.ndarray) -> np.ndarray:
    """Centre columns and divide by their norm; NaN where a column is constant."""
    centred = values - values.mean(axis=0)
    centred[:, (values == values[:1]).all(axis=0)] = np.nan
    found: np.ndarray = centred / np.linalg.norm(centred, axis=0)
    return found


def _adjusted(p: np.ndarray, *, n_dims: int) -> np.ndarray:
    """Adjust the p-values of the last dims together."""
    from scipy.stats import false_discovery_control

    found = np.full(p.shape, np.nan)
    rows = found.reshape(-1, int(np.prod(p.shape[p.ndim - n_dims :])))
    for target, row in zip(rows, p.reshape(rows.shape), strict=True):
        there = np.isfinite(row)
        if there.any():
            target[there] = false_discovery_control(row[there], method="bh")
    return found
