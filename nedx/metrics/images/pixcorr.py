"""PixCorr: the correlation of pixels."""

from __future__ import annotations

import numpy as np
import xarray as xr

from nedx.metrics.correlation import correlate
from nedx.metrics.images.pairing import image_pairs, per_pair
from nedx.metrics.images.resizing import bilinear_by_way_of, resize

SIDE = 425
"""Pixels a side at which images are compared."""


def pixcorr(ds: xr.Dataset, stimuli: xr.Dataset | None = None) -> xr.DataArray:
    """Correlate the pixels of each reconstruction with those of its true image, lazily.

    Both are resized to 256 x 256 and then to 425 x 425 pixels, bilinearly, and all values of all
    three colours correlated (Scotti et al. 2023, Reconstructing the mind's eye, NeurIPS). The
    published figure is the mean over images; see `image_metrics`.

    Parameters
    ----------
    ds : Dataset
        ``pixels_reconstructed (..., image | trial, y, x, rgb)`` uint8; ``pixels`` too where no
        stimuli are given.
    stimuli : Dataset, optional
        ``pixels (image, y, x, rgb)`` uint8, of any size; joined by ``image_id``.

    Returns
    -------
    DataArray
        ``pixcorr (..., image | trial)`` float64 in [-1, 1], "1"; NaN where either image is of
        one colour only.

    Raises
    ------
    SchemaError, StimulusError
        If one of the two is missing, or is no uint8 RGB.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    attrs = {
        "long_name": "correlation of pixels",
        "definition": f"Pearson r of RGB values at {SIDE} x {SIDE} pixels, bilinear",
        "better": "higher",
    }
    return per_pair(image_pairs(ds, stimuli), correlations, attrs).rename("pixcorr")


def correlations(reconstructed: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Correlate images, float64 (..., image).

    Parameters
    ----------
    reconstructed : ndarray of uint8, (..., image, y, x, rgb)
    true : ndarray of uint8, (image, y, x, rgb)
    """
    found = np.empty(reconstructed.shape[:-3])
    for image, one in enumerate(true):
        reference = _resized(one)
        for lead in np.ndindex(reconstructed.shape[:-4]):
            other = _resized(reconstructed[(*lead, image)])
            found[(*lead, image)] = correlate(reference, other)
    return found


def _resized(image: np.ndarray) -> np.ndarray:
    matrices = (bilinear_by_way_of(side, SIDE) for side in image.shape[:2])
    # In an order of its own, which is the same for both.
    return resize(image / 255, *matrices).ravel(order="K")
