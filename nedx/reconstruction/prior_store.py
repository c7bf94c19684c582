"""A trained diffusion prior: its recipe, and its weights in a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nedx.compute import cache
from nedx.compute.devices import resolve_device
from nedx.compute.references import ModelRef
from nedx.errors import ModelError
from nedx.reconstruction.network_store import StoredNetwork, arrays_of, load_weights

if TYPE_CHECKING:
    from nedx.reconstruction.prior_network import PriorNetwork


class PriorRecipe(BaseModel):
    """What a diffusion prior is built from, and where it comes from.

    Parameters
    ----------
    width, condition_width : int
        Of the embeddings that it makes, and of those it is given.
    hidden : tuple of int
        Widths of the layers.
    dropout : float
        In training.
    train_steps : int
        Times of the diffusion.
    scale : float
        What target embeddings are multiplied with before noise is added.
    clip : float
        Predicted embeddings, scaled, are held within plus and minus this.
    normalized : bool
        Whether targets had unit norm.
    target : str
        The model whose embeddings it makes.
    condition : str, optional
        The decoder whose embeddings it was trained with.
    selection : str
        How the epoch was chosen.
    fitted_by : str, optional
        The estimator and its parameters.
    model_id, version, dataset, license, citation : str, optional
        Identity, what it was fitted to, terms, and what to cite.
    training_source : {"measured", "synthetic"}, optional
        Whether it was fitted to recordings or to a simulation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    width: int = Field(default=1024, ge=1)
    condition_width: int = Field(default=1024, ge=1)
    hidden: tuple[int, ...] = Field(default=(1024, 512, 256, 128, 64), min_length=2)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    train_steps: int = Field(default=1000, ge=2)
    scale: float = Field(default=1.0, gt=0)
    clip: float = Field(default=1.0, gt=0)
    normalized: bool = False
    target: str = "unnamed"
    condition: str | None = None
    selection: str = "unknown"
    fitted_by: str | None = None
    model_id: str = "unnamed"
    version: str = "0"
    dataset: str | None = None
    license: str | None = None
    citation: str | None = None
    training_source: Literal["measured", "synthetic"] | None = None


class PriorModel(StoredNetwork[PriorRecipe]):
    """A trained diffusion prior, from `DiffusionPrior.fit` or a published checkpoint.

    `nedx.load_model` opens one from where `to_zarr` wrote it, `nedx.apply_prior` applies it.
    """

    model_type = "diffusion_prior"
    recipe_type = PriorRecipe

    @classmethod
    def from_checkpoint(cls, path: str | Path, **about: Any) -> PriorModel:
        """Read published weights, such as ``diffusion_prior_All.pt``; nothing is executed.

        Parameters
        ----------
        path : path
            A state dict under the published names.
        **about
            Of `PriorRecipe`, what the file does not say: ``target``, ``scale``, ...

        Returns
        -------
        PriorModel

        Raises
        ------
        ModelError
            If the weights are not those of a diffusion prior.
        """
        from nedx.reconstruction.prior_network import read_checkpoint, widths_of

        state = read_checkpoint(path)
        shape: dict[str, Any] = dict(widths_of(state))
        try:
            recipe = PriorRecipe(**{"selection": "as published", **about, **shape})
        except ValidationError as error:
            raise ModelError(f"what is said about {path} is not valid: {error}") from error
        try:
            build(recipe).load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(
                f"{path} does not fit a diffusion prior of widths {recipe.hidden}: {error}"
            ) from error
        nothing = xr.Dataset(
            {"known_partition": ("known_image", np.array([], object))},
            coords={"known_image": np.array([], object)},
        )
        return cls.kept(recipe, arrays_of(state), nothing)

    def load(self, device: str = "auto") -> PriorNetwork:
        """Return the network in evaluation mode, read once in a process."""
        network: PriorNetwork = cache.get(self.ref, resolve_device(device), PriorPart())
        return network


def build(recipe: PriorRecipe) -> PriorNetwork:
    """Build the network of a recipe with fresh weights, drawn from torch's generator."""
    from nedx.reconstruction.prior_network import PriorNetwork

    return PriorNetwork(recipe.width, recipe.condition_width, recipe.hidden, recipe.dropout)


@dataclass(frozen=True)
class PriorPart:
    """The network of a stored prior."""

    def read(self, ref: ModelRef, device: str) -> PriorNetwork:
        """Read its weights and build it."""
        network = build(PriorRecipe.model_validate_json(ref.recipe))
        load_weights(network, ref)
        return network.eval().to(device)
