"""Networks whose layers can be tapped.

Importing this package does not import torch; the names below are fetched when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nedx.backbones.adapters import register_module, trust_modules
    from nedx.backbones.recipe import BackboneRecipe, Weights
    from nedx.backbones.registry import default_recipe, names
    from nedx.backbones.taps import Backbone, feature_layout, load_backbone

__all__ = [
    "Backbone",
    "BackboneRecipe",
    "Weights",
    "default_recipe",
    "feature_layout",
    "load_backbone",
    "names",
    "register_module",
    "trust_modules",
]

_HOMES = {
    "Backbone": "taps",
    "BackboneRecipe": "recipe",
    "Weights": "recipe",
    "default_recipe": "registry",
    "feature_layout": "taps",
    "load_backbone": "taps",
    "names": "registry",
    "register_module": "adapters",
    "trust_modules": "adapters",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
