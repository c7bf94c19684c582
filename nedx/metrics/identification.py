"""Which image was seen: how often the true features are more alike than those of another image.

The definition is that of bdpy's metrics (Kamitani Lab), which is also the two-way identification
of reconstructed images: of every prediction, the fraction of other candidates that are less
similar to it than the true one. Equal similarity is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.correlation import from_moments
from nedx.metrics.layers import (
    Features,
    Statistics,
    along_layer,
    by_layer,
    candidates,
    coords_of,
    lazy_patterns,
    lookup,
    unit_dims,
)
from nedx.metrics.moments import finish_merged
from nedx.metrics.profiles import both_statistics, merge_some, standardized
from nedx.metrics.repeats import averaged, has_repeats, labels_of
from nedx.metrics.retrieval_scores import expected_top
from nedx.schema import restore_index, role_dim, sample_dim

Metric = Literal["correlation", "euclidean"]
Form = Literal["label", "trial"]

_SAMPLES = 512
"""Samples and candidates of a block of pairs: six numbers of each pair are 12 MB."""


def pairwise_identification(
    true: Features,
    predicted: Features,
    *,
    metric: Metric = "correlation",
    form: Form = "label",
    over: str | Sequence[str] | None = None,
) -> xr.DataArray:
    """Say how often a prediction is more like its own image than like another, lazily.

    Of every prediction, the fraction of the other candidates whose similarity is less than that
    of the true one; ties are failures. Features are compared as they are, not standardised.
    Units that are not finite in any image of either are left out, and so are candidates that
    have no similarity (constant ones): the denominator shrinks.

    Parameters
    ----------
    true : DataArray or Dataset
        The candidates, ``(image, <unit dims>)``, each once, as `profile_correlation` takes them.
    predicted : DataArray or Dataset
        ``(..., image | trial, <unit dims>)``, joined by ``image_id``; leading dims are kept.
    metric : {"correlation", "euclidean"}
        Similarity is Pearson's r over units, or the negative Euclidean distance.
    form : {"label", "trial"}
        ``label``: one prediction of an image, repetitions and trials are averaged first, of the
        same images as ``true``. ``trial``: every repetition or trial is identified by itself,
        and ``true`` may hold further candidates.
    over : str or sequence of str, optional
        The dims that make up a pattern, as `pattern_correlation` takes them.

    Returns
    -------
    DataArray
        ``identification ([layer,] ..., image | trial)`` float64 in [0, 1], "1"; chance is .5.
        NaN of predictions without similarity to their own image, such as constant ones: average
        with ``.mean("image")``, which leaves them out, and count them.

    Raises
    ------
    SchemaError
        If images, layers or units do not fit, or there are fewer than two candidates.
    ValueError
        If there is no such metric or form.
    """
    options: dict[str, Any] = {"metric": metric, "form": form, "over": over}
    found = _by_layer(true, predicted, _fraction, **options).isel(way=0)
    long_name = "fraction of other images that are less similar than the true one"
    attrs = {"units": "1", "long_name": long_name, **found.attrs, "chance": 0.5}
    return restore_index(found.rename("identification").assign_attrs(attrs))


def image_identification(
    true: Features,
    predicted: Features,
    *,
    ways: Sequence[int] = (2, 10, 50),
    top: int = 1,
    metric: Metric = "correlation",
    form: Form = "label",
    over: str | Sequence[str] | None = None,
) -> xr.DataArray:
    """Say how often an image is identified among so many, lazily and without drawing any.

    The expectation over all sets of candidates that hold the true one, in closed form: see
    `nedx.metrics.retrieval_scores.expected_top`. Of two ways it is `pairwise_identification`.

    Parameters
    ----------
    true, predicted, metric, form, over
        As `pairwise_identification` takes them.
    ways : sequence of int
        How many candidates there are, the true one among them.
    top : int
        How many of the most similar candidates are guesses.

    Returns
    -------
    DataArray
        ``identification ([layer,] way, ..., image | trial)`` float64 in [0, 1], "1", with
        ``chance (way)``; NaN as in `pairwise_identification`, and where candidates without
        similarity leave fewer than ``way``.

    Raises
    ------
    SchemaError
        If images, layers or units do not fit.
    ValueError
        If there are fewer candidates than ways, or an option is none of those.
    """
    if top < 1 or not ways or min(ways) < 2:
        raise ValueError(f"ways are at least 2 and top at least 1, not ways={ways} and top={top}")
    finish = partial(_n_way, ways=tuple(ways), top=top)
    options: dict[str, Any] = {"metric": metric, "form": form, "over": over}
    found = _by_layer(true, predicted, finish, n_ways=len(ways), **options)
    if max(ways) > found.attrs["n_candidates"]:
        count = found.attrs["n_candidates"]
        raise ValueError(f"{count} candidates are no {max(ways)} ways; type ways=({count},)")
    chance = np.minimum(top / np.asarray(ways), 1)
    found = found.assign_coords(way=np.asarray(ways), chance=("way", chance))
    attrs = {"units": "1", "long_name": "expected n-way identification", "top": top, **found.attrs}
    return restore_index(found.rename("identification").assign_attrs(attrs))


def pattern_cross_correlation(
    true: Features,
    predicted: Features,
    *,
    standardize: Statistics | None = None,
    over: str | Sequence[str] | None = None,
) -> xr.DataArray:
    """Correlate the predicted pattern of every image with every true pattern, lazily.

    Parameters
    ----------
    true, predicted, standardize, over
        As `pattern_correlation` takes them; images need not be the same.

    Returns
    -------
    DataArray
        ``similarity ([layer,] ..., image | trial, candidate)`` float64, "1", with
        ``candidate_id (candidate)``; NaN where a pattern is constant.

    Raises
    ------
    SchemaError
        If layers or units do not fit.
    """
    compare = partial(_cross_correlated, over=over)
    found = along_layer(by_layer(compare, true, predicted, *both_statistics(standardize)))
    attrs = {"units": "1", "long_name": "correlation over units", "metric": "pearson_r"}
    found = restore_index(found.rename("similarity").drop_attrs(deep=False))
    return found.assign_attrs(attrs)


def identified(
    similarity: np.ndarray, own: np.ndarray, rounding: np.ndarray | float = 0.0
) -> np.ndarray:
    """Count the candidates that are less similar than the true one.

    Parameters
    ----------
    similarity : ndarray, (..., sample, candidate)
        Of some candidates, the true one may be among them; NaN where there is none.
    own : ndarray, (..., sample)
        The similarity of each sample with its true candidate.
    rounding : ndarray (..., sample) or float
        Less of a difference than this is a tie, which is no success.

    Returns
    -------
    ndarray of float64, (2, ..., sample)
        How many are less similar, and how many there are: of blocks of candidates these are
        added, and the first over the second less one is the fraction identified.
    """
    level = (own - rounding)[..., np.newaxis]
    with np.errstate(invalid="ignore"):
        less = (similarity < level).sum(axis=-1)
    return np.stack([less, (~np.isnan(similarity)).sum(axis=-1)]).astype(np.float64)


def similarities(x: da.Array, y: da.Array, metric: Metric) -> da.Array:
    """Compare all samples with all candidates over the units that are finite in all, lazily.

    Parameters
    ----------
    x, y : dask array, (..., sample, unit) and (..., candidate, unit)
        Leading axes in blocks of one, samples and candidates in one block each.
    metric : {"correlation", "euclidean"}
        Euclidean is minus the squared distance.

    Returns
    -------
    dask array of float64, (..., sample, candidate)
        NaN where a pattern is constant and correlations are asked for.
    """
    lead = tuple(range(1, x.ndim - 1))
    sample, candidate, unit = x.ndim, x.ndim + 1, x.ndim + 2
    there = _there(x, y)
    x, y = (a.rechunk({a.ndim - 2: _SAMPLES}) for a in (x, y))
    parts = da.blockwise(
        _all_moments,
        (0, *lead, sample, candidate, unit),
        *(x, (*lead, sample, unit), y, (*lead, candidate, unit), there, (*lead, unit)),
        new_axes={0: 6},
        adjust_chunks={unit: lambda _: 1},
        dtype=np.float64,
        meta=np.empty((0,) * (x.ndim + 2)),
    )
    return finish_merged(parts, merge_some, _FINISH[metric])


def own_similarities(
    x: da.Array, y: da.Array, own: np.ndarray, metric: Metric
) -> tuple[da.Array, da.Array]:
    """Compare every sample with its own candidate, lazily.

    Parameters
    ----------
    x, y, metric
        As `similarities` takes them.
    own : ndarray of int, (sample,)
        The candidate of each sample.

    Returns
    -------
    similarity, rounding : dask array of float64, (..., sample)
        And how far it may be off from the same pair in `similarities`, many times over.
    """
    lead, sample, candidate, unit = tuple(range(1, x.ndim - 1)), x.ndim, x.ndim + 1, x.ndim + 2
    parts = da.blockwise(
        partial(_own_moments, own=own),
        (0, *lead, sample, unit),
        *(x, (*lead, sample, unit), y, (*lead, candidate, unit), _there(x, y), (*lead, unit)),
        new_axes={0: 6},
        adjust_chunks={unit: lambda _: 1},
        concatenate=True,
        dtype=np.float64,
        meta=np.empty((0,) * (x.ndim + 1)),
    )
    similarity = finish_merged(parts, merge_some, _FINISH[metric])
    rounding = _rounding(x.shape[-1])
    if metric == "correlation":
        return similarity, da.full_like(similarity, rounding)
    return similarity, finish_merged(parts, merge_some, partial(_doubt, rounding=rounding))


def _by_layer(
    true: Features,
    predicted: Features,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    metric: Metric,
    form: Form,
    over: str | Sequence[str] | None,
    n_ways: int = 1,
) -> xr.DataArray:
    if metric not in _FINISH:
        raise ValueError(f"metric is 'correlation' or 'euclidean', not {metric!r}")
    if form not in ("label", "trial"):
        raise ValueError(f"form is 'label' or 'trial', not {form!r}")
    compare = partial(
        _identified, finish=finish, metric=metric, form=form, over=over, n_ways=n_ways
    )
    layers = by_layer(compare, true, predicted)
    count = next(iter(layers.values())).attrs["n_candidates"]
    about = {"metric": metric, "form": form, "n_candidates": count}
    return along_layer(layers).drop_attrs(deep=False).assign_attrs(about)


def _identified(
    true: xr.DataArray,
    predicted: xr.DataArray,
    *,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
    metric: Metric,
    form: Form,
    over: str | Sequence[str] | None,
    n_ways: int,
) -> xr.DataArray:
    if form == "label":
        predicted = _one_of_each(predicted)
    own = lookup(true, predicted)
    count = true.sizes[sample_dim(true)]
    own = np.arange(count) if own is None else own
    if count < 2:
        raise SchemaError("what is compared", ["one candidate only: identify among two or more"])
    if form == "label" and np.unique(own).size < count:
        fault = f"{np.unique(own).size} images are predicted, but there are {count} candidates"
        advice = "select them: true.sel(image_id=predicted.image_id.values), or type form='trial'"
        raise SchemaError("what is compared", [fault, advice])
    units = unit_dims(true, predicted, over)
    sample = sample_dim(predicted)
    one, other = candidates(true, predicted)
    one, other = lazy_patterns(one, other, units, ("candidate", sample))
    counts, mine = _counts(other.data, one.data, own, metric)
    found = da.map_blocks(
        finish,
        *(counts, mine),
        drop_axis=0,
        new_axis=0,
        chunks=((n_ways,), *mine.chunks),
        dtype=np.float64,
        meta=counts._meta,
    )
    coords = coords_of(predicted, dims=other.dims[:-1])
    return xr.DataArray(found, coords, ("way", *other.dims[:-1]), attrs={"n_candidates": count})


def _counts(x: da.Array, y: da.Array, own: np.ndarray, metric: Metric) -> tuple[da.Array, da.Array]:
    """Return what `identified` counts (2, ..., sample), and the own similarity (..., sample)."""
    similarity = similarities(x, y, metric)
    mine, rounding = (
        a.rechunk({a.ndim - 1: _SAMPLES}) for a in own_similarities(x, y, own, metric)
    )
    lead, candidate = tuple(range(1, x.ndim)), x.ndim
    counts = da.blockwise(
        _counted,
        (0, *lead, candidate),
        *(similarity, (*lead, candidate), mine, lead, rounding, lead),
        new_axes={0: 2},
        adjust_chunks={candidate: lambda _: 1},
        dtype=np.float64,
        meta=np.empty((0,) * (x.ndim + 1)),
    )
    return counts.sum(axis=-1), mine


def _cross_correlated(
    true: xr.DataArray,
    predicted: xr.DataArray,
    *statistics: xr.DataArray,
    over: str | Sequence[str] | None,
) -> xr.DataArray:
    units = unit_dims(true, predicted, over)
    sample = sample_dim(predicted)
    if statistics:
        true, predicted = (standardized(a, statistics[0], statistics[1]) for a in (true, predicted))
    one, other = candidates(true, predicted)
    coords = coords_of(other, one, dims=(*{*one.dims, *other.dims} - {*units},))
    one, other = lazy_patterns(one, other, units, ("candidate", sample))
    found = similarities(other.data, one.data, "correlation")
    return xr.DataArray(found, coords, (*other.dims[:-1], "candidate"))


def _one_of_each(predicted: xr.DataArray) -> xr.DataArray:
    """Average the repetitions or trials of each image; images in the order of their names."""
    if role_dim(predicted, "repetition") is None and not has_repeats(predicted):
        return predicted
    mean, dim = averaged(predicted)
    if dim != "_image":
        return mean
    names = np.unique(labels_of(predicted, "image_id")).astype(object)
    return mean.rename(_image="image").assign_coords(image_id=("image", names))


def _there(x: da.Array, y: da.Array) -> da.Array:
    return da.isfinite(x).all(axis=-2) & da.isfinite(y).all(axis=-2)


def _all_moments(x: np.ndarray, y: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return the moments (6, ..., sample, candidate, 1) of a block of units."""
    (x, mean_x), (y, mean_y), count = _centred(x, y, there)
    found = np.empty((6, *x.shape[:-1], y.shape[-2], 1))
    found[0, ..., 0] = count[..., np.newaxis]
    found[1, ..., 0] = mean_x[..., :, np.newaxis]
    found[2, ..., 0] = mean_y[..., np.newaxis, :]
    found[3, ..., 0] = np.einsum("...u,...u->...", x, x)[..., :, np.newaxis]
    found[4, ..., 0] = np.einsum("...u,...u->...", y, y)[..., np.newaxis, :]
    found[5, ..., 0] = np.matmul(x, y.swapaxes(-1, -2))
    return found


