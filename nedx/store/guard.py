"""A store that says what went wrong: nothing missing, cut short or refused reads as data."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import WrapperStore

from nedx.errors import CorruptStoreError, IncompleteStoreError, NedxError, StoreError
from nedx.store.ledger import PLAN
from nedx.store.location import is_transient, pauses, remote_errors
from nedx.store.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from nedx.store.location import Location

logger = logging.getLogger(__name__)

_METADATA_NAMES = frozenset({"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"})


class GuardedStore(WrapperStore):
    """Reads a store, and raises where the plain one would quietly give something else.

    - A chunk that the manifest of a complete store lists, and that is gone, is an error, not
      fill values; so is a chunk that was not written yet of a store that nedx is writing.
    - Transient failures of a server are tried again. (s3fs and gcsfs do that themselves, fsspec's
      http does not.)
    - A refusal, an unreachable host and an answer of a wrong length become errors of nedx.

    Parameters
    ----------
    store : zarr Store
        What to read from.
    location : Location
        Where that is, for the messages.
    """

    def __init__(self, store: Store, location: Location):
        super().__init__(store)
        self._location = location
        self._listed: frozenset[str] | None = None
        self._resume = ""

    def _with_store(self, store: Store) -> GuardedStore:
        return type(self)(store, self._location)

    def __str__(self) -> str:
        """Return where it is."""
        return self._location.url

    def __getstate__(self) -> dict[str, Any]:
        return {"_store": self._store, "_location": self._location, "_listed": None, "_resume": ""}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object or a part of it; None where there is, rightly, none."""
        value = await self._get(key, prototype, byte_range)
        if value is None:
            if key.rsplit("/", 1)[-1] not in _METADATA_NAMES and key in await self._promised():
                message = (
                    f"{self._location.url} is incomplete: {key} was written and is gone. "
                    f"Type: nedx verify {self._location.url}"
                )
                raise CorruptStoreError(message)
            if key.rsplit("/", 1)[-1] not in _METADATA_NAMES and self._resume:
                message = (
                    f"{self._location.url} is unfinished: {key} is not written yet. To finish it, "
                    f"type: {self._resume}"
                )
                raise IncompleteStoreError(message)
            return None
        self._check_length(key, len(value), byte_range)
        return value

    async def _get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        for pause in pauses():
            try:
                return await self._store.get(key, prototype, byte_range)
            except NedxError:
                raise
            except remote_errors() as error:
                if pause is None or not is_transient(error):
                    raise self._location.failed(error, key) from error
                logger.info("%s: %s; again in %.1f s", key, error, pause)
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _promised(self) -> frozenset[str]:
        """Return the keys that the manifest lists; none where there is no manifest."""
        if self._listed is None:
            text = await self._get(MANIFEST, default_buffer_prototype(), None)
            if text is None:
                plan = await self._get(PLAN, default_buffer_prototype(), None)
                self._resume = json.loads(plan.to_bytes())["resume"] if plan is not None else ""
                self._listed = frozenset()
            else:
                manifest = Manifest.from_bytes(text.to_bytes(), self._location.url)
                self._listed = frozenset(manifest.objects)
        return self._listed

    def _check_length(self, key: str, length: int, byte_range: ByteRequest | None) -> None:
        if isinstance(byte_range, RangeByteRequest):
            expected = byte_range.end - byte_range.start
            wrong = length != expected
        elif isinstance(byte_range, SuffixByteRequest):
            expected = byte_range.suffix
            wrong = length > expected
        else:
            return
        if wrong:
            message = (
                f"{self._location.url}/{key}: asked for {expected} bytes, got {length}. The object "
                "was cut short, or the server ignores Range requests: "
                f"type: nedx pull {self._location.url}"
            )
            raise StoreError(message)


@contextmanager
def reading(name: object, url: str) -> Iterator[None]:
    """Turn the checksum errors of codecs into `CorruptStoreError`."""
    try:
        yield
    except NedxError:
        raise
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if "checksum" not in text and "decompress" not in text:
            raise
        message = (
            f"{url} is damaged: a chunk of {name!r} differs from what was written ({text[:120]}). "
            f"Type: nedx verify {url}"
        )
        raise CorruptStoreError(message) from error
