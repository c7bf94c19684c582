"""How well repeats predict each other, from sums of squares within and between images.

A noise ceiling is a fraction of variance: r2 is compared with it, r with its square root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.metrics.moments import finish_merged
from nedx.metrics.repeats import by_column, n_repetitions, repeats_of, tiles
from nedx.metrics.split_half import CEILING, split_half

Method = Literal["ncsnr", "split_half", "leave_one_out"]

# Rows of the moments of repeats: trials, mean and squares between the images that were repeated,
# the same of those shown once; squares within, and these by n - 1 and (n - 1)^2; sum of 1 / n,
# number, and sum of 1 / (n - 1) of the images that were repeated.
_N_MOMENTS = 12
# Sums about zero are kept while all squares are at most this many times those within images.
_LARGEST_LOSS = 16.0


def noise_ceiling(
    responses: xr.DataArray | xr.Dataset,
    *,
    method: Method = "ncsnr",
    n_splits: int = 100,
    seed: int = 0,
) -> xr.DataArray:
    """Return the noise ceiling of the mean over the repeats that there are, lazily.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials: ``(image, repetition, ...)``, where an absent repeat is NaN, or
        ``(trial, ...)`` with ``image_id(trial)``. Of a Dataset, ``response``.
    method : {"ncsnr", "split_half", "leave_one_out"}
        ``ncsnr``: signal variance / (signal variance + noise variance mean_i(1 / n_i)), the
        variances as `ncsnr` finds them. `split_half` and `leave_one_out` are described there.
    n_splits, seed : int
        Of `split_half`.

    Returns
    -------
    DataArray
        ``noise_ceiling`` float32, a fraction of variance, "1"; NaN of constant neuroids and where
        no image was repeated. Its attribute ``n_repetitions`` is what labels say; repeats that
        are NaN are taken into account in the values.

    Raises
    ------
    SchemaError
        If there are no repeats.
    ValueError
        If there is no such method.
    """
    if method == "split_half":
        return split_half(responses, n_splits=n_splits, seed=seed)
    if method == "leave_one_out":
        return leave_one_out(responses)
    if method != "ncsnr":
        raise ValueError(
            f"method is 'ncsnr', 'split_half' or 'leave_one_out', not {method!r}; type "
            "noise_ceiling(method='ncsnr')"
        )
    return _ceiling_of(responses, _ceiling, "ncsnr")


def ncsnr(responses: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Return the noise ceiling signal-to-noise ratio: signal over noise standard deviation.

    With n_i repeats of image i, of variance var_i: noise variance = sum_i (n_i - 1) var_i /
    sum_i (n_i - 1); signal variance = max(0, variance over all trials - noise variance). Allen et
    al. 2022, Nature Neuroscience 25:116, Methods, for any number of repeats.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, as `noise_ceiling` takes them.

    Returns
    -------
    DataArray
        ``ncsnr`` float32, lazy where the responses are; NaN where no image was repeated and of
        constant neuroids, infinite where repeats are equal.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    attrs = {"units": "1", "long_name": "noise ceiling signal-to-noise ratio", "method": "ncsnr"}
    return _reduce(responses, _ncsnr, "ncsnr", attrs)


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

    Raises
    ------
    ValueError
        If there are images without a repeat.
    """
    if not np.all(np.asarray(n_repetitions) >= 1):
        raise ValueError("n_repetitions are at least 1 of every image that was averaged")
    inverse = float(np.mean(1.0 / np.asarray(n_repetitions, dtype=np.float64)))
    # Not ncsnr^2 / (ncsnr^2 + ...), which is NaN for repeats without any noise.
    ceiling = 1.0 / (1.0 + inverse / ncsnr**2)
    attrs = {**CEILING, "method": "ncsnr", "n_repetitions": 1.0 / inverse}
    return ceiling.astype("f4").rename("noise_ceiling").assign_attrs(attrs)


