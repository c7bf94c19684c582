"""What a BData file is made of: a matrix of samples by columns, and what its columns mean.

Layout of HDF5: ``/dataset`` (sample, column) float64, ``/metadata/key``, ``/metadata/description``
and ``/metadata/value`` (key, column), NaN where a key does not apply, ``/vmap/<key>/<number>``
with the name of a number, and ``/header``. Older files, and those of MATLAB 5, have ``dataSet``
and ``metaData``. A header may hold the source of every program on the way: it is not read, but
for what `nedx.sources.bdata.writing` puts there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.compute.planned import Indexer
from nedx.errors import CorruptStoreError, SourceError, StoreError
from nedx.sources.bdata.matlab_arrays import folder_and_name, opened_file
from nedx.sources.berg.streams import stamp, url_of
from nedx.store.lazy import TARGET_BYTES
from nedx.store.location import Location

DATASETS = ("dataset", "dataSet")
METADATA = ("metadata", "metaData")
HEADER = "nedx"
"""Where in ``/header`` what BData has no place for is kept, as JSON."""

_GAP = 512
"""Columns between two that are wanted which are read rather than skipped: a page of the disk."""


@dataclass(frozen=True)
class MatrixFile:
    """The matrix of a BData file: a reference, which graphs carry instead of values.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.
    name : str
        Of the matrix in the file.
    shape : tuple of int
        ``(sample, column)``.
    is_hdf5 : bool
        Whether parts of it can be read.
    stamp : str
        Changes when the file does.
    """

    location: Location
    key: str
    name: str
    shape: tuple[int, int]
    is_hdf5: bool
    stamp: str

    @property
    def url(self) -> str:
        """The file, for messages."""
        return url_of(self.location, self.key)

    def read(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Read float64 (row, column) at ascending positions.

        Of columns that lie close together those in between are read, too; of rows only those
        that are wanted.

        Raises
        ------
        StoreError
            If a file on this machine has changed since it was opened: columns may lie elsewhere.
        """
        with opened_file(self.location, self.key) as container:
            if self.location.is_local and stamp(self.location, self.key) != self.stamp:
                raise StoreError(f"{self.url} has changed since it was opened: open it again")
            held = container[self.name]
            if isinstance(held, np.ndarray):
                return np.asarray(held, np.float64)[np.ix_(rows, columns)]
            found = np.empty((len(rows), len(columns)), np.float64)
            for top, bottom in _runs(rows, 1):
                here = slice(int(rows[top]), int(rows[bottom - 1]) + 1)
                for left, right in _runs(columns, _GAP):
                    start = int(columns[left])
                    part = held[here, start : int(columns[right - 1]) + 1]
                    found[top:bottom, left:right] = part[:, columns[left:right] - start]
            return found


