"""The rules of the schema as tables, and the functions that find every fault against them."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nedx._roles import neuroid_dim, role_dim, role_of, subject_label
from nedx.errors import SchemaError, SelectionError, close_matches

SCHEMA_VERSION = "1.0"
CANONICAL_ORDER = (
    *("model", "subject", "stimulus", "trial", "repetition", "neuroid", "time"),
    *("y", "x", "rgb", "feature"),
)
"""Roles, and names of dims without a role, in the order in which arrays have them."""

KINDS = {
    "responses": ("response", "response_predicted"),
    "stimuli": ("pixels",),
    "features": ("features",),
}
"""The main variables of each kind; any one of them makes a Dataset of that kind."""

MODALITIES = ("fmri", "eeg", "meg", "ieeg", "ephys")
SOURCES = ("measured", "synthetic")
UNITS = {
    "fmri": ("percent", "1"),
    "eeg": ("uV", "uV m-2", "1"),
    "meg": ("fT", "fT cm-1", "1"),
    "ieeg": ("uV", "1"),
    "ephys": ("Hz", "1"),
}
NORMALIZATIONS = ("zscore", "whitened", "dff")
SCOPES = ("session", "run", "train", "baseline")

UNIT_SPELLINGS = {
    "%": "percent",
    "% signal change": "percent",
    "percent signal change": "percent",
    "\N{MICRO SIGN}V": "uV",
    "\N{GREEK SMALL LETTER MU}V": "uV",
    "microvolt": "uV",
    "uV/m^2": "uV m-2",
    "uV/m2": "uV m-2",
    "\N{MICRO SIGN}V/m\N{SUPERSCRIPT TWO}": "uV m-2",
    "fT/cm": "fT cm-1",
    "femtotesla": "fT",
    "hertz": "Hz",
    "spikes/s": "Hz",
    "spikes s-1": "Hz",
    "": "1",
    "dimensionless": "1",
}
"""Other spellings of a unit of the schema: the values stay as they are."""

_ZSCORE = "units='1', normalization='zscore' and normalization_scope='session' (run, train, ...)"
UNIT_HINTS = {
    "a.u.": f"say what was done to the data, for example {_ZSCORE}",
    "au": f"say what was done to the data, for example {_ZSCORE}",
    "z-score": _ZSCORE,
    "zscore": _ZSCORE,
    "z": _ZSCORE,
    "sd": _ZSCORE,
    "V": "multiply by 1e6 and type units='uV'",
    "mV": "multiply by 1e3 and type units='uV'",
    "V/m^2": "multiply by 1e6 and type units='uV m-2'",
    "T": "multiply by 1e15 and type units='fT'",
    "pT": "multiply by 1e3 and type units='fT'",
    "T/m": "multiply by 1e13 and type units='fT cm-1'",
    "spikes": "divide by the length of the window and type units='Hz'",
    "dF/F": "units='1' and normalization='dff'",
}

VERTICES_PER_HEMISPHERE = {
    ("fsaverage", "164k"): 163_842,
    ("fsaverage", "41k"): 40_962,
    ("fsaverage", "10k"): 10_242,
    ("fsaverage", "3k"): 2_562,
    ("fsLR", "32k"): 32_492,
}


@dataclass(frozen=True)
class Rule:
    """What a variable must be: roles (or names) of its dims, dtypes, range of values."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    dtypes: tuple[str, ...]
    span: tuple[float, float] | None = None

    @property
    def dims(self) -> str:
        """The dims in words, optional ones in brackets."""
        optional = {name: f"[{name}]" for name in self.optional}
        spelled = {"sample": "image | trial", "neuroid": "<neuroid>", **optional}
        there = [name for name in _WORDS if name in self.required or name in self.optional]
        return ", ".join(spelled.get(name, name) for name in there)


