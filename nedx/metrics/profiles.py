"""How well features are predicted: unit by unit over images, and image by image over units.

Definitions of bdpy's metrics (Kamitani Lab), as Shen et al. 2019, PLoS Computational Biology
15:e1006633, and Ho et al. 2023, NeuroImage 271:120007, use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.correlation import from_moments, pearson_r
from nedx.metrics.layers import (
    Features,
    Statistics,
    along_layer,
    along_units,
    by_layer,
    coords_of,
    layers_of,
    lazy_patterns,
    matched,
    unit_dims,
    variables_of,
)
from nedx.metrics.moments import finish_merged, merge_pairs, pair_moments
from nedx.metrics.repeats import labels_of
from nedx.schema import restore_index, sample_dim


def profile_correlation(true: Features, predicted: Features) -> xr.DataArray:
    """Correlate every unit over images with what was predicted of it, lazily.

    Parameters
    ----------
    true, predicted : DataArray or Dataset
        ``(..., image, <unit dims>)``; of Datasets the variables ``feature_<layer>``, or
        ``features``, ``embedding`` or ``response``. ``predicted`` may have leading dims of its
        own, such as ``subject`` and ``roi``, and single trials: each is compared with its image.
        Images are joined by ``image_id``.

    Returns
    -------
    DataArray
        ``profile_correlation`` float64, "1": of arrays without the image dim; of layers
        ``(..., unit)`` with ``layer (unit)`` and ``unit_index (unit)``, the place of a unit in
        its flattened layer. NaN of units that are constant or hold a NaN: average with
        ``.groupby("layer").mean()``, which leaves them out.

    Raises
    ------
    SchemaError
        If images, layers or units of the two do not fit, or there are fewer than two images.
    """
    lead: dict[Any, None] = {}

    def compare(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
        units = unit_dims(one, other, None)
        one, other = matched(one, other)
        _refuse_one_image(other)
        found = pearson_r(one, other, sample_dim(other))
        lead.update(dict.fromkeys(dim for dim in found.dims if dim not in units))
        return found.transpose(*lead, *units)

    layers = by_layer(compare, true, predicted)
    found = layers[None] if None in layers else along_units(layers, list(lead))
    n_images = _n_images(predicted)
    return _described(found, "profile_correlation", "correlation over images", n_images=n_images)


def pattern_correlation(
    true: Features,
    predicted: Features,
    *,
    standardize: Statistics | None = None,
    over: str | Sequence[str] | None = None,
) -> xr.DataArray:
    """Correlate the pattern of every image over units with what was predicted of it, lazily.

    Units that are not finite in any image of either are left out of all images, as published.

    Parameters
    ----------
    true, predicted
        As `profile_correlation` takes them.
    standardize : (mean, standard deviation), optional
        Of each unit in training, as `training_statistics` gives them: both are standardised by
        them, as published; without it units of large mean or variance dominate. A unit that did
        not vary in training is left out.
    over : str or sequence of str, optional
        The dims that make up a pattern; by default all that both have, without those of samples,
        subjects, ROIs, models, repetitions and times.

    Returns
    -------
    DataArray
        ``pattern_correlation ([layer,] ..., image | trial)`` float64, "1"; NaN where a pattern is
        constant. ``n_units``, a coordinate of the same dims, is how many units were compared.

    Raises
    ------
    SchemaError
        If images, layers or units do not fit.
    """
    compare = partial(_pattern_correlation, over=over)
    layers = by_layer(compare, true, predicted, *both_statistics(standardize))
    found = along_layer(layers, ["n_units"])
    standardization = "none" if standardize is None else "training mean and standard deviation"
    return _described(
        found, "pattern_correlation", "correlation over units", standardization=standardization
    )


def training_statistics(features: Features) -> Statistics:
    """Return the mean and standard deviation (n - 1) of every unit over images, lazily.

    Parameters
    ----------
    features : DataArray or Dataset
        True features that decoders were fitted to, as `profile_correlation` takes them. Each
        image counts once, however many trials show it.

    Returns
    -------
    mean, sd : DataArray or Dataset
        As given, without the image dim; float64.

    Raises
    ------
    SchemaError
        If there are fewer than two images.
    """
    if isinstance(features, xr.Dataset):
        pairs = {name: training_statistics(features[name]) for name in variables_of(features)}
        mean, sd = ({name: pair[which] for name, pair in pairs.items()} for which in (0, 1))
        return xr.Dataset(mean), xr.Dataset(sd)
    dim = sample_dim(features)
    if "image_id" in features.coords and features["image_id"].dims == (dim,):
        _, first = np.unique(labels_of(features, "image_id"), return_index=True)
        if first.size < features.sizes[dim]:
            features = features.isel({dim: np.sort(first)})
    _refuse_one_image(features)
    features = features.astype(np.float64)
    return features.mean(dim, skipna=False), features.std(dim, ddof=1, skipna=False)


def both_statistics(standardize: Statistics | None) -> tuple[Features, ...]:
    """Return mean and standard deviation, or neither.

    Raises
    ------
    SchemaError
        If they are not these two.
    """
    if standardize is None:
        return ()
    if not isinstance(standardize, tuple | list) or len(standardize) != 2:
        fault = f"standardize= is a {type(standardize).__name__}, expected a mean and a deviation"
        advice = "type standardize=(mean, sd), as training_statistics(features) returns them"
        raise SchemaError("the statistics of training", [fault, advice])
    return tuple(standardize)


def _pattern_correlation(
    true: xr.DataArray,
    predicted: xr.DataArray,
    *statistics: xr.DataArray,
    over: str | Sequence[str] | None,
) -> xr.DataArray:
    units = unit_dims(true, predicted, over)
    true, predicted = matched(true, predicted)
    sample = sample_dim(predicted)
    coords = coords_of(predicted, true, dims={*true.dims, *predicted.dims} - {*units})
    if statistics:
        true, predicted = (standardized(a, statistics[0], statistics[1]) for a in (true, predicted))
    true, predicted = lazy_patterns(true, predicted, units, (sample, sample))
    r, count = correlate_patterns(true.data, predicted.data)
    found = xr.DataArray(r, coords, true.dims[:-1])
    return found.assign_coords(n_units=(found.dims, count))


def standardized(values: xr.DataArray, mean: xr.DataArray, sd: xr.DataArray) -> xr.DataArray:
    """Subtract a mean and divide by a standard deviation; NaN where there is none to divide by.

    Raises
    ------
    SchemaError
        If the statistics are of other units.
    """
    for name, statistic in (("mean", mean), ("standard deviation", sd)):
        sizes = {dim: (values.sizes.get(dim), size) for dim, size in statistic.sizes.items()}
        faults = [
            f"the {name} has {size} along {dim!r}, the features {found or 'no such dim'}"
            for dim, (found, size) in sizes.items()
            if found != size
        ]
        if faults:
            raise SchemaError("the statistics of training", faults)
    try:
        # Arithmetic would keep what both have, silently.
        xr.align(values, mean, sd, join="exact", copy=False)
    except ValueError as error:
        raise SchemaError("the statistics of training", [f"labels differ: {error}"]) from error
    return ((values - mean) / sd.where(sd > 0)).transpose(*values.dims)


def correlate_patterns(x: da.Array, y: da.Array) -> tuple[da.Array, da.Array]:
    """Correlate samples over the units that are finite in all samples of both.

    Parameters
    ----------
    x, y : dask array, (..., sample, unit)
        Of the same shape, leading axes in blocks of one, samples in one block.

    Returns
    -------
    r, count : dask array of float64 and int64, (..., sample)
    """
    parts = finite_moments(x, y)
    r = finish_merged(parts, merge_some, from_moments)
    return r, finish_merged(parts, merge_some, _count).astype(np.int64)


def finite_moments(x: da.Array, y: da.Array) -> da.Array:
    """Return the moments of `correlate_patterns`, (6, ..., sample, block), of blocks of units."""
    _, (x, y) = da.core.unify_chunks(x, tuple(range(x.ndim)), y, tuple(range(x.ndim)))
    return da.map_blocks(
        _moments_of_block,
        x,
        y,
        dtype=np.float64,
        new_axis=0,
        chunks=((6,), *x.chunks[:-1], (1,) * x.numblocks[-1]),
        meta=np.empty((0,) * (x.ndim + 1)),
    )


def merge_some(parts: np.ndarray) -> np.ndarray:
    """Merge moments of pairs, (6, ..., block), where blocks may be empty; all may be."""
    with np.errstate(invalid="ignore"):
        return merge_pairs(parts)


def _moments_of_block(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    there = np.isfinite(x).all(axis=-2) & np.isfinite(y).all(axis=-2)
    found = np.zeros((6, *x.shape[:-1], 1))
    for index in np.ndindex(*there.shape[:-1]):
        kept = there[index]
        if kept.all():
            found[:, *index, :, 0] = pair_moments(x[index], y[index])
        elif kept.any():
            found[:, *index, :, 0] = pair_moments(x[index][:, kept], y[index][:, kept])
    return found


def _count(moments: np.ndarray) -> np.ndarray:
    return moments[0]


def _refuse_one_image(array: xr.DataArray) -> None:
    if array.sizes[sample_dim(array)] < 2:
        fault = "one image only: a correlation over images needs at least two"
        raise SchemaError("what is compared", [fault])


def _n_images(predicted: Features) -> int:
    array = next(iter(layers_of(predicted).values()))
    return int(array.sizes[sample_dim(array)])


def _described(found: xr.DataArray, name: str, long_name: str, **attrs: Any) -> xr.DataArray:
    about = {"units": "1", "long_name": long_name, "metric": "pearson_r"}
    found = restore_index(found.rename(name).drop_attrs(deep=False))
    return found.assign_attrs({**about, **attrs})
