"""Feature decoders of bdpy: one folder a layer, subject and ROI, with files of MATLAB or pickles.

A folder holds ``W`` and ``b``, in one file or one for each channel, ``x_mean``, ``x_norm``,
``y_mean`` and ``y_norm``. Responses are standardised by x, multiplied, and brought back by y. Of
the weights of a unit most are 0: what is kept are its voxels and their weights, as of
`nedx.linear.l2lir.L2LiRFit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import yaml
from dask.base import tokenize

from nedx.errors import SourceError
from nedx.selection import Names
from nedx.sources.bdata.features import listed, tree_files
from nedx.sources.bdata.matlab_arrays import StoredArray, open_stored, read_stored
from nedx.sources.bdata.norms import missing_norms, read_norms
from nedx.sources.berg.pickles import ADMITTED, as_dictionary, damage_explained, unpickled
from nedx.sources.berg.streams import opened, url_of
from nedx.store.location import Location

LAYOUT = "{layer}/{subject}/{roi}/model"
"""Where the folders of decoders lie."""

_PICKLED: Mapping[tuple[str, str], Any] = {
    **ADMITTED,
    ("fastl2lir.fastl2lir", "FastL2LiR"): SimpleNamespace,
    ("sklearn.linear_model._ridge", "Ridge"): SimpleNamespace,
}
_WEIGHTS, _BIAS = "_FastL2LiR__W", "_FastL2LiR__b"
_UNITS_PER_TASK = 1024
_NORMS = {
    "x_mean": "response_mean",
    "x_norm": "response_deviation",
    "y_mean": "feature_mean",
    "y_norm": "feature_deviation",
}


def open_decoders(
    root: str | Path | Location,
    *,
    layout: str = LAYOUT,
    layers: Names | None = None,
    **choices: str,
) -> xr.DataTree:
    """Open the decoders of all layers, lazily.

    Parameters
    ----------
    root : str, Path or Location
        What the folders of the layers lie in.
    layout : str
        Folders from there to the files.
    layers : str or sequence of str, optional
        Which; all by default.
    **choices
        What to take where there are several: ``subject="sub-01", roi="ROI_VC"``.

    Returns
    -------
    DataTree
        A child for each layer, see `open_decoder`; the choices are attributes.

    Raises
    ------
    SelectionError
        If a layer or choice is not there, or several are and none was chosen.
    SourceError, StoreError, CorruptStoreError, ModelError
        As of `open_decoder`.
    """
    where = Location.of(root)
    files, chosen = tree_files(where, layout, layers, choices)
    nodes = {
        layer: open_decoder(where.child(keys[0].rpartition("/")[0]))
        for layer, keys in files.items()
    }
    tree = {layer: ds.assign_attrs(layer=layer, **chosen) for layer, ds in nodes.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=chosen), **tree})


def open_decoder(folder: str | Path | Location) -> xr.Dataset:
    """Open one decoder lazily, for each unit the voxels that it reads, and their weights.

    Parameters
    ----------
    folder : str, Path or Location
        The folder ``model``.

    Returns
    -------
    Dataset
        ``index (unit, selected)`` int32, positions of voxels, rising; ``weight (unit, selected)``
        and ``bias (unit)`` of the dtype of the files; ``response_mean``, ``response_deviation
        (voxel)``, ``feature_mean``, ``feature_deviation (unit)``. Units are in C order of
        ``unit_shape``, an attribute. A unit that did not vary while it was fitted has NaN in the
        files; here its weights and bias are 0, so that its mean is predicted.

    Raises
    ------
    SourceError
        If files are missing or do not belong together, or fitting was not finished.
    StoreError, CorruptStoreError
        If a file cannot be read, or is damaged.
    ModelError
        If a pickle names anything but numpy, FastL2LiR and Ridge.
    """
    root = Location.of(folder)
    names = {name for name, _ in listed(root, "")}
    _check_finished(root, names)
    if missing := missing_norms(names):
        raise SourceError(
            f"{root.url} has no {', '.join(missing)}, so that it is no folder of a decoder"
        )
    norms = {_NORMS[name]: values for name, values in read_norms(root).items()}
    shape = open_stored(root, "y_mean.mat", "y_mean").shape[1:]
    voxels, units = len(norms["response_mean"]), len(norms["feature_mean"])
    parts = _parts(root, names, voxels, units)
    if sum(part.units for part in parts) != units:
        raise SourceError(
            f"{root.url} has weights of {sum(part.units for part in parts):,} units, y_mean has "
            f"{units:,}: files are missing, or of another layer"
        )
    index, weight, bias = _joined(parts, _selected(parts, norms["feature_deviation"] > 0))
    dims = {"response_mean": "voxel", "response_deviation": "voxel"}
    variables = {
        "index": (("unit", "selected"), index),
        "weight": (("unit", "selected"), weight),
        "bias": ("unit", bias),
        **{name: (dims.get(name, "unit"), values) for name, values in norms.items()},
    }
    coords = {
        name: np.arange(n, dtype=np.int32) for name, n in (("voxel", voxels), ("unit", units))
    }
    return xr.Dataset(variables, coords, {"unit_shape": list(shape)})


def _check_finished(root: Location, names: set[str]) -> None:
    if "info.yaml" not in names:
        return
    try:
        info = yaml.safe_load(root.read("info.yaml")) or {}
        status = info["_status"]["computation_status"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return
    if status != "done":
        raise SourceError(f"the decoder in {root.url} was not finished: its status is {status!r}")


@dataclass(frozen=True, eq=False)
class Part:
    """Weights of some units: what one task of dask reads.

    Parameters
    ----------
    read : callable
        Returns ``W`` as voxel and unit of each value, int64, with the values, and ``b (unit,)``.
    units : int
    voxels : int
    dtype : dtype
        Of the weights.
    name : str
        For messages, and the names of tasks.
    values : int, optional
        How many the file has, where it says so.
    """

    read: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    units: int
    voxels: int
    dtype: np.dtype
    name: str
    values: int | None = None

    def counted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Read it without what is 0 or NaN; weights and bias of units that have NaN are 0."""
        voxel, unit, value, bias = self.read()
        dead = np.zeros(self.units, bool)
        dead[unit[np.isnan(value)]] = True
        dead |= np.isnan(bias)
        kept = (value != 0) & ~dead[unit]
        return voxel[kept], unit[kept], value[kept], np.where(dead, 0, bias).astype(self.dtype)

    def compact(self, selected: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return index and weight (unit, selected), and bias (unit,).

        Units of fewer voxels are filled up with others, of weight 0.
        """
        voxel, unit, value, bias = self.counted()
        counts = np.bincount(unit, minlength=self.units)
        if counts.max(initial=0) > selected:
            raise SourceError(
                f"{self.name} has a unit of {counts.max():,} voxels, the first units of the layer "
                f"have {selected:,}: its files are not of one fit"
            )
        if (short := np.flatnonzero(counts < selected)).size:
            fill = [self._unused(voxel[unit == one], selected) for one in short.tolist()]
            voxel = np.concatenate([voxel, *fill])
            unit = np.concatenate([unit, np.repeat(short, [len(some) for some in fill])])
            value = np.concatenate([value, np.zeros(len(voxel) - len(value), value.dtype)])
        order = np.lexsort((voxel, unit))
        shape = (self.units, selected)
        index = voxel[order].reshape(shape).astype(np.int32)
        return index, value[order].reshape(shape).astype(self.dtype), bias

    def _unused(self, used: np.ndarray, selected: int) -> np.ndarray:
        free = np.setdiff1d(np.arange(min(self.voxels, selected + len(used))), used)
        found: np.ndarray = free[: selected - len(used)]
        return found


def _selected(parts: Sequence[Part], varied: np.ndarray) -> int:
    """Return how many voxels a unit has, the same for all, as the first ones that varied say.

    Parameters
    ----------
    parts : sequence of Part
    varied : ndarray of bool, (unit,)
        Units that did while they were fitted; of others files have NaN or 0.
    """
    first = parts[0]
    if first.values and first.values % first.units == 0 and varied[: first.units].all():
        # All units have as many, as they should: no need to read any.
        return first.values // first.units
    for part in parts:
        _, unit, _, _ = part.counted()
        if unit.size:
            return int(np.bincount(unit).max())
    return 1


def _joined(parts: list[Part], selected: int) -> tuple[da.Array, da.Array, da.Array]:
    """Return index, weight and bias of all units; one task reads what all three have of a part."""
    token = tokenize([(part.name, part.units) for part in parts], selected)
    units = tuple(part.units for part in parts)
    read: dict[Any, Any] = {
        (f"decoder-{token}", i): (_compacted, part, selected) for i, part in enumerate(parts)
    }
    found = []
    for place, (name, wide, dtype) in enumerate(
        (
            ("index", True, np.dtype(np.int32)),
            ("weight", True, parts[0].dtype),
            ("bias", False, parts[0].dtype),
        )
    ):
        key = f"decoder-{name}-{token}"
        zeros = (0,) if wide else ()
        graph = {
            (key, i, *zeros): (_taken, (f"decoder-{token}", i), place) for i in range(len(parts))
        }
        chunks = (units, *(((selected,),) if wide else ()))
        found.append(da.Array({**read, **graph}, key, chunks, dtype=dtype))
    return found[0], found[1], found[2]


def _compacted(part: Part, selected: int) -> tuple[np.ndarray, ...]:
    return part.compact(selected)


def _taken(arrays: tuple[np.ndarray, ...], place: int) -> np.ndarray:
    return arrays[place]


def _parts(root: Location, names: set[str], voxels: int, units: int) -> list[Part]:
    """Return the parts of the weights, in the order of the units."""
    pickles = sorted(name for name in names if name.endswith((".pkl.gz", ".pkl")))
    if pickles:
        return [_of_pickle(root, name, voxels) for name in pickles]
    if "W.mat" in names:
        stored = open_stored(root, "W.mat", "W")
        count = _checked(root, stored, voxels, has_bias="b.mat" in names)
        step = _UNITS_PER_TASK if stored.ndim == 2 and not stored.is_sparse else count
        edges = range(0, count, step)
        return [_of_columns(stored, root, slice(i, min(count, i + step))) for i in edges]
    if "W" not in names:
        raise SourceError(f"{root.url} has neither W.mat, nor a folder W, nor pickles")
    keys = sorted(name for name, _ in listed(root, "W") if name.endswith(".mat"))
    if not keys:
        raise SourceError(f"{root.url}/W has no .mat files")
    biases = {name for name, _ in listed(root, "b")} if "b" in names else set()
    first = open_stored(root, f"W/{keys[0]}", "W")
    count = _checked(root, first, voxels, has_bias=biases.issuperset(keys))
    return [_of_channel(root, key, first, count) for key in keys]


def _checked(root: Location, stored: StoredArray, voxels: int, *, has_bias: bool) -> int:
    """Return how many units a file of weights has, if it belongs here."""
    if stored.shape[0] != voxels:
        raise SourceError(
            f"{stored.url} has weights of {stored.shape[0]:,} voxels, x_mean has {voxels:,}: they "
            "are not of one decoder"
        )
    if not has_bias:
        raise SourceError(f"{root.url} lacks files of b that it has of W: fetch it again")
    return int(np.prod(stored.shape[1:], dtype=np.int64))


def _of_channel(root: Location, key: str, first: StoredArray, units: int) -> Part:
    """Return the part of one channel: files of the same name in ``W`` and ``b``."""
    reader = _ChannelReader(root, key, first.shape, first.is_sparse)
    url, is_first = url_of(root, f"W/{key}"), key == first.key.rpartition("/")[2]
    return Part(reader, units, first.shape[0], first.dtype, url, first.values if is_first else None)


@dataclass(frozen=True)
class _ChannelReader:
    root: Location
    key: str
    shape: tuple[int, ...]
    is_sparse: bool

    def __call__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        stored = StoredArray(
            self.root, f"W/{self.key}", "W", self.shape, np.dtype(np.float32), self.is_sparse
        )
        bias = np.ravel(read_stored(self.root, f"b/{self.key}", "b"))
        return (*_values(stored, self.shape), bias)


def _of_columns(stored: StoredArray, root: Location, columns: slice) -> Part:
    """Return the part of some columns of one file."""
    reader = _ColumnsReader(stored, root, columns)
    name = f"{stored.url} from unit {columns.start:,}"
    units = columns.stop - columns.start
    return Part(reader, units, stored.shape[0], stored.dtype, name, stored.values)


@dataclass(frozen=True)
class _ColumnsReader:
    stored: StoredArray
    root: Location
    columns: slice

    def __call__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        bias = np.ravel(read_stored(self.root, "b.mat", "b"))[self.columns]
        if self.stored.is_sparse or self.stored.ndim != 2:
            return (*_values(self.stored, self.stored.shape), bias)
        part = self.stored[:, self.columns]
        voxel, unit = np.nonzero(part)
        return voxel, unit, part[voxel, unit], bias


def _values(
    stored: StoredArray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return voxel and unit of every value of ``W (voxel, ...)``, units in C order."""
    if stored.is_sparse:
        sparse = stored.read_sparse()
        where, value, found = tuple(sparse.index), sparse.value, sparse.shape
    else:
        dense = stored.read()
        where, found = np.nonzero(dense), dense.shape
        value = dense[where]
    if found != shape:
        raise SourceError(
            f"{stored.url} has weights of the shape {found}, the first file of the layer {shape}: "
            "they are not of one decoder"
        )
    return where[0], np.ravel_multi_index(where[1:], shape[1:]), value


def _of_pickle(root: Location, key: str, voxels: int) -> Part:
    weights, _ = _read_pickle(root, key)
    if len(weights) != voxels:
        raise SourceError(
            f"{url_of(root, key)} has weights of {len(weights):,} voxels, x_mean has {voxels:,}: "
            "they are not of one decoder"
        )
    reader = _PickleReader(root, key)
    return Part(reader, weights.shape[1], voxels, weights.dtype, url_of(root, key))


@dataclass(frozen=True)
class _PickleReader:
    root: Location
    key: str

    def __call__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        weights, bias = _read_pickle(self.root, self.key)
        voxel, unit = np.nonzero(weights)
        return voxel, unit, weights[voxel, unit], bias


def _read_pickle(root: Location, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``W (voxel, unit)`` and ``b (unit,)`` with units in C order."""
    url = url_of(root, key)
    with opened(root, key) as file, damage_explained(url):
        held = as_dictionary(unpickled(file, url, _PICKLED), url)
    if lacking := [name for name in ("model", "y_shape") if name not in held]:
        raise SourceError(f"{url} lacks {', '.join(lacking)}: it is no decoder")
    parameters = vars(held["model"]) if isinstance(held["model"], SimpleNamespace) else {}
    if _WEIGHTS in parameters:
        weights, bias = parameters[_WEIGHTS], parameters[_BIAS]
    elif "coef_" in parameters:
        weights, bias = np.atleast_2d(parameters["coef_"]).T, parameters["intercept_"]
    else:
        raise SourceError(f"{url} holds neither a FastL2LiR nor a Ridge that was fitted")
    shape = tuple(int(n) for n in held["y_shape"])
    count = int(np.prod(shape, dtype=np.int64))
    if weights.size != len(weights) * count:
        raise SourceError(f"{url} has weights {weights.shape}, which do not belong to {shape}")
    # Units were laid out in Fortran order before they were fitted.
    order = np.arange(count).reshape(shape, order="F").ravel()
    flat = np.broadcast_to(np.ravel(bias), (count,))
    return weights.reshape(len(weights), count)[:, order], flat[order]