_WORDS = (
    *("model", "subject", "sample", "repetition", "roi", "neuroid", "time"),
    *("y", "x", "rgb", "feature"),
)
_FLOATS = ("float16", "float32")
_PER_NEUROID = (("neuroid",), ("model", "subject", "time"), (*_FLOATS, "float64"))
VARIABLES = {
    "response": Rule(("sample", "neuroid"), ("model", "subject", "repetition", "time"), _FLOATS),
    "response_predicted": Rule(
        ("sample", "neuroid"), ("model", "subject", "repetition", "time"), _FLOATS
    ),
    "features": Rule(("sample", "feature"), (), _FLOATS),
    "pixels": Rule(("sample", "y", "x", "rgb"), (), ("uint8",)),
    "noise_ceiling": Rule(*_PER_NEUROID, span=(0, 1)),
    "ncsnr": Rule(*_PER_NEUROID, span=(0, np.inf)),
    "encoding_accuracy": Rule(*_PER_NEUROID, span=(-1, 1)),
    "roi_mask": Rule(("roi", "neuroid"), ("subject",), ("bool",)),
}


def find_kind(ds: xr.Dataset) -> str | None:
    """Return ``"responses"``, ``"stimuli"`` or ``"features"`` by the variables; None for none."""
    for kind, names in KINDS.items():
        if any(name in ds.data_vars for name in names):
            return kind
    return None


def refuse_newer(ds: xr.Dataset) -> None:
    """Raise for a Dataset that a newer nedx wrote: its rules are not known here.

    Raises
    ------
    SchemaError
        With the command that upgrades nedx.
    """
    found = str(ds.attrs.get("nedx_schema_version", SCHEMA_VERSION))
    match = re.fullmatch(r"(\d+)\.(\d+)", found)
    if match is None:
        fault = f"nedx_schema_version is {found!r}, which is no version; type {SCHEMA_VERSION!r}"
        raise SchemaError("The Dataset", [fault])
    if tuple(int(n) for n in match.groups()) > tuple(int(n) for n in SCHEMA_VERSION.split(".")):
        fault = (
            f"it is of schema version {found}, newer than {SCHEMA_VERSION}, the newest that this "
            "nedx knows. Type: pip install --upgrade nedx"
        )
        raise SchemaError("The Dataset", [fault])


def find_faults(ds: xr.Dataset, kind: str | None) -> list[str]:
    """Return every fault of a Dataset, in words; reads only what memory holds."""
    refuse_newer(ds)
    if kind is None:
        names = ", ".join(repr(str(name)) for name in ds.data_vars) or "none"
        wanted = " or ".join(repr(names[0]) for names in KINDS.values())
        return [f"it needs a variable {wanted}; its variables are: {names}"]
    if kind not in KINDS:
        return [f"kind {kind!r} is unknown: {close_matches(kind, KINDS)}"]
    faults = [*_dataset_attrs(ds), *_indexes(ds), *_strings(ds), *_image_ids(ds)]
    main = [name for name in KINDS[kind] if name in ds.data_vars]
    if not main:
        faults.append(f"kind {kind!r} needs a variable {KINDS[kind][0]!r}")
    for name, rule in VARIABLES.items():
        if name in ds:
            faults += _variable(ds, name, rule)
    if kind == "responses":
        faults += [*_response_attrs(ds, main), *_subjects(ds), *_neuroids(ds), *_times(ds)]
    return faults


def find_false(ds: xr.Dataset) -> list[str]:
    """Return what a Dataset says that cannot be true; what it leaves unsaid is no fault here."""
    faults: list[str] = []
    for name in KINDS["responses"]:
        if name in ds.data_vars and "units" in ds[name].attrs:
            said = {"normalization": "zscore", "normalization_scope": "session", **ds[name].attrs}
            faults += _units(name, said, ds.attrs.get("modality"))
    if "image_id" in ds.coords and role_dim(ds, "stimulus") in ds["image_id"].dims:
        values = _held(ds["image_id"])
        if values is not None:
            hint = "single presentations belong on a dim 'trial'"
            faults += _repeats(values.ravel().tolist(), "image_id", hint)
    return faults


def _held(array: xr.DataArray) -> np.ndarray | None:
    """Return the values when they are in memory; None for lazy arrays, which are not checked."""
    return np.asarray(array.values) if array.variable._in_memory else None


