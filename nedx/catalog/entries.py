"""What a catalog may say: data only, in a closed set of words."""

from __future__ import annotations

import datetime
import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from nedx.catalog.registry import GENERATORS, READERS
from nedx.errors import CatalogError, close_matches

MAX_BYTES = 1_000_000
"""The largest catalog that is read: thousands of entries fit."""

ID = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
VERSION = r"\d+(?:\.\d+){0,3}"

Kind = Literal["responses", "stimuli", "features", "model"]
Source = Literal["synthetic", "measured"]
Modality = Literal["fmri", "eeg", "meg", "ieeg", "ephys"]

_REMOTE_PROTOCOLS = ("https", "gs", "gcs", "s3", "hf")
_PROTOCOL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)")
# Tab and newline are the only control characters that a text needs; others drive terminals.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Words(BaseModel):
    """A mapping of known words; any other word is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Citation(_Words):
    """A publication to cite.

    Attributes
    ----------
    doi : str, optional
        Without ``https://doi.org/``.
    bibtex : str, optional
        A BibTeX entry.
    text : str, optional
        The reference as a sentence.
    """

    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$")] | None = None
    bibtex: Annotated[str, Field(pattern=r"^\s*@\w+\s*\{")] | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Citation:
        if not (self.doi or self.bibtex or self.text):
            raise ValueError("give doi, bibtex or text")
        return self


class Size(_Words):
    """How much there is, in gigabytes (1e9 bytes)."""

    stored_gb: Annotated[float, Field(ge=0)] | None = None
    logical_gb: Annotated[float, Field(ge=0)] | None = None


class ZarrWords(_Words):
    """How the store is laid out."""

    format: Literal[2, 3] = 3
    consolidated: bool = True


class Storage(_Words):
    """How a store is reached, in nedx's own words, which each protocol spells differently.

    Attributes
    ----------
    anonymous : bool, optional
        Read without credentials.
    requester_pays : bool
        The reader's account pays for the transfer (``s3://`` and ``gs://``).
    """

    anonymous: bool | None = None
    requester_pays: bool = False

    def options(self, protocol: str) -> dict[str, Any]:
        """Return the storage options of fsspec for these words, beside ``anonymous``."""
        if self.requester_pays and protocol in ("s3", "gs", "gcs"):
            return {"requester_pays": True}
        return {}


class ModelCard(_Words):
    """What one should know of a model before trusting it.

    Attributes
    ----------
    training_data, preprocessing, output, units, accuracy : str, optional
        As sentences; ``output`` in the dims that nedx gives, ``accuracy`` with where it is from.
    splits : dict of str to int
        Number of images in each part of the data.
    """

    training_data: str | None = None
    splits: dict[str, Annotated[int, Field(ge=0)]] = {}
    preprocessing: str | None = None
    output: str | None = None
    units: str | None = None
    accuracy: str | None = None


class Entry(_Words):
    """A store or a model that a catalog names.

    Attributes
    ----------
    id, version : str
        Together they name one immutable store; a change is a new version at a new URL.
    urls : tuple of str
        Mirrors, tried in order.
    generator : str, optional
        In place of ``urls``, the name of a generator that is part of nedx.
    reader : str, optional
        Beside ``urls``, the name of a reader that is part of nedx, for models of other formats.
    external : str, optional
        In place of ``urls``, why nedx does not run this model, and who does.
    card : ModelCard
        What one should know of a model.
    dims : dict of str to int
        Sizes of the dimensions.
    fingerprint : str, optional
        ``"sha256:..."`` of the store's manifest.
    """

    id: Annotated[str, Field(pattern=f"^{ID}$", max_length=200)]
    version: Annotated[str, Field(pattern=f"^{VERSION}$", max_length=50)]
    title: Annotated[str, Field(min_length=1, max_length=300)]
    summary: str | None = None
    kind: Kind
    source: Source
    modality: Modality | None = None
    dataset: str | None = None
    subjects: tuple[str, ...] = ()
    rois: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    urls: Annotated[tuple[str, ...], Field(max_length=20)] = ()
    generator: str | None = None
    reader: str | None = None
    external: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    card: ModelCard = ModelCard()
    zarr: ZarrWords = ZarrWords()
    storage: Storage = Storage()
    dims: dict[str, Annotated[int, Field(ge=0)]] = {}
    size: Size = Size()
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+() -]+$", max_length=200)]
    citation: tuple[Citation, ...] = ()
    provenance: dict[str, str | bool | int | float | None] = {}
    deprecated_by: Annotated[str, Field(pattern=f"^{ID}(@{VERSION})?$")] | None = None

    _catalog: str = PrivateAttr("")

    @field_validator("version", mode="before")
    @classmethod
    def _quoted(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError(f'{value!r} is a number in YAML; put it in quotes: "{value}"')
        return value

    @field_validator("generator")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in GENERATORS:
            raise ValueError(f"{value!r} is not a generator; {close_matches(value, GENERATORS)}")
        return value

    @field_validator("reader")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None and value not in READERS:
            raise ValueError(f"{value!r} is not a reader; {close_matches(value, READERS)}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Entry:
        if sum(map(bool, (self.urls, self.generator, self.external))) != 1:
            raise ValueError("give one of urls, generator and external")
        if self.reader and not (self.urls and self.kind == "model"):
            raise ValueError("a reader needs urls, and kind 'model'")
        if self.modality is None and self.kind in ("responses", "model") and not self.external:
            raise ValueError(f"kind {self.kind!r} needs a modality")
        return self

    @property
    def catalog(self) -> str:
        """The name of the catalog that this entry stands in."""
        return self._catalog

    @property
    def reference(self) -> str:
        """``id@version``."""
        return f"{self.id}@{self.version}"

    @property
    def version_key(self) -> tuple[int, ...]:
        """The version as numbers, for sorting."""
        return version_key(self.version)

    def placed(self, catalog: str, urls: tuple[str, ...]) -> Entry:
        """Return the entry as it stands in a catalog, with its URLs made absolute."""
        entry = self.model_copy(update={"urls": urls})
        entry._catalog = catalog
        return entry


class CatalogFile(_Words):
    """One catalog: a YAML file."""

    nedx_catalog: Literal[1]
    name: Annotated[str, Field(pattern=f"^{ID}$", max_length=100)]
    title: str | None = None
    updated: datetime.date | None = None
    entries: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> CatalogFile:
        seen: set[str] = set()
        twice = []
        for entry in self.entries:
            if entry.reference in seen:
                twice.append(entry.reference)
            seen.add(entry.reference)
        if twice:
            raise ValueError("named twice: " + ", ".join(sorted(set(twice))))
        return self


class _DataLoader(yaml.SafeLoader):
    """The safe loader, without repeated keys."""

    def construct_mapping(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, *args, **kwargs)


def parse_catalog(data: bytes, origin: str, *, remote: bool) -> CatalogFile:
    """Read a catalog, and refuse it with all its faults.

    Parameters
    ----------
    data : bytes
        YAML or JSON in UTF-8, at most `MAX_BYTES`.
    origin : str
        The path or URL it was read from.
    remote : bool
        Whether it comes from the network, and therefore may name neither code, nor local
        files, nor endpoints, nor storage options.

    Returns
    -------
    CatalogFile

    Raises
    ------
    CatalogError
        Naming every fault.
    """
    if len(data) > MAX_BYTES:
        raise CatalogError(f"{origin} is larger than {MAX_BYTES:,} bytes: not a catalog")
    try:
        raw = yaml.load(data.decode("utf-8"), Loader=_DataLoader)
        _bounded(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CatalogError(f"{origin} is not a data-only YAML file: {error}") from error
    if not isinstance(raw, dict) or "nedx_catalog" not in raw:
        raise CatalogError(
            f"{origin} is not a catalog: expected a mapping with nedx_catalog: 1, name and entries"
        )
    faults = _control_faults(raw, "")
    if remote:
        faults += _remote_faults(raw, origin)
    catalog = None
    try:
        catalog = CatalogFile.model_validate(raw)
    except ValidationError as error:
        faults += [_fault(detail, raw) for detail in error.errors()]
    if faults or catalog is None:
        unique = list(dict.fromkeys(faults))
        lines = "\n".join(f"  - {fault}" for fault in unique)
        count = "1 fault" if len(unique) == 1 else f"{len(unique)} faults"
        raise CatalogError(f"the catalog {origin} is refused ({count}):\n{lines}")
    return catalog


def catalog_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a catalog file."""
    return CatalogFile.model_json_schema()


