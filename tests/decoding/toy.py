"""Small responses that are a known linear map of features, under noise."""

from __future__ import annotations

import numpy as np
import xarray as xr

CHANNELS, TIMES, FEATURES = 6, 10, 8
UNITS = {"units": "uV", "source": "synthetic"}


def features(count, seed=0):
    """Features that differ in all directions, with ids and two images of each concept."""
    values = np.random.default_rng(seed).normal(size=(count, FEATURES)).astype("f4")
    return xr.Dataset(
        {"features": (("image", "feature"), values, {"long_name": "toy"})},
        {"image_id": ("image", np.array([f"toy:{i:03d}" for i in range(count)], dtype=object))},
    )


def responses(count, *, repetitions=2, subjects=("sub-01",), noise=0.5, seed=0, chunks=16):
    """``response (subject, image, repetition, channel, time)`` lazily; each subject has a map."""
    x = features(count, seed)["features"].values
    signal = [
        (x @ np.random.default_rng([7, i]).normal(size=(FEATURES, CHANNELS * TIMES))).reshape(
            count, 1, CHANNELS, TIMES
        )
        for i in range(len(subjects))
    ]
    rng = np.random.default_rng([seed, 1])
    shape = (len(subjects), count, repetitions, CHANNELS, TIMES)
    values = (np.stack(signal) + noise * rng.normal(size=shape)).astype("f4") * 5 + 20
    dims = ("subject", "image", "repetition", "channel", "time")
    ds = xr.Dataset(
        {"response": (dims, values, UNITS)},
        {
            "subject": np.array(subjects, dtype=object),
            "image_id": ("image", np.array([f"toy:{i:03d}" for i in range(count)], dtype=object)),
            "category": ("image", np.array([f"c{i // 2}" for i in range(count)], dtype=object)),
            "channel": np.array([f"E{i}" for i in range(CHANNELS)], dtype=object),
            "time": np.arange(TIMES) / 100,
        },
        {"modality": "eeg", "dataset": "toy", "license": "CC0-1.0"},
    )
    return ds.set_xindex("image_id").chunk({"image": chunks})


def top1(embedding, targets):
    """How often the right one of the targets is the nearest by cosine."""
    e = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    t = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    return float(((e @ t.T).argmax(1) == np.arange(len(t))).mean())
