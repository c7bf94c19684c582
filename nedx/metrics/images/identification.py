"""Two-way identification: how often a reconstruction is closer to its own image."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute.batches import checked
from nedx.errors import SchemaError
from nedx.metrics.identification import Metric, own_similarities, similarities
from nedx.metrics.images.pairing import Pairs, feature_pairs

# Features of a block: so few that sums of them keep their digits, and fewer of many images.
_FEATURES = 8192
_BLOCK_BYTES = 2**25


def two_way_identification(
    true: Any, reconstructed: Any, *, metric: Metric = "correlation"
) -> xr.DataArray:
    """Count how often a reconstruction is closer to its own image than to another, lazily.

    For reconstruction j, the share of the other true images i with
    similarity(i, j) < similarity(j, j). Ties are failures, and so is what has no similarity
    because its features are all the same (Scotti et al. 2023, Reconstructing the mind's eye,
    NeurIPS): unlike `nedx.pairwise_identification` it leaves nothing out. The published figure is
    the mean over images; chance is 0.5.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, ...)`` of the true images; all other dims are flattened.
    reconstructed : DataArray or Dataset
        ``features (..., image | trial, ...)``, joined by ``image_id``. They are told from the
        true images that any of them is of.
    metric : {"correlation", "euclidean"}
        Similarity is Pearson's r over features, or the negative distance.

    Returns
    -------
    DataArray
        ``two_way_identification (..., image | trial)`` float64 in [0, 1], "1". ``n_images`` and
        ``chance`` are in the attributes.

    Raises
    ------
    ValueError
        If there is no such metric.
    SchemaError
        If features differ in dims or sizes, are not named, or there is one image only.
    SelectionError
        If the true image of a reconstruction is not there.
    ModelError
        When computed, if features are NaN or infinite.
    """
    if metric not in ("correlation", "euclidean"):
        raise ValueError(f"metric is 'correlation' or 'euclidean', not {metric!r}")
    found = feature_pairs(true, reconstructed)
    if found.gallery.shape[0] < 2:
        raise SchemaError("identification", ["one image only: it needs another to be told from"])
    attrs = {
        "long_name": "two-way identification",
        "definition": f"share of other true images less similar to the reconstruction ({metric})",
        "metric": metric,
        "chance": 0.5,
        "better": "higher",
    }
    return found.labelled(_shares(found, metric), attrs).rename("two_way_identification")


def _shares(found: Pairs, metric: Metric) -> da.Array:
    """Return the share of less similar images, float64 (*lead, sample)."""
    reconstructed, gallery = (
        _in_columns(variable, max(found.gallery.shape[0], found.own.size))
        for variable in (found.reconstructed, found.gallery)
    )
    lead = reconstructed.shape[:-2]
    gallery = da.broadcast_to(
        gallery, (*lead, *gallery.shape), chunks=(*((1,) * size for size in lead), *gallery.chunks)
    )
    alike = similarities(reconstructed, gallery, metric)
    own, rounding = own_similarities(reconstructed, gallery, found.own, metric)
    less: da.Array = (alike < (own - rounding)[..., np.newaxis]).sum(axis=-1)
    return less / (gallery.shape[-2] - 1)


def _in_columns(variable: xr.Variable, rows: int) -> da.Array:
    """Return finite (*lead, sample, feature) in blocks of some features of all samples."""
    columns = min(_FEATURES, max(1, _BLOCK_BYTES // (8 * rows)))
    lead = dict.fromkeys(range(variable.ndim - 2), 1)
    data = variable.data.map_blocks(_finite, dtype=variable.dtype)
    found: da.Array = data.rechunk({**lead, variable.ndim - 2: -1, variable.ndim - 1: columns})
    return found


def _finite(rows: np.ndarray) -> np.ndarray:
    """Return features (..., feature) that are finite: not one may be left out."""
    return checked(rows, rows.shape, rows.dtype, "the features of images")
