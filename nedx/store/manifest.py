"""Every object of a finished store with its size and sha256, and the fingerprint of them all."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import zarr.abc.store
from zarr.core.buffer import Buffer
from zarr.storage import WrapperStore

from nedx.errors import CorruptStoreError, IncompleteStoreError, StoreError
from nedx.store.location import Location

STATE = "_nedx"
MANIFEST = f"{STATE}/manifest.json"
_FORMAT = "nedx-manifest-1"


class StoredObject(NamedTuple):
    """Size in bytes and hex sha256 of an object."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> StoredObject:
        """Measure the bytes of an object."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What a finished store consists of.

    Parameters
    ----------
    objects : dict of str to StoredObject
        By key, relative to the root of the store.
    recipe : str
        Fingerprint of the recipe that made the store.
    """

    objects: Mapping[str, StoredObject]
    recipe: str = ""

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: JSON, sorted by key, one object a line."""
        head = json.dumps({"format": _FORMAT, "recipe": self.recipe}, sort_keys=True)[:-1]
        lines = ",\n".join(
            f"{json.dumps(key)}: {json.dumps({'size': size, 'sha256': sha256})}"
            for key, (size, sha256) in sorted(self.objects.items())
        )
        return f'{head}, "objects": {{\n{lines}\n}}}}\n'.encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "the store") -> Manifest:
        """Read a manifest.

        Raises
        ------
        CorruptStoreError
            If it is none.
        """
        try:
            content: Any = json.loads(data)
            objects = {
                str(key): StoredObject(int(item["size"]), str(item["sha256"]))
                for key, item in content["objects"].items()
            }
            return cls(objects, str(content.get("recipe", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptStoreError(
                f"{where}/{MANIFEST} is no manifest ({error}); copy the store again"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the manifest itself: one value for the whole store."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all objects."""
        return sum(item.size for item in self.objects.values())


def read_manifest(location: Location) -> Manifest:
    """Read the manifest of a finished store.

    Raises
    ------
    StoreError
        If there is no store.
    IncompleteStoreError
        If there is no manifest: the store is unfinished, or was not written by nedx.
    CorruptStoreError
        If it cannot be read.
    """
    try:
        data = location.read(MANIFEST)
    except FileNotFoundError as error:
        if not location.exists():
            raise StoreError(f"there is no store at {location.url}. Check the path") from error
        raise IncompleteStoreError(
            f"{location.url} has no {MANIFEST}: it is unfinished, or not written by nedx. "
            f"Type: nedx synth status {location.url}"
        ) from error
    return Manifest.from_bytes(data, location.url)


class RecordingStore(WrapperStore[zarr.abc.store.Store]):
    """A store that remembers size and sha256 of all that is written through it.

    Hashing what is handed over, not what is read back, finds a byte that the disk or the network
    lost on the way.
    """

    def __init__(self, store: zarr.abc.store.Store):
        super().__init__(store)
        self.written: dict[str, StoredObject] = {}

    def _with_store(self, store: zarr.abc.store.Store) -> RecordingStore:
        other = type(self)(store)
        other.written = self.written
        return other

    async def set(self, key: str, value: Buffer) -> None:
        """Store a value and remember it."""
        await super().set(key, value)
        await self._remember(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store a value where there is none, and then remember it."""
        if not await self.exists(key):
            await super().set_if_not_exists(key, value)
            await self._remember(key, value)

    async def _remember(self, key: str, value: Buffer) -> None:
        # In a thread, so that other chunks are packed and written meanwhile.
        self.written[key] = await asyncio.to_thread(StoredObject.of, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Delete a value and forget it."""
        await super().delete(key)
        self.written.pop(key, None)
