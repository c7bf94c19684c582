"""Image -> response: linear encoding models, and `encode`.

Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nedx.encoding.encode import encode
    from nedx.encoding.features import encode_features
    from nedx.encoding.model import LinearEncoder, load_model
    from nedx.encoding.recipe import EncoderRecipe

__all__ = ["EncoderRecipe", "LinearEncoder", "encode", "encode_features", "load_model"]

_HOMES = {
    "EncoderRecipe": "recipe",
    "LinearEncoder": "model",
    "encode": "encode",
    "encode_features": "features",
    "load_model": "model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    # The submodule `encode` would otherwise hide the function of the same name.
    globals()[name] = value
    return value
