"""How well single repeats predict each other, and what they would by chance.

For R repeats of T samples, z-scored over samples, m the mean of the repeats: the mean of their R
(R - 1) / 2 correlations is (R^2 mean(m^2) - R) / (R (R - 1)), so that no correlation has to be
formed. The definitions are those of Ho et al. 2023, NeuroImage 271:120007.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.layers import in_chunks
from nedx.metrics.repeats import image_codes, response_of
from nedx.schema import neuroid_dim, restore_index, role_dim, sample_dim

Per = Literal["voxel", "pattern"]
Null = Literal["permutations", "normal"]

RESULTS = ("accuracy", "noise_ceiling", "noise_ceiling_threshold", "accuracy_normalized")

_STRIP_BYTES = 2**20
_BLOCK_BYTES = 2**23


def permutation_ceiling(
    responses: xr.DataArray | xr.Dataset,
    *,
    per: Per = "voxel",
    level: float = 0.99,
    n_permutations: int = 10_000,
    null: Null = "permutations",
    seed: int = 0,
) -> xr.Dataset:
    """Return the mean correlation of pairs of repeats, and the threshold of chance, lazily.

    Parameters
    ----------
    responses : DataArray or Dataset
        Single trials, ``(image, repetition, ...)`` or ``(trial, ...)`` with ``image_id``, every
        image as often; of a Dataset, ``response``.
    per : {"voxel", "pattern"}
        Correlate over images for each neuroid, or over neuroids for each image.
    level : float
        Above what part of the chance distribution the threshold is.
    n_permutations, seed : int
        The samples of every repeat are permuted so many times, by the same random numbers for
        all voxels or images.
    null : {"permutations", "normal"}
        ``permutations`` is the published threshold. ``normal`` takes the normal distribution of
        the same mean and variance, both exact: no random numbers, and a thousandth of the time.

    Returns
    -------
    Dataset
        ``noise_ceiling``: the mean correlation of pairs of repeats, "1", 0 where it is negative.
        It is the fraction of variance of single trials that is signal, not of their mean.
        ``noise_ceiling_threshold``, "1", of the same dims: chance correlations, of repeats with
        permuted ones, are below it with the probability ``level``. Both float64, NaN where a
        repeat is constant or not finite.

    Raises
    ------
    SchemaError
        If there are no repeats, or images have different numbers of them.
    ValueError
        If an option is none of those.
    """
    check_options(per, level, n_permutations, null)
    trials = by_repetition(responses_of(responses))
    if trials.sizes["repetition"] < 2:
        fault = "no repeats: expected a dim 'repetition', or trials that share an image_id"
        raise SchemaError(
            f"{trials.name or 'the array'} of dims {trials.dims}",
            [fault, "open the single trials, not their mean"],
        )
    options = {"level": level, "n_permutations": n_permutations, "seed": seed}
    along = correlated_dim(trials, per)
    return ceiling_of(trials, all_of(trials, along), null=null, **options)


def ceiling_of(
    trials: xr.DataArray, kept: xr.DataArray, *, null: Null, **options: Any
) -> xr.Dataset:
    """Return what `permutation_ceiling` does.

    Parameters
    ----------
    trials : DataArray (image, repetition, ...)
    kept : DataArray of bool, (..., <along>)
        The samples along one dim of ``trials``, images or neuroids, that are compared.
    null, **options
        As `permutation_ceiling` takes them.
    """
    over = str(kept.dims[-1])
    about = f"mean correlation of pairs of repeats over {over}s"
    ceiling = reduced(trial_correlation, [trials], kept)
    if null == "normal":
        options = {"level": options["level"]}
    kernel = normal_threshold if null == "normal" else permuted_threshold
    threshold = reduced(kernel, [trials], kept, **options)
    attrs = {"units": "1", "method": "trial_correlation", "n_repetitions": 1, "over": over}
    found = {
        "noise_ceiling": ceiling.assign_attrs(attrs, long_name=about),
        "noise_ceiling_threshold": threshold.assign_attrs(
            units="1", long_name=f"chance threshold of the {about}", null=null, **options
        ),
    }
    return restore_index(xr.Dataset(found))


def responses_of(data: Any) -> xr.DataArray:
    """Return an array itself, and of a Dataset ``response``.

    Raises
    ------
    SchemaError
        If it is neither, or there is no ``response``.
    """
    if isinstance(data, xr.DataArray | xr.Dataset):
        return response_of(data)
    fault = f"found {type(data).__name__}, expected a DataArray or a Dataset with 'response'"
    advice = "of a DataTree take one subject at a time: tree['sub-01'].ds"
    raise SchemaError("the responses", [fault, advice])


def by_repetition(array: xr.DataArray) -> xr.DataArray:
    """Give trials the dims image and repetition; one repetition where there are no repeats.

    Images are in the order they first come, repetitions in that of ``repetition (trial)``, or as
    they come. Of the labels of trials only ``image_id`` is kept.

    Raises
    ------
    SchemaError
        If images have different numbers of trials.
    """
    if array.chunks is None:
        array = in_chunks(array, dict.fromkeys(array.dims, "auto"))
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    if repetition is not None:
        names = {sample: "image", repetition: "repetition"}
        return array.rename({old: new for old, new in names.items() if old != new})
    _, codes = image_codes(array)
    counts = np.bincount(codes)
    if counts.min() != counts.max():
        fault = f"images have {counts.min()} to {counts.max()} trials"
        advice = f"choose as many of each: type ds.ned.stack_repetitions({counts.min()})"
        raise SchemaError("what is compared trial by trial", [fault, advice])
    known = "repetition" in array.coords and array["repetition"].dims == (sample,)
    place = array["repetition"].values if known else np.arange(codes.size)
    rows = np.lexsort((place, codes)).reshape(counts.size, -1)
    rows = rows[np.argsort(rows.min(axis=1))]
    others = [dim for dim in array.dims if dim != sample]
    coords = {n: c for n, c in array.coords.items() if sample not in c.dims}
    if "image_id" in array.coords:
        coords["image_id"] = xr.DataArray(array["image_id"].values[rows[:, 0]], dims="image")
    data = array.transpose(sample, *others).data[rows.ravel()]
    data = data.reshape(*rows.shape, *data.shape[1:])
    dims = ("image", "repetition", *others)
    return restore_index(xr.DataArray(data, coords, dims, array.name, array.attrs))


def correlated_dim(trials: xr.DataArray, per: Per) -> str:
    """Return the dim that repeats are correlated along: images, or neuroids.

    Raises
    ------
    SchemaError
        If there is none, or there are fewer than two along it.
    """
    dim = "image" if per == "voxel" else neuroid_dim(trials)
    if dim is None:
        fault = f"patterns are over voxels, vertices, channels or units; found {trials.dims}"
        raise SchemaError("what is compared", [fault])
    if trials.sizes[dim] < 2:
        fault = f"one {dim} only: a correlation over {dim}s needs at least two"
        raise SchemaError("what is compared", [fault])
    return dim


def all_of(trials: xr.DataArray, along: str) -> xr.DataArray:
    """Say which samples are compared, (..., <along>): all images; neuroids that are finite.

    As in the pattern correlation of features, a neuroid is left out of all images where any of
    its trials is not finite.
    """
    if along == "image":
        return xr.DataArray(np.ones(trials.sizes[along], bool), dims=along)
    there = xr.ufuncs.isfinite(trials).all(["image", "repetition"])
    return there.transpose(..., along).drop_vars(list(there.coords))


def reduced(
    kernel: Callable[..., np.ndarray],
    arrays: Sequence[xr.DataArray],
    kept: xr.DataArray,
    **options: Any,
) -> xr.DataArray:
    """Apply ``kernel(trials (..., repetition, sample)..., kept (..., sample), **options)``, lazily.

    Blocks hold all samples and repetitions of some neuroids, or of some images where samples are
    neuroids; all other dims come one by one, so that the same samples are kept in a block.

    Parameters
    ----------
    kernel : callable
        To float64 (...).
    arrays : sequence of DataArray
        Each with ``image``, a repetition dim of its own, and others.
    kept : DataArray (..., <along>)
    **options
        Of the kernel.

    Returns
    -------
    DataArray
        Without repetitions and samples.
    """
    along = str(kept.dims[-1])
    first = arrays[0]
    free = neuroid_dim(first) if along == "image" else "image"
    repetitions = [next(str(d) for d in a.dims if str(d).startswith("repetition")) for a in arrays]
    lazy = []
    for array, repetition in zip(arrays, repetitions, strict=True):
        step = max(1, _BLOCK_BYTES // (8 * array.sizes[repetition] * array.sizes[along]))
        chunks: dict[Any, int] = dict.fromkeys(array.dims, 1)
        chunks |= {free: step} if free in array.dims else {}
        lazy.append(in_chunks(array, {**chunks, repetition: -1, along: -1}))
    found: xr.DataArray = xr.apply_ufunc(
        kernel,
        *lazy,
        in_chunks(kept, {**dict.fromkeys(kept.dims, 1), along: -1}),
        kwargs=options,
        input_core_dims=[*([repetition, along] for repetition in repetitions), [along]],
        dask="parallelized",
        output_dtypes=[np.float64],
        keep_attrs="override",
    )
    found.attrs = {}
    # What the data say of themselves under these names are other estimates.
    found = found.drop_vars(RESULTS, errors="ignore")
    return found.transpose(..., *([free] if free in found.dims else []))


def standard(trials: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """z-score every trial over its samples.

    Parameters
    ----------
    trials : ndarray, (..., repetition, sample)
    kept : ndarray of bool, (..., sample)
        Samples that are not kept are 0 and do not count.

    Returns
    -------
    ndarray of float64, (..., repetition, sample)
        Of mean 0 and mean square 1; NaN where a trial is constant or not finite.
    """
    kept = kept[..., np.newaxis, :]
    count = kept.sum(axis=-1, keepdims=True, dtype=np.float64)
    values = np.where(kept, trials, 0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values.sum(axis=-1, keepdims=True) / count
        centred = np.where(kept, values - mean, 0)
        square = np.square(centred).sum(axis=-1, keepdims=True) / count
        # Rounding noise of a mean is not a variance.
        square[square <= np.square(1e-14 * mean)] = np.nan
        found: np.ndarray = centred / np.sqrt(square)
    return found


def trial_correlation(trials: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the mean correlation of pairs of repeats, (...); 0 where it is negative."""
    count = trials.shape[-2]
    mean = standard(trials, kept).mean(axis=-2)
    square = mean_product(mean, mean, kept)
    return np.maximum((count**2 * square - count) / (count * (count - 1)), 0)