def _dataset_attrs(ds: xr.Dataset) -> Iterator[str]:
    if "nedx_schema_version" not in ds.attrs:
        yield f"the attribute 'nedx_schema_version' is missing; type {SCHEMA_VERSION!r}"
    holders = [("the Dataset", ds.attrs), *((repr(n), v.attrs) for n, v in ds.variables.items())]
    for holder, attrs in holders:
        for key, value in attrs.items():
            plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            try:
                json.dumps(plain)
            except (TypeError, ValueError):
                yield (
                    f"the attribute {key!r} of {holder} is a {type(value).__name__}, which JSON "
                    "cannot hold; store a string, number, list or dict"
                )


def _is_multi(ds: xr.Dataset, name: Hashable) -> bool:
    return name in ds.indexes and ds.indexes[name].nlevels > 1


def _indexes(ds: xr.Dataset) -> Iterator[str]:
    for dim in ds.dims:
        if _is_multi(ds, dim):
            yield f"{dim!r} is a MultiIndex, which Zarr cannot store; type ds.reset_index({dim!r})"
        elif dim == "image" and dim in ds.coords:
            yield (
                "'image' has a coordinate of its own; images are labelled by 'image_id' alone: "
                "type ds.drop_vars('image')"
            )


def _strings(ds: xr.Dataset) -> Iterator[str]:
    for name, variable in ds.variables.items():
        if variable.dtype.kind in "US":
            yield (
                f"{name!r} holds strings of fixed width ({variable.dtype}), which Zarr has no "
                "stable form for; type .astype(object)"
            )
        elif variable.dtype == object and variable._in_memory:
            odd = [value for value in variable.values.ravel() if not isinstance(value, str)]
            if odd and not _is_multi(ds, name):
                yield (
                    f"{name!r} holds {odd[0]!r} among its strings ({len(odd)} values are no "
                    "strings); use '' for what is missing"
                )


def _image_ids(ds: xr.Dataset) -> Iterator[str]:
    dim = role_dim(ds, "stimulus") or role_dim(ds, "trial")
    if dim is None:
        return
    if "image_id" not in ds.coords:
        if ds.attrs.get("stimulus_identity") != "none":
            yield (
                f"the coordinate 'image_id ({dim})' is missing; where the images are unknown, set "
                "the attribute stimulus_identity='none' and give a coordinate 'category'"
            )
        elif "category" not in ds.coords:
            yield f"stimulus_identity is 'none', so a coordinate 'category ({dim})' is needed"
        return
    ids = ds["image_id"]
    if ids.dims != (dim,):
        yield f"'image_id' has dims {ids.dims}; it needs ({dim!r},)"
        return
    values = _held(ids)
    if values is None:
        return
    labels = [str(value) for value in values]
    if values.dtype.kind not in "OUST" or not all(isinstance(v, str) for v in values.tolist()):
        yield f"'image_id' holds {ids.dtype}; it needs strings such as 'nsd:00000'"
        return
    bad = [label for label in labels if not re.fullmatch(r"[^:\s][^:]*:\S.*", label)]
    if bad:
        yield (
            f"'image_id' needs '<set>:<id>' such as 'nsd:00000'; {len(bad)} are not, the first is "
            f"{bad[0]!r}"
        )
    if role_of(ds, dim) == "stimulus":
        yield from _repeats(labels, "image_id", "single presentations belong on a dim 'trial'")


def _repeats(labels: list[Any], name: str, hint: str) -> Iterator[str]:
    unique, counts = np.unique(np.array(labels, dtype=str), return_counts=True)
    twice = unique[counts > 1]
    if twice.size:
        yield (
            f"{name!r} must be unique; {twice.size} are there more than once, the first is "
            f"{str(twice[0])!r}: {hint}"
        )