def leave_one_out_r(responses: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Correlate each repeat with the mean of the other repeats of its image.

    One Pearson correlation over all pairs (x_ij, mean of x_ik, k != j) of the images that were
    repeated. With squares B between images, sum_i n_i (m_i - m)^2, and W_i within image i it is
    (B - sum_i W_i / (n_i - 1)) / sqrt((B + sum_i W_i) (B + sum_i W_i / (n_i - 1)^2)), exactly, so
    one pass is enough and no mean of others is ever formed.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, as `noise_ceiling` takes them.

    Returns
    -------
    DataArray
        ``leave_one_out_r`` float32, "1": how well the mean of n - 1 repeats predicts one more. A
        model that predicts single trials better than this is better than those repeats.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    attrs = {
        "units": "1",
        "long_name": "correlation of each repeat with the mean of the others",
        "metric": "pearson_r",
        "method": "leave_one_out",
    }
    return _reduce(responses, _leave_one_out_r, "leave_one_out_r", attrs)


def leave_one_out(responses: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Return the noise ceiling of the mean of all repeats from `leave_one_out_r`.

    With signal over noise variance a and q = mean over trials of 1 / (n_i - 1), the expected
    correlation is r = a / sqrt((a + 1) (a + q)), attenuation on both sides (Spearman 1904, American
    Journal of Psychology 15:72). Solved for a = (r^2 (1 + q) + sqrt(r^4 (1 + q)^2 + 4 r^2 q (1 -
    r^2))) / (2 (1 - r^2)), the ceiling of the mean of n_i repeats is a / (a + mean_i(1 / n_i)).

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, as `noise_ceiling` takes them.

    Returns
    -------
    DataArray
        ``noise_ceiling`` float32, a fraction of variance, "1"; 0 where r is negative.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    return _ceiling_of(responses, _leave_one_out, "leave_one_out")


def _ceiling_of(
    responses: xr.DataArray | xr.Dataset, finish: Callable[[np.ndarray], np.ndarray], method: str
) -> xr.DataArray:
    return _reduce(responses, finish, "noise_ceiling", {**CEILING, "method": method})


def _reduce(
    responses: xr.DataArray | xr.Dataset,
    finish: Callable[[np.ndarray], np.ndarray],
    name: str,
    attrs: dict[str, Any],
) -> xr.DataArray:
    array, dims, codes = repeats_of(responses)
    found: xr.DataArray = xr.apply_ufunc(
        _reduce_repeats,
        array,
        kwargs={"codes": codes, "n_dims": len(dims), "finish": finish},
        input_core_dims=[dims],
        dask="allowed",
        # Labels keep what is said of them; what was said of the responses is not true of this.
        keep_attrs="override",
    )
    found.attrs = {**attrs, "n_repetitions": n_repetitions(codes)}
    # What the data say of themselves under this name is another estimate.
    return found.drop_vars(name, errors="ignore").astype(np.float32).rename(name)


def _reduce_repeats(
    values: Any, *, codes: np.ndarray, n_dims: int, finish: Callable[[np.ndarray], np.ndarray]
) -> Any:
    """Reduce (..., image, repetition) or (..., trial), numpy or dask, to (...)."""
    if not isinstance(values, da.Array):
        return finish(_moments(values, codes=codes, n_dims=n_dims)[..., 0])
    # Repeats of an image must meet; chunks of images are merged.
    fewer = {} if n_dims == 2 else dict.fromkeys(range(values.ndim - 1), "auto")
    values = values.rechunk({**fewer, values.ndim - 1: -1})
    n_others = values.ndim - n_dims
    parts = da.map_blocks(
        _moments,
        values,
        codes=None if n_dims == 2 else codes,
        n_dims=n_dims,
        dtype=np.float64,
        # The axis of images becomes that of the blocks.
        drop_axis=[n_others + 1] if n_dims == 2 else None,
        new_axis=0,
        chunks=((_N_MOMENTS,), *values.chunks[:n_others], (1,) * values.numblocks[n_others]),
        meta=np.empty((0,) * (n_others + 2)),
    )
    return finish_merged(parts, _merge, finish)


def _moments(values: np.ndarray, *, codes: np.ndarray | None, n_dims: int) -> np.ndarray:
    """Return the moments of repeats, (12, ..., 1), of a block of whole images."""
    if codes is None:
        codes = np.repeat(np.arange(values.shape[-2]), values.shape[-1])
    values = values.reshape(*values.shape[: values.ndim - n_dims], -1)
    found = by_column(values, codes, _strip_moments, _N_MOMENTS, hopeful=True)
    return found[..., np.newaxis]


def _strip_moments(strip: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    parts = [_group_moments(strip, group) for group in groups]
    empty = np.zeros((_N_MOMENTS, strip.shape[1]))
    return _merge(np.stack([*parts, empty], axis=-1))


def _group_moments(strip: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the moments (12, column) of images with the same number of repeats."""
    images, repeats = group.shape
    squares = _squares_about_zero(strip, group)
    if squares is None:
        squares = _squares_about_first(strip, group)
    within, mean, between = squares
    found = np.zeros((_N_MOMENTS, strip.shape[1]))
    first = 0 if repeats > 1 else 3
    found[first], found[first + 1], found[first + 2] = images * repeats, mean, between
    if repeats > 1:
        found[6], found[7] = within, within / (repeats - 1)
        found[8] = within / (repeats - 1) ** 2
        found[9], found[10], found[11] = images / repeats, images, images / (repeats - 1)
    return found


def _squares_about_zero(strip: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """Return squares within images, mean and squares between; None where digits would be lost.

    Squares of all trials less those of the image means: no differences are formed, which is fast,
    and exact enough while the noise is not much less than all there is.
    """
    images, repeats = group.shape
    sums = np.zeros((3, strip.shape[1]))
    for _, tile in tiles(strip, group):
        trials = tile.reshape(-1, tile.shape[-1])
        of_images = tile[:, 0].copy()
        for repeat in range(1, repeats):
            of_images += tile[:, repeat]
        sums[0] += np.einsum("ij,ij->j", trials, trials)
        sums[1] += np.einsum("ij,ij->j", of_images, of_images)
        sums[2] += np.ones(len(of_images), of_images.dtype) @ of_images
    between = sums[1] / repeats
    within = sums[0] - between
    # Not where something is NaN: then trials are absent, and this strip is cut up first.
    if ((sums[0] > _LARGEST_LOSS * within) | (sums[0] < 1e-30)).any():
        return None
    mean = sums[2] / (images * repeats)
    return within, mean, np.maximum(between - images * repeats * mean * mean, 0)


def _squares_about_first(strip: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return squares within images, mean and squares between, whatever their size.

    About the first repeat: the differences of equal repeats are 0 without rounding.
    """
    images, repeats = group.shape
    origin = strip[group[0, 0]].astype(np.float64)
    within, between = np.zeros(strip.shape[1]), np.zeros((2, strip.shape[1]))
    for _, tile in tiles(strip, group):
        differences = tile - tile[:, :1]
        means = differences.mean(axis=1)
        differences -= means[:, np.newaxis]
        within += np.einsum("irj,irj->j", differences, differences)
        centred = np.add(means, tile[:, 0], dtype=np.float64) - origin
        between[0] += centred.sum(axis=0)
        between[1] += np.einsum("ij,ij->j", centred, centred)
    mean = between[0] / images
    squares = repeats * np.maximum(between[1] - images * mean * mean, 0)
    return within, origin + mean, squares


def _merge(parts: np.ndarray) -> np.ndarray:
    """Merge moments of repeats, (12, ..., block), to (12, ...)."""
    repeated, once = (_merge_means(*parts[first : first + 3]) for first in (0, 3))
    return np.concatenate([repeated, once, parts[6:].sum(axis=-1)])


def _merge_means(count: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Merge counts, means and squares about them, each (..., block), to (3, ...)."""
    total = count.sum(axis=-1)
    whole = (count * mean).sum(axis=-1) / np.maximum(total, 1)
    squares = squares + count * (mean - whole[..., np.newaxis]) ** 2
    return np.stack([total, whole, squares.sum(axis=-1)])


def _variances(moments: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return signal variance, noise variance and mean 1 / n_i of all images, each (...)."""
    pairs = np.stack([moments[:3], moments[3:6]], axis=-1)
    trials, mean, squares = _merge_means(*pairs)
    within, images, once = moments[6], moments[10], moments[3]
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = within / (moments[0] - images)
        total = (within + squares) / (trials - 1)
        inverse = (moments[9] + once) / (images + once)
    # Merged means of a constant differ by rounding.
    total = np.where(total <= (1e-14 * mean) ** 2, 0, total)
    return np.maximum(total - noise, 0), noise, inverse


def _ncsnr(moments: np.ndarray) -> np.ndarray:
    signal, noise, _ = _variances(moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(signal / noise)


def _ceiling(moments: np.ndarray) -> np.ndarray:
    signal, noise, inverse = _variances(moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        return signal / (signal + noise * inverse)


def _leave_one_out_r(moments: np.ndarray) -> np.ndarray:
    _, mean, between = moments[:3]
    within, by_freedom, by_square = moments[6:9]
    between = np.where(between <= moments[0] * (1e-14 * mean) ** 2, 0, between)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt((between + within) * (between + by_square))
        return np.clip((between - by_freedom) / scale, -1, 1)


def _leave_one_out(moments: np.ndarray) -> np.ndarray:
    square = np.square(np.maximum(_leave_one_out_r(moments), 0))
    trials, images, once = moments[0], moments[10], moments[3]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of every trial 1 / (n - 1): n / (n - 1) of every image, which is 1 + 1 / (n - 1).
        others = (images + moments[11]) / trials
        root = np.sqrt((square * (1 + others)) ** 2 + 4 * square * others * (1 - square))
        signal = square * (1 + others) + root
        noise = 2 * (1 - square)
        return signal / (signal + noise * (moments[9] + once) / (images + once))
