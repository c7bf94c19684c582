"""How far the features of a reconstruction are from those of its true image."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.metrics.correlation import correlate
from nedx.metrics.images.pairing import feature_pairs, per_pair


def correlation_distance(true: Any, reconstructed: Any) -> xr.DataArray:
    """Return 1 - r of the features of each reconstruction and its true image, lazily.

    The distance that Scotti et al. (2023, Reconstructing the mind's eye, NeurIPS) take of
    EfficientNet-B1 and SwAV; the published figure is the mean over images.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, ...)`` of the true images; all other dims are flattened.
    reconstructed : DataArray or Dataset
        ``features (..., image | trial, ...)``, joined by ``image_id``.

    Returns
    -------
    DataArray
        ``correlation_distance (..., image | trial)`` float64 in [0, 2], "1"; NaN where either is
        constant or holds a NaN.

    Raises
    ------
    SchemaError
        If features differ in dims or sizes, or are not named.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    attrs = {
        "long_name": "correlation distance of features",
        "definition": "1 - Pearson r over features",
        "better": "lower",
    }
    found = per_pair(feature_pairs(true, reconstructed), _distances, attrs)
    return found.rename("correlation_distance")


def clip_similarity(true: Any, reconstructed: Any) -> xr.DataArray:
    """Return the cosine of the embeddings of each reconstruction and its true image, lazily.

    "CLIP similarity" is the mean over images of cos(CLIP(reconstruction), CLIP(true image));
    embeddings of any other network can be given as well.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, feature)`` of the true images.
    reconstructed : DataArray or Dataset
        ``features (..., image | trial, feature)``, joined by ``image_id``.

    Returns
    -------
    DataArray
        ``clip_similarity (..., image | trial)`` float64 in [-1, 1], "1"; NaN where either is all
        zeros or holds a NaN.

    Raises
    ------
    SchemaError
        If features differ in dims or sizes, or are not named.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    attrs = {
        "long_name": "similarity of embeddings",
        "definition": "cosine of embeddings",
        "better": "higher",
    }
    found = per_pair(feature_pairs(true, reconstructed), cosines, attrs)
    return found.rename("clip_similarity")


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the cosine of rows that broadcast, float64 (...) of (..., feature)."""
    x, y = (part.astype(np.float64) for part in (x, y))
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = np.clip(np.einsum("...i,...i->...", x, y) / norms, -1, 1)
    return found


def _distances(reconstructed: np.ndarray, true: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 - correlate(reconstructed, np.broadcast_to(true, reconstructed.shape))
    return found
