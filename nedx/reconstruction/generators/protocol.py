"""What a generator is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr


@runtime_checkable
class Generator(Protocol):
    """Makes pictures of rows; a frozen dataclass, whose fields are its recipe.

    It holds no weights: what it loads it keeps in `nedx.compute.cache`. A picture depends on its
    own row and seed alone, up to the rounding of batches.
    """

    @property
    def reads(self) -> str:
        """The variable that it makes pictures of, ``"embedding"`` or ``"latent"``."""

    @property
    def row_dims(self) -> tuple[str, ...]:
        """The dims of one row of it."""

    def check(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width, in pixels, of the pictures of rows of a shape.

        Raises
        ------
        ModelError
            If rows do not fit, or what is to be loaded is not there.
        """

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""

    def make(self, rows: np.ndarray, seeds: Sequence[int], device: str) -> np.ndarray:
        """Return pictures, uint8 (row, y, x, rgb).

        Parameters
        ----------
        rows : ndarray of float32 (row, *shape)
            Embeddings or latents.
        seeds : sequence of int
            Of each picture.
        device : str
            Resolved: ``"cpu"``, ``"cuda:0"``, ...
        """


@runtime_checkable
class DatasetGenerator(Protocol):
    """Makes pictures of several variables at once, such as the features of several layers."""

    def reconstruct(self, ds: xr.Dataset, *, seed: int, device: str) -> xr.Dataset:
        """Return the Dataset with ``pixels_reconstructed``, lazily.

        Parameters
        ----------
        ds : Dataset
            What it reads, with ``image_id``.
        seed : int
            Of all pictures.
        device : str
            As the user gave it.

        Raises
        ------
        ModelError
            If what it reads is not there or does not fit.
        """
