"""Arrays in MATLAB files: dense or sparse in version 7.3, which is HDF5, and dense in version 5.

MATLAB counts axes from the last, so that an array lies transposed in HDF5. Files that Python wrote
tell its shape in ``Python.Shape``; others do not, and their arrays have two axes at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.errors import SourceError, StoreError, close_matches, require
from nedx.sources.berg.hdf5 import HDF5_LOCK
from nedx.sources.berg.streams import damage_told, opened, stamp, url_of
from nedx.store.location import Location

SPARSE = "__bdpy_sparse_arrray"
"""Marks a group that holds a sparse array; spelled so in the files."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# HDF5 begins at the start of a file, or behind a block of the user's.
_SIGNATURE_AT = (0, 512, 1024, 2048)
_BLOCK_BYTES = 2**24
_DAMAGE = (OSError, RuntimeError, KeyError)


def folder_and_name(place: str | Path | Location) -> tuple[Location, str]:
    """Return the folder or bucket of a file, and its name in there."""
    whole = Location.of(place)
    folder, _, name = whole.url.rpartition("/")
    return Location(folder, whole.anonymous, whole.options), name


@contextmanager
def opened_file(location: Location, key: str) -> Iterator[Any]:
    """Open a file of HDF5, or read one of MATLAB 5 whole.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.

    Yields
    ------
    h5py.File or dict
        A dict of arrays for MATLAB 5.

    Raises
    ------
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short, damaged, or neither.
    """
    with opened(location, key) as file:
        start = file.read(_SIGNATURE_AT[-1] + len(_SIGNATURE))
        file.seek(0)
        fault = "cut short, damaged, or neither HDF5 nor a MATLAB file"
        explained = damage_told(url_of(location, key), _DAMAGE, fault)
        if any(start[at : at + len(_SIGNATURE)] == _SIGNATURE for at in _SIGNATURE_AT):
            h5py = require("h5py", "hdf5")
            # Of a file on this machine the library reads strided parts much faster itself.
            target = file.name if location.is_local else file
            with HDF5_LOCK, explained, h5py.File(target, "r") as container:
                yield container
            return
        with explained:
            yield _matlab_5(file)


def _matlab_5(file: Any) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.sparse import issparse

    try:
        found: dict[str, Any] = loadmat(file)
    except (StoreError, MemoryError):
        # What fails on the way to the file is no fault of the file.
        raise
    except Exception as error:
        # scipy raises classes of its own, and those of struct and numpy.
        raise OSError(str(error)) from error
    own = {name: value for name, value in found.items() if not name.startswith("__")}
    return {name: value.toarray() if issparse(value) else value for name, value in own.items()}


@dataclass(frozen=True)
class SparseArray:
    """The values of an array that differ from its background.

    Parameters
    ----------
    index : numpy.ndarray of int64, (axis, value)
        Where they are, counted from 0.
    value : numpy.ndarray, (value,)
    shape : tuple of int
    background : float
        What all others are.
    """

    index: np.ndarray
    value: np.ndarray
    shape: tuple[int, ...]
    background: float

    def dense(self) -> np.ndarray:
        """Return the whole array, of the dtype of its values."""
        whole = np.full(self.shape, self.background, self.value.dtype)
        whole[tuple(self.index)] = self.value
        return whole


