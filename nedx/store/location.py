"""Where a store lies: one hashable, picklable handle on a URL and how to reach it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import zarr.abc.store
import zarr.storage

from nedx.errors import CredentialsError, MissingExtraError, StoreError, StoreExistsError

ATTEMPTS = 5
FIRST_DELAY = 0.1
"""Seconds to wait before the second attempt; twice as long before each that follows."""

T = TypeVar("T")
_log = logging.getLogger(__name__)
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "hf": "hub"}
_ANONYMOUS: dict[str, dict[str, Any]] = {
    "gs": {"token": "anon"},
    "gcs": {"token": "anon"},
    "s3": {"anon": True},
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass anonymous=True",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or pass anonymous=True",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS, or pass anonymous=True",
    "hf": "set HF_TOKEN",
}

_ERROR_CLASSES = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("httpx", "HTTPError"),
)
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = {"401", "403"}
# s3fs and gcsfs raise many classes for this; these words are what they have in common.
_REFUSED_WORDS = ("NoCredentials", "CredentialRetrieval", "Anonymous caller", "Forbidden")

# gcsfs otherwise asks for the bucket's type over gRPC, and waits a minute where that is refused.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@dataclass(frozen=True)
class Location:
    """A place that holds a Zarr store.

    Parameters
    ----------
    url : str
        Local path or URL (``gs://``, ``s3://``, ``https://``, ``memory://``, ``hf://``).
    anonymous : bool, optional
        Read without credentials. None leaves it to the environment.
    options : tuple of (str, object)
        Storage options for fsspec, sorted by name.
    """

    url: str
    anonymous: bool | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(
        cls,
        place: str | Path | Location,
        *,
        anonymous: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Location:
        """Make a location of a path, a URL or a location; local paths become absolute.

        Raises
        ------
        StoreError
            If it is no path, or a chain of file systems, such as ``simplecache::https://...``.
        """
        if isinstance(place, Location):
            return place
        text = str(place)
        if not isinstance(place, str | os.PathLike) or not text.strip():
            raise StoreError(
                f"a store is named by its path or URL, such as 'a.zarr', not {place!r}"
            )
        if "::" in text:
            raise StoreError(
                f"{text} chains file systems, which Zarr 3 cannot read through. To keep a copy, "
                f"type: nedx pull {text.rpartition('::')[2]}"
            )
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        if "://" not in text:
            text = str(Path(text).expanduser().absolute())
        options = tuple(sorted((storage_options or {}).items()))
        return cls(text.rstrip("/"), anonymous, options)

    @property
    def protocol(self) -> str:
        """The protocol, ``"file"`` for local paths."""
        return urlsplit(self.url).scheme if "://" in self.url else "file"

    @property
    def is_local(self) -> bool:
        """Whether the store lies on a file system of this machine."""
        return self.protocol == "file"

    def child(self, name: str) -> Location:
        """Return the location of ``name`` below this one."""
        return Location(f"{self.url}/{name}", self.anonymous, self.options)

    def filesystem(self, *, asynchronous: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the fsspec file system and the path on it.

        Raises
        ------
        MissingExtraError
            If the package for this protocol is not installed.
        """
        options: dict[str, Any] = dict(self.options)
        if self.anonymous:
            options = {**_ANONYMOUS.get(self.protocol, {}), **options}
        if asynchronous:
            options["asynchronous"] = True
        if self.protocol == "s3":
            # Else s3fs asks for the size of an object before each read of it.
            options.setdefault("max_concurrency", 1)
        try:
            return fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            extra = _EXTRAS.get(self.protocol)
            if extra is None:
                raise
            message = f"{self.url} needs a package. Type: pip install 'nedx[{extra}]'"
            raise MissingExtraError(message) from error
        except remote_errors() as error:
            # Some file systems ask their server at once.
            raise self.failed(error) from error
        except ValueError as error:
            known = "gs://, s3://, https://, hf://, memory:// or a local path"
            raise StoreError(f"{self.url} cannot be opened ({error}); give {known}") from error

    def zarr_store(self, *, read_only: bool = True) -> zarr.abc.store.Store:
        """Return the Zarr store, without touching it."""
        if self.is_local:
            return zarr.storage.LocalStore(self.url, read_only=read_only)
        filesystem, path = self.filesystem()
        if not filesystem.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            filesystem = AsyncFileSystemWrapper(filesystem, asynchronous=True)
        else:
            filesystem, path = self.filesystem(asynchronous=True)
        return zarr.storage.FsspecStore(filesystem, read_only=read_only, path=path)

    def read(self, key: str) -> bytes:
        """Read a small object.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        CredentialsError, StoreError
            If the store refuses, or cannot be reached.
        """
        filesystem, path = self.filesystem()
        data: bytes = self.patiently(key, lambda: filesystem.cat_file(f"{path}/{key}"))
        return data

    def patiently(self, key: str, request: Callable[[], T]) -> T:
        """Make a request again where that may well help: fsspec's http does not by itself.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        CredentialsError, StoreError
            If the store refuses, or cannot be reached.
        """
        for pause in pauses():
            try:
                return request()
            except FileNotFoundError:
                raise
            except remote_errors() as error:
                if pause is None or not is_transient(error):
                    raise self.failed(error, key) from error
                _log.info("%s: %s; again in %.1f s", key, error, pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def write(self, key: str, data: bytes) -> None:
        """Write a small object, whole or not at all."""
        filesystem, path = self.filesystem()
        target = f"{path}/{key}"
        try:
            if self.is_local:
                filesystem.makedirs(os.path.dirname(target), exist_ok=True)
                partial = f"{target}.{os.getpid()}.partial"
                filesystem.pipe_file(partial, data)
                os.replace(partial, target)
            else:
                filesystem.pipe_file(target, data)
        except PermissionError as error:
            raise self.refused(error) from error

    def create(self, key: str, data: bytes) -> None:
        """Write a small object that must not exist yet.

        Raises
        ------
        StoreExistsError
            If it exists.
        """
        filesystem, path = self.filesystem()
        target = f"{path}/{key}"
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "xb") as file:
                    file.write(data)
            else:
                filesystem.pipe_file(target, data, mode="create")
        except FileExistsError as error:
            message = f"{self.url}/{key} exists already"
            raise StoreExistsError(message) from error
        except PermissionError as error:
            raise self.refused(error) from error

    def exists(self, key: str = "") -> bool:
        """Whether there is an object, or anything below, at ``key``."""
        filesystem, path = self.filesystem()
        target = f"{path}/{key}" if key else path
        return self.patiently(key, lambda: bool(filesystem.exists(target)))

    def list(self, prefix: str = "") -> list[str]:
        """List the keys of all objects below ``prefix``, sorted; empty where there are none."""
        filesystem, path = self.filesystem()
        below = f"{path}/{prefix}" if prefix else path
        filesystem.invalidate_cache()
        try:
            found = filesystem.find(below)
        except FileNotFoundError:
            return []
        root = path.rstrip("/") + "/"
        return sorted(name[len(root) :] for name in found if name.startswith(root))

    def delete(self, key: str = "", *, recursive: bool = False) -> None:
        """Delete an object, or all below it; what is not there is no error."""
        filesystem, path = self.filesystem()
        target = f"{path}/{key}" if key else path
        if filesystem.exists(target):
            filesystem.rm(target, recursive=recursive)

    def failed(self, error: BaseException, key: str = "") -> StoreError:
        """Return the error that says why a request failed, and what to type."""
        where = f"{self.url}/{key}" if key else self.url
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if isinstance(error, PermissionError) or str(status) in _REFUSED:
            return self.refused(error)
        if any(word in f"{type(error).__name__} {error}" for word in _REFUSED_WORDS):
            return self.refused(error)
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        check = "path" if self.is_local else "address and the network"
        return StoreError(f"{where} cannot be read ({reason}); check the {check}")

    def refused(self, error: BaseException) -> CredentialsError:
        """Return the error for a store that needs credentials."""
        hint = _CREDENTIALS.get(self.protocol, "check the permissions")
        reason = str(error).partition("\n")[0] or type(error).__name__
        return CredentialsError(f"{self.url} refuses access ({reason}): {hint}")


def remote_errors() -> tuple[type[Exception], ...]:
    """Return what requests raise, of the cloud libraries that are in use.

    Not all of them are ``OSError``, and a library that was not imported cannot have raised.
    """
    found: list[type[Exception]] = [OSError]
    for module, name in _ERROR_CLASSES:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def pauses() -> Iterator[float | None]:
    """Yield the seconds to wait after each attempt that fails; None after the last."""
    for attempt in range(ATTEMPTS - 1):
        yield FIRST_DELAY * 2**attempt
    yield None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is not None:
        if isinstance(error, aiohttp.ClientResponseError):
            return error.status in _TRANSIENT_STATUS
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return False
        if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
            return True
    return isinstance(error, ConnectionError | TimeoutError)