def _runs(positions: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Cut ascending positions where more than ``gap`` lie between two."""
    edges = [0, *(np.flatnonzero(np.diff(positions) > gap) + 1).tolist(), len(positions)]
    return list(zip(edges[:-1], edges[1:], strict=True))


@dataclass(frozen=True)
class Container:
    """A BData file, of which all but the matrix was read.

    Parameters
    ----------
    matrix : MatrixFile
    keys : tuple of str
        Of the metadata.
    descriptions : tuple of str
        Of each key.
    values : numpy.ndarray of float64, (key, column)
        NaN where a key does not apply.
    names : dict of str to dict
        Of some keys the name of each number.
    header : dict
        What nedx wrote of a Dataset; empty for files of others.
    """

    matrix: MatrixFile
    keys: tuple[str, ...]
    descriptions: tuple[str, ...]
    values: np.ndarray
    names: dict[str, dict[float, str]]
    header: dict[str, Any]

    def row(self, key: str) -> np.ndarray:
        """Return the values of a key, (column,)."""
        found: np.ndarray = self.values[self.keys.index(key)]
        return found


def open_container(place: str | Path | Location) -> Container:
    """Read what the columns of a BData file mean, and where the matrix lies.

    Parameters
    ----------
    place : str, Path or Location
        An ``.h5`` file, new or old, or a ``.mat`` file of MATLAB 5.

    Returns
    -------
    Container

    Raises
    ------
    StoreError, CorruptStoreError
        If the file is missing, cut short or damaged.
    SourceError
        If it is no BData, or its parts do not fit together.
    """
    location, key = folder_and_name(place)
    url = url_of(location, key)
    if location.is_local and (folder := Path(location.filesystem()[1], key)).is_dir():
        there = ", ".join(sorted(path.name for path in folder.glob("*.h5"))[:5]) or "no .h5 files"
        raise SourceError(f"{url} is a folder, expected one file of it; there are: {there}")
    with opened_file(location, key) as held:
        dataset = next((name for name in DATASETS if name in held), None)
        metadata = next((name for name in METADATA if name in held), None)
        if dataset is None or metadata is None:
            there = ", ".join(name for name in held if not name.startswith("#")) or "nothing"
            raise SourceError(
                f"{url} is no BData: it needs 'dataset' and 'metadata' (or 'dataSet' and "
                f"'metaData'), and holds {there}"
            )
        is_hdf5 = not isinstance(held[dataset], np.ndarray)
        shape = tuple(int(n) for n in held[dataset].shape)
        keys, descriptions, values = _metadata(held[metadata])
        names = _value_maps(held["vmap"], url) if is_hdf5 and "vmap" in held else {}
        header = _header(held) if is_hdf5 else {}
    if len(shape) != 2 or values.shape != (len(keys), shape[-1]) or len(descriptions) != len(keys):
        raise SourceError(
            f"{url} does not fit together: the dataset has the shape {shape}, the metadata "
            f"{len(keys)} keys, {len(descriptions)} descriptions and values of the shape "
            f"{values.shape}, expected (keys, columns)"
        )
    if not shape[0]:
        raise SourceError(f"{url} has no samples")
    if twice := [name for name, count in Counter(keys).items() if count > 1]:
        raise SourceError(f"{url} has the key {twice[0]!r} more than once")
    matrix = MatrixFile(location, key, dataset, (shape[0], shape[1]), is_hdf5, stamp(location, key))
    return Container(matrix, tuple(keys), tuple(descriptions), values, names, header)


def _metadata(held: Any) -> tuple[list[str], list[str], np.ndarray]:
    """Read keys, descriptions and values, of a group of HDF5 or a struct of MATLAB."""
    if isinstance(held, np.ndarray):
        fields = held.dtype.names or ()
        parts = {name: held[name].ravel()[0] for name in fields if held.size}
    else:
        parts = {name: held[name][()] for name in held}
    if lacking := [name for name in ("key", "description", "value") if name not in parts]:
        raise SourceError(f"the metadata of this BData lack {', '.join(lacking)}")
    values = np.atleast_2d(np.asarray(parts["value"], np.float64))
    return _strings(parts["key"]), _strings(parts["description"]), values


def _strings(held: Any) -> list[str]:
    """Return strings, whichever way they are stored: of fixed or any length, in cells or not."""
    found = []
    for one in np.asarray(held).ravel().tolist():
        while isinstance(one, np.ndarray):
            one = one.ravel()[0] if one.size else ""
        text = one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
        found.append(text.strip("\0 "))
    return found


def _value_maps(held: Any, url: str) -> dict[str, dict[float, str]]:
    found: dict[str, dict[float, str]] = {}
    for key in held:
        names = found.setdefault(key, {})
        for number, name in held[key].items():
            try:
                names[float(number)] = _strings(name[()])[0]
            except ValueError as error:
                raise SourceError(
                    f"the value map of {key!r} in {url} names {number!r}, no number"
                ) from error
    return found


def _header(held: Any) -> dict[str, Any]:
    header = held.get("header", {})
    if HEADER not in header:
        return {}
    try:
        found = json.loads(_strings(header[HEADER][()])[0])
    except json.JSONDecodeError as error:
        raise CorruptStoreError(f"the header of this BData is damaged ({error})") from error
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, eq=False)
class MatrixBlock:
    """Some rows and columns of a matrix; what a dask task calls."""

    matrix: MatrixFile
    rows: np.ndarray
    columns: np.ndarray
    dtype: str

    def __call__(self) -> np.ndarray:
        """Read ``(sample, neuroid)``, and bring them into the order that is wanted."""
        rows, row_order = np.unique(self.rows, return_inverse=True)
        columns, column_order = np.unique(self.columns, return_inverse=True)
        if not rows.size or not columns.size:
            return np.empty((len(self.rows), len(self.columns)), self.dtype)
        values = self.matrix.read(rows, columns)
        return values[np.ix_(row_order, column_order)].astype(self.dtype)


@dataclass(frozen=True, eq=False)
class MatrixPlan:
    """Lazy ``(sample, neuroid)`` of a BData file; selecting keeps it exact.

    Parameters
    ----------
    matrix : MatrixFile
    rows : numpy.ndarray of int64, (sample,)
        In the order wanted.
    columns : numpy.ndarray of int64, (neuroid,)
        In the order wanted.
    dtype : str
        ``"float32"`` or ``"float64"``.
    """

    matrix: MatrixFile
    rows: np.ndarray = field(repr=False)
    columns: np.ndarray = field(repr=False)
    dtype: str = "float32"

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        return tokenize("nedx.MatrixPlan", self.matrix, self.rows, self.columns, self.dtype)

    def build(self) -> da.Array:
        """Return the dask array, one task a group of rows, without reading anything."""
        step = (
            max(1, TARGET_BYTES // (8 * self._width())) if self.matrix.is_hdf5 else len(self.rows)
        )
        step = max(1, step)
        parts = [self.rows[i : i + step] for i in range(0, len(self.rows), step)] or [self.rows]
        name = f"bdata-{tokenize(self)}"
        graph = {
            (name, i, 0): (MatrixBlock(self.matrix, part, self.columns, self.dtype),)
            for i, part in enumerate(parts)
        }
        chunks = (tuple(len(part) for part in parts), (len(self.columns),))
        return da.Array(graph, name, chunks, dtype=np.dtype(self.dtype))

    def _width(self) -> int:
        """Return how many columns are read for those that are wanted."""
        if not self.columns.size:
            return 1
        columns = np.unique(self.columns)
        return sum(int(columns[b - 1] - columns[a]) + 1 for a, b in _runs(columns, _GAP))

    def narrow(self, indexers: Sequence[Indexer]) -> MatrixPlan:
        """Return the plan of what remains."""
        rows, columns = indexers
        return replace(self, rows=self.rows[rows], columns=self.columns[columns])