def version_key(version: str) -> tuple[int, ...]:
    """Return a version as numbers: ``"1.10"`` comes after ``"1.9"``."""
    return tuple(int(part) for part in version.split("."))


def _bounded(raw: Any) -> None:
    """Refuse what aliases blow up: a few bytes can stand for billions of values."""
    waiting, count = [raw], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_BYTES:
            raise ValueError(f"aliases (*name) expand it to more than {MAX_BYTES:,} values")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


def _fault(detail: Any, raw: dict[str, Any]) -> str:
    """Say one fault of pydantic as ``entry: field: what is wrong``."""
    where = list(detail["loc"])
    words = {str(w) for w in where}
    parts = [_label(raw, where)] if len(where) > 1 and where[0] == "entries" else []
    parts += [str(w) for w in where[2 if parts else 0 :] if w not in ("function-after",)]
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = {**Entry.model_fields, **CatalogFile.model_fields}
        if "storage" in words:
            known = dict(Storage.model_fields)
        message = f"this word is not known; {close_matches(where[-1], known)}"
    elif "ctx" not in detail or "error" not in detail["ctx"]:
        message += f" (found {str(detail['input'])[:80]!r})"
    return ": ".join([".".join(parts), message]) if parts else message


def _label(raw: dict[str, Any], where: list[Any]) -> str:
    entries = raw.get("entries")
    entry = entries[where[1]] if isinstance(entries, list) else None
    name = entry.get("id") if isinstance(entry, dict) else None
    return f"entries[{where[1]}] ({name})" if name else f"entries[{where[1]}]"


