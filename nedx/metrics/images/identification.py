"""Two-way identification: how often a reconstruction is closer to its own image."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.batches import checked
from nedx.metrics.identification import Metric, pairwise_identification
from nedx.metrics.images.pairing import flat_features, wanted_images


def two_way_identification(
    true: Any, reconstructed: Any, *, metric: Metric = "correlation"
) -> xr.DataArray:
    """Count how often a reconstruction is closer to its own image than to another, lazily.

    For reconstruction j, the share of the other true images i with
    similarity(i, j) < similarity(j, j); ties are failures, and so are reconstructions whose
    features are all the same, which have no similarity (Scotti et al. 2023, Reconstructing the
    mind's eye, NeurIPS). The published figure is the mean over images; chance is 0.5. It is
    `nedx.pairwise_identification` of reconstructions, of which none may be left out.

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
    true, reconstructed = flat_features(true, reconstructed)
    true = wanted_images(true, reconstructed)
    both = [array.copy(data=array.data.map_blocks(_finite)) for array in (true, reconstructed)]
    found = pairwise_identification(*both, metric=metric, form="trial", over="feature").fillna(0.0)
    found.attrs = {
        "units": "1",
        "long_name": "two-way identification",
        "definition": f"share of other true images less similar to the reconstruction ({metric})",
        "metric": metric,
        "chance": 0.5,
        "better": "higher",
        "n_images": true.shape[0],
    }
    return found.rename("two_way_identification")


def _finite(rows: np.ndarray) -> np.ndarray:
    """Return features (..., feature) that are finite: not one unit may be left out."""
    return checked(rows, rows.shape, rows.dtype, "the features of images")