@dataclass(frozen=True)
class StoredArray:
    """One array in a MATLAB file: a reference, which graphs carry instead of values.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.
    name : str
        Of the array in the file.
    shape : tuple of int
        As Python has it.
    dtype : dtype
        Of the values in the file.
    is_sparse : bool
    stamp : str
        Changes when the file does.
    values : int, optional
        How many values a sparse array has.
    """

    location: Location
    key: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_sparse: bool = False
    stamp: str = field(default="", repr=False)
    values: int | None = None

    def __dask_tokenize__(self) -> str:
        return tokenize("nedx.StoredArray", self.url, self.name, self.shape, self.stamp)

    @property
    def url(self) -> str:
        """The file, for messages."""
        return url_of(self.location, self.key)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def read(self) -> np.ndarray:
        """Read the whole array; a sparse one becomes dense."""
        return read_stored(self.location, self.key, self.name)

    def read_sparse(self) -> SparseArray:
        """Read where values are, and which; only of a sparse array."""
        with opened_file(self.location, self.key) as container:
            return _sparse(container, container[self.name], f"{self.name!r} in {self.url}")

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read a part; of a dense array in HDF5 nothing else is read."""
        keys = key if isinstance(key, tuple) else (key,)
        if not self.is_sparse and len(keys) == self.ndim:
            with opened_file(self.location, self.key) as container:
                held = container[self.name]
                if not isinstance(held, np.ndarray) and held.shape[::-1] == self.shape:
                    return np.asarray(held[keys[::-1]]).T
        found: np.ndarray = self.read()[key]
        return found


def open_stored(location: Location, key: str, name: str) -> StoredArray:
    """Find an array in a MATLAB file; of HDF5 only its shape is read.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.
    name : str
        Of the array.

    Returns
    -------
    StoredArray

    Raises
    ------
    StoreError, CorruptStoreError
        If the file is missing, cut short or damaged.
    SourceError
        If it holds no such array.
    """
    with opened_file(location, key) as container:
        held = _member(container, location, key, name)
        mark = stamp(location, key)
        if not hasattr(held, "shape"):
            shape, value = _cell_numbers(container, held["shape"]), held["value"]
            return StoredArray(location, key, name, shape, value.dtype, True, mark, int(value.size))
        shape = held.shape if isinstance(held, np.ndarray) else _shape(held)
        return StoredArray(location, key, name, shape, held.dtype, False, mark)


def read_stored(location: Location, key: str, name: str) -> np.ndarray:
    """Read an array whole, a sparse one as a dense one; arguments and errors of `open_stored`."""
    with opened_file(location, key) as container:
        held = _member(container, location, key, name)
        if hasattr(held, "shape"):
            return _dense(held)
        return _sparse(container, held, f"{name!r} in {url_of(location, key)}").dense()


def _member(container: Any, location: Location, key: str, name: str) -> Any:
    """Return an array of a file, or the group of a sparse one."""
    if name not in container:
        hint = close_matches(name, [one for one in container if not one.startswith("#")])
        raise SourceError(f"{url_of(location, key)} has no array {name!r}: {hint}")
    held = container[name]
    if not hasattr(held, "shape") and SPARSE not in held:
        raise SourceError(f"{name!r} in {url_of(location, key)} is no array, but a group")
    return held


def open_array(place: str | Path | Location, name: str) -> da.Array:
    """Open an array of a MATLAB file lazily, in blocks along its last axis.

    Parameters
    ----------
    place : str, Path or Location
        A file of MATLAB 7.3 or 5.
    name : str
        Of the array in the file.

    Returns
    -------
    dask array
        Of the shape that Python has, and the dtype of the file.

    Raises
    ------
    StoreError, CorruptStoreError
        If the file is missing, cut short or damaged.
    SourceError
        If it holds no such array.
    """
    array = open_stored(*folder_and_name(place), name)
    if array.is_sparse or not array.ndim:
        chunks = array.shape
    else:
        row = int(np.prod(array.shape[:-1], dtype=np.int64)) * array.dtype.itemsize
        chunks = (*array.shape[:-1], max(1, _BLOCK_BYTES // max(1, row)))
    return da.from_array(array, chunks=chunks, name=f"matlab-{tokenize(array)}", asarray=False)


def read_array(place: str | Path | Location, name: str) -> np.ndarray:
    """Read an array of a MATLAB file whole; arguments and errors are those of `open_array`."""
    return open_stored(*folder_and_name(place), name).read()


def _shape(held: Any) -> tuple[int, ...]:
    if "Python.Shape" in held.attrs:
        return tuple(int(n) for n in np.atleast_1d(held.attrs["Python.Shape"]))
    if held.attrs.get("MATLAB_empty", 0):
        # An array without values is stored as its shape.
        return tuple(int(n) for n in np.ravel(held[()]))
    return tuple(int(n) for n in held.shape[::-1])


def _dense(held: Any) -> np.ndarray:
    if isinstance(held, np.ndarray):
        return held
    shape = _shape(held)
    if int(np.prod(shape, dtype=np.int64)) == 0:
        return np.empty(shape, held.dtype)
    return np.asarray(held[()]).T.reshape(shape)


def _cells(container: Any, held: Any) -> list[np.ndarray]:
    """Return the rows of a cell array of references, or of a plain matrix."""
    if held.dtype.kind == "O":
        return [np.ravel(container[reference][()]) for reference in np.ravel(held[()])]
    rows = np.asarray(held[()])
    return list(rows.reshape(-1, 1) if rows.ndim < 2 else rows)


def _cell_numbers(container: Any, held: Any) -> tuple[int, ...]:
    # A plain list of lengths may be a row or a column.
    if held.dtype.kind != "O":
        return tuple(int(n) for n in np.ravel(held[()]))
    return tuple(int(cell[0]) for cell in _cells(container, held))


def _sparse(container: Any, held: Any, what: str) -> SparseArray:
    shape = _cell_numbers(container, held["shape"])
    value = np.ravel(held["value"][()])
    background = np.ravel(held["background"][()])
    index = np.array(_cells(container, held["index"])).astype(np.int64)
    index = index.reshape(len(shape), 0) if not value.size else index
    if index.shape != (len(shape), len(value)) and index.T.shape == (len(shape), len(value)):
        index = index.T
    if index.shape != (len(shape), len(value)):
        raise SourceError(
            f"{what} is a sparse array of {len(value):,} values and shape {shape}, but its index "
            f"has the shape {index.shape}: it is damaged"
        )
    if value.size and (index.min() < 0 or (index.max(1) >= shape).any()):
        raise SourceError(
            f"{what} is a sparse array of shape {shape} whose index runs to "
            f"{tuple(index.max(1).tolist())}, counted from 0: it is damaged"
        )
    return SparseArray(index, value, shape, float(background[0]) if background.size else 0.0)