def _variable(ds: xr.Dataset, name: str, rule: Rule) -> Iterator[str]:
    """Check the dims, dtype and values of one variable."""
    array = ds[name]
    keys = [_key(array, dim) for dim in array.dims]
    allowed = (*rule.required, *rule.optional)
    bad = [str(d) for d, k in zip(array.dims, keys, strict=True) if k not in allowed]
    lacking = [key for key in rule.required if key not in keys]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if bad or lacking or doubled:
        yield f"{name!r} has dims {array.dims}; it needs ({rule.dims})"
    elif name in KINDS["responses"] or name in ("pixels", "features"):
        ordered = sorted(range(len(keys)), key=lambda i: _place(keys[i]))
        if ordered != list(range(len(keys))):
            wanted = tuple(str(array.dims[i]) for i in ordered)
            yield f"{name!r} has dims {array.dims} in another order than {wanted}; use .transpose"
    if name == "pixels" and "rgb" in array.dims and array.sizes["rgb"] != 3:
        yield f"'pixels' has {array.sizes['rgb']} values along 'rgb'; it needs 3"
    if str(array.dtype) not in rule.dtypes:
        yield f"{name!r} is {array.dtype}; it needs {' or '.join(rule.dtypes)}"
    elif array.dtype.kind == "f":
        yield from _values(array, name, rule)


def _key(array: xr.DataArray, dim: Hashable) -> str:
    role = role_of(array, dim)
    return "sample" if role in ("stimulus", "trial") else role or str(dim)


def _place(key: str) -> int:
    key = "stimulus" if key == "sample" else key
    return CANONICAL_ORDER.index(key) if key in CANONICAL_ORDER else len(CANONICAL_ORDER)


def _values(array: xr.DataArray, name: str, rule: Rule) -> Iterator[str]:
    """Check what memory holds: finite responses, quantities within their range."""
    values = _held(array)
    if values is None or not values.size:
        return
    finite = np.isfinite(values)
    if rule.span is None and not finite.all():
        where = dict(zip(array.dims, np.argwhere(~finite)[0].tolist(), strict=True))
        yield (
            f"{name!r} holds {int((~finite).sum())} values that are not finite, the first at "
            f"{where}: leave such samples or neuroids out; subjects with neuroids of their own "
            "belong into the groups of a DataTree, without padding"
        )
    if rule.span is not None and finite.any():
        low, high = float(values[finite].min()), float(values[finite].max())
        if low < rule.span[0] or high > rule.span[1]:
            percent = name == "noise_ceiling" and low >= 0 and 1 < high <= 100
            hint = "; these look like percent: divide by 100" if percent else ""
            yield f"{name!r} runs from {low:g} to {high:g}, outside {list(rule.span)}{hint}"


def _response_attrs(ds: xr.Dataset, main: list[str]) -> Iterator[str]:
    modality = ds.attrs.get("modality")
    if modality not in MODALITIES:
        yield f"the attribute 'modality' is {modality!r}; it needs {_one_of(MODALITIES)}"
    for name in main:
        attrs = ds[name].attrs
        source = attrs.get("source", ds.attrs.get("source"))
        if source not in SOURCES:
            yield f"the attribute 'source' of {name!r} is {source!r}; it needs {_one_of(SOURCES)}"
        yield from _units(name, attrs, modality)


def _units(name: str, attrs: dict[str, Any], modality: str | None) -> Iterator[str]:
    units = attrs.get("units")
    every = tuple(dict.fromkeys(unit for some in UNITS.values() for unit in some))
    allowed = UNITS.get(str(modality), every)
    if units in allowed:
        if units == "1" and attrs.get("normalization") not in NORMALIZATIONS:
            yield (
                f"{name!r} has units '1' and normalization {attrs.get('normalization')!r}; it "
                f"needs {_one_of(NORMALIZATIONS)}"
            )
        elif units == "1" and attrs["normalization"] in ("zscore", "whitened"):
            scope = attrs.get("normalization_scope")
            if scope not in SCOPES:
                done = "z-scored" if attrs["normalization"] == "zscore" else "whitened"
                yield (
                    f"{name!r} is {done} with normalization_scope {scope!r}; it needs "
                    f"{_one_of(SCOPES)}"
                )
        return
    if units in UNIT_SPELLINGS:
        hint = f"type {UNIT_SPELLINGS[units]!r}"
    else:
        hint = UNIT_HINTS.get(str(units), f"for {modality or 'responses'} use {_one_of(allowed)}")
    yield f"{name!r} has units {units!r}: {hint}"


