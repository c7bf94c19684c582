"""The closed lists of functions that a catalog on this machine may name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nedx.selection import Subjects
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.catalog.entries import Entry

GENERATORS: dict[str, str] = {"simulation": "nedx.simulation.stores:generate"}
"""Name in a catalog -> ``module:function`` inside nedx, called as ``function(id)``."""

READERS: dict[str, str] = {"berg": "nedx.sources.berg.models:open_entry"}
"""Name in a catalog -> what opens models of another format, called as ``function(entry, place,
selection)``: it fetches what the selection needs, and keeps it in ``<cache>/<name>/<id>``."""

RECORDINGS: dict[str, str] = {
    "deeprecon": "nedx.sources.bdata.published:pull_deeprecon",
    "ho2023": "nedx.sources.bdata.published:pull_ho2023",
    "things-eeg2": "nedx.sources.things_eeg2:pull",
}
"""Recordings by the name of their source -> what fetches their files as they are published, called
as ``function(folder, subject=...)``; ``nedx import`` makes a store of them."""


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


def fetch_recordings(name: str, folder: Path, subject: Subjects | None) -> Path:
    """Fetch published recordings, going on where that was broken off.

    Parameters
    ----------
    name : str
        A key of `RECORDINGS`.
    folder : Path
        Where to.
    subject : optional
        Whose; all by default.

    Returns
    -------
    Path
        The folder.
    """
    fetched: Path = _function(RECORDINGS[name])(folder, subject=subject)
    return fetched


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
