"""Rows of an HDF5 dataset, read by byte ranges; the HDF5 library is asked once where they lie."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.compute.planned import Indexer
from nedx.errors import CorruptStoreError, ModelError, StoreError, require
from nedx.sources.berg.streams import opened, url_of
from nedx.store.lazy import TARGET_BYTES
from nedx.store.location import Location

HDF5_LOCK = threading.Lock()
"""The HDF5 library takes one call at a time, which h5py does not hold over a file of Python."""

Window = tuple[np.ndarray | None, ...]


@dataclass(frozen=True)
class StoredRows:
    """A float32 dataset in an HDF5 file, whose first axis is that of the images.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.
    name : str
        The dataset in the file.
    shape : tuple of int
        ``(image, ...)``.
    offset : int or None
        The byte of the file at which the values begin; None where they are in chunks.
    stamp : str
        Changes when the file does.
    """

    location: Location
    key: str
    name: str
    shape: tuple[int, ...]
    offset: int | None
    stamp: str

    @property
    def url(self) -> str:
        """The file, for messages."""
        return url_of(self.location, self.key)

    @property
    def row_bytes(self) -> int:
        """Bytes of the values of one image."""
        return 4 * int(np.prod(self.shape[1:], dtype=np.int64))

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Read the rows at ascending positions (k,): float32 (k, ...), and no others.

        Raises
        ------
        StoreError
            If the file is gone, cut short since it was opened, or cannot be reached.
        """
        rows = np.empty((len(positions), *self.shape[1:]), "<f4")
        if not rows.size:
            return rows
        edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
        runs = list(zip(edges[:-1], edges[1:], strict=True))
        if self.offset is None:
            self._read_chunked(rows, positions, runs)
            return rows
        flat = rows.reshape(-1).view(np.uint8)
        targets = [flat[first * self.row_bytes : last * self.row_bytes] for first, last in runs]
        starts = [self.offset + int(positions[first]) * self.row_bytes for first, _ in runs]
        if self.location.is_local:
            self._read_local(targets, starts)
        else:
            self._fetch(targets, starts)
        return rows

    def _read_local(self, targets: list[np.ndarray], starts: list[int]) -> None:
        with opened(self.location, self.key) as file:
            for target, start in zip(targets, starts, strict=True):
                file.seek(start)
                got = file.readinto(target)  # type: ignore[attr-defined]
                self._check_length(got, len(target))

    def _fetch(self, targets: list[np.ndarray], starts: list[int]) -> None:
        """Ask for all ranges at once."""
        filesystem, base = self.location.filesystem()
        paths = [f"{base}/{self.key}"] * len(starts)
        stops = [start + len(target) for start, target in zip(starts, targets, strict=True)]
        try:
            parts = self.location.patiently(
                self.key, lambda: filesystem.cat_ranges(paths, starts, stops, on_error="raise")
            )
        except FileNotFoundError as error:
            raise StoreError(f"{self.url} is no longer there; open the responses again") from error
        for target, part in zip(targets, parts, strict=True):
            self._check_length(len(part), len(target))
            target[:] = np.frombuffer(part, np.uint8)

    def _check_length(self, got: int, asked: int) -> None:
        if got < asked:
            raise CorruptStoreError(
                f"{self.url} is cut short: it gave {got:,} bytes where {asked:,} were asked for. "
                "Fetch it again"
            )
        if got > asked:
            raise StoreError(
                f"of {self.url} the server sent {got:,} bytes where {asked:,} were asked for, so "
                "that parts of it cannot be read: download the file"
            )

    def _read_chunked(
        self, rows: np.ndarray, positions: np.ndarray, runs: list[tuple[int, int]]
    ) -> None:
        h5py = require("h5py", "hdf5")
        with HDF5_LOCK, opened(self.location, self.key) as file, h5py.File(file, "r") as container:
            for first, last in runs:
                start = int(positions[first])
                source = np.s_[start : start + last - first]
                container[self.name].read_direct(rows, source, np.s_[first:last])


def open_rows(location: Location, key: str, name: str) -> StoredRows:
    """Find out where the values of a dataset lie, without reading them.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The HDF5 file in it.
    name : str
        The dataset in the file.

    Returns
    -------
    StoredRows

    Raises
    ------
    MissingExtraError
        If h5py is not installed.
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short, damaged, or was never filled.
    ModelError
        If it holds something else.
    """
    h5py = require("h5py", "hdf5")
    url = url_of(location, key)
    with HDF5_LOCK, opened(location, key) as file:
        size = file.seek(0, io.SEEK_END)
        try:
            with h5py.File(file, "r") as container:
                shape, offset = _examined(container, name, url)
        except StoreError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            raise CorruptStoreError(
                f"{url} has {size:,} bytes and is cut short, damaged or not HDF5 ({error}). "
                "Fetch it again"
            ) from error
    if offset is not None:
        needed = offset + 4 * int(np.prod(shape, dtype=np.int64))
        if size < needed:
            raise CorruptStoreError(
                f"{url} is cut short: it has {size:,} bytes, its {shape[0]:,} images need "
                f"{needed:,}. Fetch it again"
            )
    return StoredRows(location, key, name, shape, offset, f"{size} {_changed(location, key)}")


