"""Decoders on disk: the tensors of each network, and which images they were fitted to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from nedx.compute.references import ModelRef
from nedx.decoding.recipe import DecoderRecipe
from nedx.encoding.network_storing import NETWORKS, State, hash_states, read_state, write_networks
from nedx.errors import ModelError
from nedx.store.location import Location
from nedx.store.models import open_labels, stored_recipe

if TYPE_CHECKING:
    from nedx.decoding.model import NeuralDecoder
    from nedx.decoding.standardized import Standardized

LOADER = "nedx.decoding.storing:load"
MODEL_TYPE = "neural_decoder"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, ready to decode.

    Attributes
    ----------
    module : Standardized
        In evaluation mode.
    """

    module: Standardized

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.module.state_dict().values())


@dataclass(frozen=True)
class NetworkPart:
    """One network of a stored decoder.

    Parameters
    ----------
    name : str
        Which.
    """

    name: str

    def read(self, ref: ModelRef, device: str) -> LoadedNetwork:
        """Read its tensors and build it."""
        import torch

        from nedx.decoding.standardized import Standardized

        recipe = DecoderRecipe.model_validate_json(ref.recipe)
        module = Standardized(recipe.network)
        state = {k: torch.from_numpy(v) for k, v in read_state(ref, self.name).items()}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(
                f"the weights of {self.name!r} are not those of a {recipe.network.name} of this "
                f"recipe: {error}. Fetch or fit the model again"
            ) from error
        return LoadedNetwork(module.eval().to(device))


def load(ref: ModelRef, device: str, part: Hashable) -> LoadedNetwork:
    """Load one network; the loader that references to decoders name."""
    assert isinstance(part, NetworkPart)
    return part.read(ref, device)


def write_decoder(
    place: str | Path | Location,
    recipe: DecoderRecipe,
    states: Mapping[str, State],
    known: xr.Dataset,
) -> Location:
    """Write a decoder, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    recipe : DecoderRecipe
        Its recipe.
    states : mapping of str to dict
        The tensors of each network.
    known : Dataset
        ``known_image`` and ``known_partition (known_image)``, the images that it has seen.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """
    return write_networks(
        place,
        {f"{NETWORKS}/{name}": state for name, state in states.items()},
        known,
        model_type=MODEL_TYPE,
        recipe=recipe,
        weights_sha256=hash_states(states),
    )


def open_decoder(location: Location, attrs: Mapping[str, Any]) -> NeuralDecoder:
    """Open a stored decoder; only metadata are read.

    Raises
    ------
    ModelError
        If its recipe is not valid.
    """
    from nedx.decoding.model import NeuralDecoder

    recipe, sha256 = stored_recipe(DecoderRecipe, location, attrs, "decoder")
    ref = ModelRef(LOADER, location, recipe.model_dump_json(), sha256)
    return NeuralDecoder._opened(recipe, ref, open_labels(location, ""))
