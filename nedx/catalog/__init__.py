"""Stores and models by name, wherever they are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nedx.catalog.entries import CatalogFile, Entry, catalog_json_schema
    from nedx.catalog.listing import cite, describe, list, search
    from nedx.catalog.pulling import pull
    from nedx.catalog.resolving import locate, open, resolve

# Lazy, because xarray imports the engine next door whenever it guesses engines.
_HOME = {
    "CatalogFile": "entries",
    "Entry": "entries",
    "catalog_json_schema": "entries",
    "cite": "listing",
    "describe": "listing",
    "list": "listing",
    "search": "listing",
    "locate": "resolving",
    "open": "resolving",
    "pull": "pulling",
    "resolve": "resolving",
}

__all__ = [
    "CatalogFile",
    "Entry",
    "catalog_json_schema",
    "cite",
    "describe",
    "list",
    "locate",
    "open",
    "pull",
    "resolve",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> Any:
    return __all__
