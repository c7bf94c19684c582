"""NIfTI and MGH files, read by byte ranges wherever they lie; gzip is unpacked once."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx.config import cache_dir
from nedx.errors import CorruptStoreError, SourceError, StoreError, require
from nedx.sources.berg.streams import opened, stamp, url_of
from nedx.store.location import Location

_AFFINE_TOLERANCE = 1e-3
"""Of the elements of an affine, in mm: files keep them as float32."""


@dataclass(frozen=True)
class VolumeFile:
    """The volumes of an uncompressed NIfTI or MGH file.

    Parameters
    ----------
    location : Location
        A folder or bucket, or the cache.
    key : str
        The file in it, without gzip.
    url : str
        The file as it was given, for messages.
    shape : tuple of int
        ``(i, j, k, volume)``.
    dtype : str
        Of the stored values, with their byte order.
    offset : int
        The byte at which they begin.
    scale : tuple of float
        Slope and intercept.
    affine : tuple of float
        The 16 elements, row by row: indices that count from 0 to mm, RAS+.
    interval : float
        Seconds from volume to volume; 0 where the header does not say.
    stamp : str
        Changes when the file does.
    """

    location: Location
    key: str
    url: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    scale: tuple[float, float]
    affine: tuple[float, ...]
    interval: float
    stamp: str

    is_columnar = False

    def __dask_tokenize__(self) -> str:
        # Where the cache is does not matter: an import goes on with another.
        return tokenize("nedx.VolumeFile", self.url, self.shape, self.scale, self.stamp)

    def read(self, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Read float32 ``(volume, voxel)``; of each volume the bytes from first to last voxel.

        Raises
        ------
        CorruptStoreError
            If the file was cut short since it was opened.
        """
        values = np.empty((len(volumes), len(voxels)), np.float32)
        if not values.size:
            return values
        first = int(voxels.min())
        buffer = np.empty(int(voxels.max()) + 1 - first, self.dtype)
        size = int(np.prod(self.shape[:3]))
        places = voxels - first
        with opened(self.location, self.key) as file:
            for row, volume in zip(values, volumes.tolist(), strict=True):
                file.seek(self.offset + (volume * size + first) * buffer.itemsize)
                got = file.readinto(buffer.view(np.uint8))  # type: ignore[attr-defined]
                if got != buffer.nbytes:
                    raise _cut_short(self.url, got, buffer.nbytes)
                row[:] = buffer[places]
        slope, intercept = self.scale
        if (slope, intercept) != (1.0, 0.0):
            values = values * np.float32(slope) + np.float32(intercept)
        return values

    def volume(self, index: int = 0) -> np.ndarray:
        """Read one whole volume, float32 ``(i, j, k)``."""
        flat = self.read(np.array([index]), np.arange(int(np.prod(self.shape[:3]))))
        return flat.reshape(self.shape[:3], order="F")


def open_volumes(location: Location, key: str) -> VolumeFile:
    """Open a file of one or more volumes; its header is read, and its size compared.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it: ``.nii``, ``.mgh``, or with gzip ``.nii.gz``, ``.mgz``, which are unpacked
        into the cache, once.

    Returns
    -------
    VolumeFile

    Raises
    ------
    MissingExtraError
        If nibabel is not installed.
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short, damaged, or something else.
    """
    nibabel = require("nibabel", "nifti")
    url = url_of(location, key)
    where, plain = _uncompressed(location, key)
    with opened(where, plain) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        holder = nibabel.FileHolder(filename=plain, fileobj=file)
        kinds = [nibabel.Nifti1Image, nibabel.Nifti2Image]
        if plain.endswith((".mgh", ".mgz")):
            kinds = [nibabel.MGHImage]
        image = _parsed(kinds, holder, url)
        data = image.dataobj
        shape = tuple(int(n) for n in data.shape)
        shape = (*shape, 1, 1, 1)[: max(4, len(shape))] if len(shape) < 4 else shape
        if len(shape) != 4:
            raise CorruptStoreError(f"{url} has {len(shape)} axes {shape}, expected 3 or 4")
        needed = data.offset + int(np.prod(shape, dtype=np.int64)) * data.dtype.itemsize
        if size < needed:
            raise _cut_short(url, size, needed)
        return VolumeFile(
            where,
            plain,
            url,
            shape,
            data.dtype.str,
            int(data.offset),
            (float(data.slope), float(data.inter)),
            tuple(float(x) for x in np.asarray(image.affine).ravel()),
            _interval(image),
            stamp(location, key),
        )


