"""Fetch THINGS-EEG2 from where it is published, going on where a connection broke.

The Open Science Framework gives each file an id of its own. It publishes no list of checksums
that could be kept here: what arrived is compared with the size that the server states, and every
file in an archive with the checksum that the archive holds of it.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nedx.errors import CorruptStoreError, SelectionError, StoreError, close_matches
from nedx.selection import Subjects, chosen_subjects
from nedx.store.location import pauses

OSF = "https://osf.io/download/{id}/"
"""Where a file with an id is."""
RAW: Mapping[str, str] = {
    "sub-01": "b69u8",
    "sub-02": "yjcqp",
    "sub-03": "5evgd",
    "sub-04": "6b4tq",
    "sub-05": "vxrja",
    "sub-06": "bcsm8",
    "sub-07": "wftvu",
    "sub-08": "xr4f9",
    "sub-09": "rh28b",
    "sub-10": "wf2xp",
}
"""Archives of the raw recordings of each subject, in the OSF project crxs4."""
METADATA_ID = "qkgtf"
IMAGES: Mapping[str, str] = {"training_images": "3v527", "test_images": "znu7b"}

Part = Literal["raw", "metadata", "images"]
PARTS: tuple[Part, ...] = ("raw", "metadata", "images")

_log = logging.getLogger(__name__)
_PIECE = 2**20
_TIMEOUT_S = 60.0
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Published:
    """One file that is published.

    Parameters
    ----------
    id : str
        On the Open Science Framework.
    target : str
        The file it becomes, or, of an archive, the folder its files go to.
    is_archive : bool
        Whether it is a zip to unpack.
    """

    id: str
    target: str
    is_archive: bool = True


def pull(
    folder: str | Path,
    *,
    what: Part | Sequence[Part] = ("raw", "metadata"),
    subject: Subjects | None = None,
    url: str | None = None,
) -> Path:
    """Fetch files of THINGS-EEG2 into a folder that `open_raw` then opens.

    What is there already is not fetched again; what was cut off goes on at the byte where it
    stopped. An archive is removed when it was unpacked.

    Parameters
    ----------
    folder : path
        Where to; raw recordings take about 14 GB a subject, and as much again while they are
        unpacked.
    what : {"raw", "metadata", "images"} or several of them
        Recordings go to ``Raw_data``, the rest to ``image_set``.
    subject : str, int or sequence, optional
        Whose recordings; all ten by default.
    url : str, optional
        Where a file is, with ``{id}`` in the place of its id; the Open Science Framework by
        default.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SelectionError
        If there is no such subject or part.
    StoreError
        If the server cannot be reached, or refuses; what arrived is kept.
    CorruptStoreError
        If an archive is damaged; it is removed.
    """
    parts = (what,) if isinstance(what, str) else tuple(what)
    for part in parts:
        if part not in PARTS:
            raise SelectionError(f"no part is called {part!r}: {close_matches(part, PARTS)}")
    base = Path(folder).expanduser().absolute()
    for published in _files(parts, _subjects(subject)):
        _fetch(published, base, url or OSF)
    return base


def _subjects(subject: Subjects | None) -> list[str]:
    return chosen_subjects(subject, RAW, "in THINGS-EEG2")


def _files(parts: Sequence[Part], subjects: Sequence[str]) -> list[Published]:
    found = []
    if "metadata" in parts:
        found.append(Published(METADATA_ID, "image_set/image_metadata.npy", is_archive=False))
    if "images" in parts:
        found += [Published(key, f"image_set/{name}") for name, key in IMAGES.items()]
    if "raw" in parts:
        found += [Published(RAW[label], f"Raw_data/{label}") for label in subjects]
    return found


def _fetch(published: Published, base: Path, url: str) -> None:
    target = base / published.target
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    address = url.format(id=published.id)
    if not published.is_archive:
        download(address, target)
        return
    archive = target.with_name(f"{target.name}.zip")
    download(address, archive)
    _unpack(archive, target)
    archive.unlink()


def download(url: str, target: Path) -> None:
    """Download a file; begun before, it goes on, if the server still has the same one.

    Parameters
    ----------
    url : str
        ``https://`` or ``http://``.
    target : Path
        The file; while it is unfinished, ``.partial`` is behind its name.

    Raises
    ------
    StoreError
        If the server cannot be reached or refuses; what arrived is kept.
    """
    if target.is_file():
        return
    partial = target.with_name(f"{target.name}.partial")
    tag = target.with_name(f"{target.name}.partial.json")
    for pause in _patience(partial):
        try:
            _go_on(url, partial, tag)
            break
        except _BROKEN as error:
            if _is_final(error) or pause is None:
                raise StoreError(
                    f"{url} cannot be read ({error}). What arrived is kept in {partial}; do the "
                    "same again to go on"
                ) from error
            _log.info("%s: %s; again in %.1f s", url, error, pause)
            time.sleep(pause)
    os.replace(partial, target)
    tag.unlink(missing_ok=True)


def _patience(partial: Path) -> Any:
    """Yield the pauses of `pauses`, from the start again whenever more has arrived."""
    waits, size = pauses(), _size(partial)
    while True:
        yield next(waits)
        if _size(partial) > size:
            waits, size = pauses(), _size(partial)


def _is_final(error: BaseException) -> bool:
    return isinstance(error, urllib.error.HTTPError) and error.code not in _PASSING


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _go_on(url: str, partial: Path, tag: Path) -> None:
    """Ask for what is missing and append it; begin anew where the file is another one."""
    known = json.loads(tag.read_text()) if tag.is_file() and partial.is_file() else {}
    start = _size(partial) if known else 0
    if known and start == known["size"]:
        return
    headers = {"User-Agent": "nedx"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("etag"):
            headers["If-Range"] = known["etag"]
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
    ) as response:
        whole = _stated_size(response)
        # A server that knows no ranges, or has another file now, sends all of it.
        goes_on = response.status == http.client.PARTIAL_CONTENT and whole == known.get("size")
        if response.status == http.client.PARTIAL_CONTENT and not goes_on:
            tag.unlink()
            raise ConnectionError("the file has changed meanwhile")
        tag.write_text(json.dumps({"size": whole, "etag": _strong_etag(response)}))
        with partial.open("ab" if goes_on else "wb") as file:
            while piece := response.read(_PIECE):
                file.write(piece)
    if whole is not None and _size(partial) != whole:
        raise ConnectionError(f"only {_size(partial):,} of {whole:,} bytes came")


def _stated_size(response: Any) -> int | None:
    span = response.headers.get("Content-Range")
    if span:
        total = span.rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length")
    return int(length) if length else None


def _strong_etag(response: Any) -> str | None:
    found: str | None = response.headers.get("ETag")
    return None if found is None or found.startswith("W/") else found


def _unpack(archive: Path, target: Path) -> None:
    """Unpack an archive that holds the folder ``target``, or its files; whole or not at all."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                path = (partial / member.filename).resolve()
                if not path.is_relative_to(partial.resolve()):
                    raise zipfile.BadZipFile(f"{member.filename!r} lies outside of the archive")
                if not member.is_dir():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(member) as source, path.open("wb") as file:
                        shutil.copyfileobj(source, file, _PIECE)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        archive.unlink()
        raise CorruptStoreError(
            f"{archive} is damaged ({error}) and was removed; do the same again to fetch it anew"
        ) from error
    inner = partial / target.name
    (inner if inner.is_dir() else partial).rename(target)
    shutil.rmtree(partial, ignore_errors=True)
