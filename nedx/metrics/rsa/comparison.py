"""How similar RDMs are: between modalities, models and subjects, beside their noise ceiling."""

from __future__ import annotations

from typing import Literal
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.repeats import labels_of
from nedx.metrics.rsa.blocks import triangle

Similarity = Literal["spearman", "pearson", "kendall", "cosine", "cosine_whitened"]

_LONG_NAMES = {
    "spearman": "Spearman rank correlation of RDMs",
    "pearson": "Pearson correlation of RDMs",
    "kendall": "Kendall tau-a of RDMs",
    "cosine": "cosine similarity of RDMs",
    "cosine_whitened": "whitened cosine similarity of RDMs",
}
_RANKED = ("spearman", "kendall")

MOST_RANKED = 10_000
"""So many images can be ranked: all pairs, 50 million, are in memory at once."""


def compare_rdms(a: xr.DataArray, b: xr.DataArray, method: Similarity = "spearman") -> xr.DataArray:
    """Compare RDMs with each other, lazily.

    Dims that both have are compared label by label, of all others every RDM of one with every
    RDM of the other: an RDM a time point and an RDM a ROI give ``(time, roi)``. Images are joined
    by ``image_id``.

    Parameters
    ----------
    a, b : DataArray
        ``(..., image, image_2, ...)`` as `rdm` returns them, of the same images in any order.
    method : {"spearman", "pearson", "kendall", "cosine", "cosine_whitened"}
        On the pairs above the diagonal. ``kendall`` is tau-a, which does not prefer models that
        predict ties (Nili et al. 2014, PLoS Computational Biology 10:e1003553).
        ``cosine_whitened`` takes into account that distances share images (Diedrichsen et al.
        2021, arXiv:2007.02789), and equals linear CKA. ``pearson`` and the cosines add up blocks
        and never hold an RDM; the others rank all pairs at once.

    Returns
    -------
    DataArray
        ``similarity``, float64, "1"; NaN where an RDM holds NaN above the diagonal or is constant.

    Raises
    ------
    SchemaError
        If the images differ or are not named, a dim is missing, or there are too many images to
        rank.
    """
    _check_method(method)
    a, b = joined(a, b)
    x, y = _pairs(a, method), _pairs(b, method)
    if method == "kendall":
        found = _kendall(x["distance"], y["distance"])
    else:
        norms = (_form(z, z, method) for z in (x, y))
        found = _form(x, y, method) / _root(next(norms) * next(norms))
    return _described(found, "similarity", _LONG_NAMES[method], method)


def rdm_noise_ceiling(
    rdms: xr.DataArray, method: Similarity = "spearman", *, dim: str = "subject"
) -> xr.Dataset:
    """Bound what a perfect model could reach, given how subjects differ; lazily.

    Each subject's RDM is compared with the mean over all subjects, which is too much alike since
    it holds the subject's own noise, and with the mean over all others, which is too noisy (Nili
    et al. 2014, PLoS Computational Biology 10:e1003553). RDMs are ranked, standardised or divided
    by their norm before they are averaged, where the method ignores that.

    Parameters
    ----------
    rdms : DataArray
        ``(subject, ..., image, image_2, ...)``.
    method : str
        As `compare_rdms` takes it.
    dim : str
        The dim of subjects.

    Returns
    -------
    Dataset
        ``noise_ceiling_lower`` and ``noise_ceiling_upper``: similarities as `compare_rdms`
        returns them, not fractions of variance, averaged over subjects.

    Raises
    ------
    SchemaError
        If there are fewer than two subjects, or a dim is missing.
    """
    _check_method(method)
    count = rdms.sizes.get(dim, 0)
    if count < 2:
        fault = f"a noise ceiling needs two of {dim!r} or more, found {count} in {rdms.dims}"
        raise SchemaError("the RDMs", [fault])
    given = _pairs(_blocked(rdms), method)
    bounds = _ranked_bounds if method in _RANKED else _linear_bounds
    found = {
        f"noise_ceiling_{name}": _described(
            bound.mean(dim, skipna=False),
            f"noise_ceiling_{name}",
            f"{name} bound of the noise ceiling: {_LONG_NAMES[method]}",
            method,
        )
        for name, bound in zip(("lower", "upper"), bounds(given, method, dim), strict=True)
    }
    return xr.Dataset(found)