def _parsed(kinds: list[Any], holder: Any, url: str) -> Any:
    fault: Exception | None = None
    for kind in kinds:
        holder.fileobj.seek(0)
        try:
            return kind.from_file_map({"image": holder})
        except (StoreError, MemoryError):
            # What fails on the way to the file is no fault of the file.
            raise
        except Exception as error:  # noqa: BLE001
            # nibabel raises its own classes, and those of struct and numpy.
            fault = error
    raise CorruptStoreError(
        f"{url} is no NIfTI or MGH file, or is damaged ({fault}). Fetch it again"
    ) from fault


def _interval(image: Any) -> float:
    zooms = image.header.get_zooms()
    if len(zooms) < 4 or not hasattr(image.header, "get_xyzt_units"):
        return 0.0
    units = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
    # Where the unit is not said, seconds are meant.
    return float(zooms[3]) * units.get(image.header.get_xyzt_units()[1], 1.0)


def _uncompressed(location: Location, key: str) -> tuple[Location, str]:
    """Return where a file lies without gzip; unpacks it into the cache where it is not there."""
    if not key.endswith((".gz", ".mgz")):
        return location, key
    name = Path(key).name.removesuffix(".gz")
    name = f"{name.removesuffix('.mgz')}.mgh" if name.endswith(".mgz") else name
    identity = f"{url_of(location, key)} {stamp(location, key)}"
    folder = cache_dir() / "unpacked" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not (folder / name).is_file():
        _unpack(location, key, folder / name)
    return Location.of(folder), name


def _unpack(location: Location, key: str, target: Path) -> None:
    """Unpack side by side; the file appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent)
    try:
        with opened(location, key) as packed, os.fdopen(handle, "wb") as out:
            try:
                shutil.copyfileobj(gzip.GzipFile(fileobj=packed), out, 2**20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise CorruptStoreError(
                    f"{url_of(location, key)} is cut short or damaged ({error}). Fetch it again"
                ) from error
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _cut_short(url: str, size: int, needed: int) -> CorruptStoreError:
    return CorruptStoreError(
        f"{url} is cut short: {size:,} bytes where {needed:,} are needed. Fetch it again"
    )


def same_space(reference: VolumeFile, *others: VolumeFile) -> list[str]:
    """Return what keeps files from being of the same voxels, in words; empty where nothing does.

    Parameters
    ----------
    reference : VolumeFile
        Whose shape and affine are right.
    *others : VolumeFile
        Masks and maps.

    Returns
    -------
    list of str
    """
    faults = []
    for other in others:
        if other.shape[:3] != reference.shape[:3]:
            faults.append(
                f"{other.url} has the shape {other.shape[:3]}, {reference.url} "
                f"{reference.shape[:3]}: resample it, or give one of the same space"
            )
        elif not np.allclose(other.affine, reference.affine, atol=_AFFINE_TOLERANCE):
            faults.append(
                f"the affine of {other.url} differs from that of {reference.url} by up to "
                f"{np.abs(np.subtract(other.affine, reference.affine)).max():.3g} mm: resample it, "
                "or give one of the same space"
            )
    return faults


def voxel_labels(mask: np.ndarray, affine: tuple[float, ...], space: str) -> xr.Dataset:
    """Label the voxels of a mask, in its C order.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (i, j, k)
        Which voxels there are.
    affine : tuple of float
        16 elements: indices that count from 0 to mm, RAS+.
    space : str
        Such as ``"func1pt8mm"``.

    Returns
    -------
    Dataset
        Coordinates of ``voxel``, which is the C index in the volume: ``i``, ``j``, ``k`` (int32,
        from 0) and ``x``, ``y``, ``z`` (float32, mm).

    Raises
    ------
    SourceError
        If the mask is empty.
    """
    places = np.nonzero(mask)
    if not len(places[0]):
        raise SourceError(f"the mask in {space} is empty: give another")
    matrix = np.reshape(affine, (4, 4))
    positions = np.stack(places, 1) @ matrix[:3, :3].T + matrix[:3, 3]
    about = {"space": space, "volume_shape": list(mask.shape), "affine": list(affine)}
    return xr.Dataset(
        coords={
            "voxel": ("voxel", np.flatnonzero(mask).astype(np.int32), about),
            **{a: ("voxel", n.astype(np.int32)) for a, n in zip("ijk", places, strict=True)},
            **{
                axis: ("voxel", column.astype(np.float32), {"units": "mm"})
                for axis, column in zip("xyz", positions.T, strict=True)
            },
        }
    )


def fortran_index(mask: np.ndarray) -> np.ndarray:
    """Return where the voxels of a mask (i, j, k), in C order, lie in Fortran order."""
    found: np.ndarray = np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")
    return found
