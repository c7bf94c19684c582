"""The nearest image of a gallery, as a generator that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from nedx.compute.batches import batches, checked
from nedx.encoding.encode import dask_blocks
from nedx.errors import ModelError
from nedx.metrics.repeats import labels_of
from nedx.reconstruction.rows import variable

_ROWS = 4096


class NearestImage:
    """Shows the image of a gallery whose features have the highest cosine with an embedding.

    Parameters
    ----------
    gallery : Dataset
        ``features (image, feature)``; may be larger than memory.
    images : Dataset
        ``pixels (image, y, x, rgb)`` of all images of the gallery, joined by ``image_id``; only
        those that are shown are read.

    Raises
    ------
    ModelError
        If features or pixels are missing, or an image of the gallery has no pixels.
    """

    def __init__(self, gallery: xr.Dataset, images: xr.Dataset):
        features = variable(gallery, "features", "Type: nedx.encode_features(images, ...)")
        pixels = variable(images, "pixels", "Type: nedx.open_images('folder')")
        if set(features.dims) != {"image", "feature"} or not features.size:
            raise ModelError(
                f"the gallery is {dict(features.sizes)}, expected images of (image, feature)"
            )
        if set(pixels.dims) != {"image", "y", "x", "rgb"} or pixels.dtype != np.uint8:
            raise ModelError(
                f"'pixels' is {pixels.dtype} {pixels.dims}, expected uint8 over (image, y, x, rgb)"
            )
        for name, array in (("features", features), ("pixels", pixels)):
            if "image_id" not in array.coords:
                raise ModelError(f"the {name} have no image_id, by which they are joined")
        index = pd.Index(labels_of(pixels, "image_id"))
        if not index.is_unique:
            raise ModelError("an image_id occurs twice among the images")
        ids = labels_of(features, "image_id")
        positions = index.get_indexer(ids)
        if (positions < 0).any():
            missing = ids[positions < 0]
            raise ModelError(
                f"{len(missing)} of {len(ids)} images of the gallery have no pixels, such as "
                f"{str(missing[0])!r}"
            )
        self._positions, self._ids = positions, ids
        self._features = _rows(features)
        self._pixels = dask_blocks(pixels.transpose("image", "y", "x", "rgb"))
        self._model = features.attrs.get("model")

    def __dask_tokenize__(self) -> str:
        return tokenize("nedx.NearestImage", self._features, self._pixels, self._positions)

    @property
    def reads(self) -> str:
        """Embeddings."""
        return "embedding"

    @property
    def row_dims(self) -> tuple[str, ...]:
        """One embedding."""
        return ("feature",)

    def check(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the size of the images; widths must agree."""
        if shape != self._features.shape[1:]:
            raise ModelError(
                f"the embeddings have {shape[0]} features, the gallery {self._features.shape[1]}"
            )
        height, width = self._pixels.shape[1:3]
        return int(height), int(width)

    def describe(self) -> dict[str, Any]:
        """Return how many images there are to choose from, and the model of their features."""
        count = len(self._positions)
        return {"n_candidates": count, "features": self._model, "similarity": "cosine"}

    def make(self, rows: np.ndarray, seeds: Sequence[int], device: str) -> np.ndarray:
        """Return the nearest image of each row; nothing is random."""
        chosen = self._positions[nearest(rows, self._features, self._ids.tolist())]
        unique, inverse = np.unique(chosen, return_inverse=True)
        # Inside a task: other schedulers would wait for the worker that waits for them.
        shown = self._pixels[unique].compute(scheduler="synchronous")
        return shown[inverse]


def nearest(rows: np.ndarray, gallery: da.Array, names: Sequence[object] = ()) -> np.ndarray:
    """Return the position of the highest cosine, the first of equal ones, block by block.

    Parameters
    ----------
    rows : ndarray of float32 (row, feature)
        Embeddings.
    gallery : dask array (image, feature)
        Features.
    names : sequence (image,), optional
        What to call images whose features are not finite.

    Returns
    -------
    ndarray of int64 (row,)
    """
    wanted = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    best = np.full(len(rows), -np.inf)
    found = np.zeros(len(rows), np.int64)
    for part in batches(len(gallery), _ROWS):
        (block,) = dask.compute(gallery[part], scheduler="synchronous")
        block = checked(
            block.astype(np.float32),
            block.shape,
            np.float32,
            "the gallery",
            names=names[part],
        )
        norms = np.maximum(np.linalg.norm(block, axis=1), 1e-30)
        closeness = wanted @ block.T / norms
        at = closeness.argmax(axis=1)
        values = closeness[np.arange(len(rows)), at]
        better = values > best
        best[better], found[better] = values[better], at[better] + part.start
    return found


def _rows(features: xr.DataArray) -> da.Array:
    data = features.transpose("image", "feature").variable._data
    return data if isinstance(data, da.Array) else da.from_array(np.asarray(data), chunks=-1)
