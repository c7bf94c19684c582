"""Pickles of others, read without running what is in them."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from importlib import import_module
from typing import IO, Any

import numpy as np

from nedx.errors import CorruptStoreError, ModelError, NedxError, StoreError
from nedx.store.location import Location, remote_errors

_PIECE = 2**22


class Kept:
    """Stands in for an object of another package: its attributes, and none of its code."""


_RECONSTRUCT = ("_reconstruct", "scalar")
_STAND_INS = {
    ("sklearn.decomposition._pca", "PCA"),
    ("sklearn.preprocessing._data", "StandardScaler"),
    ("sklearn.linear_model._base", "LinearRegression"),
    ("argparse", "Namespace"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads numpy arrays in the containers of Python, and `Kept` for a few named classes.

    Raises
    ------
    pickle.UnpicklingError
        If the file names anything else; nothing of it is imported or run.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what a global of the file stands for here."""
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("numpy._core.multiarray", "numpy.core.multiarray") and name in _RECONSTRUCT:
            return getattr(import_module("numpy._core.multiarray"), name)
        if module in ("numpy._core.numeric", "numpy.core.numeric") and name == "_frombuffer":
            return import_module("numpy._core.numeric")._frombuffer
        if (module, name) == ("_codecs", "encode"):
            return import_module("_codecs").encode
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in _STAND_INS:
            return type(name, (Kept,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}")


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
        Arrays, numbers and strings; `Kept` for objects of scikit-learn. Each array is read
        once, into the memory it stays in.

    Raises
    ------
    StoreError
        If the file is not there or cannot be reached.
    CorruptStoreError
        If it is cut short or damaged.
    ModelError
        If it holds something else, or objects that are not admitted.
    """
    url = f"{location.url.rstrip('/')}/{key}"
    filesystem, base = location.filesystem()
    try:
        with (
            filesystem.open(
                f"{base}/{key}", "rb", block_size=_PIECE, cache_type="readahead"
            ) as raw,
            io.BufferedReader(raw, _PIECE) as file,
        ):
            found = _unpickled(file, url)
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {url}. Check the root, or fetch the file") from error
    except NedxError:
        raise
    except remote_errors() as error:
        raise location.failed(error, key) from error
    if not isinstance(found, dict):
        raise ModelError(f"{url} holds a {type(found).__name__}, expected a dictionary")
    return found


def _unpickled(file: IO[bytes], url: str) -> Any:
    """Read the header of the array, then the pickle behind it."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    except ValueError as error:
        raise CorruptStoreError(
            f"{url} is not a .npy file, or not all of one ({error}). Fetch it again"
        ) from error
    if shape != () or dtype.kind != "O":
        raise ModelError(
            f"{url} holds an array {shape} of {dtype}, expected one pickled dictionary: it is "
            "another kind of file"
        )
    try:
        whole = RestrictedUnpickler(file).load()
    except pickle.UnpicklingError as error:
        if "it names" in str(error):
            raise ModelError(
                f"{url} is refused: {error}, and only numpy arrays and parameters of "
                "scikit-learn are read. Such a file could run any code; ask who made it"
            ) from error
        raise _cut_short(url, error) from error
    except (EOFError, ValueError, IndexError, KeyError, TypeError, MemoryError) as error:
        raise _cut_short(url, error) from error
    return whole.item() if isinstance(whole, np.ndarray) and whole.shape == () else whole


def _cut_short(url: str, error: Exception) -> CorruptStoreError:
    return CorruptStoreError(f"{url} is cut short or damaged ({error}). Fetch it again")
