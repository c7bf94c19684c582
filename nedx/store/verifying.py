"""Proving that a store holds the bytes that were written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nedx.errors import CorruptStoreError, IncompleteStoreError, StoreError
from nedx.store import ledger
from nedx.store.location import Location
from nedx.store.manifest import Manifest, StoredObject, read_manifest

_READERS = 8


@dataclass(frozen=True)
class BadObject:
    """An object that is not as it was written.

    Parameters
    ----------
    key : str
        Its key in the store.
    reason : str
        ``"missing"``, or what differs.
    """

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Parameters
    ----------
    url : str
        Where the store is.
    complete : bool
        Whether it is finished.
    objects_checked, objects_total : int
        Number of objects whose bytes were read, and of all that are known.
    bad : list of BadObject
        What is missing or differs.
    fingerprint : str
        Of the manifest; empty for an unfinished store.
    progress : str
        How much of an unfinished store is written, and how to go on.
    """

    url: str
    complete: bool
    objects_checked: int
    objects_total: int
    bad: list[BadObject]
    fingerprint: str = ""
    progress: str = ""

    @property
    def ok(self) -> bool:
        """Whether the store is finished, and all that was checked is as written."""
        return self.complete and not self.bad

    def raise_if_bad(self) -> None:
        """Raise what was found.

        Raises
        ------
        CorruptStoreError
            If objects are missing or differ; all are named.
        IncompleteStoreError
            If the store is unfinished.
        """
        if self.bad:
            raise CorruptStoreError(str(self))
        if not self.complete:
            raise IncompleteStoreError(self.progress)

    def __str__(self) -> str:
        lines = [self.progress] if self.progress else []
        lines.append(
            f"{self.url}: {self.objects_checked} of {self.objects_total} objects checked, "
            f"{len(self.bad) or 'none'} bad"
        )
        lines += [f"  - {bad}" for bad in self.bad]
        if self.bad:
            again = (
                "resume the writing" if not self.complete else "copy or write these objects again"
            )
            lines.append(f"To mend it, {again}.")
        return "\n".join(lines)


def verify(
    place: str | Path | Location,
    *,
    sample: float = 1.0,
    seed: int = 0,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare a store with its manifest, or an unfinished one with its ledger.

    Parameters
    ----------
    place : str, Path or Location
        Where it is.
    sample : float
        Share of the objects whose bytes are read and hashed, above 0 to 1. That all are there, in
        their sizes, is checked in any case where the store can be listed.
    seed : int
        Which sample.
    anonymous, storage_options
        How to reach ``place``.
    progress : callable, optional
        Called with (checked, to check).

    Returns
    -------
    VerifyReport

    Raises
    ------
    StoreError
        If there is no store, or one that nedx did not write.
    """
    if not 0 < sample <= 1:
        raise StoreError(f"sample is a share above 0 to 1, such as 0.01, not {sample}")
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    manifest, text = _known(location)
    found = _listed(location)
    bad = {key: "missing" for key in manifest.objects if found is not None and key not in found}
    for key, item in manifest.objects.items():
        if found is not None and key in found and found[key] != item.size:
            bad[key] = f"{found[key]} bytes, {item.size} were written"
    rest = sorted(key for key in manifest.objects if key not in bad)
    chosen = _sampled(rest, sample, seed)
    compare = partial(_compare, location, manifest)
    with ThreadPoolExecutor(_READERS) as pool:
        for done, (key, reason) in enumerate(pool.map(compare, chosen), start=1):
            if reason:
                bad[key] = reason
            if progress is not None:
                progress(done, len(chosen))
    return VerifyReport(
        location.url,
        complete=not text,
        objects_checked=len(chosen),
        objects_total=len(manifest.objects),
        bad=[BadObject(key, bad[key]) for key in sorted(bad)],
        fingerprint="" if text else manifest.fingerprint,
        progress=text,
    )


def _known(location: Location) -> tuple[Manifest, str]:
    """Return what should be there, and for an unfinished store how far it is."""
    try:
        return read_manifest(location), ""
    except IncompleteStoreError:
        from nedx.store.writing import BlockWriter

        try:
            writer = BlockWriter.resume(location)
        except IncompleteStoreError:
            raise _nothing(location) from None
    objects = dict(ledger.read_template(location))
    for block in writer.blocks:
        objects.update(ledger.recorded(location, block) or {})
    return Manifest(objects), str(writer.status())


def _nothing(location: Location) -> StoreError:
    if not location.exists("zarr.json"):
        return StoreError(f"there is no store at {location.url}; check the path")
    return StoreError(
        f"{location.url} has no manifest to compare with, since nedx did not write it. To have "
        f"one, type: nedx.to_zarr(nedx.open({location.url!r}), 'other.zarr'), and of a model: "
        f"nedx.load_model({location.url!r}).to_zarr('other.zarr')"
    )


def _listed(location: Location) -> dict[str, int] | None:
    """Return the sizes of all objects; None where a store cannot be listed, as over https."""
    if location.protocol in ("http", "https"):
        return None
    return ledger.sizes(location)


def _sampled(keys: list[str], sample: float, seed: int) -> list[str]:
    if sample == 1 or not keys:
        return keys
    count = max(1, math.ceil(sample * len(keys)))
    picked = np.random.default_rng(seed).choice(len(keys), size=count, replace=False)
    return [keys[i] for i in sorted(picked)]


def _compare(location: Location, manifest: Manifest, key: str) -> tuple[str, str]:
    expected = manifest.objects[key]
    try:
        actual = StoredObject.of(location.read(key))
    except FileNotFoundError:
        return key, "missing"
    if actual.size != expected.size:
        return key, f"{actual.size} bytes, {expected.size} were written"
    if actual.sha256 != expected.sha256:
        return key, f"sha256 {actual.sha256[:12]}..., {expected.sha256[:12]}... was written"
    return key, ""
