"""The backbones by name: where each is written, and its published layers and preprocessing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nedx.backbones.recipe import BackboneRecipe
from nedx.errors import ModelError, close_matches

if TYPE_CHECKING:
    from nedx.backbones.taps import Network

ADAPTERS = ("timm", "transformers", "module", "live")


@dataclass(frozen=True)
class Entry:
    """One network that nedx holds: its factory and its recipe where nothing else is asked."""

    factory: str
    layers: tuple[str, ...]
    policy: str
    pooling: str = "flatten"
    batch_size: int = 32


_ENTRIES = {
    "vit_b_32": Entry("vit:vit_b_32", tuple(f"encoder_layer_{i}" for i in range(12)), "berg"),
    "alexnet": Entry(
        "alexnet:AlexNet",
        (
            *("features.2", "features.5", "features.7", "features.9", "features.12"),
            *("classifier.2", "classifier.5", "classifier.6"),
        ),
        "berg",
    ),
    "vgg19": Entry(
        "vgg:VGG19",
        ("features.4", "features.9", "features.18", "features.27", "features.36"),
        "imagenet",
        "avg7",
    ),
    "squeezenet1_1": Entry("squeezenet:SqueezeNet", ("fire6",), "imagenet", "avg7"),
    "gabor": Entry(
        "gabor:GaborPyramid", tuple(f"energy_{scale}" for scale in range(4)), "raw01", "avg8"
    ),
    "gnet": Entry("gnet:GNet", ("F1", "F2", "F3"), "fwrf"),
    "cornet_s": Entry("cornet_s:CORnetS", ("V1", "V2", "V4", "IT"), "imagenet"),
}


def names() -> list[str]:
    """Return the names of the networks that nedx holds."""
    return sorted(_ENTRIES)


def default_recipe(name: str, **changes: Any) -> BackboneRecipe:
    """Return the published recipe of a network.

    Parameters
    ----------
    name : str
        One of `names`, or ``"transformers:<folder or repo>"`` of CLIP or DINOv2.
    **changes
        Fields of `BackboneRecipe` to set otherwise. With Keras SqueezeNet weights the policy
        is ``"squeezenet_keras"`` unless another is given.

    Returns
    -------
    BackboneRecipe

    Raises
    ------
    ModelError
        If there is no network of this name, or an adapter is named without its layers.
    """
    if name.partition(":")[0] in ADAPTERS and ":" in name:
        kind, _, rest = name.partition(":")
        if kind == "transformers" and "layers" not in changes:
            from nedx.backbones.published import published_recipe

            changes = {**published_recipe(rest), **changes}
        if "layers" not in changes:
            message = f"{name} has no published layers: type layers=[...]"
            raise ModelError(message)
        return BackboneRecipe(name=name, **changes)
    entry = _entry(name)
    published: dict[str, Any] = {
        "layers": entry.layers,
        "policy": entry.policy,
        "pooling": entry.pooling,
        "batch_size": entry.batch_size,
    }
    recipe = BackboneRecipe(name=name, **{**published, **changes})
    keras = recipe.weights is not None and recipe.weights.kind == "keras_squeezenet"
    if keras and "policy" not in changes:
        recipe = recipe.model_copy(update={"policy": "squeezenet_keras"})
    return recipe


def factory(recipe: BackboneRecipe, *, trained: bool = False) -> Callable[[], Network]:
    """Return what builds the network of a recipe.

    Parameters
    ----------
    recipe : BackboneRecipe
        What to build.
    trained : bool
        Whether a name that stands for trained weights, as a transformers repository does,
        brings them.

    Raises
    ------
    ModelError
        If the name is not known.
    MissingExtraError
        If the network needs a package that is not installed.
    """
    kind, separator, rest = recipe.name.partition(":")
    if separator and kind in ADAPTERS:
        from nedx.backbones import adapters

        return adapters.factory(kind, rest, trained=trained)
    module, _, attribute = _entry(recipe.name).factory.partition(":")
    build: Callable[..., Network] = getattr(
        importlib.import_module(f"nedx.backbones.{module}"), attribute
    )
    if recipe.name == "squeezenet1_1":
        keras = recipe.weights is not None and recipe.weights.kind == "keras_squeezenet"
        return lambda: build(ceil_mode=not keras, top=not keras)
    return build


def _entry(name: str) -> Entry:
    """Find a network, or name the close matches."""
    try:
        return _ENTRIES[name]
    except KeyError:
        message = (
            f"there is no backbone {name!r}; {close_matches(name, _ENTRIES)} Others go by "
            "'timm:<name>', 'transformers:<folder or repo>' or 'module:<package.module:factory>'"
        )
        raise ModelError(message) from None
