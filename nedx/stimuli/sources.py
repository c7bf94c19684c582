"""Where pixels come from: frozen handles that read any images of a set, from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from dask.base import tokenize

from nedx.errors import StimulusError, require
from nedx.stimuli.decoding import FAULTS, decode_image
from nedx.stimuli.fitting import Fit
from nedx.store.lazy import StoredPlan


class PixelSource(Protocol):
    """A set of images of one size, of which any can be read.

    Sources are small, picklable, and equal tokens mean equal pixels. `read` may be called from
    several threads at once, and again after `close`.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return ``(image, y, x, 3)``."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return uint8 (k, y, x, 3) for int64 positions (k,), in their order."""

    def portion(self, indices: np.ndarray) -> tuple[PixelSource, np.ndarray]:
        """Return a source that knows these images only, and where they are in it."""

    def close(self) -> None:
        """Let go of open files."""


@dataclass(frozen=True)
class FileSource:
    """Image files, decoded as they are read.

    Parameters
    ----------
    paths : tuple of str
        Absolute paths.
    stamps : tuple of (int, int)
        Size and time of change of each, which tell contents apart without reading them.
    fit : Fit
        The common size, and how images get it.
    """

    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...] = field(repr=False)
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(image, y, x, 3)``."""
        return len(self.paths), self.fit.y, self.fit.x, 3

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode the images at positions (k,) to uint8 (k, y, x, 3).

        Raises
        ------
        StimulusError
            Naming every file of these that cannot be decoded.
        """
        out = np.empty((len(indices), *self.shape[1:]), np.uint8)
        faults = []
        for result, index in zip(out, indices, strict=True):
            path = self.paths[index]
            try:
                result[...] = self.fit(decode_image(path))
            except FAULTS as error:
                faults.append((path, getattr(error, "strerror", None) or str(error)))
        if faults:
            raise StimulusError(broken_files(faults))
        return out

    def portion(self, indices: np.ndarray) -> tuple[FileSource, np.ndarray]:
        """Return a source of these files only."""
        chosen = indices.tolist()
        paths = tuple(self.paths[i] for i in chosen)
        stamps = tuple(self.stamps[i] for i in chosen)
        return FileSource(paths, stamps, self.fit), np.arange(len(chosen))

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory.

    Parameters
    ----------
    images : numpy.ndarray of uint8, (image, y, x, rgb), or tuple of (y, x, rgb)
        The pixels; a tuple where sizes differ.
    fit : Fit
        The common size, and how images get it.
    token : str
        A hash of the pixels.
    """

    images: np.ndarray | tuple[np.ndarray, ...] = field(repr=False)
    fit: Fit
    token: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(image, y, x, 3)``."""
        return len(self.images), self.fit.y, self.fit.x, 3

    def __dask_tokenize__(self) -> str:
        return tokenize("nedx.ArraySource", self.token, self.fit)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at positions (k,) as uint8 (k, y, x, 3)."""
        if isinstance(self.images, np.ndarray) and self.images.shape == self.shape:
            return self.images[indices]
        return _fitted([self.images[i] for i in indices], self.fit)

    def portion(self, indices: np.ndarray) -> tuple[ArraySource, np.ndarray]:
        """Return a source of these images only; neighbours are not copied."""
        token = tokenize(self.token, indices)
        images: np.ndarray | tuple[np.ndarray, ...]
        if isinstance(self.images, np.ndarray):
            images = self.images[as_slice(indices)]
        else:
            images = tuple(self.images[i] for i in indices)
        return ArraySource(images, self.fit, token), np.arange(len(indices))

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class BrickSource:
    """An HDF5 dataset of images, as NSD publishes its stimuli.

    Parameters
    ----------
    path : str
        The file.
    key : str
        The dataset in it, uint8 (image, y, x, rgb).
    count : int
        How many images.
    stamp : (int, int)
        Size and time of change of the file.
    fit : Fit
        The common size, and how images get it.
    """

    path: str
    key: str
    count: int
    stamp: tuple[int, int]
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(image, y, x, 3)``."""
        return self.count, self.fit.y, self.fit.x, 3

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at positions (k,) as uint8 (k, y, x, 3)."""
        indices = np.asarray(indices)
        with _OPEN_BRICKS.lock:
            dataset = _OPEN_BRICKS.get(self.path, self.stamp)[self.key]
            # HDF5 reads runs of neighbours well, and lists of positions very slowly.
            out = np.empty((len(indices), *dataset.shape[1:]), np.uint8)
            for start, stop in _runs(indices):
                first = int(indices[start])
                source = np.s_[first : first + stop - start]
                dataset.read_direct(out, source, np.s_[start:stop])
        return out if out.shape[1:] == self.shape[1:] else _fitted(out, self.fit)

    def portion(self, indices: np.ndarray) -> tuple[BrickSource, np.ndarray]:
        """Return the same source: a path weighs nothing."""
        return self, indices

    def close(self) -> None:
        """Close the file in this process."""
        _OPEN_BRICKS.close(self.path)


@dataclass(frozen=True, eq=False)
class StoredSource:
    """The ``pixels`` of a Zarr store that `nedx.store.opening.open_store` opened.

    Parameters
    ----------
    plan : StoredPlan
        How to read them, uint8 (image, y, x, rgb).
    fit : Fit
        The common size, and how images get it.
    """

    plan: StoredPlan
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(image, y, x, 3)``."""
        return self.plan.shape[0], self.fit.y, self.fit.x, 3

    def __dask_tokenize__(self) -> str:
        return tokenize("nedx.StoredSource", self.plan, self.fit)

    @property
    def stored_chunk(self) -> int:
        """How many images a stored chunk holds."""
        return int((self.plan.variable.encoding.get("chunks") or (1,))[0])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at positions (k,) as uint8 (k, y, x, 3)."""
        whole = (slice(None),) * 3
        out = self.plan.narrow((as_slice(np.asarray(indices)), *whole)).read()
        return out if out.shape[1:] == self.shape[1:] else _fitted(out, self.fit)

    def portion(self, indices: np.ndarray) -> tuple[StoredSource, np.ndarray]:
        """Return the same source: a handle on a store weighs nothing."""
        return self, indices

    def close(self) -> None:
        """Do nothing: stores are open only while they are read."""


class _OpenBricks:
    """HDF5 files open in this process; HDF5 itself takes one call at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._files: dict[str, tuple[int, tuple[int, int], Any]] = {}

    def get(self, path: str, stamp: tuple[int, int]) -> Any:
        """Return the open file; a forked child and a changed file get a fresh one."""
        with self.lock:
            process, known, file = self._files.get(path, (0, (0, 0), None))
            if file is None or process != os.getpid() or known != stamp:
                if file is not None and process == os.getpid():
                    file.close()
                file = require("h5py", "hdf5").File(path, "r")
                self._files[path] = (os.getpid(), stamp, file)
            return file

    def close(self, path: str) -> None:
        with self.lock:
            process, _, file = self._files.pop(path, (0, (0, 0), None))
            if file is not None and process == os.getpid():
                file.close()


