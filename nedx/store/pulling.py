"""Copy a finished store to this machine: whole objects, each checked, resumed where it stopped."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nedx.config import cache_dir
from nedx.errors import CorruptStoreError, StoreExistsError
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, StoredObject, read_manifest

_AT_ONCE = 8
_PARTIAL = ".partial"


def pull(
    place: str | Path | Location,
    *,
    into: str | Path | None = None,
    progress: bool = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Copy a store to a local folder, which `nedx.open_store` then opens.

    Every object is compared with the sha256 in the manifest as it arrives. A copy that was
    interrupted goes on where it stopped; a finished one transfers nothing.

    Parameters
    ----------
    place : str, Path or Location
        A finished store.
    into : str or Path, optional
        The folder to copy to; by default one in the cache that belongs to this address.
    progress : bool
        Show a bar.
    anonymous : bool, optional
        Read without credentials.
    storage_options : mapping, optional
        Options for fsspec.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    IncompleteStoreError
        If the store has no manifest.
    CorruptStoreError
        If an object differs from the manifest.
    StoreExistsError
        If ``into`` holds something else.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    folder = _folder_of(location) if into is None else Path(into).expanduser().absolute()
    if _is_finished(folder):
        return folder
    manifest = read_manifest(location)
    _refuse_other(folder, manifest, location)
    missing = [key for key, known in manifest.objects.items() if not _is_there(folder, key, known)]
    total = sum(manifest.objects[key].size for key in missing)
    with _bar(total, shown=progress) as advance:
        _fetch_all(location, folder, manifest, missing, advance)
    for leftover in folder.rglob(f"*{_PARTIAL}"):
        leftover.unlink()
    # The manifest comes last: where it is, the copy is whole.
    Location.of(folder).write(MANIFEST, manifest.to_bytes())
    return folder


def _folder_of(location: Location) -> Path:
    """Return the folder in the cache that belongs to an address."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", location.url.rsplit("/", 1)[-1])
    # The same URL at another endpoint is another store.
    identity = hashlib.sha256(repr((location.url, _endpoint(location))).encode()).hexdigest()
    return cache_dir() / "pulled" / identity[:16] / name


def _endpoint(location: Location) -> str:
    given = dict(location.options).get("endpoint_url")
    return str(given or (os.environ.get("AWS_ENDPOINT_URL") if location.protocol == "s3" else ""))


def _is_finished(folder: Path) -> bool:
    """Whether the copy was finished, and all its objects are still there."""
    target = folder / MANIFEST
    if not target.is_file():
        return False
    manifest = Manifest.from_bytes(target.read_bytes(), str(folder))
    return all(_has_size(folder / key, known) for key, known in manifest.objects.items())


def _has_size(path: Path, known: StoredObject) -> bool:
    return path.is_file() and path.stat().st_size == known.size


def _is_there(folder: Path, key: str, known: StoredObject) -> bool:
    path = folder / key
    return _has_size(path, known) and _sha256(path) == known.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_other(folder: Path, manifest: Manifest, location: Location) -> None:
    """Refuse a folder that holds what is no part of this store; leave it as it is."""
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.endswith(_PARTIAL):
            continue
        key = path.relative_to(folder).as_posix()
        if key != MANIFEST and key not in manifest.objects:
            raise StoreExistsError(
                f"{folder} holds {key}, which is no part of {location.url}. Give another folder "
                "with into=, or remove this one"
            )


def _fetch_all(
    location: Location,
    folder: Path,
    manifest: Manifest,
    keys: list[str],
    advance: Callable[[int], None],
) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {
            pool.submit(_fetch, location, folder, key, manifest.objects[key]): key for key in keys
        }
        try:
            for done in as_completed(running):
                done.result()
                advance(manifest.objects[running[done]].size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(location: Location, folder: Path, key: str, known: StoredObject) -> None:
    target = _inside(folder, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}{_PARTIAL}")
    # What the network spoiled arrives whole the second time; what is stored so does not.
    for _ in range(2):
        _download(location, key, partial)
        if _has_size(partial, known) and _sha256(partial) == known.sha256:
            os.replace(partial, target)
            return
    found = partial.stat().st_size
    partial.unlink()
    raise CorruptStoreError(
        f"{location.url}/{key} differs from its manifest: {found} bytes, expected {known.size} "
        f"with sha256 {known.sha256[:12]}.... Type: nedx verify {location.url}"
    )


def _inside(folder: Path, key: str) -> Path:
    """Return where an object goes; a manifest may not name a place outside."""
    target = (folder / key).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise CorruptStoreError(f"the manifest names {key!r}, which lies outside of the store")
    return target


def _download(location: Location, key: str, target: Path) -> None:
    """Stream an object to a file, trying again what may well succeed a moment later."""
    filesystem, path = location.filesystem()
    try:
        location.patiently(key, lambda: filesystem.get_file(f"{path}/{key}", str(target)))
    except FileNotFoundError as error:
        raise CorruptStoreError(
            f"{location.url} is incomplete: {key} was written and is gone. "
            f"Type: nedx verify {location.url}"
        ) from error


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function to report bytes to; it shows a bar, or nothing."""
    if not shown:
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("pull", total=total)
        yield lambda size: progress.advance(task, size)
