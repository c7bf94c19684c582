"""Assemblies of BrainIO and Brain-Score: presentation x neuroid x time_bin, netCDF beside a CSV.

Their names become those of nedx. What an assembly leaves unsaid is not guessed: the modality and
the unit of its values. Only whether times are in ms or s is told by their size, and said so.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, SourceError, StoreError, close_matches, require
from nedx.preprocessing.epochs import repetition_of
from nedx.schema import parse
from nedx.store.location import Location

TimeUnits = Literal["ms", "s"]

_NEUROIDS = {"fmri": "voxel", "eeg": "channel", "meg": "channel", "ieeg": "channel"}
_IDS = ("stimulus_id", "image_id")
_SETS = ("stimulus_set_identifier", "stimulus_set_name", "stimulus_set")
_RENAMED = {"object_name": "category"}
_BLOCK_BYTES = 2**24
_LONGEST_S = 10.0
"""Bins that end later than this, if they were in s, are in ms."""


def open_brainio(
    assembly: str | Path | Location | xr.DataArray,
    *,
    modality: str,
    units: str | None = None,
    normalization: str | None = None,
    normalization_scope: str | None = None,
    image_set: str | None = None,
    stimuli: str | Path | None = None,
    time_units: TimeUnits | None = None,
) -> xr.Dataset:
    """Open an assembly as responses, lazily.

    Parameters
    ----------
    assembly : str, Path, Location or DataArray
        A netCDF file on this machine, or an assembly in memory, with the dims ``presentation``,
        ``neuroid`` and perhaps ``time_bin``.
    modality : {"fmri", "eeg", "meg", "ieeg", "ephys"}
        Of the recording.
    units, normalization, normalization_scope : str, optional
        As `nedx.validate` wants them of responses; by default the attributes of the assembly.
    image_set : str, optional
        What stands before the stimulus ids, ``<image_set>:<stimulus_id>``, where these do not say
        it themselves; by default the name of the stimulus set that the assembly gives.
    stimuli : path, optional
        The CSV of the stimulus set: its columns become labels of the images.
    time_units : {"ms", "s"}, optional
        Of ``time_bin_start`` and ``time_bin_end``; by default what their attributes say, else ms
        where a bin would end more than 10 s after onset.

    Returns
    -------
    Dataset
        ``response``, float32, ``(trial, ...)``, or ``(image, ...)`` where each stimulus comes
        once; neuroids are ``channel``, ``voxel`` or ``unit`` and keep ``neuroid_id``; ``time`` is
        the middle of each bin in s, ``time_bounds (time, bnds)`` its ends. The attribute
        ``time_units_found_by`` says how the unit of times was found.

    Raises
    ------
    SourceError
        If dims or stimulus ids are missing, or the CSV lacks a stimulus.
    SchemaError
        If the unit is missing or unknown.
    StoreError
        If the file is not there, or no netCDF.
    """
    array = assembly if isinstance(assembly, xr.DataArray) else _read(Location.of(assembly))
    array = _plain(array)
    lacking = [dim for dim in ("presentation", "neuroid") if dim not in array.dims]
    extra = [str(d) for d in array.dims if d not in ("presentation", "neuroid", "time_bin")]
    if lacking or extra:
        raise SourceError(
            f"an assembly has the dims presentation, neuroid and time_bin; this one has "
            f"{', '.join(map(str, array.dims))}"
        )
    stimulus = _stimulus_ids(array)
    unique = np.unique(stimulus).size == stimulus.size
    dims = {
        "presentation": "image" if unique else "trial",
        "neuroid": _NEUROIDS.get(modality, "unit"),
        "time_bin": "time",
    }
    coords = {
        **_presentation_labels(array, stimulus, dims["presentation"], image_set),
        **_neuroid_labels(array, dims["neuroid"]),
    }
    if stimuli is not None:
        coords = {**_columns(Path(stimuli), stimulus, dims["presentation"], coords), **coords}
    times, found_by = _time_labels(array, time_units)
    given = {
        "units": units,
        "normalization": normalization,
        "normalization_scope": normalization_scope,
    }
    attrs = {name: array.attrs.get(name) if v is None else v for name, v in given.items()}
    response = {"long_name": "response", **{k: v for k, v in attrs.items() if v is not None}}
    source = str(array.attrs.get("source", ""))
    about: dict[str, Any] = {
        "modality": modality,
        "source": source if source in ("measured", "synthetic") else "measured",
        "stimulus_type": "image",
        "assembly": str(array.attrs.get("identifier", array.name or "")),
    }
    if found_by:
        about["time_units_found_by"] = found_by
    subjects = _subjects(array)
    if subjects:
        about["subject_ids"] = subjects
    order = tuple(dims[str(dim)] for dim in array.dims)
    data = {"response": (order, array.data, response)}
    return parse(xr.Dataset(data, {**coords, **times}, about))


def _read(location: Location) -> xr.DataArray:
    """Open the assembly in a netCDF file, lazily."""
    path = Path(location.url)
    if not location.is_local or not path.is_file():
        raise StoreError(f"there is no file {location.url} on this machine. Check the path")
    require("h5netcdf", "brainio")
    try:
        ds = xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is no netCDF file, or is damaged ({error})") from error
    held = [name for name, var in ds.data_vars.items() if "presentation" in var.dims]
    if len(held) != 1:
        named = ", ".join(map(str, ds.data_vars)) or "none"
        raise SourceError(
            f"{path} holds {len(held)} variables with presentations, expected one: {named}"
        )
    array = ds[held[0]]
    # Labels are read; the values alone stay in the file.
    step = max(1, _BLOCK_BYTES * array.sizes["presentation"] // max(1, array.nbytes))
    lazy = array.variable.chunk({"presentation": step})
    attrs = {**ds.attrs, **array.attrs}
    return xr.DataArray(lazy, array.coords, name=array.name).assign_attrs(attrs)


def _plain(array: xr.DataArray) -> xr.DataArray:
    """Make the levels of MultiIndexes plain coordinates."""
    levelled = [name for name, index in array.indexes.items() if index.nlevels > 1]
    return array.reset_index(levelled) if levelled else array


def _stimulus_ids(array: xr.DataArray) -> np.ndarray:
    for name in _IDS:
        if name in array.coords:
            return np.array([str(value) for value in array[name].values], dtype=object)
    there = ", ".join(str(n) for n, c in array.coords.items() if "presentation" in c.dims) or "none"
    raise SourceError(
        f"nothing says which stimulus was shown: 'stimulus_id' is not among the labels of "
        f"presentations ({there})"
    )


def _presentation_labels(
    array: xr.DataArray, stimulus: np.ndarray, dim: str, image_set: str | None
) -> dict[str, Any]:
    prefix = image_set or next((str(array.attrs[n]) for n in _SETS if array.attrs.get(n)), None)
    if prefix is None and not all(":" in one for one in stimulus):
        raise SourceError(
            f"stimulus ids such as {stimulus[0]!r} name no image set; give image_set=, and the "
            "images become '<image_set>:<stimulus_id>'"
        )
    ids = [one if ":" in one else f"{prefix}:{one}" for one in stimulus]
    labels = {
        name: (dim, values)
        for name, values in _along(array, "presentation").items()
        if name not in (*_IDS, "presentation", "repetition", dim)
    }
    labels["image_id"] = (dim, np.array(ids, dtype=object))
    if dim == "trial":
        labels["repetition"] = (dim, _repetition(array, stimulus))
    return labels


def _repetition(array: xr.DataArray, stimulus: np.ndarray) -> np.ndarray:
    """Return the repetition of each presentation, from 0, as the assembly or its order says."""
    if "repetition" in array.coords and array["repetition"].dtype.kind in "iuf":
        values = array["repetition"].values
        if not np.isfinite(values).all():
            raise SourceError(
                f"{int((~np.isfinite(values)).sum())} presentations have no 'repetition'; leave it "
                "out to have presentations counted: assembly.drop_vars('repetition')"
            )
        counted: np.ndarray = (values - values.min()).astype(np.int16)
        return counted
    return repetition_of(stimulus.astype(str))


def _neuroid_labels(array: xr.DataArray, dim: str) -> dict[str, Any]:
    along = _along(array, "neuroid")
    ids = along.get("neuroid_id", along.get("neuroid"))
    names = along.get("channel") if dim == "channel" else None
    if names is None or len(set(names.tolist())) < len(names):
        names = ids
    if dim != "channel":
        names = np.arange(array.sizes["neuroid"], dtype=np.int32)
    elif names is None:
        raise SourceError(
            "the neuroids have neither 'channel' nor 'neuroid_id' to name channels by"
        )
    else:
        names = np.array([str(name) for name in names], dtype=object)
    kept = {name: (dim, values) for name, values in along.items() if name not in ("neuroid", dim)}
    return {**kept, dim: (dim, names)}


def _along(array: xr.DataArray, dim: str) -> dict[str, np.ndarray]:
    """Return the labels along one dim; what is no number becomes strings."""
    found = {}
    for name, coord in array.coords.items():
        if coord.dims == (dim,):
            values = coord.values
            if values.dtype.kind not in "biuf":
                values = np.array(["" if v is None else str(v) for v in values], dtype=object)
            found[_RENAMED.get(str(name), str(name))] = values
    return found


def _columns(
    path: Path, stimulus: np.ndarray, dim: str, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the columns of the CSV of a stimulus set as labels."""
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    key = next((name for name in _IDS if rows and name in rows[0]), None)
    if key is None:
        raise SourceError(f"{path} has no column 'stimulus_id'")
    by_id = {row[key]: row for row in rows}
    missing = sorted({one for one in stimulus if one not in by_id})
    if missing:
        raise SourceError(
            f"{path} lacks {len(missing)} stimuli of the assembly, the first is {missing[0]!r}: "
            f"{close_matches(missing[0], by_id)}"
        )
    names = [name for name in rows[0] if name and name != key]
    columns = {}
    for name in names:
        label = _RENAMED.get(name, name)
        if label not in known:
            values = [by_id[one][name] or "" for one in stimulus]
            columns[label] = (dim, np.array(values, dtype=object))
    return columns


