"""Networks on disk: a recipe, the tensors of a state dict, and the images it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import xarray as xr
from pydantic import BaseModel

from nedx.compute.references import ModelRef
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.loading import LOADER
from nedx.encoding.network_storing import read_network, write_networks
from nedx.errors import ModelError
from nedx.store.location import Location
from nedx.store.models import keep, open_labels, stored_recipe

if TYPE_CHECKING:
    from torch import nn

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
        recipe: Any
        recipe, sha256 = stored_recipe(cls.recipe_type, location, attrs)
        return cls(location, recipe, sha256)

    @classmethod
    def kept(cls, recipe: Recipe, state: Mapping[str, np.ndarray], known: xr.Dataset) -> Self:
        """Put trained weights into the cache, where they stay until written elsewhere."""
        weights = hash_arrays(state)
        labels = json.dumps([known[name].values.tolist() for name in sorted(map(str, known))])
        text = f"{cls.model_type}{recipe.model_dump_json()}{weights}{labels}"
        place = keep(text, lambda place: cls._write(place, recipe, state, known))
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
        return read_network(self.ref, WEIGHTS)

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
        return write_networks(
            place,
            {WEIGHTS: state},
            known,
            model_type=cls.model_type,
            recipe=recipe,
            weights_sha256=hash_arrays(state),
        )


def load_weights(network: nn.Module, ref: ModelRef) -> None:
    """Give a network the tensors of a store.

    Parameters
    ----------
    network : torch.nn.Module
        As the recipe of the store builds it.
    ref : ModelRef
        The store.

    Raises
    ------
    CorruptStoreError
        If bytes differ from what was written.
    ModelError
        If the tensors are not those of the network; only counters of batches, which evaluation
        does not read, may be missing.
    """
    import torch

    stored = {name: torch.from_numpy(values) for name, values in read_network(ref, WEIGHTS).items()}
    counters = {
        name: value
        for name, value in network.state_dict().items()
        if not value.is_floating_point() and name not in stored
    }
    try:
        network.load_state_dict(stored | counters)
    except RuntimeError as error:
        assert ref.location is not None
        raise ModelError(
            f"the weights at {ref.location.url} are not those of its recipe: {error}. Fetch or fit "
            "the model again"
        ) from error


def arrays_of(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the float tensors of a state dict as arrays; counters of batches are left out."""
    return {
        name: values.detach().cpu().float().numpy()
        for name, values in state.items()
        if values.is_floating_point()
    }
