"""What makes an encoding model, beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nedx.backbones.recipe import BackboneRecipe
from nedx.errors import ModelError, faults_of

_FROM_RESPONSE = ("normalization", "normalization_scope", "transform")
_FROM_DATASET = ("modality", "species", "dataset", "license", "citation")


class EncoderRecipe(BaseModel):
    """Where an encoding model comes from, what it takes and what it predicts.

    Parameters
    ----------
    backbone : BackboneRecipe
        Network, layers, image preprocessing, batch size and precision.
    model_id : str
        For example ``"fmri-nsd_fsaverage-vit_b_32"``.
    version : str
        Version of the model.
    units : str
        Units of the predicted responses; ``"1"`` for z-scored ones.
    normalization, normalization_scope, transform : str, optional
        What was done to the responses it was fitted to, as in the attributes of ``response``.
    modality : {"fmri", "eeg", "meg", "ieeg", "ephys"}, optional
        Of the responses.
    dataset, training_data, split : str, optional
        What it was fitted to, and how images were held out.
    training_source : {"measured", "synthetic"}, optional
        Whether it was fitted to recordings or to a simulation.
    license, citation : str, optional
        Terms, and what to cite.
    fitted_by : str, optional
        The estimator and its parameters.
    card : str, optional
        What one should know before trusting it, as Markdown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: BackboneRecipe
    model_id: str = "unnamed"
    version: str = "0"
    units: str = "1"
    normalization: str | None = None
    normalization_scope: str | None = None
    transform: str | None = None
    modality: Literal["fmri", "eeg", "meg", "ieeg", "ephys"] | None = None
    species: str | None = None
    dataset: str | None = None
    training_data: str | None = None
    training_source: Literal["measured", "synthetic"] | None = None
    split: str | None = None
    license: str | None = None
    citation: str | None = None
    fitted_by: str | None = None
    card: str | None = None


Recipe = TypeVar("Recipe", bound=EncoderRecipe)


def recipe_of(
    kind: type[Recipe],
    response: Mapping[Any, Any],
    about: Mapping[Any, Any],
    name: str,
    **fields: Any,
) -> Recipe:
    """Return the recipe of a model, from what the responses that it is fitted to say of themselves.

    Parameters
    ----------
    kind : type of EncoderRecipe
        Of which recipe.
    response, about : mapping
        Attributes of the responses, and of their Dataset.
    name : str
        Of the kind of model; ends its id.
    **fields
        Fields that they do not say.

    Raises
    ------
    ModelError
        If an attribute is not what a recipe says.
    """
    found = {key: response[key] for key in _FROM_RESPONSE if key in response}
    found |= {key: about[key] for key in _FROM_DATASET if key in about}
    names = [str(about[key]) for key in ("modality", "dataset") if key in about]
    words = {
        "model_id": "-".join([*names, name]),
        "version": "1",
        "units": response.get("units", "1"),
        "training_source": response.get("source", about.get("source")),
        **found,
        **fields,
    }
    try:
        return kind.model_validate(words)
    except ValidationError as error:
        raise ModelError(
            "attributes of the responses do not fit a model: " + faults_of(error, "the attributes")
        ) from error
