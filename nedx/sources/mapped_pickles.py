"""Large pickled arrays, used where they lie in the file: nothing is read before it is asked for.

numpy cannot map a pickle into memory, but the values of an array are one run of bytes in it. Here
such a run becomes a view of the mapped file, and so does a large tensor of torch; all else is read
as in `nedx.sources.berg.pickles`, with the same refusals.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, ClassVar

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.errors import CorruptStoreError, ModelError, StoreError
from nedx.sources.berg.pickles import (
    ADMITTED,
    TORCH,
    admitted_global,
    as_dictionary,
    check_header,
    damage_explained,
    resolved,
    tensor_in,
    torch_root,
)

_LARGE = 2**16
"""Bytes from which on pickles keep a value outside of their frames."""
_ZIP_HEADER = 30


def open_pickled(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Open a local file that holds one pickled dictionary of arrays.

    What the file is, its first bytes say, whatever its name: a ``.npy`` file of one object, a
    pickle as it is, or a ``.pt`` file of torch 1.6 or later.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict
        Arrays (read-only; large ones are views of the mapped file), numbers, strings, lists.

    Raises
    ------
    StoreError
        If there is no such file.
    CorruptStoreError
        If it is cut short or damaged.
    ModelError
        If it holds something else, or names anything that could run.
    """
    with _existing(path).open("rb") as file:
        return as_dictionary(_read(file, str(path)), str(path))


def open_arrays(path: str | os.PathLike[str]) -> dict[str, Any] | np.ndarray:
    """Open a local file that holds one array, or one dictionary as `open_pickled` takes it.

    Parameters
    ----------
    path : path
        The file: also a ``.npy`` file of numbers, or a pickled array or tensor.

    Returns
    -------
    dict or ndarray
        Read-only; large arrays are views of the mapped file, whose checksums, where torch keeps
        some, are not looked at.

    Raises
    ------
    StoreError, CorruptStoreError, ModelError
        As of `open_pickled`.
    """
    url = str(path)
    with _existing(path).open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            file.seek(0)
            with damage_explained(url):
                plain = _plain_array(file)
            if plain is not None:
                return plain
        file.seek(0)
        held = _read(file, url)
    return held if isinstance(held, np.ndarray) else as_dictionary(held, url)


def _plain_array(file: IO[bytes]) -> np.ndarray | None:
    """Map the array of a ``.npy`` file; None where it is one of objects."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, by_column, dtype = readers[version](file)
    if dtype.hasobject:
        return None
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    flat = np.frombuffer(mapped, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if by_column else "C")


def _existing(path: str | os.PathLike[str]) -> Path:
    place = Path(path)
    if not place.is_file():
        raise StoreError(f"there is no file {place}. Check the folder, or fetch the file")
    return place


def _read(file: IO[bytes], url: str) -> Any:
    start = file.read(6)
    file.seek(0)
    if start == b"\x93NUMPY":
        check_header(file, url)
        return _load(file, url, ADMITTED)
    if start[:1] == b"\x80":
        return _load(file, url, ADMITTED)
    if start[:4] == b"PK\x03\x04":
        with damage_explained(url), zipfile.ZipFile(file) as archive:
            root = torch_root(archive)
            _seek_member(file, archive.getinfo(f"{root}/data.pkl"))
            return _load(file, url, {**ADMITTED, **TORCH}, _Storages(file, archive, root).tensor)
    found = "is empty" if not start else f"begins with {start!r}"
    raise CorruptStoreError(
        f"{url} {found}: it is no .npy file, pickle or .pt file. Fetch it again"
    )


class _Storages:
    """The storages of a file of torch: small ones are read, large ones mapped, each once."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str):
        self.file, self.archive, self.root = file, archive, root
        self.found: dict[str, Any] = {}

    def tensor(self, tensor: Any) -> np.ndarray:
        """Return a tensor as an array."""
        name = tensor.storage[1]
        if name not in self.found:
            self.found[name] = self.storage(self.archive.getinfo(f"{self.root}/data/{name}"))
        return tensor_in(self.found[name], tensor)

    def storage(self, member: zipfile.ZipInfo) -> Any:
        """Return the bytes of a member."""
        if member.file_size < _LARGE:
            return self.archive.read(member)
        _seek_member(self.file, member)
        start = self.file.tell()
        mapped = memoryview(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ))
        return mapped[start : start + member.file_size]


