"""How well repeats predict each other, and how close to that a model comes.

A noise ceiling is a fraction of variance: r2 is compared with it, r with its square root.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import NedxWarning, SchemaError
from nedx.metrics.correlation import pearson_r
from nedx.schema import role_dim, sample_dim

Method = Literal["ncsnr", "split_half"]

_CEILING = {"units": "1", "valid_range": [0.0, 1.0], "long_name": "noise ceiling (R2)"}


def ncsnr(responses: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Return the noise ceiling signal-to-noise ratio: signal over noise standard deviation.

    With n_i repeats of image i, of variance var_i: noise variance = sum_i (n_i - 1) var_i /
    sum_i (n_i - 1); signal variance = max(0, variance over all trials - noise variance). Allen et
    al. 2022, Nature Neuroscience 25:116, Methods, for any number of repeats.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials: ``(image, repetition, ...)``, where an absent repeat is NaN, or
        ``(trial, ...)`` with ``image_id(trial)``. Of a Dataset, ``response``.

    Returns
    -------
    DataArray
        ``ncsnr`` float32, lazy where the responses are; NaN where no image was repeated, infinite
        where repeats are equal.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    return _by_trial(_response(responses), _ncsnr, "ncsnr", {"units": "1", "long_name": "ncsnr"})


def noise_ceiling_from_ncsnr(
    ncsnr: xr.DataArray, n_repetitions: float | xr.DataArray | np.ndarray
) -> xr.DataArray:
    """Return the noise ceiling of the mean over repeats: ncsnr^2 / (ncsnr^2 + mean_i(1 / n_i)).

    Parameters
    ----------
    ncsnr : DataArray
        Signal over noise standard deviation, "1".
    n_repetitions : float or array
        Repeats that were averaged: one number, or one for each image.

    Returns
    -------
    DataArray
        ``noise_ceiling``, a fraction of variance, "1".
    """
    inverse = float(np.mean(1.0 / np.asarray(n_repetitions, dtype=np.float64)))
    # Not ncsnr^2 / (ncsnr^2 + ...), which is NaN for repeats without any noise.
    ceiling = 1.0 / (1.0 + inverse / ncsnr**2)
    attrs = {**_CEILING, "method": "ncsnr", "n_repetitions": 1.0 / inverse}
    return ceiling.astype("f4").rename("noise_ceiling").assign_attrs(attrs)


def noise_ceiling(
    responses: xr.DataArray | xr.Dataset,
    *,
    method: Method = "ncsnr",
    n_splits: int = 100,
    seed: int = 0,
) -> xr.DataArray:
    """Return the noise ceiling of the mean over the repeats that there are.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, as `ncsnr` takes them.
    method : {"ncsnr", "split_half"}
    n_splits, seed : int
        Of `split_half`.

    Returns
    -------
    DataArray
        ``noise_ceiling`` float32, a fraction of variance, "1".

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    if method == "split_half":
        return split_half(responses, n_splits=n_splits, seed=seed)
    if method != "ncsnr":
        raise ValueError(f"method is 'ncsnr' or 'split_half', not {method!r}")
    attrs = {**_CEILING, "method": "ncsnr"}
    return _by_trial(_response(responses), _ceiling, "noise_ceiling", attrs)


