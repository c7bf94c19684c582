"""From an id, a path or a URL to an open Dataset or model."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xarray as xr

from nedx.catalog.entries import Entry
from nedx.catalog.fetching import transport_errors
from nedx.catalog.layers import load_stack
from nedx.catalog.registry import generate, read
from nedx.config import cache_dir
from nedx.errors import (
    CredentialsError,
    ModelError,
    NedxWarning,
    NotDataError,
    StoreError,
    UnknownIdError,
)
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST

if TYPE_CHECKING:
    from nedx.encoding.kinds import Encoder

logger = logging.getLogger(__name__)

Opened = TypeVar("Opened")


def open(
    place: str | Path | Location,
    *,
    subject: str | int | Sequence[str | int] | None = None,
    roi: str | Sequence[str] | None = None,
    channel: str | Sequence[str] | None = None,
    time: slice | tuple[float, float] | float | None = None,
    group: str | None = None,
    chunks: Any = "auto",
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> xr.Dataset | xr.DataTree | Encoder:
    """Open a store or a model by id, path or URL, lazily.

    Parameters
    ----------
    place : str, Path or Location
        ``"id"``, ``"id@version"``, ``"catalog:id"``, or the path or URL of a store. A path
        without a folder that is also an id is written ``./name``.
    subject, roi, channel, time
        What to select while opening; only that is read later. ``time`` in seconds.
    group : str, optional
        A group of the store, for example ``"truth"``.
    chunks : "auto", dict or None
        Dask chunks; None opens without dask.
    anonymous : bool, optional
        Read without credentials; None leaves it to the catalog, or to the environment.
    storage_options : mapping, optional
        Options of fsspec for this store.
    catalog : str or Path, optional
        One more catalog to look in, by path or URL.

    Returns
    -------
    Dataset, DataTree or model
        A DataTree where subjects have axes of their own and more than one is asked for;
        a model where a model is stored.

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    SelectionError
        If a subject, ROI, channel or time is not there.
    StoreError
        If no mirror can be opened; the message says for each one why.
    """
    selection = {"subject": subject, "roi": roi, "channel": channel, "time": time}
    entry = entry_of(place, catalog)
    if entry is None:
        where = Location.of(place, anonymous=anonymous, storage_options=storage_options)
        try:
            return _open_store(where, group=group, chunks=chunks, **selection)
        except NotDataError:
            return _selected(_load(where), selection)
    _warn_deprecated(entry)
    places = mirrors(entry, anonymous=anonymous, storage_options=storage_options)
    if entry.kind == "model":
        return open_model(entry, places, selection)
    opened = first_that_works(
        entry,
        places,
        lambda where: _open_store(where, group=group, chunks=chunks, **selection),
    )
    return _labelled(opened, entry)


def resolve(reference: str, *, catalog: str | Path | None = None) -> Entry:
    """Return the catalog entry of ``[catalog:]id[@version]``.

    ``id@1.2`` is the highest 1.2.x there is, an id alone the newest version.

    Parameters
    ----------
    reference : str
    catalog : str or Path, optional
        One more catalog to look in, by path or URL.

    Returns
    -------
    Entry

    Raises
    ------
    UnknownIdError
        If no catalog names it; the message names what comes close, or the versions.
    """
    return load_stack(catalog).find(reference)


def locate(
    place: str | Path | Location,
    *,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> Location:
    """Return where a store lies that is given by id, path or URL.

    Of an id with several mirrors it is the first at which a store answers.

    Parameters
    ----------
    place, anonymous, storage_options, catalog
        As in `open`.

    Returns
    -------
    Location

    Raises
    ------
    UnknownIdError, StoreError
    """
    entry = entry_of(place, catalog)
    if entry is None:
        return Location.of(place, anonymous=anonymous, storage_options=storage_options)
    found = mirrors(entry, anonymous=anonymous, storage_options=storage_options)
    if len(found) == 1:
        return found[0]
    return first_that_works(entry, found, _answering)


def mirrors(
    entry: Entry,
    *,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Location]:
    """Return where the store of an entry may lie, best first.

    A complete copy made by `nedx.pull` stands alone; what is generated is generated now.

    Raises
    ------
    ModelError
        If it is a model that nedx does not run.
    StoreError
        If it is published in another form; says what to type.
    """
    if entry.external is not None and entry.kind != "model":
        raise StoreError(f"{entry.reference} is no store: {entry.external}")
    if entry.external is not None:
        raise ModelError(
            f"nedx does not run {entry.reference}: {entry.external} Its licence is "
            f"{entry.license}; type nedx.cite({entry.id!r}) for how to cite it"
        )
    pulled = pulled_copy(entry)
    if pulled is not None:
        return [Location.of(pulled)]
    if entry.generator is not None:
        return [generate(entry.generator, entry.id)]
    found = []
    for url in entry.urls:
        plain = Location.of(url)
        words = entry.storage.options(plain.protocol)
        found.append(
            Location.of(
                url,
                anonymous=entry.storage.anonymous if anonymous is None else anonymous,
                storage_options={**words, **(storage_options or {})},
            )
        )
    return found


def pulled_path(entry: Entry) -> Path:
    """Return where `nedx.pull` keeps its copy of an entry."""
    return cache_dir() / "pulled" / entry.id / entry.version


def pulled_copy(entry: Entry) -> Path | None:
    """Return the complete local copy of an entry, if there is one."""
    path = pulled_path(entry)
    # `pull` writes the manifest last.
    return path if (path / MANIFEST).is_file() else None


def first_that_works(
    entry: Entry, places: Sequence[Location], use: Callable[[Location], Opened]
) -> Opened:
    """Try the mirrors of an entry in order.

    Raises
    ------
    StoreError
        If none works, naming for each one why; `CredentialsError` if all refuse.
    """
    failures: list[tuple[Location, Exception]] = []
    for place in places:
        try:
            return use(place)
        except transport_errors() as error:
            if len(places) == 1:
                raise
            logger.warning("%s: the mirror %s failed: %s", entry.reference, place.url, error)
            failures.append((place, error))
    refused = all(isinstance(error, CredentialsError) for _, error in failures)
    lines = "\n".join(
        f"  - {place.url}: {error or type(error).__name__}" for place, error in failures
    )
    kind = CredentialsError if refused else StoreError
    raise kind(f"{entry.reference}: none of its {len(failures)} mirrors can be opened:\n{lines}")


def entry_of(place: str | Path | Location, catalog: str | Path | None) -> Entry | None:
    """Return the entry that ``place`` names; None for a path or URL."""
    if not isinstance(place, str) or _is_place(place):
        return None
    try:
        return load_stack(catalog).find(place)
    except UnknownIdError:
        if "@" not in place and Path(place).exists():
            return None
        raise


def _is_place(text: str) -> bool:
    if text.startswith("nedx://"):
        return False
    seps = {"/", os.sep, os.altsep or "/"}
    named = text.startswith((".", "~")) or text.endswith(".zarr") or text == ""
    return named or any(sep in text for sep in seps)


def _open_store(where: Location, **arguments: Any) -> xr.Dataset | xr.DataTree:
    from nedx.store.opening import open_store

    return open_store(where, **arguments)


def open_model(entry: Entry, places: Sequence[Location], selection: Mapping[str, Any]) -> Encoder:
    """Open the model of an entry at the first of its mirrors that works.

    Parameters
    ----------
    entry : Entry
        Of kind ``"model"``.
    places : sequence of Location
        Its `mirrors`.
    selection : mapping
        ``subject``, ``roi``, ``channel`` and ``time``; of a model of another format, only the
        files that these need are fetched.

    Returns
    -------
    LinearEncoder or FwrfEncoder
        What was selected of it.
    """
    given = {name: value for name, value in selection.items() if value is not None}
    if entry.reader is None:
        return _selected(first_that_works(entry, places, _load), given)
    return _selected(first_that_works(entry, places, lambda at: read(entry, at, given)), given)


def _load(where: Location) -> Encoder:
    from nedx.encoding.opening import open_model as load

    return load(where)


def _selected(model: Encoder, selection: Mapping[str, Any]) -> Encoder:
    given = {name: value for name, value in selection.items() if value is not None}
    return model.sel(**given) if given else model


def _answering(where: Location) -> Location:
    if not where.exists("zarr.json"):
        raise FileNotFoundError(f"there is no Zarr store at {where.url}")
    return where


def _labelled(opened: xr.Dataset | xr.DataTree, entry: Entry) -> xr.Dataset | xr.DataTree:
    """Add where it came from; what the store says of itself is kept."""
    references = " ".join(f"https://doi.org/{c.doi}" for c in entry.citation if c.doi)
    attrs = {"id": entry.reference, "license": entry.license, "references": references}
    opened = opened.copy(deep=False)
    for name, value in attrs.items():
        if value and (name == "id" or not opened.attrs.get(name)):
            opened.attrs[name] = value
    return opened


def _warn_deprecated(entry: Entry) -> None:
    if entry.deprecated_by is not None:
        warnings.warn(
            f"{entry.reference} is deprecated; open {entry.deprecated_by!r} instead",
            NedxWarning,
            stacklevel=3,
        )
