"""BData (KamitaniLab/bdpy): responses of one subject, with labels of samples and of voxels.

The format does not say in which unit values are, nor what was done to them: the caller may. ROIs
and other rows keep the names that they have in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.compute.planned import PlannedArray
from nedx.errors import SelectionError, SourceError, close_matches
from nedx.schema import parse_without_units, subject_label
from nedx.sources.bdata.container import Container, MatrixPlan, open_container
from nedx.sources.trials import earlier_presentations
from nedx.store.location import Location

Precision = Literal["float32", "float64"]

BLOCKS = {"VoxelData": "voxel", "VertexData": "vertex", "feature": "unit", "Data": "unit"}
"""Keys of the columns that hold responses, and the dimension that they become."""
STIMULUS_KEYS = ("image_id", "stimulus_name", "image_index", "stimulus_id")
"""Labels of samples that say which image was shown, the first that is there counts."""
RENAMED = {
    "Session": "session",
    "Run": "run",
    "Block": "block",
    **{f"voxel_{axis}": axis for axis in "xyzijk"},
}
"""Labels that nedx has names of its own for."""
HEMISPHERES = {"VertexLeft": "L", "VertexRight": "R"}
"""Rows of surfaces, and the hemisphere that they mean."""
MISSING = "n/a"
"""The name of a number that is not there."""

_WIDEST_LABEL = 256
_POSITIONS = re.compile(r"(voxel|vertex)_\w+")
_SUBJECT_PREFIX = re.compile(r"(sub-[A-Za-z0-9]+|[Ss](?:ubject)?(\d+))(?:[_-]|$)")
_RESERVED = ("trial", "roi", "roi_mask", "response", *BLOCKS.values())


def open_bdata(
    place: str | Path | Location,
    *,
    subject: str | int | None = None,
    stimulus: str | None = None,
    image_set: str | None = None,
    block: str | None = None,
    modality: str = "fmri",
    units: str | None = None,
    normalization: str | None = None,
    normalization_scope: str | None = None,
    dtype: Precision = "float32",
) -> xr.Dataset:
    """Open a BData file as responses, lazily; labels are read, values when they are asked for.

    Parameters
    ----------
    place : str, Path or Location
        An ``.h5`` file, new (``/dataset``) or old (``/dataSet``), or a ``.mat`` file of MATLAB 5.
        Labels lie in every row of the matrix: a file far away had better be copied first.
    subject : str or int, optional
        Whose; by default what the name of the file begins with, such as ``sub-01_``.
    stimulus : str, optional
        The label that says which image was shown; by default the first of `STIMULUS_KEYS`.
    image_set : str, optional
        What stands before it in ``image_id``; by default the name of the file without the
        subject, so that files of the same images join over subjects.
    block : str, optional
        The key of the columns that hold responses; by default one of `BLOCKS`.
    modality : {"fmri", "eeg", "meg", "ieeg", "ephys"}
        Of the recording.
    units, normalization, normalization_scope : str, optional
        As `nedx.validate` wants them of responses. What is said neither here nor by a file of
        nedx stays unsaid: the responses can be used, but are not valid.
    dtype : {"float32", "float64"}
        Of the responses; files hold float64, stores of nedx float32.

    Returns
    -------
    Dataset
        ``response (trial, voxel | vertex | unit)``. Along ``trial``: every label of samples (with
        names also ``<label>_label``, ``"n/a"`` where there is none), ``image_id`` and
        ``repetition`` (from 0). Labels of several columns are ``(trial, <label>_column)``; keys
        of more than 256 are blocks of their own and left out. Along
        voxels: ``roi_mask (roi, ...)`` of all rows of 0 and 1, indices ``i``, ``j``, ``k`` and
        positions ``x``, ``y``, ``z`` as the file has them, all other rows by their names. The
        attribute ``bdata_descriptions`` has the descriptions.

    Raises
    ------
    StoreError, CorruptStoreError
        If the file is missing, cut short or damaged.
    SourceError
        If it is no BData, or nothing says which columns are responses, or which image was shown.
    SelectionError
        If a label or key asked for is not there; names the close matches.
    SchemaError
        If units are given that responses cannot have.
    """
    if dtype not in ("float32", "float64"):
        raise SelectionError(f"dtype is 'float32' or 'float64', not {dtype!r}")
    file = open_container(place)
    key = _block_key(file, block)
    columns = np.flatnonzero(file.row(key) == 1)
    dim = BLOCKS.get(key, "unit")
    labels = _labels(file, key, columns, dim)
    descriptors = _descriptors(file, key, labels)
    whose, shown = told_by_name(file.matrix.key)
    coords = {
        **labels,
        **_own_strings(file, descriptors),
        **_images(file, descriptors, stimulus, image_set or shown),
        **file.header.get("scalars", {}),
    }
    given = {
        "units": units,
        "normalization": normalization,
        "normalization_scope": normalization_scope,
    }
    given = {name: value for name, value in given.items() if value is not None}
    attrs = {"long_name": "response", **file.header.get("response", {}), **given}
    about = {
        "modality": modality,
        "source": "measured",
        "stimulus_type": "image",
        **({"subject_ids": [subject_label(whose)]} if whose else {}),
        **file.header.get("dataset", {}),
        **({"subject_ids": [subject_label(subject)]} if subject is not None else {}),
        "bdata_descriptions": dict(zip(file.keys, file.descriptions, strict=True)),
    }
    plan = MatrixPlan(file.matrix, np.arange(file.matrix.shape[0]), columns)
    ds = xr.Dataset({"response": (("trial", dim), PlannedArray(plan), attrs)}, coords, about)
    if file.header.get("sample") == "image":
        ds = ds.drop_vars("repetition").rename_dims(trial="image")
    return _parsed(ds, replace(plan, dtype=dtype))


def told_by_name(key: str) -> tuple[str | None, str]:
    """Return whose responses a file holds, and to which images: ``sub-01_NaturalImageTest.h5``."""
    stem = Path(key).stem
    match = _SUBJECT_PREFIX.match(stem)
    if match is None:
        return None, stem
    return match[2] or match[1], stem[match.end() :] or "bdata"


def _parsed(ds: xr.Dataset, plan: MatrixPlan) -> xr.Dataset:
    """Make it obey the schema, but for units that nobody said and a precision that was asked."""
    parsed = parse_without_units(ds)
    if plan.dtype == "float32":
        return parsed
    exact = xr.Variable(parsed["response"].dims, PlannedArray(plan), parsed["response"].attrs)
    return parsed.assign(response=exact)


def _block_key(file: Container, asked: str | None) -> str:
    """Return the key of the columns that hold responses."""
    if asked is not None:
        if asked not in file.keys:
            raise SelectionError(f"there is no key {asked!r}: {close_matches(asked, file.keys)}")
        if not (file.row(asked) == 1).any():
            raise SourceError(f"no column belongs to {asked!r}")
        return asked
    known = [key for key in BLOCKS if key in file.keys and (file.row(key) == 1).any()]
    if known:
        return known[0]
    wide = [key for key in file.keys if (file.row(key) == 1).sum() > 1]
    raise SourceError(
        f"{file.matrix.url} has none of {', '.join(BLOCKS)}, so that nothing says which columns "
        f"are responses; give block=, for example one of: {', '.join(wide) or 'none'}"
    )


def _name(key: str, taken: Mapping[str, Any]) -> str:
    """Return what nedx calls a label; two labels never get one name."""
    for name in (RENAMED.get(key, key), key):
        if name not in taken and name not in _RESERVED:
            return name
    return f"{key}_number"


def _labels(file: Container, block: str, columns: np.ndarray, dim: str) -> dict[str, Any]:
    """Return the coordinates of the neuroids."""
    coords: dict[str, Any] = {dim: (dim, np.arange(len(columns), dtype=np.int32))}
    masks: dict[str, np.ndarray] = {}
    rois = file.header.get("rois")
    for key in _rows(file, block)[0]:
        values = file.row(key)[columns]
        if key in HEMISPHERES:
            sides = coords.setdefault("hemisphere", (dim, np.full(len(columns), "", object)))
            sides[1][values == 1] = HEMISPHERES[key]
        elif key == f"{dim}_id":
            coords[dim] = (dim, values.astype(np.int32))
        elif key in rois if rois is not None else _is_flag(key, values):
            masks[key] = values == 1
        else:
            name = _name(key, coords)
            coords[name] = _numbers(dim, values, key, name)
    if masks:
        coords["roi"] = np.array(list(masks), dtype=object)
        coords["roi_mask"] = (("roi", dim), np.stack(list(masks.values())))
    for axis in ("x", "y", "z"):
        if axis in coords and dim == "voxel":
            values, about = coords[axis][1], coords[axis][2]
            coords[axis] = (dim, values.astype(np.float32), {**about, "units": "mm"})
    return coords


def _rows(file: Container, block: str) -> tuple[list[str], list[str]]:
    """Tell the keys that say something of the responses from the labels of samples."""
    within = file.row(block) == 1
    others = [file.row(key) == 1 for key in BLOCKS if key in file.keys]
    blocks = np.any([within, *others], axis=0)
    neuroids, samples = [], []
    for key, row in zip(file.keys, file.values, strict=True):
        ones = row == 1
        if key == block or key in BLOCKS:
            continue
        if (ones & within).any() or not ones.any():
            neuroids.append(key)
        elif (ones & ~blocks).any():
            # What remains describes another block of responses.
            samples.append(key)
    return neuroids, samples


def _is_flag(key: str, values: np.ndarray) -> bool:
    """Whether values say which neuroids belong to a ROI; NaN says no."""
    if _POSITIONS.fullmatch(key) or not (np.isnan(values) | (values == 0) | (values == 1)).all():
        return False
    return bool((values == 1).any() or (key.startswith("ROI") and (values == 0).any()))


def _numbers(dim: Any, values: np.ndarray, key: str, name: str) -> tuple[Any, ...]:
    """Return a coordinate: whole numbers as integers, with the key of the file where it differs."""
    about = {} if name == key else {"bdata_key": key}
    whole = np.isfinite(values).all() and (values == np.round(values)).all()
    if whole and np.abs(values).max(initial=0) < 2**31:
        values = values.astype(np.int32)
    return dim, values, about


def _descriptors(file: Container, block: str, taken: Mapping[str, Any]) -> dict[str, Any]:
    """Read the labels of the samples; keys of very many columns are blocks of their own."""
    wanted = {key: np.flatnonzero(file.row(key) == 1) for key in _rows(file, block)[1]}
    wanted = {key: places for key, places in wanted.items() if len(places) <= _WIDEST_LABEL}
    every = np.unique(np.concatenate([np.empty(0, np.int64), *wanted.values()]))
    samples = np.arange(file.matrix.shape[0])
    held = file.matrix.read(samples, every) if every.size else np.empty((len(samples), 0))
    coords: dict[str, Any] = {}
    for key, places in wanted.items():
        name = _name(key, {**taken, **coords})
        values = held[:, np.searchsorted(every, places)]
        if len(places) > 1:
            coords[name] = _numbers(("trial", f"{name}_column"), values, key, name)
            continue
        coords[name] = _numbers("trial", values[:, 0], key, name)
        if key in file.names:
            texts = _texts(file, key, values[:, 0])
            coords[f"{name}_label"] = ("trial", texts, {"bdata_names_of": name})
    return coords


def _own_strings(file: Container, descriptors: dict[str, Any]) -> dict[str, Any]:
    """Give labels that were strings before nedx wrote them their strings alone again."""
    kept = dict(descriptors)
    for name in file.header.get("strings", []):
        if f"{name}_label" in kept:
            kept[name] = ("trial", kept.pop(f"{name}_label")[1])
    return kept


def _texts(file: Container, key: str, values: np.ndarray) -> np.ndarray:
    """Return the names of numbers."""
    names = file.names[key]
    numbers, where = np.unique(values, return_inverse=True)
    unknown = [n for n in numbers.tolist() if np.isfinite(n) and n not in names]
    if unknown:
        raise SourceError(
            f"the value map of {key!r} in {file.matrix.url} has no name for {len(unknown)} of its "
            f"numbers, the first is {unknown[0]:g}"
        )
    texts = np.array([names.get(n, MISSING) for n in numbers.tolist()], dtype=object)
    found: np.ndarray = texts[where.reshape(-1)]
    return found


def _images(
    file: Container, descriptors: dict[str, Any], stimulus: str | None, image_set: str
) -> dict[str, Any]:
    """Return the image of each sample, and its repetition."""
    by_key = {
        one[2].get("bdata_key", name): name
        for name, one in descriptors.items()
        if one[0] == "trial" and "bdata_names_of" not in one[2]
    }
    if stimulus is not None and stimulus not in by_key:
        raise SelectionError(
            f"no label of samples is called {stimulus!r}: {close_matches(stimulus, by_key)}"
        )
    found = stimulus or next((key for key in STIMULUS_KEYS if key in by_key), None)
    if found is None:
        raise SourceError(
            f"{file.matrix.url} has none of the labels {', '.join(STIMULUS_KEYS)}, so that nothing "
            f"says which image was shown; give stimulus=, one of: {', '.join(by_key) or 'none'}"
        )
    name = by_key[found]
    if f"{name}_label" in descriptors:
        labels = descriptors[f"{name}_label"][1].tolist()
    else:
        labels = [_label(value) for value in descriptors[name][1].tolist()]
    ids = [label if ":" in label else f"{image_set}:{label}" for label in labels]
    counted = earlier_presentations(np.array(ids, dtype=str))
    known = descriptors.get("repetition")
    return {
        "image_id": ("trial", np.array(ids, dtype=object)),
        "repetition": ("trial", counted if known is None else known[1].astype(np.int16)),
    }


def _label(value: float) -> str:
    """Return a number as text; whole ones lie among floats where others are missing."""
    if value != value:
        return MISSING
    return str(int(value)) if float(value).is_integer() else str(value)
