"""Responses as BData, for programs that read it: one HDF5 file, float64, by the published layout.

What BData has no place for, units and attributes, goes into ``/header/nedx`` as JSON, where
`nedx.sources.bdata.reading.open_bdata` finds it again. No call stacks are written.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import StoreError, StoreExistsError, require
from nedx.schema import neuroid_dim, sample_dim
from nedx.sources.bdata.container import HEADER
from nedx.sources.bdata.reading import HEMISPHERES, RENAMED
from nedx.sources.berg.hdf5 import HDF5_LOCK
from nedx.store.lazy import TARGET_BYTES
from nedx.store.location import Location

_BLOCK_OF = {"voxel": "VoxelData", "vertex": "VertexData", "unit": "Data"}
_POSITION_KEYS = {name: key for key, name in RENAMED.items() if key.startswith("voxel_")}


def to_bdata(ds: xr.Dataset, place: str | Path | Location, *, overwrite: bool = False) -> Location:
    """Write responses as a BData file; values are computed and written block by block.

    Parameters
    ----------
    ds : Dataset
        ``response (image | trial, voxel | vertex | unit)``. Labels of samples become columns,
        strings among them numbers with a value map; ROIs and numbers along voxels become rows of
        the metadata.
    place : str, Path or Location
        A file on this machine, such as ``"sub-01_test.h5"``.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Location
        Of the file, which appears whole or not at all.

    Raises
    ------
    StoreError
        If the Dataset has something that BData cannot hold; names all of it, and what to type.
    StoreExistsError
        If the file exists; nothing is changed.
    """
    h5py = require("h5py", "hdf5")
    location = Location.of(place)
    if not location.is_local:
        raise StoreError(f"BData is written to this machine; copy it to {location.url} afterwards")
    if location.exists() and not overwrite:
        raise StoreExistsError(
            f"{location.url} exists already and was not changed. Choose another place, or type "
            "overwrite=True"
        )
    table = _table(ds)
    target = Path(location.url)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with HDF5_LOCK:
            file = h5py.File(partial, "w")
        try:
            with HDF5_LOCK:
                _write_metadata(file, table, h5py.string_dtype())
            _write_matrix(file, ds["response"], table)
        finally:
            with HDF5_LOCK:
                file.close()
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return location


@dataclass
class _Table:
    """The columns of samples beside the responses, and the rows that describe all columns.

    Columns of responses come first.
    """

    neuroids: int
    columns: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[str, slice, np.ndarray | float]] = field(default_factory=list)
    maps: dict[str, dict[float, str]] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The number of all columns."""
        return self.neuroids + sum(part.shape[1] for part in self.columns)

    def describe(self, key: str, values: np.ndarray) -> None:
        """Add a row about the responses."""
        self.rows.append((key, slice(0, self.neuroids), values.astype(np.float64)))

    def add(self, key: str, values: np.ndarray) -> None:
        """Add labels of samples, (sample,) or (sample, column)."""
        values = values.reshape(len(values), -1).astype(np.float64)
        start = self.width
        self.columns.append(values)
        self.rows.append((key, slice(start, start + values.shape[1]), 1.0))


def _table(ds: xr.Dataset) -> _Table:
    """Sort what the Dataset has into columns and rows, and refuse what has no place."""
    if "response" not in ds:
        raise StoreError("BData hold responses, and there is no variable 'response'")
    sample, neuroid = sample_dim(ds), neuroid_dim(ds)
    dims = ds["response"].dims
    if neuroid not in _BLOCK_OF or set(dims) != {sample, neuroid}:
        raise StoreError(
            f"BData hold responses of samples by {', '.join(_BLOCK_OF)}; these have {dims}: "
            "average or select until two dimensions are left"
        )
    table = _Table(ds.sizes[neuroid])
    table.descriptions = dict(ds.attrs.get("bdata_descriptions", {}))
    table.rows.append((_BLOCK_OF[neuroid], slice(0, table.neuroids), 1.0))
    misfits = [str(name) for name in ds.data_vars if name not in ("response", "roi_mask")]
    strings: list[str] = []
    scalars: dict[str, Any] = {}
    for name in map(str, ds.coords):
        coord = ds[name]
        if name in ("roi", "roi_mask") or coord.attrs.get("bdata_names_of") in ds.coords:
            continue
        if not coord.ndim and isinstance(coord.values.item(), str | int | float):
            scalars[name] = coord.values.item()
        elif coord.dims == (neuroid,):
            misfits += _add_row(table, coord, neuroid)
        elif coord.dims[:1] == (sample,) and coord.ndim <= 2 and coord.dtype.kind in "biuf":
            _add_numbers(table, ds, name)
        elif coord.dims == (sample,) and coord.dtype.kind in "OUT":
            strings.append(name)
            _add_strings(table, name, coord.values)
        else:
            misfits.append(name)
    _add_rois(table, ds, neuroid, misfits)
    if misfits:
        raise StoreError(
            f"BData cannot hold {', '.join(map(repr, misfits))}: leave them out with "
            f"ds.drop_vars({misfits!r})"
        )
    about = {key: value for key, value in ds.attrs.items() if key != "bdata_descriptions"}
    table.header = {
        "sample": "image" if sample == "image" else "trial",
        "dataset": about,
        "response": dict(ds["response"].attrs),
        "rois": [str(name) for name in ds["roi"].values] if "roi_mask" in ds else [],
        "strings": strings,
        "scalars": scalars,
    }
    return table


