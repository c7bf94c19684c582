"""Responses as decoders of features take them: one row a trial, one column a neuroid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import dask.array as da
import numpy as np
import xarray as xr

from nedx.decoding.feature_decoder_recipe import WHOLE
from nedx.decoding.samples import Responses
from nedx.errors import ModelError, SelectionError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.repetitions import average_repetitions
from nedx.schema import neuroid_dim, role_dim, sample_dim
from nedx.selection import map_nodes, resolve

MADE_BY = {"units": "1", "normalization": None, "normalization_scope": None, "transform": None}
"""Attributes that decide what the numbers of a response mean, and what they are unless said."""

LABEL = "neuroid_label"


@dataclass(frozen=True, eq=False)
class Trials:
    """The responses of one subject.

    Attributes
    ----------
    values : ndarray (trial, neuroid)
        Float32 or float64, all finite.
    images : list of str
        The images that were shown, as they first come.
    rows : ndarray of int64, (trial,)
        Which of them each trial shows.
    groups, exclusive : ndarray (trial,), optional
        What stays in one fold, and what must not be both in a fold and outside.
    """

    values: np.ndarray = field(repr=False)
    images: list[str]
    rows: np.ndarray = field(repr=False)
    groups: np.ndarray | None = field(default=None, repr=False)
    exclusive: np.ndarray | None = field(default=None, repr=False)


def checked_responses(ds: xr.Dataset) -> xr.DataArray:
    """Return ``response (..., neuroid)`` of one subject, if that is what it is.

    Raises
    ------
    ModelError
        If there is none, or it has times or other dims that decoders do not know.
    """
    if not isinstance(ds, xr.Dataset) or "response" not in ds:
        found = list(ds.data_vars) if isinstance(ds, xr.Dataset) else type(ds).__name__
        raise ModelError(f"there is no 'response' to decode, found {found}")
    array = ds["response"]
    neuroid, sample = neuroid_dim(array), sample_dim(ds)
    if neuroid is None:
        raise ModelError(f"responses need voxels or another neuroid dim, found {array.dims}")
    order = [sample, role_dim(array, "repetition"), neuroid]
    kept = [dim for dim in order if dim is not None]
    foreign = [str(dim) for dim in array.dims if dim not in kept]
    if foreign:
        dim = foreign[0]
        advice = f"Type: ds.mean({dim!r})" if dim == "time" else f"Type: ds.isel({dim}=0)"
        raise ModelError(f"decoders of features take no dimension {dim!r}. {advice}")
    if array.dtype.kind != "f":
        raise ModelError(f"responses are floats, these are {array.dtype}")
    return array.transpose(*kept)


def read_trials(
    ds: xr.Dataset, subject: str, groups: str | None = None, exclusive: str | None = None
) -> Trials:
    """Read the responses of one subject to images with ``image_id``, trial by trial.

    Repetitions that are all NaN are absent.

    Raises
    ------
    ModelError
        If trials hold some NaN, or there are no such labels.
    """
    array = checked_responses(ds)
    labels = trial_labels(ds, groups, exclusive)
    ids = labels_of(ds, "image_id")
    values = array.values
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    if values.ndim == 3:
        ids = np.repeat(ids, values.shape[1])
        values = values.reshape(-1, values.shape[2])
        there = ~np.isnan(values).all(1)
        ids, values = ids[there], values[there]
        labels = [None if one is None else one[there] for one in labels]
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        first = list(dict.fromkeys(ids[bad]))[:3]
        raise ModelError(
            f"{int(bad.sum())} of {len(ids)} samples of {subject!r} hold NaN or infinity, first "
            f"those of {', '.join(map(repr, map(str, first)))}: drop these samples, or these "
            f"{array.dims[-1]}s"
        )
    images = list(dict.fromkeys(map(str, ids)))
    places = {name: i for i, name in enumerate(images)}
    return Trials(values, images, np.array([places[name] for name in ids], np.int64), *labels)


def trial_labels(ds: xr.Dataset, *names: str | None) -> list[np.ndarray | None]:
    """Return labels of the trials of one subject, as strings; of what is None, None.

    Raises
    ------
    ModelError
        If there are no such labels.
    """
    array = checked_responses(ds)
    return [_labels_of(ds, array, name) for name in names]


def _labels_of(ds: xr.Dataset, array: xr.DataArray, name: str | None) -> np.ndarray | None:
    """Return a label of each trial, as a string; those of images hold for their repetitions."""
    if name is None:
        return None
    lead = array.dims[:-1]
    if name not in ds.coords or not set(ds[name].dims) <= set(lead) or not ds[name].ndim:
        along = [str(n) for n, c in ds.coords.items() if c.dims and set(c.dims) <= set(lead)]
        raise ModelError(f"trials have no label {name!r}: {close_matches(name, along)}")
    blank = xr.DataArray(np.zeros(array.shape[:-1]), dims=lead)
    values = ds[name].variable.set_dims(dict(blank.sizes)).transpose(*lead).values
    found: np.ndarray = values.ravel().astype(object).astype(str)
    return found


def neuroid_labels(ds: xr.Dataset) -> xr.Dataset:
    """Return ``neuroid_label (<neuroid>)``, by which neuroids are found; nothing without labels."""
    neuroid = str(checked_responses(ds).dims[-1])
    if neuroid not in ds.coords:
        return xr.Dataset()
    return xr.Dataset(coords={LABEL: (neuroid, ds[neuroid].values)})


def roi_positions(
    ds: xr.Dataset, rois: Sequence[str] | None, subject: str
) -> dict[str, np.ndarray]:
    """Return the neuroids of each ROI; of all where none is named.

    Raises
    ------
    ModelError
        If a ROI is not there, or has no neuroids.
    """
    neuroid = str(checked_responses(ds).dims[-1])
    if rois is None:
        return {WHOLE: np.arange(ds.sizes[neuroid])}
    found = {}
    for roi in rois:
        try:
            positions = resolve(ds, roi=roi)[neuroid]
        except SelectionError as error:
            raise ModelError(f"{subject}: {error}") from error
        assert isinstance(positions, np.ndarray)
        if not positions.size:
            raise ModelError(f"{subject} has no {neuroid}s in the ROI {roi!r}: leave it out")
        found[roi] = positions
    return found


def standardization(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation (ddof 1) of the columns, float64; of constant ones deviation 0."""
    mean = values.mean(0, dtype=np.float64)
    deviation = values.std(0, dtype=np.float64, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    constant = deviation <= 1e-7 * np.abs(values).max(0)
    return mean, np.where(constant, 0.0, deviation)


def standardized(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return ``(values - mean) / deviation`` in the dtype of the values, 0 of constant columns."""
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    result: np.ndarray = ((values - mean) * scale).astype(values.dtype)
    return result


def averaged_by(responses: Responses, label: str) -> Responses:
    """Average the trials that agree in a label, lazily; it becomes their ``image_id``.

    Raises
    ------
    SelectionError
        If trials have no such label.
    """
    if isinstance(responses, xr.DataTree):
        return map_nodes(responses, lambda ds: _averaged_by(ds, label) if "response" in ds else ds)
    return _averaged_by(responses, label)


def _averaged_by(ds: xr.Dataset, label: str) -> xr.Dataset:
    sample = sample_dim(ds)
    if label not in ds.coords or ds[label].dims != (sample,):
        along = [str(name) for name, coord in ds.coords.items() if coord.dims == (sample,)]
        raise SelectionError(f"{sample}s have no label {label!r}: {close_matches(label, along)}")
    if label != "image_id":
        ds = ds.drop_vars("image_id", errors="ignore")
        ds = ds.assign_coords(image_id=(sample, labels_of(ds, label).astype(object)))
    return average_repetitions(ds)


def lazy(array: xr.DataArray) -> da.Array:
    """Return the values of an array as dask has them."""
    data = array.data
    return data if isinstance(data, da.Array) else array.chunk().data
