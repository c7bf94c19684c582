"""Pickles of others, read without running what is in them.

A pickle is a list of calls. Here the only things that can be called make containers, the parts of
an array in Python, or plain holders of attributes. Not even numpy's own functions are: given the
arguments of a forger, they would take bytes for pointers.
"""

from __future__ import annotations

import io
import math
import pickle
import tokenize
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import IO, Any

import numpy as np

from nedx.errors import CorruptStoreError, ModelError
from nedx.sources.berg.streams import damage_told, inflated, opened, url_of
from nedx.store.location import Location

UNREAD = "final_params"
"""Weights of the last epoch, half of a fwRF file. Never read: ``best_params`` predict."""

# Which of these a damaged pickle raises depends on the byte that is wrong.
_DAMAGE = (
    pickle.UnpicklingError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Dtype:
    """A dtype in a file: of numbers, strings or objects."""

    def __init__(self, spec: str, *_: object):
        self.dtype = np.dtype(spec)
        if self.dtype.kind not in "biufcSUO":
            raise ValueError(f"an array of {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order, all else is in the name."""
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array in a file; its bytes are not copied."""

    def __init__(self, *_: object):
        self.array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the shape, the dtype, the order of the axes and the values."""
        _, shape, kind, by_column, values = state
        if kind.dtype.kind == "O":
            flat = np.empty(len(values), dtype=object)
            flat[:] = [resolved(value) for value in values]
        else:
            flat = _taken(values, kind.dtype, math.prod(shape))
        self.array = flat.reshape(shape, order="F" if by_column else "C")


def _taken(values: Any, dtype: Any, count: int = -1) -> np.ndarray:
    """See bytes as an array, without copying; numpy refuses to take them for objects."""
    found: np.ndarray = np.frombuffer(values, dtype, count) if count else np.empty(0, dtype)
    return found


def _scalar(kind: _Dtype, values: bytes) -> Any:
    return _taken(values, kind.dtype, 1)[0]


@dataclass(frozen=True)
class _Tensor:
    """A tensor in a file of torch: where its values lie."""

    storage: tuple[str, str]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, storage: Any, offset: int, shape: Any, strides: Any, *_: object) -> _Tensor:
        return cls(storage, offset, shape, strides)


class _OutOfLine:
    """An array of joblib: its bytes follow in the file, behind what is pickled of it."""

    file: IO[bytes]
    url: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the values, which lie where the file is at."""
        dtype, shape = state["dtype"].dtype, state["shape"]
        if dtype.kind == "O":
            raise ModelError(
                f"{self.url} is refused: it holds an array of objects, a pickle of its own. Only "
                "arrays of numbers and strings are read; ask who made it"
            )
        # Since joblib 1.2 values are aligned, and a byte says how much lies in front of them.
        if state.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        count = math.prod(shape)
        flat = _taken(self.file.read(count * dtype.itemsize), dtype, count)
        self.array = flat.reshape(shape, order="F" if state["order"] == "F" else "C")


def _from_buffer(values: Any, kind: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Return an array as protocol 5 stores it."""
    return _taken(values, kind.dtype, math.prod(shape)).reshape(shape, order=order)


_NUMPY: Mapping[str, Mapping[str, Any]] = {
    "multiarray": {"_reconstruct": _Array, "scalar": _scalar},
    "numeric": {"_frombuffer": _from_buffer},
}
ADMITTED: Mapping[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, names in _NUMPY.items()
        for name, function in names.items()
    },
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _Dtype,
    # How protocol 2, that of torch, writes bytes; `bytes` takes codecs of text alone.
    ("_codecs", "encode"): bytes,
    ("__builtin__", "bytes"): bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("argparse", "Namespace"): SimpleNamespace,
    ("sklearn.decomposition._pca", "PCA"): SimpleNamespace,
    ("sklearn.linear_model._base", "LinearRegression"): SimpleNamespace,
    ("sklearn.preprocessing._data", "StandardScaler"): SimpleNamespace,
}
TORCH: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor.of,
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "FloatStorage"): "<f4",
    ("torch", "HalfStorage"): "<f2",
    ("torch", "LongStorage"): "<i8",
    ("torch", "IntStorage"): "<i4",
    ("torch", "BoolStorage"): "?",
}


def admitted_global(
    admitted: Mapping[tuple[str, str], Any], url: str, module: str, name: str
) -> Any:
    """Return what a global of a file stands for here."""
    if (module, name) not in admitted:
        raise ModelError(
            f"{url} is refused: it names {module}.{name}, and only arrays and the parameters of "
            "scikit-learn and argparse are read. Such a file could run any code; ask who made it"
        )
    return admitted[module, name]


