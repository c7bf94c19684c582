"""The closed list of functions that a catalog on this machine may name."""

from __future__ import annotations

import importlib

from nedx.store.location import Location

GENERATORS: dict[str, str] = {"simulation": "nedx.simulation.stores:generate"}
"""Name in a catalog -> ``module:function`` inside nedx, called as ``function(id)``."""


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
    module, _, function = GENERATORS[name].partition(":")
    return getattr(importlib.import_module(module), function)(entry_id)
