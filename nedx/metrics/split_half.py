"""Noise ceilings from the correlation of random halves of the repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.metrics.repeats import by_column, n_repetitions, repeats_of, tiles, whole

CEILING = {"units": "1", "valid_range": [0.0, 1.0], "long_name": "noise ceiling (R2)"}

_BOUNDS = {
    "lower": {"long_name": "correlation of one half of the repeats with the other"},
    "upper": {
        "long_name": "correlation of one half of the repeats with the mean of all (biased)",
        "bias": "the half is part of the mean of all: of pure noise the expected value is "
        "1/sqrt(2) = 0.71, not 0; compare a model with 'unbiased'",
    },
    "unbiased": {"long_name": "correlation of the signal with one half of the repeats"},
}


def split_half(
    responses: xr.DataArray | xr.Dataset, *, n_splits: int = 100, seed: int = 0
) -> xr.DataArray:
    """Return the noise ceiling from the correlation of random halves of the repeats.

    The mean r of `split_half_r` becomes k r / (1 + (k - 1) r), the Spearman-Brown formula
    (Spearman 1910, Brown 1910, British Journal of Psychology 3:271 and 3:296), with k =
    mean(1 / h_i) / mean(1 / n_i) for halves of h_i = n_i // 2, which is 2 for even n.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, ``(image, repetition, ...)``, where an absent repeat is NaN, or
        ``(trial, ...)`` with ``image_id(trial)``. Of a Dataset, ``response``.
    n_splits : int
        How many random splits.
    seed : int
        Of the splits; the same for all neuroids that miss the same repeats.

    Returns
    -------
    DataArray
        ``noise_ceiling`` float32, a fraction of variance, "1"; at least 0; NaN of constant
        neuroids and where fewer than two images were repeated.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    r, factor = _halves(responses, n_splits, seed, (0, 2))
    r = r.clip(min=0)
    ceiling = (factor * r / (1 + (factor - 1) * r)).astype(np.float32)
    return ceiling.rename("noise_ceiling").assign_attrs({**r.attrs, **CEILING})


def split_half_r(
    responses: xr.DataArray | xr.Dataset, *, n_splits: int = 100, seed: int = 0
) -> xr.DataArray:
    """Correlate over images the means of random halves of the repeats.

    Of every image two disjoint halves of n_i // 2 repeats are averaged, and correlated over the
    images with at least two repeats; the mean over splits is returned.

    Parameters
    ----------
    responses, n_splits, seed
        As `split_half` takes them.

    Returns
    -------
    DataArray
        ``split_half_r`` float32, "1", not corrected for the halved number of repeats.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    (r,) = _halves(responses, n_splits, seed, (0,))
    about = {"units": "1", "long_name": "correlation of halves of the repeats"}
    found = r.astype(np.float32).rename("split_half_r")
    return found.assign_attrs({**r.attrs, **about, "metric": "pearson_r"})


def half_bounds(
    responses: xr.DataArray | xr.Dataset, *, n_splits: int = 10, seed: int = 0
) -> xr.Dataset:
    """Return the lower and upper bound of EEG encoding as NED published them, and a fair one.

    NED correlates predictions with the mean of a random half of the repeats, and draws two bounds
    beside: the correlation of that half with the other (lower), and with the mean of all repeats
    (upper). The upper one is biased, because the half is part of the mean of all: with r the lower
    bound it is sqrt((1 + r) / 2) for even n, 1/sqrt(2) = 0.71 of pure noise. What a perfect
    model of the signal can reach against the half is sqrt(r) (Spearman 1904).

    Parameters
    ----------
    responses : DataArray or Dataset
        As `split_half` takes them.
    n_splits : int
        How many random splits; NED uses 10.
    seed : int
        Of the splits.

    Returns
    -------
    Dataset
        ``lower``, ``upper`` (as published, biased) and ``unbiased``, sqrt(lower) or 0 where that is
        negative: float32, Pearson r with the mean of half the repeats, "1".

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    lower, upper = _halves(responses, n_splits, seed, (0, 1))
    values = {"lower": lower, "upper": upper, "unbiased": lower.clip(min=0) ** 0.5}
    found = {}
    for name, meaning in _BOUNDS.items():
        attrs = {"units": "1", "metric": "pearson_r", **meaning, "method": "half_bounds"}
        found[name] = values[name].astype(np.float32).assign_attrs({**lower.attrs, **attrs})
    return xr.Dataset(found)