def mean_product(a: np.ndarray, b: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the mean of a b (...) over the samples that are kept, of (..., sample)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = (a * b).sum(axis=-1) / kept.sum(axis=-1)
    return found


def normal_threshold(trials: np.ndarray, kept: np.ndarray, *, level: float) -> np.ndarray:
    """Return the threshold (...) of a normal distribution with the variance of permutations.

    Of vectors a and b of sum 0, sum_t a_t b_p(t) has the variance |a|^2 |b|^2 / (T - 1) over all
    permutations p (Hoeffding 1951, Annals of Mathematical Statistics 22:558), and the
    permutations of repeats are independent.
    """
    from scipy.special import ndtri

    z = standard(trials, kept)
    repeats, count = z.shape[-2], kept.sum(axis=-1)
    before = np.cumsum(z, axis=-2)[..., :-1, :]
    variance = np.square(before).sum(axis=(-1, -2)) * count / (count - 1)
    found: np.ndarray = ndtri(level) * np.sqrt(variance) / _n_products(repeats, count)
    return found


def permuted_threshold(
    trials: np.ndarray, kept: np.ndarray, *, level: float, n_permutations: int, seed: int
) -> np.ndarray:
    """Return the threshold (...) of chance: repeats correlated with permuted later ones.

    The mean over pairs m < n of the correlations of repeat m with the permuted repeat n is the
    inner product of the permuted repeats with the sums of all repeats before them.

    Parameters
    ----------
    trials : ndarray, (..., repetition, sample)
    kept : ndarray of bool, (..., sample)
        The same for all of the block.
    level, n_permutations, seed
        As `permutation_ceiling` takes them.

    Returns
    -------
    ndarray of float64, (...)
        Of B sorted permutations the round((1 - level) B)-th from above.
    """
    there = kept.reshape(-1, kept.shape[-1])[0]
    z = standard(trials, kept)[..., there]
    shape, repeats, count = z.shape[:-2], z.shape[-2], z.shape[-1]
    z = np.moveaxis(z.reshape(-1, repeats, count), 0, -1)
    rank = n_permutations - max(1, round((1 - level) * n_permutations))
    step = max(1, _STRIP_BYTES // (8 * repeats * count))
    found = np.empty(z.shape[-1])
    for start in range(0, found.size, step):
        chance = _chance(z[..., start : start + step], n_permutations, seed)
        found[start : start + step] = np.partition(chance, rank, axis=0)[rank]
    found[~np.isfinite(z).all(axis=(0, 1))] = np.nan
    return found.reshape(shape) / _n_products(repeats, count)


def _chance(z: np.ndarray, n_permutations: int, seed: int) -> np.ndarray:
    """Return sums of products (permutation, column) of z-scores (repetition, sample, column)."""
    repeats, count, columns = z.shape
    before = np.cumsum(z, axis=0)[:-1].reshape(-1, columns)
    later = np.ascontiguousarray(z[1:]).reshape(-1, columns)
    rows = np.arange(later.shape[0]).reshape(repeats - 1, count)
    rng = np.random.default_rng(seed)
    permuted = np.empty_like(later)
    found = np.empty((n_permutations, columns))
    for chance in found:
        order = rng.permuted(rows, axis=1).ravel()
        np.take(later, order, axis=0, out=permuted, mode="clip")
        np.einsum("ij,ij->j", before, permuted, out=chance)
    return found


def _n_products(repeats: int, count: np.ndarray | int) -> np.ndarray | float:
    """Return by what sums of products are divided to be the mean correlation of pairs."""
    return count * (repeats * (repeats - 1) / 2)


def check_options(per: str, level: float, n_permutations: int, null: str) -> None:
    """Refuse options that mean nothing.

    Raises
    ------
    ValueError
    """
    if per not in ("voxel", "pattern"):
        raise ValueError(f"per is 'voxel' or 'pattern', not {per!r}")
    if null not in ("permutations", "normal"):
        raise ValueError(f"null is 'permutations' or 'normal', not {null!r}")
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, not {level}; 99 % is level=0.99")
    if n_permutations < 1:
        raise ValueError(f"n_permutations is at least 1, not {n_permutations}; type 10_000")
