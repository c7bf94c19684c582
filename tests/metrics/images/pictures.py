"""Small pictures with labels, and what a person would write to compare them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import ndimage

from nedx.schema import restore_index

IDS = [f"set:{name}" for name in ("ant", "bee", "cat", "dog", "eel", "fly", "gnu")]


def pictures(shape, seed=0):
    """Return smooth uint8 pictures of colour, (*shape, 3)."""
    noise = np.random.default_rng(seed).normal(size=(*shape, 3))
    smooth = ndimage.gaussian_filter(noise, (*[0] * (len(shape) - 2), 2, 2, 0))
    low, high = smooth.min(), smooth.max()
    return (255 * (smooth - low) / (high - low)).round().astype(np.uint8)


def blended(true, share, seed=1):
    """Return pictures that keep a share of the true ones."""
    other = pictures(true.shape[:-1], seed)
    return (share * true + (1 - share) * other).round().astype(np.uint8)


def stimuli(values, ids=None):
    ids = IDS[: len(values)] if ids is None else ids
    coords = {"image_id": ("image", np.array(ids, dtype=object))}
    return restore_index(xr.Dataset({"pixels": (("image", "y", "x", "rgb"), values)}, coords))


def seen(values, ids=None, lead=()):
    ids = IDS[: values.shape[len(lead)]] if ids is None else ids
    coords = {"image_id": ("image", np.array(ids, dtype=object))}
    dims = (*lead, "image", "y", "x", "rgb")
    return restore_index(xr.Dataset({"pixels_reconstructed": (dims, values)}, coords))


def together(true, reconstructed):
    """Put both, of one size, into one Dataset."""
    return seen(reconstructed).assign(pixels=stimuli(true)["pixels"])


def features(values, ids=None, lead=(), sample="image"):
    count = values.shape[len(lead)]
    ids = [f"set:{i}" for i in range(count)] if ids is None else ids
    coords = {"image_id": (sample, np.array(ids, dtype=object))}
    return restore_index(xr.DataArray(values, dims=(*lead, sample, "feature"), coords=coords))