def _examined(container: Any, name: str, url: str) -> tuple[tuple[int, ...], int | None]:
    """Return the shape of the dataset, and where its values begin."""
    if name not in container:
        there = ", ".join(container) or "nothing"
        raise ModelError(
            f"{url} has no dataset {name!r}, it holds {there}: it is another kind of file"
        )
    dataset = container[name]
    if dataset.dtype != np.dtype("<f4") or dataset.ndim < 2:
        raise ModelError(
            f"{name!r} in {url} is {dataset.dtype} {dataset.shape}, expected float32 "
            "(image, voxel) or (image, repetition, channel, time): it is another kind of file"
        )
    shape = tuple(int(length) for length in dataset.shape)
    if dataset.chunks is not None:
        return shape, None
    offset = dataset.id.get_offset() if dataset.size else 0
    if offset is None:
        raise CorruptStoreError(
            f"{name!r} in {url} was never filled with values: ask who made it, or fetch it again"
        )
    return shape, int(offset)


def _changed(location: Location, key: str) -> str:
    """Return when a file was last changed, or its etag; empty where the server says neither."""
    filesystem, base = location.filesystem()
    info = location.patiently(key, lambda: filesystem.info(f"{base}/{key}"))
    return str(next((info[k] for k in ("ETag", "mtime", "LastModified") if info.get(k)), ""))


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some rows of one file; what a dask task calls."""

    rows: StoredRows
    positions: np.ndarray
    window: Window
    is_stacked: bool

    def __call__(self) -> np.ndarray:
        """Read them, float32 ``([subject,] image, ...)``, and keep what the window lets through."""
        wanted, order = np.unique(self.positions, return_inverse=True)
        values = self.rows.read(wanted)
        if len(wanted) != len(order) or np.any(np.diff(order) < 0):
            values = values[order]
        for axis, keep in enumerate(self.window, start=1):
            if keep is not None:
                values = np.take(values, keep, axis)
        return values[None] if self.is_stacked else values


@dataclass(frozen=True, eq=False)
class RowsPlan:
    """Lazy ``([subject,] image, ...)``, float32, of HDF5 files of one shape, one a subject.

    Selecting subjects and images keeps the plan exact: only they are read. Of an image the whole
    row is read; a selection along the other axes is applied after that.

    Parameters
    ----------
    files : tuple of StoredRows
        At least one.
    subjects : numpy.ndarray of int64, (subject,), or None
        Whose files, in the order wanted; None for the one file, without a subject axis.
    images : numpy.ndarray of int64, (image,)
        Rows, in the order wanted.
    window : tuple of arrays or None
        Positions along each axis after that of the images; None keeps all.
    """

    files: tuple[StoredRows, ...]
    subjects: np.ndarray | None
    images: np.ndarray = field(repr=False)
    window: Window = field(repr=False)

    @classmethod
    def whole(cls, files: tuple[StoredRows, ...], *, is_stacked: bool) -> RowsPlan:
        """Return the plan of everything in the files."""
        count, *rest = files[0].shape
        subjects = np.arange(len(files)) if is_stacked else None
        return cls(files, subjects, np.arange(count), (None,) * len(rest))

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        return tokenize("nedx.RowsPlan", self.files, self.subjects, self.images, self.window)

    def build(self) -> da.Array:
        """Return the dask array, one task a block, without reading anything."""
        # A block is measured by what is read for it: whole rows, whatever is left of each.
        step = max(1, TARGET_BYTES // max(1, self.files[0].row_bytes))
        parts = [self.images[i : i + step] for i in range(0, len(self.images), step)]
        # Without images there is one empty block, as dask has it.
        parts = parts or [self.images]
        sizes = self.files[0].shape[1:]
        rest = tuple(
            (size if keep is None else len(keep),)
            for size, keep in zip(sizes, self.window, strict=True)
        )
        images = tuple(len(part) for part in parts)
        if self.subjects is None:
            return self._array(parts, self.files, (images, *rest))
        if not len(self.subjects):
            shape = (0, len(self.images), *(size for (size,) in rest))
            return da.from_array(np.empty(shape, np.float32), chunks=shape)
        chosen = tuple(self.files[i] for i in self.subjects.tolist())
        return self._array(parts, chosen, ((1,) * len(chosen), images, *rest))

    def _array(
        self, parts: list[np.ndarray], files: tuple[StoredRows, ...], chunks: tuple[Any, ...]
    ) -> da.Array:
        is_stacked = self.subjects is not None
        name = f"responses-{tokenize(self)}"
        zeros = (0,) * len(self.window)
        graph = {
            (name, *((who,) if is_stacked else ()), block, *zeros): (
                RowBlock(rows, part, self.window, is_stacked),
            )
            for who, rows in enumerate(files)
            for block, part in enumerate(parts)
        }
        return da.Array(graph, name, chunks, dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> RowsPlan:
        """Return the plan of what remains."""
        subjects = self.subjects
        if subjects is not None:
            subjects, indexers = subjects[indexers[0]], indexers[1:]
        images, *others = indexers
        window = tuple(
            _narrowed(keep, size, indexer)
            for keep, size, indexer in zip(
                self.window, self.files[0].shape[1:], others, strict=True
            )
        )
        return RowsPlan(self.files, subjects, self.images[images], window)


def _narrowed(keep: np.ndarray | None, size: int, indexer: Indexer) -> np.ndarray | None:
    if isinstance(indexer, slice) and indexer == slice(None):
        return keep
    return (np.arange(size) if keep is None else keep)[indexer]