def _own_moments(x: np.ndarray, y: np.ndarray, there: np.ndarray, *, own: np.ndarray) -> np.ndarray:
    """Return the moments (6, ..., sample, 1) of samples with their own candidates."""
    (x, mean_x), (y, mean_y), count = _centred(x, y[..., own, :], there)
    products = [np.einsum("...u,...u->...", a, b) for a, b in ((x, x), (y, y), (x, y))]
    found = [np.broadcast_to(count, mean_x.shape), mean_x, mean_y, *products]
    return np.stack(found)[..., np.newaxis]


def _centred(
    x: np.ndarray, y: np.ndarray, there: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Centre rows over the units that are there, zero elsewhere; also their means and count."""
    kept = there[..., np.newaxis, :]
    count = there.sum(axis=-1, dtype=np.float64)[..., np.newaxis]
    found = []
    for rows in (x, y):
        values = np.where(kept, rows, 0).astype(np.float64)
        mean = values.sum(axis=-1) / np.maximum(count, 1)
        found.append((np.where(kept, values - mean[..., np.newaxis], 0), mean))
    return found[0], found[1], count


def _negative_square(moments: np.ndarray) -> np.ndarray:
    count, mean_x, mean_y, sxx, syy, sxy = moments
    square = sxx + syy - 2 * sxy + count * (mean_x - mean_y) ** 2
    return np.where(count > 0, -np.maximum(square, 0), np.nan)


def _doubt(moments: np.ndarray, rounding: float) -> np.ndarray:
    count, mean_x, mean_y, sxx, syy, _ = moments
    doubt: np.ndarray = rounding * (sxx + syy + count * (mean_x - mean_y) ** 2)
    return doubt


def _counted(similarity: np.ndarray, own: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    return identified(similarity, own, rounding)[..., np.newaxis]


def _fraction(counts: np.ndarray, own: np.ndarray) -> np.ndarray:
    less, there = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(own), np.nan, less / (there - 1))[np.newaxis]


def _n_way(counts: np.ndarray, own: np.ndarray, *, ways: Sequence[int], top: int) -> np.ndarray:
    less, there = counts
    found = np.full((len(ways), *own.shape), np.nan)
    for count in np.unique(there[~np.isnan(own)]):
        chosen = (there == count) & ~np.isnan(own)
        for row, way in zip(found, ways, strict=True):
            if way <= count:
                row[chosen] = expected_top(count - less[chosen], int(count), way, top)
    return found


def _rounding(units: int) -> float:
    """Return what similarities of float64 may differ by, relative to the squares they are of.

    It grows with the number of products that are added up.
    """
    return max(1e-12, 4 * float(np.finfo(np.float64).eps) * units)


_FINISH = {"correlation": from_moments, "euclidean": _negative_square}