class _Unpickler(pickle.Unpickler):
    """Reads what is admitted; nothing else is imported or run."""

    def __init__(self, file: IO[bytes], url: str, admitted: Mapping[tuple[str, str], Any]):
        super().__init__(file)
        self.url = url
        self.admitted = admitted

    def find_class(self, module: str, name: str) -> Any:
        """Return what a global of the file stands for here."""
        return admitted_global(self.admitted, self.url, module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return dtype and name of the storage of a tensor."""
        kind, dtype, name, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"a reference to {pid!r}")
        return dtype, name


def unpickled(file: IO[bytes], url: str, admitted: Mapping[tuple[str, str], Any] = ADMITTED) -> Any:
    """Read a pickle of what is admitted and nothing else.

    Parameters
    ----------
    file : file
        Where the pickle begins.
    url : str
        For messages.
    admitted : mapping of (module, name) to what stands for it
        What the pickle may name.

    Raises
    ------
    ModelError
        If it names anything else.
    """
    return resolved(_Unpickler(file, url, admitted).load())


class _JoblibUnpickler(pickle._Unpickler):
    """The same in Python: it reads no further than it must, so that arrays may lie in between."""

    def __init__(self, file: IO[bytes], url: str):
        super().__init__(file)
        stored = type("_Stored", (_OutOfLine,), {"file": file, "url": url})
        self.url = url
        self.admitted = {**ADMITTED, ("joblib.numpy_pickle", "NumpyArrayWrapper"): stored}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a global of the file stands for here."""
        return admitted_global(self.admitted, self.url, module, name)


def read_joblib(location: Location, key: str) -> dict[str, Any]:
    """Read a file that joblib wrote, as it is or compressed with zlib or gzip, without joblib.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.

    Returns
    -------
    dict
        As of `read_npy`; the attributes of an object of scikit-learn.

    Raises
    ------
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short or damaged.
    ModelError
        If it holds something else, or objects that are not admitted.
    """
    url = url_of(location, key)
    with opened(location, key) as file, damage_explained(url):
        plain = inflated(file)
        whole = resolved(_JoblibUnpickler(plain, url).load())
        if plain.read(1):
            raise pickle.UnpicklingError("there is more behind its end")
    return as_dictionary(vars(whole) if isinstance(whole, SimpleNamespace) else whole, url)


def read_npy(location: Location, key: str) -> dict[str, Any]:
    """Read a ``.npy`` file that holds one pickled dictionary.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.

    Returns
    -------
    dict
        Arrays (read-only), numbers and strings; `types.SimpleNamespace` for objects of
        scikit-learn. Each array is read once, into the memory it stays in.

    Raises
    ------
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short or damaged.
    ModelError
        If it holds something else, or objects that are not admitted.
    """
    url = url_of(location, key)
    with opened(location, key) as file:
        check_header(file, url)
        with damage_explained(url):
            whole = unpickled(file, url)
    if isinstance(whole, np.ndarray) and whole.shape == ():
        whole = whole.item()
    return as_dictionary(whole, url)


def check_header(file: IO[bytes], url: str) -> None:
    """Read the header of the array; behind it is the pickle."""
    start = file.read(6)
    if start != b"\x93NUMPY":
        found = "is empty" if not start else f"begins with {start!r}"
        raise CorruptStoreError(f"{url} is not a .npy file, it {found}. Fetch it again")
    file.seek(0)
    with damage_explained(url):
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    if shape != () or dtype.kind != "O":
        raise ModelError(
            f"{url} holds an array {shape} of {dtype}, expected one pickled dictionary: it is "
            "another kind of file"
        )


def read_pt(location: Location, key: str) -> dict[str, Any]:
    """Read a ``.pt`` file that torch saved, without torch.

    Of a file far away only the parts that are wanted are fetched.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.

    Returns
    -------
    dict
        State dicts of arrays (read-only, of the dtype of the file) for tensors, wherever these
        were; `types.SimpleNamespace` for the arguments of a command line. `UNREAD` is left out.

    Raises
    ------
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short or damaged; torch keeps a checksum of each tensor.
    ModelError
        If it holds something else, or objects that are not admitted.
    """
    url = url_of(location, key)
    with opened(location, key) as file:
        start = file.read(4)
        if start != b"PK\x03\x04":
            found = "is empty" if not start else f"begins with {start!r}"
            raise CorruptStoreError(
                f"{url} is not a .pt file of torch 1.6 or later, it {found}. Fetch it again"
            )
        with damage_explained(url), zipfile.ZipFile(file) as archive:
            root = torch_root(archive)
            stored = io.BytesIO(archive.read(f"{root}/data.pkl"))
            whole = _Unpickler(stored, url, {**ADMITTED, **TORCH}).load()
            wanted = {k: v for k, v in as_dictionary(whole, url).items() if k != UNREAD}
            found = resolved(wanted, lambda tensor: tensor_values(archive, root, tensor))
    return as_dictionary(found, url)


def torch_root(archive: zipfile.ZipFile) -> str:
    """Return the folder inside the file, which has the name it was first saved under."""
    for name in archive.namelist():
        if name.endswith("/data.pkl"):
            return name.removesuffix("/data.pkl")
    raise pickle.UnpicklingError("it has no data.pkl")


def tensor_values(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> np.ndarray:
    """Read a tensor."""
    return tensor_in(archive.read(f"{root}/data/{tensor.storage[1]}"), tensor)


def tensor_in(storage: Any, tensor: _Tensor) -> np.ndarray:
    """See a tensor in the bytes of its storage; numpy checks that it lies within them."""
    flat = _taken(storage, tensor.storage[0])
    size = flat.dtype.itemsize
    strides = [step * size for step in tensor.strides]
    found: np.ndarray = np.ndarray(tensor.shape, flat.dtype, flat, tensor.offset * size, strides)
    return found


def resolved(value: Any, read: Callable[[_Tensor], np.ndarray] | None = None) -> Any:
    """Put arrays in the place of what stands for them, in all containers."""
    if isinstance(value, _Array | _OutOfLine):
        return value.array
    if isinstance(value, _Dtype):
        return value.dtype
    if isinstance(value, _Tensor) and read is not None:
        return read(value)
    if isinstance(value, dict):
        return {key: resolved(each, read) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolved(each, read) for each in value)
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**resolved(vars(value), read))
    return value


def as_dictionary(value: Any, url: str) -> dict[str, Any]:
    """Return what a file holds, which must be a dictionary."""
    if not isinstance(value, dict):
        raise ModelError(f"{url} holds a {type(value).__name__}, expected a dictionary")
    return value


def damage_explained(url: str) -> AbstractContextManager[None]:
    """Turn whatever a damaged pickle makes readers raise into one error that names it."""
    return damage_told(url, _DAMAGE)
