"""The closed lists of functions that a catalog on this machine may name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.catalog.entries import Entry

GENERATORS: dict[str, str] = {"simulation": "nedx.simulation.stores:generate"}
"""Name in a catalog -> ``module:function`` inside nedx, called as ``function(id)``."""

READERS: dict[str, str] = {"berg": "nedx.sources.berg.models:open_entry"}
"""Name in a catalog -> what opens models of another format, called as ``function(entry, place,
selection)``: it fetches what the selection needs, and keeps it in ``<cache>/<name>/<id>``."""


def generate(name: str, entry_id: str) -> Location:
    """Make the store of an entry, unless it lies in the cache, and say where it lies.

    Parameters
    ----------
    name : str
        A key of `GENERATORS`.
    entry_id : str
        The id of the entry.

    Returns
    -------
    Location
    """
    return _function(GENERATORS[name])(entry_id)


def read(entry: Entry, place: Location, selection: Mapping[str, Any]) -> Any:
    """Open a model of another format with the reader that its entry names.

    Parameters
    ----------
    entry : Entry
        With a ``reader``, a key of `READERS`.
    place : Location
        What the files are below.
    selection : mapping
        ``subject``, ``roi``, ``channel`` and ``time``, as `nedx.open` takes them, without None.

    Returns
    -------
    model
    """
    return _function(READERS[str(entry.reader)])(entry, place, selection)


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
