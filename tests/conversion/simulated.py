"""Subjects whose responses follow from the same latents by maps that are known."""

from __future__ import annotations

import numpy as np
import xarray as xr

import nedx

ZSCORED = {
    "units": "1",
    "normalization": "zscore",
    "normalization_scope": "run",
    "source": "synthetic",
}


def images(count, start=0):
    return [f"sim:{number:04d}" for number in range(start, start + count)]


def responses(values, names, subject, **coords):
    """Return responses (image[, repetition], voxel) of one subject, in chunks."""
    values = np.asarray(values, np.float32)
    dims = ("image", "voxel") if values.ndim == 2 else ("image", "repetition", "voxel")
    size = values.shape[-1]
    side = np.where(np.arange(size) < size // 2, "L", "R").astype(object)
    given = {
        "image_id": ("image", np.array(names, dtype=object)),
        "voxel": 10 + 3 * np.arange(size, dtype=np.int32),
        "hemisphere": ("voxel", side),
        **coords,
    }
    ds = xr.Dataset({"response": (dims, values, ZSCORED)}, given, {"modality": "fmri"})
    return nedx.parse(ds.assign_attrs(subject=subject)).chunk(image=17)


def orthogonal(size, rng):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def centred_white(rows, columns, rng):
    """Return columns of mean 0, standard deviation 1 (ddof=1), orthogonal to each other."""
    drawn = rng.standard_normal((rows, columns))
    drawn -= drawn.mean(0)
    left = np.linalg.svd(drawn, full_matrices=False)[0]
    return left * np.sqrt(rows - 1)
