"""Responses to compare: with repeats, as trials, over time."""

from __future__ import annotations

import numpy as np
import xarray as xr


def repeated(images=7, repetitions=4, channels=5, times=3, dtype="f8", seed=0):
    """Return (image, repetition, channel, time): a pattern for each image, and noise."""
    rng = np.random.default_rng(seed)
    shape = (images, repetitions, channels, times)
    mixing = rng.standard_normal((channels, channels))
    noise = np.einsum("irct,cd->irdt", rng.standard_normal(shape), mixing)
    values = rng.standard_normal((images, 1, channels, times)) + noise + 3
    return xr.DataArray(
        values.astype(dtype),
        dims=("image", "repetition", "channel", "time"),
        coords={
            "image_id": ("image", [f"set:{i}" for i in range(images)]),
            "time": ("time", np.arange(times) / 100, {"units": "s"}),
            "channel": [f"C{c}" for c in range(channels)],
        },
        attrs={"units": "uV", "source": "synthetic"},
        name="response",
    )


def as_trials(array, seed=0):
    """Shuffle (image, repetition, ...) into trials with session as the repetition was."""
    rng = np.random.default_rng(seed)
    images, repetitions = array.sizes["image"], array.sizes["repetition"]
    order = rng.permutation(images * repetitions)
    image, session = np.divmod(order, repetitions)
    values = array.values.reshape(-1, *array.shape[2:])[order]
    return xr.DataArray(
        values,
        dims=("trial", "channel", "time"),
        coords={
            "image_id": ("trial", array["image_id"].values[image]),
            "session": ("trial", session),
            "time": array["time"],
        },
        attrs=array.attrs,
        name="response",
    )
