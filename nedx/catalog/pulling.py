"""Copy what a catalog names to this machine, where `nedx.open` then finds it first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nedx.catalog.entries import Entry
from nedx.catalog.resolving import entry_of, first_that_works, mirrors, pulled_path
from nedx.errors import CorruptStoreError
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST
from nedx.store.pulling import pull as pull_store


def pull(
    place: str | Path | Location,
    *,
    into: str | Path | None = None,
    progress: bool = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> Path:
    """Copy a store to this machine; see `nedx.store.pulling.pull`.

    Parameters
    ----------
    place : str, Path or Location
        ``[catalog:]id[@version]``, or the path or URL of a finished store.
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
    StoreError
        If no mirror can be read; the message says for each one why.
    """
    entry = entry_of(place, catalog)
    reach: dict[str, Any] = {"anonymous": anonymous, "storage_options": storage_options}
    if entry is None:
        return pull_store(place, into=into, progress=progress, **reach)
    found = mirrors(entry, **reach)
    if into is None and len(found) == 1 and found[0].is_local:
        return Path(found[0].url)

    def fetch(where: Location) -> Path:
        _check_fingerprint(entry, where)
        return pull_store(where, into=into or pulled_path(entry), progress=progress)

    return first_that_works(entry, found, fetch)


def _check_fingerprint(entry: Entry, where: Location) -> None:
    if entry.fingerprint is None:
        return
    found = "sha256:" + hashlib.sha256(where.read(MANIFEST)).hexdigest()
    if found != entry.fingerprint:
        raise CorruptStoreError(
            f"{where.url} is not what the catalog {entry.catalog!r} names as {entry.reference}: "
            f"its manifest is {found}, expected {entry.fingerprint}"
        )
