"""Embeddings that are a known linear map of their targets, with noise."""

from __future__ import annotations

import numpy as np
import xarray as xr

WIDTH, CONDITION = 32, 48
FAST = {"hidden": (96, 48, 24), "dropout": 0.0, "batch_size": 64, "groups": None}


def truth(count: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ``embedding (image, 48)`` and unit-norm ``target (image, 32)``."""
    rng = np.random.default_rng(seed)
    mapping = np.linalg.qr(np.random.default_rng(99).standard_normal((CONDITION, WIDTH)))[0].T
    target = rng.standard_normal((count, WIDTH))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    embedding = target @ mapping * np.sqrt(CONDITION) + 0.3 * rng.standard_normal(
        (count, CONDITION)
    )
    return embedding.astype(np.float32), target.astype(np.float32)


def ids(count: int) -> np.ndarray:
    return np.array([f"t:{i:04d}" for i in range(count)], object)


def decoded(embedding: np.ndarray) -> xr.Dataset:
    """Return a Dataset as decode makes it."""
    dims = ("subject", "image", "feature")[-embedding.ndim :]
    ds = xr.Dataset({"embedding": (dims, embedding, {"units": "1"})})
    ds = ds.assign_coords(image_id=("image", ids(embedding.shape[-2])))
    if embedding.ndim == 3:
        labels = [f"sub-{i + 1:02d}" for i in range(len(embedding))]
        ds = ds.assign_coords(subject=np.array(labels, object))
    return ds


def features(target: np.ndarray) -> xr.Dataset:
    """Return targets, in another order than the embeddings."""
    order = np.random.default_rng(5).permutation(len(target))
    return xr.Dataset(
        {"features": (("image", "feature"), target[order], {"model": "made_up"})},
        coords={"image_id": ("image", ids(len(target))[order])},
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean cosine of rows."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / norms).mean())