_OPEN_BRICKS = _OpenBricks()


def stamp_of(path: str) -> tuple[int, int]:
    """Return size and time of change of a file."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def as_slice(indices: np.ndarray) -> slice | np.ndarray:
    """Return the slice that equals positions (k,) counting up by one, else the positions."""
    if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
        return slice(int(indices[0]), int(indices[0]) + len(indices))
    return indices


def broken_files(faults: list[tuple[str, str]]) -> str:
    """Say which files cannot be decoded, and what to type."""
    shown = "\n".join(f"  - {path}: {reason}" for path, reason in faults[:50])
    more = f"\n  ... and {len(faults) - 50} more" if len(faults) > 50 else ""
    count = "1 image" if len(faults) == 1 else f"{len(faults)} images"
    return (
        f"{count} cannot be decoded:\n{shown}{more}\n"
        'Mend or remove them, or type: nedx.open_images(source, errors="skip")'
    )


def _fitted(images: Any, fit: Fit) -> np.ndarray:
    out = np.empty((len(images), fit.y, fit.x, 3), np.uint8)
    for result, image in zip(out, images, strict=True):
        result[...] = fit(image)
    return out


def _runs(indices: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield where runs of positions that count up by one start and stop."""
    if len(indices):
        edges = np.flatnonzero(np.diff(indices) != 1) + 1
        yield from zip([0, *edges.tolist()], [*edges.tolist(), len(indices)], strict=True)