def _add_row(table: _Table, coord: xr.DataArray, dim: str) -> list[str]:
    """Add numbers along the neuroids; return the name of what is no number."""
    name, values = str(coord.name), coord.values
    if name == "hemisphere":
        for key, side in HEMISPHERES.items():
            table.describe(key, values == side)
        return []
    if coord.dtype.kind not in "biuf":
        return [name]
    if name == dim:
        if not np.array_equal(values, np.arange(len(values))):
            table.describe(f"{dim}_id", values)
        return []
    places = _POSITION_KEYS if dim == "voxel" else {}
    table.describe(coord.attrs.get("bdata_key", places.get(name, name)), values)
    return []


def _add_numbers(table: _Table, ds: xr.Dataset, name: str) -> None:
    coord = ds[name]
    key = str(coord.attrs.get("bdata_key", name))
    table.add(key, coord.values)
    texts = ds.coords.get(f"{name}_label")
    if texts is not None and texts.attrs.get("bdata_names_of") == name:
        pairs = zip(coord.values.tolist(), texts.values.tolist(), strict=True)
        table.maps[key] = {float(n): str(text) for n, text in pairs if n == n}


def _add_strings(table: _Table, name: str, values: np.ndarray) -> None:
    texts, numbers = np.unique(values.astype(str), return_inverse=True)
    table.add(name, numbers.reshape(-1))
    table.maps[name] = {float(n): str(text) for n, text in enumerate(texts)}


def _add_rois(table: _Table, ds: xr.Dataset, neuroid: str, misfits: list[str]) -> None:
    if "roi_mask" not in ds:
        return
    if set(ds["roi_mask"].dims) != {"roi", neuroid}:
        misfits.append("roi_mask")
        return
    mask = ds["roi_mask"].transpose("roi", neuroid).values
    for name, row in zip(ds["roi"].values, mask, strict=True):
        table.describe(str(name), row)


def _write_metadata(file: Any, table: _Table, text: Any) -> None:
    keys = [key for key, _, _ in table.rows]
    values = np.full((len(keys), table.width), np.nan)
    for row, (_, where, content) in zip(values, table.rows, strict=True):
        row[where] = content
    descriptions = [table.descriptions.get(key, f"1 = {key}") for key in keys]
    for name, texts in (("key", keys), ("description", descriptions)):
        file.create_dataset(f"metadata/{name}", data=texts, dtype=text)
    file["metadata/value"] = values
    for key, names in table.maps.items():
        for number, name in names.items():
            file[f"vmap/{key}/{number}"] = name.encode()
    file[f"header/{HEADER}"] = json.dumps(table.header, default=_plain)


def _plain(value: Any) -> Any:
    """Return numbers and arrays of numpy as JSON has them."""
    return value.tolist()


def _write_matrix(file: Any, response: xr.DataArray, table: _Table) -> None:
    """Write all columns, contiguous, a group of samples at a time."""
    sample, neuroid = sample_dim(response), str(neuroid_dim(response))
    response = response.transpose(sample, neuroid)
    with HDF5_LOCK:
        matrix = file.create_dataset("dataset", (response.sizes[sample], table.width), np.float64)
        start = table.neuroids
        for part in table.columns:
            matrix[:, start : start + part.shape[1]] = part
            start += part.shape[1]
    step = max(1, TARGET_BYTES // (8 * max(1, table.neuroids)))
    for first in range(0, response.sizes[sample], step):
        values = response.isel({sample: slice(first, first + step)}).values
        with HDF5_LOCK:
            matrix[first : first + len(values), : table.neuroids] = values
