"""Representational dissimilarity matrices of labelled responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.repeats import response_of
from nedx.metrics.rsa import kernels
from nedx.metrics.rsa.blocks import all_pairs
from nedx.metrics.rsa.noise import Noise, whitened
from nedx.metrics.rsa.patterns import lead_dims, patterns

Method = Literal["correlation", "euclidean", "crossnobis", "decoding"]

LONG_NAMES = {
    "correlation": "correlation distance of patterns",
    "euclidean": "squared Euclidean distance of patterns over their length",
    "crossnobis": "cross-validated squared distance of patterns over their length",
}


def rdm(
    data: xr.DataArray | xr.Dataset,
    method: Method = "correlation",
    *,
    over: str | Sequence[str] | None = None,
    by: str = "image_id",
    folds: str = "repetition",
    noise: Noise | xr.DataArray | np.ndarray | None = None,
    block_size: int | None = None,
    **options: Any,
) -> xr.DataArray:
    """Compare the response patterns of all pairs of images, lazily and block by block.

    Nothing of the size of the matrix is ever held: a block is made from two blocks of patterns,
    one below the diagonal is the transpose of that above it. The patterns themselves are held
    while blocks are made: of 73,000 images of 1,000 voxels they are 0.3 GB, where the matrix is
    21 GB. Distances are those of rsatoolbox.

    Parameters
    ----------
    data : DataArray or Dataset
        Responses ``(..., image | trial, [repetition,] <neuroid>[, time])``; of a Dataset,
        ``response``.
    method : {"correlation", "euclidean", "crossnobis", "decoding"}
        ``correlation``: 1 - Pearson r. ``euclidean``: the squared distance divided by the length
        of the pattern. ``crossnobis``: the same, cross-validated over `folds`, so that its
        expectation is zero where patterns differ by noise alone (Walther et al. 2016, NeuroImage
        137:188). ``decoding``: the accuracy of a classifier, see `pairwise_decoding`. The first
        two average presentations before they compare.
    over : str or sequence of str, optional
        The dims that make up a pattern, by default the neuroids; of the others each label has
        its RDM. An RDM a time point is the default; ``over=("channel", "time")`` is one RDM of a
        window.
    by : str
        The coordinate whose equal values are one condition: ``image_id``, or for example
        ``category``, which then names the dims.
    folds : str
        Of ``crossnobis`` and ``decoding``: ``"repetition"``, or a coordinate of trials such as
        ``"session"``; every condition must be in every fold.
    noise : {"shrinkage", "diagonal"}, array or None
        What patterns are whitened with before they are compared: the covariance of the
        residuals of presentations around the mean of their image, for each RDM, shrunk to a
        multiple of the identity (Ledoit & Wolf 2004) or only its diagonal; or a precision matrix
        of the pattern. With ``euclidean`` this is the Mahalanobis distance.
    block_size : int, optional
        How many images a block holds; by default what fits in 32 MiB, at most 2,048.
    **options
        Of ``decoding``, see `pairwise_decoding`.

    Returns
    -------
    DataArray
        ``rdm (..., image, image_2[, time])``, symmetric, zero on the diagonal, with ``image_id``
        and ``image_id_2``. float32, or float64 of float64 responses. Units are "1", or the
        squared units of the responses. NaN for constant patterns under ``correlation``, and where
        there is nothing to decode, on the diagonal of ``decoding``.

    Raises
    ------
    SchemaError
        If there is one image, too few repetitions, or an image is absent from a fold; when
        computed, if a pattern holds NaN.
    SelectionError
        If a dim or a coordinate is not there.
    """
    if method == "decoding":
        from nedx.metrics.rsa.pairwise import pairwise_decoding

        decoded = {"over": over, "by": by, "folds": folds, "noise": noise, **options}
        return pairwise_decoding(data, block_size=block_size, **decoded).rename("rdm")
    if method not in LONG_NAMES:
        named = ", ".join(repr(name) for name in (*LONG_NAMES, "decoding"))
        raise ValueError(f"method is one of {named}, not {method!r}")
    if options:
        raise TypeError(f"{', '.join(options)}: options of method='decoding' only")
    given = patterns(
        data,
        over=over,
        by=by,
        folds=folds if method == "crossnobis" else None,
        block_size=block_size,
    )
    if method == "crossnobis" and given.sizes["fold"] < 2:
        fault = "crossnobis needs two folds or more, found 1: give single repetitions"
        raise SchemaError("the responses", [fault])
    if noise is not None:
        residuals = {"over": over, "by": by, "folds": folds, "block_size": block_size}
        given = whitened(given, data, noise, residuals)
    made = all_pairs(given.data, getattr(kernels, method), given.dtype)
    units = squared_units(response_of(data), method, noise)
    attrs = {"units": units, "long_name": LONG_NAMES[method], "method": method}
    return labelled(made, given, data, attrs).rename("rdm")


def labelled(
    made: Any,
    given: xr.DataArray,
    data: xr.DataArray | xr.Dataset,
    attrs: dict[str, Any],
    centers: xr.DataArray | None = None,
) -> xr.DataArray:
    """Name the dims of an array ``(..., [center,] image, image_2)`` made of arranged patterns."""
    condition = str(given.dims[-3])
    second = f"{condition}_2"
    coords: dict[Any, Any] = {name: coord.variable for name, coord in given.coords.items()}
    for name, coord in given.coords.items():
        if name in (condition, "image_id") and coord.dims == (condition,):
            label = coord.variable.to_base_variable().copy(deep=False)
            label.dims = (second,)
            coords[f"{name}_2"] = label
    lead = lead_dims(given)
    late = ["time"]
    if centers is not None:
        coords |= {name: coord.variable for name, coord in centers.coords.items()}
        late = [*map(str, centers.dims), *late]
        lead += [str(dim) for dim in centers.dims]
    found = xr.DataArray(made, dims=[*lead, condition, second], coords=coords, attrs=attrs)
    if source := response_of(data).attrs.get("source"):
        found.attrs["source"] = source
    early = (dim for dim in lead if dim not in late)
    return found.transpose(*early, condition, second, *late, missing_dims="ignore")


def squared_units(response: xr.DataArray, method: str, noise: Any) -> str:
    """Return the units of a dissimilarity: those of the responses squared, or "1"."""
    units = str(response.attrs.get("units", "1"))
    if method == "correlation" or noise is not None or units == "1":
        return "1"
    return f"({units})2" if " " in units else f"{units}2"
