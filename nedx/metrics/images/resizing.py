"""Exact resizes as sparse matrices, one an axis, in float64."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

# ITU-R BT.709 luminance, as skimage.color.rgb2gray weighs sRGB values.
_LUMINANCE = (0.2125, 0.7154, 0.0721)

# The side that all images are brought to first where the published metrics do so.
COMMON_SIDE = 256


def grey(image: np.ndarray) -> np.ndarray:
    """Return the luminance (y, x), float64 in [0, 1], of uint8 (y, x, rgb)."""
    found: np.ndarray = image @ (np.array(_LUMINANCE) / 255)
    return found


def resize(image: np.ndarray, rows: Any, columns: Any) -> np.ndarray:
    """Multiply the first two axes of an image by sparse matrices.

    Parameters
    ----------
    image : ndarray (y, x, ...)
    rows : sparse matrix (new y, y)
    columns : sparse matrix (new x, x)

    Returns
    -------
    ndarray of float64, (new y, new x, ...)
    """
    tall = rows @ image.reshape(image.shape[0], -1)
    tall = tall.reshape(rows.shape[0], *image.shape[1:]).swapaxes(0, 1)
    wide = columns @ np.ascontiguousarray(tall).reshape(image.shape[1], -1)
    return wide.reshape(columns.shape[0], rows.shape[0], *image.shape[2:]).swapaxes(0, 1)


@lru_cache(maxsize=64)
def bilinear(size: int, new: int) -> Any:
    """Return bilinear interpolation with antialias, as Pillow and torch define it.

    Parameters
    ----------
    size, new : int
        Pixels before and after.

    Returns
    -------
    sparse matrix of float64, (new, size)
        Triangles as wide as a new pixel, or an old one where that is wider; rows sum to 1.
    """
    from scipy.sparse import csr_array

    scale = size / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    width = max(scale, 1.0)
    weights = np.maximum(0, 1 - np.abs(np.arange(size) - centres[:, np.newaxis]) / width)
    return csr_array(weights / weights.sum(axis=1, keepdims=True))


@lru_cache(maxsize=64)
def bilinear_by_way_of(size: int, new: int) -> Any:
    """Return the resize to `COMMON_SIDE` and from there to ``new``, as `bilinear`."""
    return bilinear(COMMON_SIDE, new) @ bilinear(size, COMMON_SIDE)


@lru_cache(maxsize=64)
def smoothed(size: int, new: int) -> Any:
    """Return the resize of ``skimage.transform.resize(order=1, anti_aliasing=True)``.

    Parameters
    ----------
    size, new : int
        Pixels before and after.

    Returns
    -------
    sparse matrix of float64, (new, size)
        A Gaussian of standard deviation (size / new - 1) / 2 pixels where the image shrinks,
        then linear interpolation; borders are mirrored.
    """
    from scipy.ndimage import gaussian_filter1d, zoom
    from scipy.sparse import csr_array

    image = np.eye(size)
    sigma = max(0.0, (size / new - 1) / 2)
    if sigma > 0:
        image = gaussian_filter1d(image, sigma, axis=0, mode="mirror")
    return csr_array(zoom(image, (new / size, 1), order=1, mode="mirror", grid_mode=True))