def _time_labels(array: xr.DataArray, given: TimeUnits | None) -> tuple[dict[str, Any], str | None]:
    """Return time and the ends of its bins in s, and how the unit was found."""
    if "time_bin" not in array.dims:
        return {}, None
    if "time_bin_start" not in array.coords or "time_bin_end" not in array.coords:
        raise SourceError("the time bins have no 'time_bin_start' and 'time_bin_end'")
    start, end = array["time_bin_start"], array["time_bin_end"]
    said = start.attrs.get("units", array.attrs.get("time_bin_units"))
    found = "argument" if given else "attribute" if said in ("ms", "s") else "size"
    largest = float(np.abs(np.concatenate([start.values, end.values])).max())
    units = given or (said if found == "attribute" else "ms" if largest > _LONGEST_S else "s")
    if units not in ("ms", "s"):
        raise SelectionError(f"time_units is 'ms' or 's', not {units!r}")
    bounds = np.stack([start.values, end.values], axis=1).astype(np.float64)
    if units == "ms":
        # Rounded to a nanosecond, so that equal times are equal.
        bounds = np.round(bounds / 1000, 9)
    middle = np.round(bounds.mean(1), 9)
    about: dict[str, Any] = {"units": "s", "bounds": "time_bounds"}
    steps = np.diff(middle)
    if steps.size and np.allclose(steps, steps[0]):
        about["sampling_frequency"] = round(1 / float(steps[0]), 6)
    labels = {"time": ("time", middle, about), "time_bounds": (("time", "bnds"), bounds)}
    return labels, f"{found}: {units}"


def _subjects(array: xr.DataArray) -> list[str]:
    if "subject" not in array.coords:
        return []
    return sorted({str(subject) for subject in np.ravel(array["subject"].values)})
