"""Repeats of known signal and noise, in both layouts."""

import numpy as np
import xarray as xr

RATIOS = np.array([0.0, 0.5, 1.0, 2.0])


def simulated(images=3000, repetitions=4, seed=0):
    """Responses (image, repetition, voxel) of known signal over noise."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((images, 1, RATIOS.size)) * RATIOS
    noise = rng.standard_normal((images, repetitions, RATIOS.size))
    dims = ("image", "repetition", "voxel")
    ids = [f"set:{i}" for i in range(images)]
    array = xr.DataArray(signal + noise, dims=dims, coords={"image_id": ("image", ids)})
    return array, xr.DataArray(signal[:, 0], dims=("image", "voxel"))


def ragged(array, seed=1):
    """Take away repeats at random, at least one of each image stays."""
    images, repetitions = array.shape[:2]
    counts = np.random.default_rng(seed).integers(1, repetitions + 1, images)
    there = np.arange(repetitions) < counts[:, np.newaxis]
    return array.where(xr.DataArray(there, dims=("image", "repetition"))), counts


def as_trials(array):
    """Return the repeats that are there as single trials in random order."""
    stacked = array.transpose("image", "repetition", "voxel").values.reshape(-1, array.shape[-1])
    ids = np.repeat(array.image_id.values, array.sizes["repetition"])
    order = np.random.default_rng(2).permutation(ids.size)
    order = order[np.isfinite(stacked[order]).all(axis=1)]
    coords = {"image_id": ("trial", ids[order])}
    return xr.DataArray(stacked[order], dims=("trial", "voxel"), coords=coords)
