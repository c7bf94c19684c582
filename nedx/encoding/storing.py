"""From an encoding model to a Zarr store, sorted so that one ROI is read alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
import zarr

from nedx.store.location import Location
from nedx.store.models import ModelWriter, create_array, write_whole

if TYPE_CHECKING:
    from nedx.encoding.model import LinearEncoder

PREFIX = "nedx_"
"""Coordinates of this prefix say where something lies on disk; results do not carry them."""

TARGETS_PER_CHUNK = 64
CHUNKS_PER_SHARD = 64
FEATURES_PER_CHUNK = 4096
HEAVY = ("projection", "projection_offset", "readout", "intercept")


def target_dims(member: xr.Dataset) -> tuple[str, ...]:
    """Return the dims of the readout that are predicted: the neuroids, then time if there is."""
    # Each voxel of a fwRF model has a readout of its own form.
    dims = member["readout"].dims if "readout" in member else ("voxel",)
    return tuple(str(dim) for dim in dims if dim not in ("subject", "component"))


def rows_per_chunk(member: xr.Dataset) -> int:
    """Return how many neuroids a chunk of the readout holds, about 64 targets."""
    neuroid, *others = target_dims(member)
    further = int(np.prod([member.sizes[dim] for dim in others]))
    return max(1, min(TARGETS_PER_CHUNK // max(further, 1), member.sizes[neuroid]))


def stored_rows(member: xr.Dataset) -> np.ndarray:
    """Choose where each neuroid lies on disk.

    Neuroids that belong to the same ROIs lie together, each such group from the start of a
    chunk on; what is left over at its end is empty and takes no bytes. Reading an ROI then
    reads its own rows only.

    Returns
    -------
    numpy.ndarray of int64, (subject, neuroid) or (neuroid,)
        As ``roi_mask`` has subjects.
    """
    neuroid = target_dims(member)[0]
    count = member.sizes[neuroid]
    if "roi_mask" not in member:
        return np.arange(count)
    chunk = rows_per_chunk(member)
    mask = member["roi_mask"]
    if "subject" in mask.dims and "subject" in member["readout"].dims:
        masks = mask.transpose("subject", "roi", neuroid).values
        return np.stack([_grouped(one, chunk) for one in masks])
    others = [dim for dim in mask.dims if dim not in ("roi", neuroid)]
    return _grouped(mask.any(others).transpose("roi", neuroid).values, chunk)


def _grouped(mask: np.ndarray, chunk: int) -> np.ndarray:
    """Return rows for the neuroids of ``mask (roi, neuroid)``; neuroids of no ROI come first."""
    signatures = np.packbits(mask.astype(bool), axis=0).T
    groups, members = np.unique(signatures, axis=0, return_inverse=True)
    rows = np.empty(mask.shape[1], dtype=np.int64)
    start = 0
    for group in range(len(groups)):
        where = np.flatnonzero(members.reshape(-1) == group)
        rows[where] = start + np.arange(len(where))
        start += -(-len(where) // chunk) * chunk
    return rows


def write_model(model: LinearEncoder, place: str | Path | Location) -> Location:
    """Write a model, whole or not at all on a local disk.

    Parameters
    ----------
    model : LinearEncoder
        What to write.
    place : path, URL or Location
        Where; must not exist.

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """
    return write_whole(place, lambda location: _write(model, location))


def _write(model: LinearEncoder, location: Location) -> None:
    writer = ModelWriter(location)
    for name, ds in model.groups():
        _write_group(ds, writer.root.require_group(name) if name else writer.root)
        writer.labels(ds, name, HEAVY)
    writer.finish(
        model.recipe,
        layer_widths=dict(model.layer_widths),
        members=[name for name, ds in model.groups() if "readout" in ds],
        **model.hashes(),
    )


def _write_group(ds: xr.Dataset, group: zarr.Group) -> None:
    if "projection" in ds:
        _write_projection(ds, group)
    if "readout" in ds:
        for name in ("readout", "intercept"):
            _write_targets(ds, name, group)


def _write_projection(ds: xr.Dataset, group: zarr.Group) -> None:
    for name in ("projection", "projection_offset"):
        lead = ("subject",) if "subject" in ds[name].dims else ()
        dims = (*lead, *(("feature",) if name == "projection" else ()), "component")
        values = ds[name].transpose(*dims)
        step = min(FEATURES_PER_CHUNK, ds.sizes["feature"])
        chunks = tuple(
            1 if d == "subject" else step if d == "feature" else n
            for d, n in zip(dims, values.shape, strict=True)
        )
        array = create_array(group, name, values.shape, "float32", chunks=chunks, dims=dims)
        for start in range(0, values.sizes.get("feature", 1), step * 16):
            part = slice(start, start + step * 16)
            where = {"feature": part} if name == "projection" else {}
            selection = tuple(where.get(dim, slice(None)) for dim in dims)
            array[selection] = values.isel(where).values.astype(np.float32)


def _write_targets(ds: xr.Dataset, name: str, group: zarr.Group) -> None:
    """Write readout or intercept, each row where `nedx_row` says."""
    neuroid, *others = target_dims(ds)
    lead = ("subject",) if "subject" in ds[name].dims else ()
    last = ("component",) if name == "readout" else ()
    values = ds[name].transpose(*lead, neuroid, *others, *last)
    chunk = rows_per_chunk(ds)
    # An intercept is one number a target: more rows in a chunk, still few bytes.
    step = chunk if last else chunk * CHUNKS_PER_SHARD
    rows = ds[f"{PREFIX}row"].values
    count = int(rows.max(initial=-1)) + 1
    sharded = bool(last) and count > chunk * CHUNKS_PER_SHARD
    block = chunk * CHUNKS_PER_SHARD
    length = -(-count // block) * block if sharded else count
    shape = (*(ds.sizes[d] for d in lead), length, *values.shape[len(lead) + 1 :])
    tail = shape[len(lead) + 1 :]
    array = create_array(
        group,
        name,
        shape,
        "float32",
        dims=(*lead, "row", *others, *last),
        chunks=(*(1 for _ in lead), min(step, length), *tail),
        shards=(*(1 for _ in lead), block, *tail) if sharded else None,
    )
    for subject in range(ds.sizes["subject"]) if lead else (None,):
        own = rows if subject is None or rows.ndim == 1 else rows[subject]
        inverse = np.full(length, -1)
        inverse[own] = np.arange(len(own))
        chosen = values if subject is None else values.isel(subject=subject)
        lead_index = () if subject is None else (subject,)
        for start in range(0, length, block):
            taken = inverse[start : start + block]
            filled = taken >= 0
            out = np.zeros((len(taken), *tail), np.float32)
            out[filled] = chosen.isel({neuroid: taken[filled]}).values
            array[(*lead_index, slice(start, start + len(taken)))] = out


def hash_variables(groups: Mapping[str, xr.Dataset], names: tuple[str, ...]) -> str:
    """Return the sha256 of some variables of some groups: names, shapes and values."""
    digest = hashlib.sha256()
    for group, ds in sorted(groups.items()):
        for name in names:
            if name in ds:
                digest.update(f"{group}/{name}{ds[name].shape}".encode())
                for piece in _pieces(ds[name]):
                    digest.update(piece)
    return digest.hexdigest()


def _pieces(array: xr.DataArray) -> Iterator[bytes]:
    """Yield the values of an array in C order, some at a time."""
    if array.ndim == 0:
        yield np.ascontiguousarray(array.values).tobytes()
        return
    row_bytes = max(1, array.nbytes // max(1, array.shape[0]))
    step = max(1, 2**26 // row_bytes)
    for start in range(0, array.shape[0], step):
        values = array[start : start + step].values
        if values.dtype.kind in "OUST":
            # numpy does not cast the strings that xarray reads from Zarr in one step.
            yield json.dumps(values.astype(object).astype(str).tolist()).encode()
        else:
            yield np.ascontiguousarray(values).tobytes()