def split_half(
    responses: xr.DataArray | xr.Dataset, *, n_splits: int = 100, seed: int = 0
) -> xr.DataArray:
    """Return the noise ceiling from the correlation of random halves of the repeats.

    Of every image two disjoint halves of h_i = n_i // 2 repeats are averaged and correlated over
    images; the mean r over splits becomes k r / (1 + (k - 1) r), the Spearman-Brown formula
    (Spearman 1910, Brown 1910), with k = mean(1 / h_i) / mean(1 / n_i), which is 2 for even n.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, as `ncsnr` takes them. A repeat is absent where all is NaN.
    n_splits : int
        How many random splits.
    seed : int
        Of the splits; the same for all neuroids and subjects.

    Returns
    -------
    DataArray
        ``noise_ceiling`` float32, a fraction of variance, "1"; at least 0.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    attrs = {**_CEILING, "method": "split_half", "n_splits": n_splits, "seed": seed}
    options = {"n_splits": n_splits, "seed": seed}
    return _by_trial(_response(responses), _split_half, "noise_ceiling", attrs, **options)


def score(
    ds: xr.Dataset, *, method: Method = "ncsnr", n_splits: int = 100, seed: int = 0
) -> xr.Dataset:
    """Compare predicted with measured responses, beside the noise ceiling; lazily.

    Repeats are averaged before they are compared. The ceiling is ``noise_ceiling`` of the
    Dataset, or is computed from the repeats; without either, only the accuracy is added.

    Parameters
    ----------
    ds : Dataset
        Holds ``response`` and ``response_predicted``.
    method, n_splits, seed
        How to find the ceiling, as `noise_ceiling` takes them.

    Returns
    -------
    Dataset
        The same with ``accuracy`` (Pearson r), ``noise_ceiling`` (fraction of variance) and
        ``accuracy_normalized`` (r / sqrt(noise_ceiling); NaN where the ceiling is 0), all "1".

    Raises
    ------
    SchemaError
        If one of the two is missing.

    Warns
    -----
    NedxWarning
        If ``partition`` says that images were used in training.
    """
    missing = [name for name in ("response", "response_predicted") if name not in ds]
    if missing:
        faults = [f"no variable {name!r}" for name in missing]
        raise SchemaError("what is scored", [*faults, "predict first: ds.ned.encode(model)"])
    _warn_of_training(ds)
    measured, dim = _averaged(ds["response"])
    predicted, _ = _averaged(ds["response_predicted"])
    accuracy = pearson_r(measured, predicted, dim).astype("f4")
    long_name = "correlation of predicted with measured responses"
    attrs = {"units": "1", "long_name": long_name, "metric": "pearson_r"}
    added = {"accuracy": accuracy.assign_attrs(attrs)}
    ceiling = ds.get("noise_ceiling")
    if ceiling is None and _has_repeats(ds["response"]):
        ceiling = noise_ceiling(ds["response"], method=method, n_splits=n_splits, seed=seed)
    if ceiling is not None:
        normalized = (accuracy / np.sqrt(ceiling.where(ceiling > 0))).astype("f4")
        attrs = {**attrs, "long_name": "accuracy divided by sqrt(noise_ceiling)"}
        normalized = normalized.drop_attrs().assign_attrs(attrs)
        added |= {"noise_ceiling": ceiling, "accuracy_normalized": normalized}
    return ds.assign(added)


def _response(data: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(data, xr.DataArray):
        return data
    if "response" not in data:
        raise SchemaError("the data", [f"no variable 'response'; there are {list(data)}"])
    return data["response"]


def _codes(array: xr.DataArray) -> tuple[list[str], np.ndarray]:
    """Return the dims that single trials lie along, and the image of each trial as a number."""
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    if repetition is not None:
        codes = np.repeat(np.arange(array.sizes[sample]), array.sizes[repetition])
        return [sample, repetition], codes
    # Images are unique; only what trials show has to be read.
    if role_dim(array, "trial") == sample and "image_id" in array.coords:
        _, codes = np.unique(np.asarray(array["image_id"].values, dtype=str), return_inverse=True)
        return [sample], codes
    return [sample], np.arange(array.sizes[sample])


def _has_repeats(array: xr.DataArray) -> bool:
    _, codes = _codes(array)
    return codes.size > np.unique(codes).size


def _by_trial(
    array: xr.DataArray, kernel: Any, name: str, attrs: dict[str, Any], **options: Any
) -> xr.DataArray:
    """Apply ``kernel(values (..., trial), codes (trial,))``, which reduces the trials."""
    dims, codes = _codes(array)
    if codes.size == np.unique(codes).size:
        raise SchemaError(
            f"{array.name or 'the array'} of dims {array.dims}",
            ["no repeats: expected a dim 'repetition', or trials that share an image_id"],
        )
    found = xr.apply_ufunc(
        _flat,
        _whole(array, dims),
        kwargs={"kernel": kernel, "codes": codes, "n_dims": len(dims), **options},
        input_core_dims=[dims],
        dask="parallelized",
        output_dtypes=[np.float32],
        # Labels keep what is said of them; what was said of the responses is not true of this.
        keep_attrs="override",
    )
    found.attrs = dict(attrs)
    return found.rename(name)


def _whole(array: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Put whole trials in every block, and fewer neuroids in exchange."""
    if array.chunks is None:
        return array
    others = {dim: "auto" for dim in array.dims if dim not in dims}
    return array.chunk({**others, **dict.fromkeys(dims, -1)})