def _control_faults(value: Any, where: str) -> list[str]:
    """Find control characters, which could drive the terminal of who lists the catalog."""
    if isinstance(value, str):
        return [f"{where}: control characters"] if _CONTROL.search(value) else []
    if isinstance(value, dict):
        return [
            fault
            for key, item in value.items()
            for fault in (
                _control_faults(key, f"{where or 'catalog'} key")
                + _control_faults(item, f"{where}.{key!s}".lstrip("."))
            )
        ]
    if isinstance(value, list):
        return [
            fault
            for position, item in enumerate(value)
            for fault in _control_faults(item, f"{where}[{position}]")
        ]
    return []


def _remote_faults(raw: dict[str, Any], origin: str) -> list[str]:
    """Find what a catalog from the network may not say."""
    entries = raw.get("entries")
    faults = []
    for position, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict):
            continue
        label = _label(raw, ["entries", position])
        for word in ("generator", "reader"):
            if entry.get(word) is not None:
                faults.append(f"{label}.{word}: a catalog from the network may not name code")
        if "storage_options" in entry:
            faults.append(
                f"{label}.storage_options: a catalog from the network may not give storage "
                f"options; the words of storage are {', '.join(Storage.model_fields)}"
            )
        urls = entry.get("urls")
        for url in urls if isinstance(urls, list) else []:
            reason = _refused_url(str(url), origin)
            if reason:
                faults.append(f"{label}.urls: {str(url)[:200]!r} {reason}")
    return faults


def _refused_url(url: str, origin: str) -> str | None:
    """Say why a catalog at ``origin`` may not name ``url``; None where it may."""
    if "::" in url and not url.split("::", 1)[0].count("["):
        return "chains protocols"
    found = _PROTOCOL.match(url)
    if found is None:
        return "is a local path; a catalog from the network may name only " + _allowed()
    protocol = found.group().lower()
    try:
        parts = urlsplit(url)
        host, own = parts.hostname or "", urlsplit(origin)
    except ValueError as error:
        return f"is not a URL ({error})"
    same = (protocol, parts.netloc) == (own.scheme, own.netloc)
    if "@" in parts.netloc:
        return "carries credentials"
    if protocol in ("file", "local", "memory"):
        return "is a local file; a catalog from the network may name only " + _allowed()
    if protocol not in _REMOTE_PROTOCOLS and not (protocol == "http" and same):
        return f"uses {protocol}://; a catalog from the network may name only " + _allowed()
    if protocol in ("https", "http") and not same and _is_private(host):
        return "is an endpoint inside the reader's own network"
    if protocol in ("s3", "gs", "gcs") and (":" in parts.netloc or parts.query):
        return "names an endpoint, not a bucket"
    return None


def _allowed() -> str:
    return ", ".join(f"{p}://" for p in _REMOTE_PROTOCOLS if p != "gcs")


def _is_private(host: str) -> bool:
    if not host or host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        # A host of digits only is an address in disguise: http://2130706433/ is 127.0.0.1.
        return bool(re.fullmatch(r"(0x[0-9a-f]+|\d+)(\.(0x[0-9a-f]+|\d+))*\.?", host))
