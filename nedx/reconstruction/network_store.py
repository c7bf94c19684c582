"""Networks on disk: a recipe, the tensors of a state dict, and the images it was trained on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import xarray as xr
import zarr
from pydantic import BaseModel, ValidationError

from nedx.compute.references import ModelRef
from nedx.config import cache_dir
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.loading import LOADER, Head, group_of, read_array
from nedx.encoding.opening import open_labels
from nedx.encoding.storing import COMPRESSORS, storable_labels, write_whole
from nedx.errors import ModelError
from nedx.schema import SCHEMA_VERSION
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, RecordingStore

WEIGHTS = "weights"
"""The group that holds the tensors, under their names in the state dict."""

Recipe = TypeVar("Recipe", bound=BaseModel)


class StoredNetwork(Generic[Recipe]):
    """A trained network: its recipe, and a reference to weights that are read when used.

    Attributes
    ----------
    recipe : pydantic model
        What it is built from, and where it comes from.
    ref : ModelRef
        What a dask graph carries in its place.
    """

    model_type: ClassVar[str]
    recipe_type: ClassVar[type[BaseModel]]

    def __init__(self, location: Location, recipe: Recipe, weights_sha256: str):
        self.recipe = recipe
        self.ref = ModelRef(LOADER, location, recipe.model_dump_json(), weights_sha256)

    @classmethod
    def opened(cls, location: Location, attrs: Mapping[str, Any]) -> Self:
        """Make it of a store and the attributes of its root; reads no weights.

        Raises
        ------
        ModelError
            If the recipe is not valid.
        """
        try:
            recipe: Any = cls.recipe_type.model_validate(attrs["recipe"])
            return cls(location, recipe, str(attrs["weights_sha256"]))
        except (ValidationError, KeyError) as error:
            raise ModelError(
                f"the recipe of the model at {location.url} is not valid: {error}"
            ) from error

    @classmethod
    def kept(cls, recipe: Recipe, state: Mapping[str, np.ndarray], known: xr.Dataset) -> Self:
        """Put trained weights into the cache, where they stay until written elsewhere."""
        weights = hash_arrays(state)
        labels = json.dumps([known[name].values.tolist() for name in sorted(map(str, known))])
        text = f"{cls.model_type}{recipe.model_dump_json()}{weights}{labels}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        place = Location.of(cache_dir() / "models" / digest)
        if not place.exists("zarr.json"):
            os.makedirs(os.path.dirname(place.url), exist_ok=True)
            try:
                cls._write(place, recipe, state, known)
            except OSError:
                # Another process may have been faster.
                if not place.exists("zarr.json"):
                    raise
        return cls(place, recipe, weights)

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights."""
        return self.ref.sha256

    @property
    def known_images(self) -> xr.Dataset:
        """``known_partition (known_image)``: what each image was to the training."""
        assert self.ref.location is not None
        return open_labels(self.ref.location, "").reset_coords()

    def state(self) -> dict[str, np.ndarray]:
        """Read the weights, float32, by their names in the state dict."""
        return read_weights(self.ref)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model, whole or not at all on a local disk.

        Parameters
        ----------
        place : path, URL or Location
            Where; must not exist.

        Returns
        -------
        Location

        Raises
        ------
        StoreExistsError
            If something is there; nothing is changed.
        """
        return self._write(place, self.recipe, self.state(), self.known_images)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.recipe!r})"

    @classmethod
    def _write(
        cls,
        place: str | Path | Location,
        recipe: BaseModel,
        state: Mapping[str, np.ndarray],
        known: xr.Dataset,
    ) -> Location:
        def write(location: Location) -> None:
            store = RecordingStore(location.zarr_store(read_only=False))
            with warnings.catch_warnings():
                # Zarr says of consolidated metadata and of strings that v3 lacks them yet.
                warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
                root = zarr.create_group(store, zarr_format=3)
                for name, values in state.items():
                    _write_array(root.require_group(WEIGHTS), name, values)
                labels = storable_labels(known)
                labels.to_zarr(store, mode="a", zarr_format=3, consolidated=False)
                root.attrs.put(
                    {
                        "nedx_kind": "model",
                        "nedx_schema_version": SCHEMA_VERSION,
                        "nedx_status": "complete",
                        "model_type": cls.model_type,
                        "recipe": json.loads(recipe.model_dump_json()),
                        "weights_sha256": hash_arrays(state),
                    }
                )
                zarr.consolidate_metadata(store, zarr_format=3)
            location.write(MANIFEST, Manifest(store.written).to_bytes())

        return write_whole(place, write)


def read_weights(ref: ModelRef) -> dict[str, np.ndarray]:
    """Read all tensors of a stored network, float32, by name.

    Raises
    ------
    CorruptStoreError
        If bytes differ from what was written.
    """
    group = group_of(ref, Head(WEIGHTS))
    return {name: read_array(array, None, slice(None)) for name, array in group.arrays()}


def arrays_of(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the float tensors of a state dict as arrays; counters of batches are left out."""
    return {
        name: values.detach().cpu().float().numpy()
        for name, values in state.items()
        if values.is_floating_point()
    }


def _write_array(group: zarr.Group, name: str, values: np.ndarray) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="float32",
        chunks=values.shape,
        compressors=COMPRESSORS,
        config={"write_empty_chunks": True},
    )
    array[...] = values