def _flat(
    values: np.ndarray, *, kernel: Any, codes: np.ndarray, n_dims: int, **options: Any
) -> np.ndarray:
    values = values.reshape(*values.shape[: values.ndim - n_dims], -1)
    order = np.argsort(codes, kind="stable")
    return kernel(values[..., order], codes[order], **options).astype(np.float32)


def _variances(values: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return noise variance, total variance and mean 1 / n_i of trials sorted by image.

    Parameters
    ----------
    values : ndarray, (..., trial)
        NaN where a repeat is absent.
    codes : ndarray of int, (trial,)
        The image of each trial, ascending.

    Returns
    -------
    tuple of ndarray of float64, (...)
    """
    starts = np.flatnonzero(np.diff(codes, prepend=codes[0] - 1))
    lengths = np.diff(starts, append=codes.size)
    there = np.isfinite(values)
    filled = np.where(there, values, 0).astype(np.float64)
    count = np.add.reduceat(there, starts, axis=-1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.add.reduceat(filled, starts, axis=-1) / count
        deviation = np.where(there, filled - np.repeat(means, lengths, axis=-1), 0)
        freedom = np.maximum(count - 1, 0).sum(axis=-1)
        noise = (deviation**2).sum(axis=-1) / freedom
        trials = count.sum(axis=-1)
        mean = filled.sum(axis=-1, keepdims=True) / trials[..., np.newaxis]
        total = (np.where(there, filled - mean, 0) ** 2).sum(axis=-1) / (trials - 1)
        inverse = np.where(count > 0, 1 / count, 0).sum(axis=-1) / (count > 0).sum(axis=-1)
    return noise, total, inverse


def _ncsnr(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    noise, total, _ = _variances(values, codes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.maximum(total - noise, 0) / noise)


def _ceiling(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    noise, total, inverse = _variances(values, codes)
    signal = np.maximum(total - noise, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return signal / (signal + noise * inverse)


def _split_half(values: np.ndarray, codes: np.ndarray, *, n_splits: int, seed: int) -> np.ndarray:
    there = np.isfinite(values).any(axis=tuple(range(values.ndim - 1)))
    values, codes = values[..., there].astype(np.float64), codes[there]
    _, codes, count = np.unique(codes, return_inverse=True, return_counts=True)
    half = count // 2
    used = half > 0
    if used.sum() < 2:
        return np.full(values.shape[:-1], np.nan)
    starts = np.cumsum(count) - count
    rank = np.arange(codes.size) - starts[codes]
    halves = [(rank < half[codes]), (rank >= half[codes]) & (rank < 2 * half[codes])]
    begin = np.cumsum(half[used]) - half[used]
    rng = np.random.default_rng(seed)
    total = np.zeros(values.shape[:-1])
    for _ in range(n_splits):
        shuffled = values[..., np.lexsort((rng.random(codes.size), codes))]
        first, second = (
            np.add.reduceat(shuffled[..., chosen], begin, axis=-1) / half[used] for chosen in halves
        )
        total += _correlation(first, second)
    r = np.maximum(total / n_splits, 0)
    k = np.mean(1 / half[used]) / np.mean(1 / count[used])
    return k * r / (1 + (k - 1) * r)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))


def _averaged(array: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Average the repeats of each image; return also the dim of images."""
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    if repetition is not None:
        return array.mean(repetition, skipna=True, keep_attrs=True), sample
    if not _has_repeats(array):
        return array, sample
    _, codes = _codes(array)
    images = int(codes.max()) + 1
    mean = xr.apply_ufunc(
        _image_means,
        _whole(array, [sample]),
        kwargs={"codes": codes},
        input_core_dims=[[sample]],
        output_core_dims=[["_image"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"_image": images}},
        keep_attrs="override",
    )
    return mean, "_image"


def _image_means(values: np.ndarray, *, codes: np.ndarray) -> np.ndarray:
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    values = values[..., order].astype(np.float64)
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.add.reduceat(np.where(there, values, 0), starts, axis=-1) / np.add.reduceat(
            there, starts, axis=-1, dtype=np.float64
        )


def _warn_of_training(ds: xr.Dataset) -> None:
    if "partition" in ds.coords and (ds["partition"] == "train").any().item():
        # Of images, what is a test for one subject may have trained the model of another.
        whose = '.all("subject")' if "subject" in ds["partition"].dims else ""
        warnings.warn(
            "some of these images were used in training (partition 'train'), so the accuracy is "
            f'too high; select first: ds.isel(image=(ds.partition == "test"){whose}.values)',
            NedxWarning,
            stacklevel=3,
        )