def joined(a: xr.DataArray, b: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Put the images of ``b`` in the order and the blocks of ``a``, lazily.

    Raises
    ------
    SchemaError
        If images are not named or differ, or labels of shared dims differ.
    """
    dims = condition_dims(a)
    if condition_dims(b) != dims:
        raise SchemaError("the RDMs", [f"one compares {dims[0]}, the other {condition_dims(b)[0]}"])
    first, second = _names(a, dims[0]), _names(b, dims[0])
    absent = [np.setdiff1d(first, second), np.setdiff1d(second, first)]
    if absent[0].size or absent[1].size:
        fault = (
            f"{absent[0].size} of the first are absent from the second, {absent[1].size} the "
            f"other way; for example {next(iter(np.concatenate(absent)))}: select what both have"
        )
        raise SchemaError(f"the {dims[0]}s of two RDMs", [fault])
    if not np.array_equal(first, second):
        order = np.argsort(second)[np.argsort(np.argsort(first))]
        b = b.isel(dict.fromkeys(dims, order))
    a = _blocked(a)
    sizes = a.variable.chunksizes[dims[0]]
    b = _blocked(b).chunk(dict.fromkeys(dims, sizes))
    b = b.drop_vars([name for name, coord in b.coords.items() if {*coord.dims} & {*dims}])
    try:
        return xr.align(a, b, join="exact", copy=False)
    except ValueError as error:
        raise SchemaError(
            "the RDMs", [f"labels of a dim that both have differ: {error}"]
        ) from error


def condition_dims(array: xr.DataArray) -> tuple[str, str]:
    """Return the two dims of an RDM, such as ``("image", "image_2")``."""
    found = [str(dim) for dim in array.dims if f"{dim}_2" in array.dims]
    if len(found) != 1 or array.sizes[found[0]] != array.sizes[f"{found[0]}_2"]:
        fault = f"expected dims such as image and image_2 of one size, found {dict(array.sizes)}"
        raise SchemaError("an RDM", [fault])
    return found[0], f"{found[0]}_2"


def _check_method(method: str) -> None:
    if method not in _LONG_NAMES:
        raise ValueError(f"method is one of {', '.join(map(repr, _LONG_NAMES))}, not {method!r}")


def _names(array: xr.DataArray, condition: str) -> np.ndarray:
    for name in ("image_id", condition):
        if name in array.coords and array[name].dims == (condition,):
            return labels_of(array, name)
    raise SchemaError("an RDM", [f"no image_id ({condition}): nothing is joined by position"])


def _blocked(array: xr.DataArray) -> xr.DataArray:
    """Return a lazy RDM, its last two dims the images, in square blocks."""
    first, second = condition_dims(array)
    array = array.transpose(..., first, second)
    if array.chunks is None:
        return array.chunk({}, token=uuid4().hex)
    return array.chunk({second: array.variable.chunksizes[first]})


def _pairs(array: xr.DataArray, method: str) -> xr.Dataset:
    """Return what lies above the diagonal as ``distance (..., pair)``, ranked where it is to be.

    For the whitened cosine also ``row (..., other)``, the sums of the rows.
    """
    condition, second = condition_dims(array)
    count = array.sizes[condition]
    if method in _RANKED and count > MOST_RANKED:
        fault = (
            f"{count:,} {condition}s are too many for {method}, which ranks all pairs at once: "
            f"type method='pearson', or take {MOST_RANKED:,} {condition}s"
        )
        raise SchemaError("the RDMs", [fault])
    coords = {
        name: coord.variable
        for name, coord in array.coords.items()
        if not {*coord.dims} & {condition, second}
    }
    lead = list(array.dims[:-2])
    flat = xr.DataArray(triangle(array.data), dims=[*lead, "pair"], coords=coords)
    flat = flat.astype(np.float64)
    if method in _RANKED:
        return xr.Dataset({"distance": _ranked(flat)})
    if method != "cosine_whitened":
        return xr.Dataset({"distance": flat})
    number = da.arange(count, chunks=(array.variable.chunksizes[condition],))
    apart = xr.DataArray(number, dims=condition) != xr.DataArray(number, dims=second)
    # The diagonal of a decoding RDM is NaN, and of no RDM does it count.
    rows = array.astype(np.float64).where(apart, 0).sum(second, skipna=False)
    rows = rows.drop_vars([name for name in rows.coords if name not in coords])
    return xr.Dataset({"distance": flat, "row": rows.rename({condition: "other"})})


def _ranked(pairs: xr.DataArray) -> xr.DataArray:
    pairs = pairs.transpose(..., "pair").chunk(
        {"pair": -1, **{dim: 1 for dim in pairs.dims if dim != "pair"}}
    )
    ranks = pairs.data.map_blocks(_ranks, dtype=np.float64)
    return pairs.copy(data=ranks)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)


def _form(x: xr.Dataset, y: xr.Dataset, method: str) -> xr.DataArray:
    """Return the inner product whose cosine the method is.

    Of the whitened cosine it is that of double-centred RDMs: with rows r and total t of n images,
    <X, Y> - 2 / n <r_x, r_y> + t_x t_y / n^2.
    """
    product = _dot(x["distance"], y["distance"], "pair")
    if method == "cosine":
        return product
    totals = x["distance"].sum("pair", skipna=False), y["distance"].sum("pair", skipna=False)
    if method != "cosine_whitened":
        return product - totals[0] * totals[1] / x.sizes["pair"]
    count = x.sizes["other"]
    rows = _dot(x["row"], y["row"], "other")
    return 2 * product - 2 / count * rows + 4 * totals[0] * totals[1] / count**2


def _dot(x: xr.DataArray, y: xr.DataArray, dim: str) -> xr.DataArray:
    # Optimised, einsum is a matrix product.
    return xr.dot(x, y, dim=dim, optimize=True)


def _root(squares: xr.DataArray) -> xr.DataArray:
    """Take the root; NaN where nothing is left to compare."""
    return squares.where(squares > 0) ** 0.5


def _linear_bounds(given: xr.Dataset, method: str, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both bounds of each subject, from the inner products of subjects alone.

    With the inner products B and the weights w of subjects in a mean, the cosine of subject s
    with the mean is sum_t B_st w_t / sqrt(B_ss sum_tu w_t B_tu w_u).
    """
    given = given.drop_vars(dim, errors="ignore")
    product = _form(given, given.rename({dim: "first"}), method)
    square = product.rename({dim: "second"})
    # The norm of the whitened cosine is that of the distances themselves, as in rsatoolbox.
    plain = "cosine" if method == "cosine_whitened" else method
    scale = 1 / _root(_form(given, given, plain)).rename({dim: "first"})
    own = _form(given, given, method)
    count = given.sizes[dim]
    everyone = xr.DataArray(np.ones((count, count)), dims=(dim, "first"))
    bounds = []
    for chosen in (everyone - np.eye(count), everyone):
        weights = chosen * scale
        with_mean = _dot(product, weights, "first")
        of_mean = _dot(square, weights, "first")
        squared_mean = _dot(of_mean, weights.rename(first="second"), "second")
        bounds.append(with_mean / _root(own * squared_mean))
    return bounds[0], bounds[1]


def _ranked_bounds(given: xr.Dataset, method: str, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both bounds of each subject, from mean ranks."""
    total = given["distance"].sum(dim, skipna=False)
    bounds = []
    for mean in (total - given["distance"], total):
        if method == "kendall":
            bounds.append(_kendall(given["distance"], mean))
            continue
        pooled = xr.Dataset({"distance": _ranked(mean)})
        norms = _form(given, given, method) * _form(pooled, pooled, method)
        bounds.append(_form(given, pooled, method) / _root(norms))
    return bounds[0], bounds[1]


def _kendall(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
    return xr.apply_ufunc(
        tau_a,
        x,
        y.chunk(pair=-1),
        input_core_dims=[["pair"], ["pair"]],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[np.float64],
    )


def tau_a(x: np.ndarray, y: np.ndarray) -> float:
    """Return concordant less discordant pairs over all pairs (Kendall 1938, Biometrika 30:81).

    Parameters
    ----------
    x, y : ndarray, (n,)

    Returns
    -------
    float
        NaN where one is constant or holds NaN.
    """
    from scipy.stats import kendalltau

    pairs = x.size * (x.size - 1) / 2
    untied = [pairs - _tied_pairs(z) for z in (x, y)]
    # Tau-b divides by the pairs that are not tied, tau-a by all.
    return float(kendalltau(x, y).statistic * np.sqrt(untied[0] * untied[1]) / pairs)


def _tied_pairs(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum() / 2)


def _described(found: xr.DataArray, name: str, long_name: str, method: str) -> xr.DataArray:
    found = found.copy(deep=False).rename(name)
    found.attrs = {"units": "1", "long_name": long_name, "method": method}
    return found
