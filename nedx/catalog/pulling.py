"""Copy what a catalog names to this machine, where `nedx.open` then finds it first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nedx.catalog.entries import Entry
from nedx.catalog.registry import RECORDINGS, fetch_recordings
from nedx.catalog.resolving import (
    entry_of,
    first_that_works,
    mirrors,
    open_model,
    pulled_path,
)
from nedx.config import cache_dir
from nedx.errors import CorruptStoreError, SelectionError
from nedx.selection import Names, Subjects
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST
from nedx.store.pulling import pull as pull_store


def pull(
    place: str | Path | Location,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    into: str | Path | None = None,
    progress: bool = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> Path:
    """Copy a store to this machine; see `nedx.store.pulling.pull`.

    Models of other formats are turned into Zarr models, subject by subject. Of ``things-eeg2``
    the raw recordings are fetched as published, for ``nedx import`` to make a store of them.

    Parameters
    ----------
    place : str, Path or Location
        ``[catalog:]id[@version]``, the path or URL of a finished store, or ``"things-eeg2"``.
    subject, roi : optional
        What to fetch of a model of another format, as in `nedx.open`, or whose recordings; all
        by default.
    into : str or Path, optional
        The folder to copy to; by default one in the cache. Of an id, `nedx.open` uses the copy
        in the cache from then on.
    progress : bool
        Show a bar.
    anonymous, storage_options, catalog
        As `nedx.open` takes them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    CorruptStoreError
        If the store is not the one whose fingerprint the catalog gives.
    SelectionError
        If a subject or ROI is not there, or is given of what is copied whole.
    StoreError
        If no mirror can be read; the message says for each one why.
    """
    if place in RECORDINGS and roi is None:
        name = str(place)
        folder = Path(into) if into is not None else cache_dir() / "recordings" / name
        return fetch_recordings(name, folder, subject)
    entry = entry_of(place, catalog)
    selection = {"subject": subject, "roi": roi}
    reach: dict[str, Any] = {"anonymous": anonymous, "storage_options": storage_options}
    if entry is not None and entry.reader is not None:
        return _converted(entry, mirrors(entry, **reach), selection, into)
    if any(value is not None for value in selection.values()):
        raise SelectionError(
            f"{place} is copied whole; type nedx.open({str(place)!r}, subject=..., roi=...) to "
            "read a part of it"
        )
    if entry is None:
        return pull_store(place, into=into, progress=progress, **reach)
    found = mirrors(entry, **reach)
    if into is None and len(found) == 1 and found[0].is_local:
        return Path(found[0].url)

    def fetch(where: Location) -> Path:
        _check_fingerprint(entry, where)
        return pull_store(where, into=into or pulled_path(entry), progress=progress)

    return first_that_works(entry, found, fetch)


def _converted(
    entry: Entry, places: list[Location], selection: Mapping[str, Any], into: str | Path | None
) -> Path:
    """Let the reader of an entry fetch its files; it keeps them as Zarr models in the cache."""
    model = open_model(entry, places, selection)
    if into is None:
        return cache_dir() / str(entry.reader) / entry.id
    model.to_zarr(into)
    return Path(into)


def _check_fingerprint(entry: Entry, where: Location) -> None:
    if entry.fingerprint is None:
        return
    found = "sha256:" + hashlib.sha256(where.read(MANIFEST)).hexdigest()
    if found != entry.fingerprint:
        raise CorruptStoreError(
            f"{where.url} is not what the catalog {entry.catalog!r} names as {entry.reference}: "
            f"its manifest is {found}, expected {entry.fingerprint}"
        )
