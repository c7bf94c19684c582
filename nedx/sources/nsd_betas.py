"""Betas of one NSD session: HDF5 of a voxel a chunk, NIfTI, or a pair of MGH files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nedx.errors import CorruptStoreError, SourceError, StoreError, require
from nedx.sources.berg.hdf5 import HDF5_LOCK
from nedx.sources.berg.streams import opened, stamp, url_of
from nedx.sources.nifti import VolumeFile
from nedx.store.location import Location

INT16_PER_PERCENT = 300
"""Betas of volumes are stored as int16, 300 times the percent of signal change."""


@dataclass(frozen=True)
class BetasFile:
    """``betas_sessionNN.hdf5``: int16, 300 times percent signal change, a voxel a chunk.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.
    shape : tuple of int
        ``(i, j, k, trial)``; the file, written by MATLAB, has the axes in reverse.
    stamp : str
        Changes when the file does.
    """

    location: Location
    key: str
    shape: tuple[int, ...]
    stamp: str

    is_columnar = True

    @property
    def url(self) -> str:
        """The file, for messages."""
        return url_of(self.location, self.key)

    def read(self, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Read float32 ``(trial, voxel)``, percent: of each slice the box that holds the voxels."""
        i, j, k = np.unravel_index(voxels, self.shape[:3], order="F")
        values = np.empty((len(volumes), len(voxels)), np.float32)
        every = len(volumes) == self.shape[3] and bool(np.all(np.diff(volumes) == 1))
        with _opened_betas(self.location, self.key) as betas:
            for plane in np.unique(k).tolist():
                mine = np.flatnonzero(k == plane)
                low, high = j[mine].min(), j[mine].max() + 1
                left, right = i[mine].min(), i[mine].max() + 1
                box = betas[:, plane, low:high, left:right]
                if not every:
                    box = box[volumes]
                values[:, mine] = box[:, j[mine] - low, i[mine] - left]
        values /= INT16_PER_PERCENT
        return values


@contextmanager
def _opened_betas(location: Location, key: str) -> Iterator[Any]:
    h5py = require("h5py", "hdf5")
    url = url_of(location, key)
    if location.is_local:
        with _readable(url), h5py.File(f"{location.filesystem()[1]}/{key}", "r") as container:
            yield container["betas"]
    else:
        with (
            HDF5_LOCK,
            opened(location, key) as file,
            _readable(url),
            h5py.File(file, "r") as container,
        ):
            yield container["betas"]


@contextmanager
def _readable(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {url}. Check the root, or fetch the file") from error
    except StoreError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise CorruptStoreError(
            f"{url} is cut short, damaged, or holds no dataset 'betas' ({error}). Fetch it again"
        ) from error


def open_betas(location: Location, key: str) -> BetasFile:
    """Open the betas of a session; only the shape is read.

    Raises
    ------
    MissingExtraError
        If h5py is not installed.
    StoreError, CorruptStoreError
        If the file is not there, cut short or damaged.
    SourceError
        If it holds something else.
    """
    with _opened_betas(location, key) as betas:
        shape, dtype = tuple(int(n) for n in betas.shape), betas.dtype
    if len(shape) != 4 or dtype != np.int16:
        raise SourceError(
            f"'betas' in {url_of(location, key)} is {dtype} {shape}, expected int16 "
            "(trial, k, j, i): it is another kind of file"
        )
    return BetasFile(location, key, shape[::-1], stamp(location, key))


@dataclass(frozen=True)
class ScaledFile:
    """Betas of a session as NIfTI, whose int16 values are 300 times percent as well.

    Parameters
    ----------
    file : VolumeFile
        Without a scale of its own.
    """

    file: VolumeFile

    is_columnar = False

    @property
    def url(self) -> str:
        """The file, for messages."""
        return self.file.url

    @property
    def shape(self) -> tuple[int, ...]:
        """``(i, j, k, trial)``."""
        return self.file.shape

    def read(self, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Read float32 ``(trial, voxel)``, percent."""
        values = self.file.read(volumes, voxels)
        values /= INT16_PER_PERCENT
        return values


@dataclass(frozen=True)
class Hemispheres:
    """Betas of a session on a surface: one file a hemisphere, the left one first.

    Parameters
    ----------
    left, right : VolumeFile
        ``(vertex, 1, 1, trial)``, percent.
    """

    left: VolumeFile
    right: VolumeFile

    is_columnar = False

    @property
    def url(self) -> str:
        """The files, for messages."""
        return f"{self.left.url} and {self.right.url}"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(vertex, 1, 1, trial)``."""
        return (self.left.shape[0] + self.right.shape[0], *self.left.shape[1:])

    def read(self, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Read float32 ``(trial, vertex)``, the vertices of the right one after the left."""
        count = self.left.shape[0]
        values = np.empty((len(volumes), len(voxels)), np.float32)
        is_left = voxels < count
        values[:, is_left] = self.left.read(volumes, voxels[is_left])
        values[:, ~is_left] = self.right.read(volumes, voxels[~is_left] - count)
        return values
