"""Responses as estimators take them: one row an image, lazy, with the labels of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import ModelError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.schema import neuroid_dim, role_dim, sample_dim


@dataclass(frozen=True, eq=False)
class Measured:
    """The responses of one subject, or of subjects on one grid.

    Attributes
    ----------
    values : DataArray (image, [subject,] <neuroid>[, repetition][, time])
        Lazy where the responses are.
    labels : Dataset
        Coordinates of the targets, and the attributes of the responses' Dataset.
    image_id : ndarray of object, (image,), optional
        None where nothing names the images: they are paired by position.
    groups : ndarray, (image,), optional
        What may not be split across folds.
    """

    values: xr.DataArray
    labels: xr.Dataset
    image_id: np.ndarray | None
    groups: np.ndarray | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims of the targets."""
        return tuple(str(dim) for dim in self.values.dims[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the targets."""
        return self.values.shape[1:]

    def flat(self) -> np.ndarray | da.Array:
        """Return the responses (image, target), float32 or float64; lazy ones stay lazy."""
        data = self.values.data
        if data.dtype.kind != "f" or data.dtype.itemsize < 4:
            data = data.astype(np.float32)
        if isinstance(data, da.Array):
            # An image's targets in one chunk are flattened without moving any of them.
            data = data.rechunk(dict.fromkeys(range(2, data.ndim), -1))
        flattened: np.ndarray | da.Array = data.reshape(data.shape[0], -1)
        return flattened


def members(responses: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the responses by subject where each has neuroids of its own, else under ``""``.

    Raises
    ------
    ModelError
        If there are no responses, or subjects have other units or normalisations.
    """
    if isinstance(responses, xr.DataTree):
        found = {
            str(name): child.to_dataset(inherit=True)
            for name, child in responses.children.items()
            if "response" in child
        }
    else:
        found = {"": responses} if "response" in responses else {}
    if not found:
        there = list(responses.data_vars) or list(getattr(responses, "children", ()))
        raise ModelError(f"there is no 'response', only {there}")
    return found


def measured(responses: xr.Dataset, *, each: bool = False, groups: str | None = None) -> Measured:
    """Bring responses to one row an image, lazily.

    Parameters
    ----------
    responses : Dataset
        ``response ([subject,] image | trial[, repetition], <neuroid>[, time])``.
    each : bool
        Keep the repetitions as targets of their own; else they are averaged, as trials that show
        the same image are. Absent repetitions are NaN.
    groups : str, optional
        A coordinate of images or trials.

    Returns
    -------
    Measured

    Raises
    ------
    ModelError
        If there is no such coordinate, an image lies in two groups, or repetitions are asked for
        that are not there.
    """
    array, sample = responses["response"], sample_dim(responses)
    if "model" in array.dims:
        raise ModelError("these are predictions of models (dim 'model'), not responses to fit to")
    named = "image_id" in array.coords
    ids = labels_of(array, "image_id").astype(object) if named else None
    grouping = None if groups is None else _grouping(responses, groups, sample)
    repetition = role_dim(responses, "repetition")
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if each and repetition is None:
        raise ModelError(
            f"one fit a repetition needs the dim 'repetition', found {array.dims}; type "
            "repetitions='mean'"
        )
    if repetition is not None and not each:
        array = array.mean(repetition, skipna=True)
    order = [sample, *_target_order(responses, array, sample)]
    array = array.transpose(*order).drop_vars("partition", errors="ignore")
    if ids is not None and len(set(ids)) < len(ids):
        if role_dim(responses, "trial") is None:
            twice = ids[np.flatnonzero(_repeated(ids))[0]]
            raise ModelError(f"image {twice!r} has several rows; call their dim 'trial'")
        array, ids, grouping = _by_image(array, ids, grouping)
    values = xr.DataArray(array.data, dims=("image", *order[1:]), attrs=responses["response"].attrs)
    return Measured(values, _labels(responses, order[1:]), ids, grouping)


def row_positions(stimuli: xr.Dataset, found: Mapping[str, Measured]) -> dict[str, np.ndarray]:
    """Return for each member where its images lie among the stimuli.

    Raises
    ------
    ModelError
        If images of the responses are not among the stimuli, or without ids on both sides their
        numbers differ.
    """
    if "image_id" not in stimuli.coords or any(m.image_id is None for m in found.values()):
        return {name: _by_place(stimuli, m) for name, m in found.items()}
    known = [str(name) for name in stimuli["image_id"].values]
    places = {name: i for i, name in enumerate(known)}
    if len(places) < len(known):
        twice = known[int(np.flatnonzero(_repeated(np.array(known, dtype=object)))[0])]
        raise ModelError(f"several of the stimuli are called {twice!r}; image_id must be unique")
    positions = {}
    for name, one in found.items():
        wanted = [] if one.image_id is None else [str(label) for label in one.image_id]
        missing = [label for label in wanted if label not in places]
        if missing:
            raise ModelError(
                f"{name + ': ' if name else ''}{len(missing)} of {len(wanted)} images of the "
                f"responses are not among the stimuli, first {missing[0]!r}; "
                f"{close_matches(missing[0], places)}"
            )
        positions[name] = np.array([places[label] for label in wanted])
    return positions


def _by_place(stimuli: xr.Dataset, one: Measured) -> np.ndarray:
    count = one.values.sizes["image"]
    if stimuli.sizes["image"] != count:
        raise ModelError(
            f"{stimuli.sizes['image']} rows of features, {count} of responses, and no image_id on "
            "both to pair them by"
        )
    return np.arange(count)


def _target_order(ds: xr.Dataset, array: xr.DataArray, sample: str) -> list[str]:
    """Return the dims of the targets as models have them: neuroids before repetitions."""
    neuroid = neuroid_dim(ds)
    first = ["subject", *([neuroid] if neuroid else [])]
    dims = [str(dim) for dim in array.dims if dim != sample]
    return sorted(dims, key=lambda dim: first.index(dim) if dim in first else len(first))


def _grouping(ds: xr.Dataset, name: str, sample: str) -> np.ndarray:
    if name not in ds.coords or ds[name].dims != (sample,):
        along = [str(n) for n, coord in ds.coords.items() if coord.dims == (sample,)]
        raise ModelError(
            f"there is no coordinate {name!r} of {sample}s to group by, only {', '.join(along)}"
        )
    return np.asarray(ds[name].values)


def _by_image(
    array: xr.DataArray, ids: np.ndarray, grouping: np.ndarray | None
) -> tuple[xr.DataArray, np.ndarray, np.ndarray | None]:
    """Average the trials of each image."""
    names, first, codes = np.unique(ids.astype(str), return_index=True, return_inverse=True)
    if grouping is not None:
        split = np.flatnonzero(grouping[first][codes] != grouping)
        if split.size:
            raise ModelError(
                f"trials of image {ids[split[0]]!r} lie in several groups; an image is fitted "
                "once: group by what holds for images, such as their category"
            )
        grouping = grouping[first]
    data = array.data
    if isinstance(data, da.Array):
        data = data.rechunk({0: -1, **dict.fromkeys(range(1, data.ndim), "auto")})
        chunks = ((len(names),), *data.chunks[1:])
        data = data.map_blocks(_image_means, codes=codes, chunks=chunks, dtype=data.dtype)
    else:
        data = _image_means(data, codes=codes)
    averaged = xr.DataArray(data, dims=array.dims)
    return averaged, names.astype(object), grouping


def _image_means(values: np.ndarray, *, codes: np.ndarray) -> np.ndarray:
    """Average ``values (trial, ...)`` to ``(image, ...)``; absent trials are NaN."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    ordered = values[order]
    there = ~np.isnan(ordered)
    total = np.add.reduceat(np.where(there, ordered, 0), starts, axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean = total / np.add.reduceat(there, starts, axis=0, dtype=np.float64)
    return mean.astype(values.dtype if values.dtype.kind == "f" else np.float32)


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Return whether each id was there before."""
    _, first = np.unique(ids.astype(str), return_index=True)
    return ~np.isin(np.arange(len(ids)), first)


def _labels(ds: xr.Dataset, targets: list[str]) -> xr.Dataset:
    """Return the labels of the targets; dims without any are numbered."""
    dims = set(targets)
    kept = {
        name: variable
        for name, variable in ds.variables.items()
        if (name in ds.coords or name == "roi_mask") and set(variable.dims) <= dims | {"roi"}
    }
    labels = xr.Dataset(kept, attrs=ds.attrs)
    labels = labels.set_coords([name for name in kept if name in ds.coords])
    bare = {dim: np.arange(ds.sizes[dim]) for dim in targets if dim not in labels.sizes}
    return labels.assign_coords(bare)