def _seek_member(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Go to where the bytes of a member begin; torch stores them as they are."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError("it is compressed, which torch never does")
    file.seek(member.header_offset)
    header = file.read(_ZIP_HEADER)
    name, extra = struct.unpack("<HH", header[26:30])
    file.seek(member.header_offset + _ZIP_HEADER + name + extra)


def _load(
    file: IO[bytes],
    url: str,
    admitted: Mapping[tuple[str, str], Any],
    read: Callable[[Any], np.ndarray] | None = None,
) -> Any:
    with damage_explained(url):
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        whole = resolved(_MappedUnpickler(file, mapped, url, admitted).load(), read)
    if isinstance(whole, np.ndarray) and whole.shape == ():
        whole = whole.item()
    return whole


class _MappedUnpickler(pickle._Unpickler):
    """Reads what is admitted; of large values it takes note of where they are."""

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)
    _unframer: Any
    append: Any
    read: Any

    def __init__(
        self,
        file: IO[bytes],
        mapped: memoryview,
        url: str,
        admitted: Mapping[tuple[str, str], Any],
    ):
        super().__init__(file)
        self.file, self.mapped, self.url, self.admitted = file, mapped, url, admitted

    def find_class(self, module: str, name: str) -> Any:
        """Return what a global of the file stands for here."""
        return admitted_global(self.admitted, self.url, module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return dtype and name of the storage of a tensor."""
        kind, dtype, name, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"a reference to {pid!r}")
        return dtype, name

    def take(self, size: int) -> None:
        """Put the next ``size`` bytes on the stack, as a view where they are many."""
        if size < _LARGE or self._unframer.current_frame is not None:
            self.append(self.read(size))
            return
        start = self.file.tell()
        if start + size > len(self.mapped):
            raise EOFError(f"{start + size - len(self.mapped):,} bytes are missing at its end")
        self.append(self.mapped[start : start + size])
        self.file.seek(start + size)


def _taker(form: str) -> Callable[[_MappedUnpickler], None]:
    def load(unpickler: _MappedUnpickler) -> None:
        (size,) = struct.unpack(form, unpickler.read(struct.calcsize(form)))
        unpickler.take(size)

    return load


_MappedUnpickler.dispatch.update(
    {
        pickle.BINBYTES[0]: _taker("<I"),
        pickle.BINBYTES8[0]: _taker("<Q"),
        pickle.BYTEARRAY8[0]: _taker("<Q"),
    }
)


@dataclass(frozen=True)
class PickledArray:
    """One array of a pickled dictionary: a reference, which graphs carry instead of values.

    Parameters
    ----------
    path : str
        The file.
    key : str
        Of the dictionary in it.
    shape : tuple of int
    dtype : dtype
    """

    path: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read a part of it."""
        found: np.ndarray = np.array(
            _opened(self.path, os.stat(self.path).st_mtime_ns)[self.key][key]
        )
        return found


@lru_cache(maxsize=4)
def _opened(path: str, changed: int) -> dict[str, Any]:
    return open_pickled(path)


def lazy_array(path: str | os.PathLike[str], key: str, chunk: int) -> da.Array:
    """Return an array of a pickled dictionary as a dask array that reads it piece by piece.

    Parameters
    ----------
    path : path
        The file, as `open_pickled` takes it.
    key : str
        Of the dictionary.
    chunk : int
        Length of a piece along the first axis.

    Returns
    -------
    dask array
        Of the shape and dtype in the file.

    Raises
    ------
    ModelError
        If there is no such array.
    """
    held = open_pickled(path)
    value = held.get(key)
    if not isinstance(value, np.ndarray) or not value.ndim:
        raise ModelError(f"{path} has no array {key!r}; it holds {', '.join(map(str, held))}")
    place, about = str(path), os.stat(path)
    array = PickledArray(place, key, value.shape, value.dtype)
    token = tokenize(place, key, about.st_size, about.st_mtime_ns)
    chunks = (chunk, *value.shape[1:])
    return da.from_array(array, chunks=chunks, name=f"pickled-{token}", asarray=False)
