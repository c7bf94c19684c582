"""Catalogs that stack: packaged, user, environment, and one given by path or URL."""

from __future__ import annotations

import functools
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nedx.catalog.entries import ID, MAX_BYTES, VERSION, CatalogFile, Entry, parse_catalog
from nedx.catalog.fetching import fetch_catalog, is_remote, transport_errors
from nedx.config import config_dir
from nedx.errors import CatalogError, NedxWarning, UnknownIdError, close_matches

logger = logging.getLogger(__name__)

REFERENCE = re.compile(
    rf"^(?:nedx://)?(?:(?P<catalog>{ID}):)?(?P<id>{ID})(?:@(?P<version>{VERSION}|latest))?$"
)
"""``[catalog:]id[@version]``."""


@dataclass(frozen=True)
class Layer:
    """One catalog of the stack.

    Attributes
    ----------
    name : str
        What it calls itself.
    origin : str
        The path or URL that it was read from.
    entries : tuple of Entry
    """

    name: str
    origin: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Stack:
    """Catalogs in order; of two that name one id, the later one is used.

    An id comes with all its versions from one catalog, so that a version of one catalog is
    never taken for a newer version of what another one names.
    """

    layers: tuple[Layer, ...]

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the entries that ids without a catalog lead to, sorted by id."""
        for _, entries in sorted(self._by_id().items()):
            yield from sorted(entries, key=lambda entry: entry.version_key)

    def _by_id(self, catalog: str | None = None) -> dict[str, tuple[Entry, ...]]:
        found: dict[str, tuple[Entry, ...]] = {}
        for layer in self.layers:
            if catalog is not None and layer.name != catalog:
                continue
            own: dict[str, tuple[Entry, ...]] = {}
            for entry in layer.entries:
                own[entry.id] = (*own.get(entry.id, ()), entry)
            for entry_id in own.keys() & found.keys():
                hidden = found[entry_id][0].catalog
                logger.info(
                    "%r of the catalog %r (%s) hides that of %r; write '%s:%s' for the other",
                    *(entry_id, layer.name, layer.origin, hidden, hidden, entry_id),
                )
            found.update(own)
        return found

    def latest(self) -> tuple[Entry, ...]:
        """Return the newest version of every id, sorted by id."""
        return tuple(newest(entries) for _, entries in sorted(self._by_id().items()))

    def versions(self, entry_id: str, catalog: str) -> tuple[Entry, ...]:
        """Return all versions of an id in a catalog, oldest first."""
        found = self._by_id(catalog).get(entry_id, ())
        return tuple(sorted(found, key=lambda entry: entry.version_key))

    def find(self, reference: str) -> Entry:
        """Return the entry of ``[catalog:]id[@version]``.

        Raises
        ------
        UnknownIdError
            If no catalog names it; the message names what comes close.
        """
        parts = REFERENCE.match(reference)
        if parts is None:
            raise UnknownIdError(
                f"{reference!r} is not an id; expected [catalog:]id[@version], "
                "for example 'sim-fmri' or 'sim-fmri@1.0'"
            )
        catalog, entry_id, version = parts["catalog"], parts["id"], parts["version"]
        names = [layer.name for layer in self.layers]
        if catalog is not None and catalog not in names:
            raise UnknownIdError(
                f"there is no catalog {catalog!r}; {close_matches(catalog, names)}"
            )
        found = self._by_id(catalog)
        if entry_id not in found:
            place = f"the catalog {catalog!r}" if catalog else "any catalog"
            hint = close_matches(entry_id, found)
            raise UnknownIdError(
                f"{entry_id!r} is not in {place}"
                + (f"; {hint}" if hint else "")
                + ("" if hint.endswith("?") else ".")
                + " Type nedx.list() for all, or give a path or URL of a store."
            )
        return _of_version(found[entry_id], version)


def newest(entries: tuple[Entry, ...]) -> Entry:
    """Return the newest of the versions of an id, a deprecated one only where all are."""
    current = [entry for entry in entries if entry.deprecated_by is None]
    return max(current or entries, key=lambda entry: entry.version_key)


def load_stack(catalog: str | Path | None = None) -> Stack:
    """Read all catalogs there are.

    Parameters
    ----------
    catalog : str or Path, optional
        One more catalog, by path or URL, on top of the others.

    Returns
    -------
    Stack
        Packaged, then user (``catalogs.d`` in the settings folder), then those of the
        environment variable ``NEDX_CATALOGS``, then ``catalog``.

    Raises
    ------
    CatalogError
        If one is refused; all its faults are named.

    Warns
    -----
    NedxWarning
        If one of ``NEDX_CATALOGS`` cannot be reached: it is left out, or its copy is used.
    """
    layers = [_read_file(path) for path in packaged_files()]
    layers += [_read_file(path) for path in _yaml_in(config_dir() / "catalogs.d")]
    for place in split_places(os.environ.get("NEDX_CATALOGS", "")):
        if not is_remote(place):
            layers += _read_local(place, "NEDX_CATALOGS")
            continue
        try:
            layers.append(_read_remote(place))
        except CatalogError as error:
            if not isinstance(error.__cause__, transport_errors()):
                raise
            warnings.warn(f"left out: {error}", NedxWarning, stacklevel=2)
    if catalog is not None:
        text = str(catalog)
        layers += [_read_remote(text)] if is_remote(text) else _read_local(text, "catalog=")
    return Stack(tuple(layers))


def packaged_files() -> list[Path]:
    """Return the catalogs that come with nedx, of a wheel or of a checkout."""
    package = Path(__file__).resolve().parent.parent
    return _yaml_in(package / "catalogs") or _yaml_in(package.parent / "catalogs")


def split_places(text: str) -> list[str]:
    """Split a list of paths and URLs at commas and at the separator of PATH.

    The colons of ``https://`` and of a port separate nothing.
    """
    separator = re.escape(os.pathsep)
    pattern = rf",|{separator}(?!//)(?!\d+(?:/|$))" if os.pathsep == ":" else rf",|{separator}"
    return [place.strip() for place in re.split(pattern, text) if place.strip()]


def _of_version(entries: tuple[Entry, ...], version: str | None) -> Entry:
    if version is None or version == "latest":
        return newest(entries)
    asked = tuple(int(part) for part in version.split("."))
    matching = tuple(e for e in entries if e.version_key[: len(asked)] == asked)
    if not matching:
        ordered = sorted(entries, key=lambda entry: entry.version_key)
        there = ", ".join(entry.version for entry in ordered)
        raise UnknownIdError(f"{entries[0].id!r} has no version {version}; there are: {there}")
    return newest(matching)


def _yaml_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def _read_local(place: str, given_by: str) -> list[Layer]:
    path = Path(place.removeprefix("file://")).expanduser().absolute()
    if path.is_dir():
        return [_read_file(file) for file in _yaml_in(path)]
    if not path.is_file():
        raise CatalogError(f"{given_by} names the catalog {path}, which does not exist")
    return [_read_file(path)]


def _read_file(path: Path) -> Layer:
    try:
        status = path.stat()
        return _read_unchanged(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise CatalogError(f"the catalog {path} cannot be read: {error}") from error


@functools.lru_cache(maxsize=64)
def _read_unchanged(path: Path, mtime_ns: int, size: int) -> Layer:
    # The arguments beside the path only make a changed file a new key of the cache.
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return _layer(parse_catalog(data, str(path), remote=False), str(path), path.parent)


def _read_remote(url: str) -> Layer:
    return _layer(fetch_catalog(url), url, None)


def _layer(catalog: CatalogFile, origin: str, folder: Path | None) -> Layer:
    """Place the entries; paths in a local catalog are relative to its folder."""
    entries = tuple(
        entry.placed(catalog.name, tuple(_absolute(url, folder) for url in entry.urls))
        for entry in catalog.entries
    )
    return Layer(catalog.name, origin, entries)


def _absolute(url: str, folder: Path | None) -> str:
    if folder is None or urlsplit(url).scheme not in ("", "file"):
        return url
    return str(folder / Path(url.removeprefix("file://")).expanduser())