def _one_of(options: tuple[str, ...]) -> str:
    return " or ".join(repr(option) for option in options)


def _subjects(ds: xr.Dataset) -> Iterator[str]:
    dim = role_dim(ds, "subject")
    if dim is None:
        return
    if dim not in ds.coords:
        yield f"the dimension {dim!r} has no coordinate; give labels such as 'sub-01'"
        return
    labels = [str(label) for label in ds[dim].values]
    yield from _repeats(labels, dim, "a subject has one label")
    for label in labels:
        try:
            wanted = subject_label(label)
        except SelectionError as error:
            yield str(error)
            continue
        if wanted != label:
            yield f"the subject {label!r} must be spelled {wanted!r}"


def _neuroids(ds: xr.Dataset) -> Iterator[str]:
    dim = neuroid_dim(ds)
    if dim is None:
        return
    if dim not in ds.coords:
        wanted = "MNE channel names" if dim == "channel" else "ids that count from 0"
        yield f"the dimension {dim!r} has no coordinate; give {wanted}"
        return
    labels = ds[dim].values
    yield from _repeats(labels.tolist(), dim, "each neuroid has one label")
    if dim == "channel":
        if labels.dtype.kind not in "OUST":
            yield f"'channel' holds {labels.dtype}; it needs MNE channel names (strings)"
    elif labels.dtype.kind not in "iu":
        yield f"{dim!r} holds {labels.dtype}; it needs integer ids that count from 0"
    elif labels.size and labels.min() < 0:
        yield f"{dim!r} holds {labels.min()}; ids count from 0"
    if dim == "vertex":
        yield from _vertices(ds)
    for name, top in (("i", None), ("j", None), ("k", None), ("nsd_id", 72_999)):
        yield from _zero_based(ds, name, top)


def _zero_based(ds: xr.Dataset, name: str, top: int | None) -> Iterator[str]:
    if name not in ds.coords:
        return
    values = _held(ds[name])
    if values is None or not values.size or values.dtype.kind not in "iu":
        return
    if values.min() < 0 or (top is not None and values.max() > top):
        span = f"0 to {top}" if top is not None else "0 upwards"
        yield (
            f"{name!r} runs from {values.min()} to {values.max()}; ids count from 0 ({span}): "
            "subtract 1 where they count from 1"
        )


def _vertices(ds: xr.Dataset) -> Iterator[str]:
    """Check hemispheres, their order, and that vertices count from 0 on their surface."""
    attrs = {**ds.attrs, **ds["vertex"].attrs}
    half = VERTICES_PER_HEMISPHERE.get((str(attrs.get("space")), str(attrs.get("density"))))
    if half is not None:
        if ds["vertex"].dtype.kind in "iu":
            yield from _zero_based(ds, "vertex", 2 * half - 1)
        yield from _zero_based(ds, "vertex_index", half - 1)
    if "hemisphere" not in ds.coords:
        yield "the coordinate 'hemisphere (vertex)' is missing; give 'L' and 'R'"
        return
    values = _held(ds["hemisphere"])
    if values is None:
        return
    sides = [str(value) for value in values]
    odd = sorted(set(sides) - {"L", "R"})
    if odd:
        yield f"'hemisphere' holds {odd[0]!r}; it needs 'L' and 'R'"
    elif sides != sorted(sides):
        yield "the vertices of the right hemisphere come before some of the left; put L before R"


def _times(ds: xr.Dataset) -> Iterator[str]:
    dim = role_dim(ds, "time")
    if dim is None:
        return
    if dim not in ds.coords:
        yield f"the dimension {dim!r} has no coordinate; give seconds from stimulus onset"
        return
    values, units = ds[dim].values, ds[dim].attrs.get("units")
    if units != "s":
        yield f"{dim!r} has units {units!r}; it needs 's' (seconds from stimulus onset)"
    if values.dtype != np.float64:
        yield f"{dim!r} is {values.dtype}; it needs float64 seconds"
    elif not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        yield f"{dim!r} must be finite and increase from sample to sample"
