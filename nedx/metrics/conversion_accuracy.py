"""How well one subject's responses, converted to another's, agree with those that were measured.

Definitions of Ho et al. 2023, NeuroImage 271:120007: correlations of single trials with single
trials, averaged over all pairs, over images for each voxel or over voxels for each image. Their
mean is the inner product of the mean z-scores, so that no pair has to be formed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.layers import Statistics, layers_of, lookup, matched
from nedx.metrics.permutation_ceiling import (
    Null,
    Per,
    all_of,
    by_repetition,
    ceiling_of,
    check_options,
    correlated_dim,
    mean_product,
    reduced,
    responses_of,
    standard,
)
from nedx.metrics.profiles import both_statistics, standardized
from nedx.schema import restore_index
from nedx.selection import Names, resolve

_AMONG = ("converted of another source", "converted")


def conversion_accuracy(
    measured: xr.DataArray | xr.Dataset,
    converted: xr.DataArray | xr.Dataset | xr.DataTree,
    *,
    per: Per = "voxel",
    roi: Names | None = None,
    standardize: Statistics | None = None,
    level: float = 0.99,
    n_permutations: int = 10_000,
    null: Null = "permutations",
    seed: int = 0,
) -> xr.Dataset:
    """Compare converted with measured responses trial by trial, beside the noise ceiling; lazily.

    Parameters
    ----------
    measured, converted : DataArray or Dataset, and DataTree
        Single trials ``(..., image, repetition, <neuroid>)`` or ``(..., trial, <neuroid>)`` of
        the target subject, and of another in the target's neuroids: in any order, joined by
        ``image_id``, and with as many repeats as each has. Of Datasets ``response``. Further
        dims are kept: what the two have both (``time``) is compared label by label, and
        ``converted`` may hold many ``source`` subjects, or be what `nedx.convert` makes of
        several: the children of a DataTree then lie along ``source``.
    per : {"voxel", "pattern"}
        Over images for each neuroid, or over neuroids for each image.
    roi : str or sequence of str, optional
        Patterns of each of these ROIs of ``measured``, a Dataset with ``roi_mask``.
    standardize : (mean, standard deviation), optional
        Of each neuroid of the target in training, as `training_statistics` gives them: both are
        standardised by them, as published for patterns. Voxels are not changed by it.
    level, n_permutations, null, seed
        Of the threshold, as `permutation_ceiling` takes them.

    Returns
    -------
    Dataset
        ``accuracy``: mean correlation of measured with converted single trials. With repeats of
        ``measured``, also ``noise_ceiling`` and ``noise_ceiling_threshold`` as
        `permutation_ceiling` returns them, and ``accuracy_normalized``: accuracy / noise ceiling
        between -1 and 1, NaN where the ceiling is not above the threshold. All float64, "1",
        along ``roi`` where that is given; NaN of constant voxels or patterns. Voxels that are
        not finite in any trial are left out of patterns.

    Raises
    ------
    SchemaError
        If images, neuroids or their labels do not fit, images have different numbers of
        repeats, or there is only one to correlate over.
    ValueError
        If an option is none of those.
    """
    check_options(per, level, n_permutations, null)
    options = {"level": level, "n_permutations": n_permutations, "null": null, "seed": seed}
    arrays = responses_of(measured), _of_sources(converted)
    compare = partial(_compared, per=per, standardize=standardize, options=options)
    if roi is None:
        return restore_index(compare(*arrays))
    if per != "pattern" or not isinstance(measured, xr.Dataset):
        fault = "roi= is of patterns, per='pattern', of a measured Dataset with 'roi_mask'"
        raise SelectionError(f"{fault}; for voxels type ds.ned.roi({roi!r}) first")
    names = [roi] if isinstance(roi, str) else list(roi)
    rows = [resolve(measured, roi=name) for name in names]
    _refuse_other_neuroids(*arrays, str(next(iter(rows[0]))))
    found = [compare(*(array.isel(row) for array in arrays)) for row in rows]
    joined = xr.concat(
        found, dim="roi", coords="minimal", compat="override", combine_attrs="override"
    )
    return restore_index(joined.assign_coords(roi=np.array(names, dtype=object)))


def _of_sources(converted: xr.DataArray | xr.Dataset | xr.DataTree) -> xr.DataArray:
    """Return converted responses, of a DataTree ``(source, image, repetition, <neuroid>)``."""
    if not isinstance(converted, xr.DataTree):
        return responses_of(converted)
    datasets = {name: child.to_dataset() for name, child in converted.children.items()}
    given = {name: ds["response"] for name, ds in datasets.items() if "response" in ds}
    if not given:
        raise SchemaError("what was converted", ["no child of the DataTree holds a 'response'"])
    origins = [array.attrs.get("converted_from") for array in given.values()]
    if len(given) > 1 and None not in origins and len({*origins}) == 1:
        fault = f"{', '.join(map(str, given))} are all converted from {origins[0]}"
        advice = "compare one target at a time: converted['sub-02'].to_dataset()"
        raise SchemaError("what was converted", [fault, advice])
    first, *others = (_unlabelled(by_repetition(array)) for array in given.values())
    rows = [lookup(other, first, names=_AMONG) for other in others]
    others = [a if r is None else a.isel(image=r) for a, r in zip(others, rows, strict=True)]
    shapes = {name: dict(a.sizes) for name, a in zip(given, (first, *others), strict=True)}
    if any(sizes != first.sizes for sizes in shapes.values()):
        advice = "convert to one target, and choose as many repetitions: ds.ned.stack_repetitions()"
        raise SchemaError("what was converted", [f"sources differ in size: {shapes}", advice])
    try:
        joined = xr.concat(
            [first, *others], dim="source", coords="minimal", compat="override", join="exact"
        )
    except ValueError as error:
        raise SchemaError("what was converted", [f"labels differ: {error}"]) from error
    return joined.assign_coords(source=np.array([str(name) for name in given], dtype=object))


def _unlabelled(array: xr.DataArray) -> xr.DataArray:
    """Leave out what is said of one source alone, such as whose its responses are."""
    return array.drop_vars([name for name, coord in array.coords.items() if not coord.ndim])


def _compared(
    measured: xr.DataArray,
    converted: xr.DataArray,
    *,
    per: Per,
    standardize: Statistics | None,
    options: dict[str, Any],
) -> xr.Dataset:
    target = by_repetition(measured)
    source = by_repetition(converted).rename(repetition="repetition_converted")
    target, source = matched(target, source, names=("measured", "converted"))
    along = correlated_dim(target, per)
    if standardize is not None:
        mean, sd = (next(iter(layers_of(part).values())) for part in both_statistics(standardize))
        target, source = (standardized(array, mean, sd) for array in (target, source))
    kept = all_of(target, along)
    if per == "pattern":
        others = source.rename(repetition_converted="repetition")
        kept = (kept & all_of(others, along)).transpose(..., along)
    accuracy = reduced(cross_correlation, [target, source], kept)
    long_name = f"mean correlation of measured with converted trials over {along}s"
    attrs = {"units": "1", "long_name": long_name, "metric": "pearson_r", "over": along}
    found = xr.Dataset({"accuracy": accuracy.assign_attrs(attrs)})
    if target.sizes["repetition"] < 2:
        return found
    ceiling = ceiling_of(target, kept, **options)
    # Of a level below one half the threshold is negative, and a ceiling of 0 is above it.
    trusted = ceiling["noise_ceiling"] > ceiling["noise_ceiling_threshold"].clip(min=0)
    normalized = (accuracy / ceiling["noise_ceiling"].where(trusted)).clip(-1, 1)
    attrs |= {"long_name": "accuracy divided by noise_ceiling"}
    return found.assign(ceiling.data_vars).assign(
        accuracy_normalized=normalized.transpose(*accuracy.dims).assign_attrs(attrs)
    )


def _refuse_other_neuroids(measured: xr.DataArray, converted: xr.DataArray, dim: str) -> None:
    sizes = measured.sizes[dim], converted.sizes.get(dim)
    if sizes[0] != sizes[1]:
        fault = f"{sizes[0]} measured and {sizes[1]} converted along {dim!r}"
        raise SchemaError("what is compared", [fault, "convert to the subject that was measured"])


def cross_correlation(measured: np.ndarray, converted: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the mean correlation of all pairs of trials of two.

    Parameters
    ----------
    measured, converted : ndarray, (..., repetition, sample)
        With as many repetitions as each has.
    kept : ndarray of bool, (..., sample)

    Returns
    -------
    ndarray of float64, (...)
    """
    means = [standard(trials, kept).mean(axis=-2) for trials in (measured, converted)]
    return mean_product(means[0], means[1], kept)
