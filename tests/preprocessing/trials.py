"""Small single-trial responses with all the labels that preprocessing reads."""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr

import nedx


def make_trials(values, *, session=None, partition=None, images=None, chunk=None):
    """Make responses ``(trial, channel, time)``, in two sessions by default."""
    count, channels, times = values.shape
    data = values if chunk is None else da.from_array(values, chunks=(chunk, channels, times))
    images = np.arange(count) // 2 if images is None else images
    session = np.repeat([1, 2], -(-count // 2))[:count] if session is None else session
    partition = ["train"] * count if partition is None else partition
    ds = xr.Dataset(
        {"response": (("trial", "channel", "time"), data, {"units": "uV", "source": "measured"})},
        {
            "image_id": ("trial", np.array([f"things:im_{i:03d}" for i in images], object)),
            "session": ("trial", np.asarray(session, np.int16)),
            "partition": ("trial", np.array(partition, object)),
            "channel": np.array([f"C{i}" for i in range(channels)], object),
            "time": np.arange(times) / 100,
        },
        {"modality": "eeg"},
    )
    return nedx.parse(ds)
