"""`pull` and `verify` for all that `nedx.open` opens: ids of catalogs, paths and URLs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nedx.catalog.resolving import locate, pulled_path, resolve
from nedx.errors import UnknownIdError
from nedx.store import pulling, verifying
from nedx.store.location import Location
from nedx.store.verifying import VerifyReport


def pull(
    place: str | Path | Location,
    *,
    into: str | Path | None = None,
    progress: bool = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> Path:
    """Copy a store to this machine; an interrupted copy goes on where it stopped.

    What is pulled by id is what `nedx.open` of the same id opens from then on.

    Parameters
    ----------
    place : str, Path or Location
        An id, a path or a URL.
    into : str or Path, optional
        Another folder than the one in the cache.
    progress, anonymous, storage_options
        As in `nedx.store.pulling.pull`.
    catalog : str or Path, optional
        One more catalog to look in.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    StoreError
        If it is unfinished, corrupt, or cannot be read.
    """
    where = locate(place, anonymous=anonymous, storage_options=storage_options, catalog=catalog)
    if into is None and isinstance(place, str):
        try:
            entry = resolve(place, catalog=catalog)
        except UnknownIdError:
            # A path or URL, or `locate` had said so.
            pass
        else:
            into = pulled_path(entry) if entry.generator is None else where.url
    return pulling.pull(where, into=into, progress=progress)


def verify(
    place: str | Path | Location,
    *,
    sample: float = 1.0,
    seed: int = 0,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> VerifyReport:
    """Compare the objects of a store with the hashes in its manifest.

    Parameters
    ----------
    place : str, Path or Location
        An id, a path or a URL.
    sample, seed, anonymous, storage_options
        As in `nedx.store.verifying.verify`.
    catalog : str or Path, optional
        One more catalog to look in.

    Returns
    -------
    VerifyReport
        ``report.ok``, and what is bad.

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    StoreError
        If there is no store, or one that nedx did not write.
    """
    where = locate(place, anonymous=anonymous, storage_options=storage_options, catalog=catalog)
    return verifying.verify(where, sample=sample, seed=seed)
