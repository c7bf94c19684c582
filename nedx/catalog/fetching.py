"""Catalogs from the network: read with a size limit, kept, and used from there offline."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nedx.catalog.entries import MAX_BYTES, CatalogFile, parse_catalog
from nedx.config import cache_dir
from nedx.errors import CatalogError, MissingExtraError, NedxWarning
from nedx.store.location import Location, remote_errors

logger = logging.getLogger(__name__)

_TIMEOUT_S = 15.0
_PROTOCOLS = ("https", "http", "gs", "gcs", "s3", "hf")


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"redirected from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_remote(place: str) -> bool:
    """Whether a catalog at ``place`` is one from the network."""
    return "://" in place and urlsplit(place).scheme not in ("file", "local")


def fetch_catalog(url: str) -> CatalogFile:
    """Read a catalog from the network, or its cached copy where that fails.

    Parameters
    ----------
    url : str
        ``https://``, ``http://``, ``gs://``, ``s3://`` or ``hf://``.

    Returns
    -------
    CatalogFile

    Raises
    ------
    CatalogError
        If the catalog is refused, or can be neither reached nor found in the cache.

    Warns
    -----
    NedxWarning
        If the cached copy is used; it names the age of the copy.
    """
    if urlsplit(url).scheme not in _PROTOCOLS:
        raise CatalogError(
            f"{url}: a catalog is read from a path, or from "
            + ", ".join(f"{p}://" for p in _PROTOCOLS if p != "gcs")
        )
    kept = _kept(url)
    try:
        data, etag = _download(url, kept["etag"] if kept else None)
    except transport_errors() as error:
        if kept is None:
            raise CatalogError(
                f"the catalog {url} cannot be reached and no copy of it is kept: {_reason(error)}"
            ) from error
        warnings.warn(
            f"the catalog {url} cannot be reached ({_reason(error)}); using the copy made "
            f"{_age(time.time() - kept['fetched'])} ago",
            NedxWarning,
            stacklevel=2,
        )
        return parse_catalog(kept["text"].encode(), url, remote=True)
    if data is None and kept is not None:
        data, etag = kept["text"].encode(), kept["etag"]
    catalog = parse_catalog(data or b"", url, remote=True)
    _keep(url, data or b"", etag)
    return catalog


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what file systems raise for a place that cannot be reached."""
    return (http.client.HTTPException, MissingExtraError, *remote_errors())


def _download(url: str, etag: str | None) -> tuple[bytes | None, str | None]:
    """Return the bytes and the ETag; None for the bytes that have not changed."""
    if urlsplit(url).scheme in ("http", "https"):
        return _download_http(url, etag)
    return _download_object(url), None


def _download_http(url: str, etag: str | None) -> tuple[bytes | None, str | None]:
    request = urllib.request.Request(url, headers={"User-Agent": "nedx"})
    if etag:
        request.add_header("If-None-Match", etag)
    opener = urllib.request.build_opener(_SameSafety)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            data = response.read(MAX_BYTES + 1)
            declared = response.headers.get("Content-Length")
            if len(data) <= MAX_BYTES and declared and len(data) < int(declared):
                raise OSError(f"only {len(data)} of {declared} bytes came")
            return data, response.headers.get("ETag")
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.NOT_MODIFIED and etag:
                return None, etag
        raise


def _download_object(url: str) -> bytes:
    # Public catalogs are the rule, and looking for credentials can take long.
    refused: Exception | None = None
    for anonymous in (True, None):
        filesystem, path = Location.of(url, anonymous=anonymous).filesystem()
        try:
            # One byte over the limit is enough to be refused for its size.
            return filesystem.cat_file(path, start=0, end=MAX_BYTES + 1)
        except transport_errors() as error:
            refused = refused or error
            if isinstance(error, FileNotFoundError) or urlsplit(url).scheme == "hf":
                break
    assert refused is not None
    raise refused


def _copy_of(url: str) -> Path:
    return cache_dir() / "catalogs" / (hashlib.sha256(url.encode()).hexdigest()[:32] + ".json")


def _kept(url: str) -> dict[str, Any] | None:
    """Return the cached copy: url, etag, fetched (seconds since 1970), text."""
    try:
        kept = json.loads(_copy_of(url).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the cached copy of %s cannot be read: %s", url, error)
        return None
    whole = isinstance(kept, dict) and kept.keys() >= {"url", "etag", "fetched", "text"}
    return kept if whole and kept["url"] == url else None


def _keep(url: str, data: bytes, etag: str | None) -> None:
    path = _copy_of(url)
    content = {"url": url, "etag": etag, "fetched": time.time(), "text": data.decode("utf-8")}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        # A full or read-only disk costs only the use offline.
        logger.warning("no copy of %s was kept: %s", url, error)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _age(seconds: float) -> str:
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}" + ("s" if count > 1 else "")
    return "less than a minute"