def _halves(
    responses: xr.DataArray | xr.Dataset, n_splits: int, seed: int, rows: tuple[int, ...]
) -> tuple[xr.DataArray, ...]:
    """Return what is in ``rows`` of `_found`; attributes say how it was found."""
    if n_splits < 1:
        raise ValueError(f"n_splits is at least 1, not {n_splits}; type n_splits=100")
    array, dims, codes = repeats_of(responses)
    found = xr.apply_ufunc(
        _found,
        whole(array, dims),
        kwargs={"codes": codes, "n_dims": len(dims), "n_splits": n_splits, "seed": seed},
        input_core_dims=[dims],
        output_core_dims=[["_row"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"_row": 3}},
        # Labels keep what is said of them; what was said of the responses is not true of this.
        keep_attrs="override",
    )
    # What the data say of themselves under this name is another estimate.
    found = found.drop_vars(["noise_ceiling", "split_half_r"], errors="ignore")
    found.attrs = {
        "method": "split_half",
        "n_repetitions": n_repetitions(codes),
        "n_splits": n_splits,
        "seed": seed,
    }
    return tuple(found.isel(_row=row) for row in rows)


def _found(
    values: np.ndarray, *, codes: np.ndarray, n_dims: int, n_splits: int, seed: int
) -> np.ndarray:
    """Return (..., 3): r of both halves, r of one with all, and by how much noise shrinks.

    The last is k of Spearman and Brown.
    """
    values = values.reshape(*values.shape[: values.ndim - n_dims], -1)

    def prepare(groups: list[np.ndarray]) -> tuple[list[Any], float]:
        return _draw([g for g in groups if g.shape[1] > 1], codes.size, n_splits, seed)

    return np.moveaxis(by_column(values, codes, _strip_halves, 3, prepare), 0, -1)


def _draw(
    groups: list[np.ndarray], n_trials: int, n_splits: int, seed: int
) -> tuple[list[Any], float]:
    """Draw the halves: groups, each with bool (half, split, image, repetition); and k."""
    drawn = [(group, np.zeros((2, n_splits, *group.shape), bool)) for group in groups]
    for split in range(n_splits):
        # Of every trial of the data, so that what other neuroids miss makes no difference.
        priority = np.random.default_rng([seed, split]).random(n_trials)
        for group, halves in drawn:
            order = np.argsort(priority[group], axis=1)
            half = group.shape[1] // 2
            for which, chosen in enumerate((order[:, :half], order[:, half : 2 * half])):
                np.put_along_axis(halves[which, split], chosen, values=True, axis=1)
    counts = np.concatenate([np.full(*group.shape) for group in groups] or [np.ones(0)])
    if counts.size < 2:
        return [], np.nan
    return drawn, float(np.mean(1 / (counts // 2)) / np.mean(1 / counts))


def _strip_halves(strip: np.ndarray, drawn: tuple[list[Any], float]) -> np.ndarray:
    """Return (3, column): mean r of halves, mean r of one half with all, and k."""
    groups, factor = drawn
    if not groups:
        return np.full((3, strip.shape[1]), np.nan)
    n_splits = groups[0][1].shape[1]
    origin = strip[groups[0][0][0, 0]].astype(np.float64)
    # Of every split: both halves, their squares, their product, and the first times all.
    sums = np.zeros((n_splits, 6, strip.shape[1]))
    of_all = np.zeros((2, strip.shape[1]))
    images = sum(len(group) for group, _ in groups)
    for group, halves in groups:
        for part, tile in tiles(strip, group):
            centred = tile - origin.astype(tile.dtype)
            mean = centred.mean(axis=1)
            of_all += mean.sum(axis=0), np.einsum("ij,ij->j", mean, mean)
            weights = halves[:, :, part].astype(tile.dtype) / (group.shape[1] // 2)
            _add_splits(sums, centred, mean, weights)
    return np.stack([*_mean_correlations(sums, of_all, images), np.full_like(origin, factor)])


def _add_splits(sums: np.ndarray, tile: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> None:
    """Add a tile (image, repetition, column) to the sums (split, 6, column), in place."""
    for split, added in enumerate(sums):
        first = np.einsum("ir,irj->ij", weights[0, split], tile)
        second = np.einsum("ir,irj->ij", weights[1, split], tile)
        added[0] += first.sum(axis=0)
        added[1] += second.sum(axis=0)
        pairs = ((first, first), (second, second), (first, second), (first, mean))
        for row, (a, b) in enumerate(pairs, start=2):
            added[row] += np.einsum("ij,ij->j", a, b)


def _mean_correlations(
    sums: np.ndarray, of_all: np.ndarray, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over splits of r of both halves, and of the first half with all."""
    first, second, squares_1, squares_2, products, products_all = np.moveaxis(sums, 1, 0)
    all_sum, all_squares = of_all
    variance_1 = squares_1 - first**2 / images
    variance_2 = squares_2 - second**2 / images
    variance_all = all_squares - all_sum**2 / images
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (products - first * second / images) / np.sqrt(variance_1 * variance_2)
        r_all = products_all - first * all_sum / images
        r_all = r_all / np.sqrt(variance_1 * variance_all)
    return r.mean(axis=0), r_all.mean(axis=0)
