"""Open stores: one request for metadata, one for each label that is needed, nothing else."""

from __future__ import annotations

import re
import uuid
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import xarray as xr
import zarr
import zarr.errors
from dask.base import tokenize

from nedx._rules import refuse_newer
from nedx.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    NedxWarning,
    NotDataError,
    StoreError,
    close_matches,
)
from nedx.schema import restore_index
from nedx.selection import Names, Subjects, Times, chosen_subjects, select
from nedx.store.guard import GuardedStore
from nedx.store.lazy import CheckedStore, plan_variable
from nedx.store.ledger import StorePlan
from nedx.store.location import Location

Chunks: TypeAlias = Literal["auto"] | Mapping[Any, int] | None

_WEB = ("http", "https")
_SUBJECT_GROUP = re.compile(r"sub-[A-Za-z0-9]+")
_CONCURRENT = 8


class IncompleteStoreWarning(NedxWarning):
    """A store that is still being written: reading what is not there yet is an error."""


@dataclass(frozen=True)
class _Request:
    """What `open_store` was asked for."""

    location: Location
    chunks: Chunks
    token: str
    selection: dict[str, Any]


def open_store(
    place: str | Path | Location,
    *,
    group: str | None = None,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    chunks: Chunks = "auto",
    subject: Subjects | None = None,
    roi: Names | None = None,
    channel: Names | None = None,
    time: Times | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open a Zarr store lazily, or the part of it that matters.

    One request reads the metadata; the labels that the selection needs are read at the same
    time as each other; other coordinates are read when they are used, and data variables when
    they are computed. Selecting first saves the reading, whenever it is done: only the stored
    chunks that are touched are fetched.

    Parameters
    ----------
    place : str, Path or Location
        Local path or URL: ``gs://``, ``s3://``, ``https://``, ``memory://``, ``hf://``.
    group : str, optional
        A group of the store, such as ``"truth"``.
    anonymous : bool, optional
        Read without credentials.
    storage_options : mapping, optional
        Options for fsspec, such as ``endpoint_url``.
    chunks : "auto", mapping of dim to length, or None
        Blocks of the dask arrays: "auto" chooses whole multiples of the stored chunks; None keeps
        xarray's own lazy arrays, without dask.
    subject, roi, channel, time
        What to select, as `nedx.selection.select` takes it.

    Returns
    -------
    Dataset or DataTree
        A store of subjects with their own voxels gives a Dataset for one subject, and a DataTree
        with one child for each of several.

    Raises
    ------
    StoreError
        If there is no store, or it cannot be read, is not consolidated on a server that cannot
        list, or is empty.
    CredentialsError
        If access is refused.
    SchemaError
        If a newer nedx wrote it.
    SelectionError
        If something selected is not there.

    Warns
    -----
    IncompleteStoreWarning
        If the store is still being written.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    root = _open_root(location)
    _check(root, location)
    _check_consolidated(root, location)
    request = _Request(
        location, chunks, _token(root, location), {"roi": roi, "channel": channel, "time": time}
    )
    subjects = [] if group is not None else _subject_groups(root)
    if subjects:
        return _open_ragged(root, subjects, subject, request)
    node = root if group is None else _descend(root, group, location)
    lazy = _lazy_dataset(node, location)
    _refuse_empty(node, lazy, location)
    return _open_datasets([lazy], subject, request, xr.Dataset())[0]


def _open_root(location: Location) -> zarr.Group:
    store = GuardedStore(location.zarr_store(), location)
    try:
        try:
            root = zarr.open_group(store, mode="r", zarr_format=3)
        except FileNotFoundError:
            root = zarr.open_group(store, mode="r", zarr_format=2)
    except FileNotFoundError as error:
        raise StoreError(_nothing_there(location)) from error
    except (zarr.errors.NodeTypeValidationError, zarr.errors.ContainsArrayError) as error:
        message = f"{location.url} is one Zarr array, not a store: open the folder that holds it"
        raise StoreError(message) from error
    except (ValueError, KeyError, TypeError) as error:
        message = (
            f"{location.url}/zarr.json is no metadata of a Zarr group: {error}. "
            f"To see what else is damaged, type: nedx verify {location.url}"
        )
        raise CorruptStoreError(message) from error
    return root


def _check_consolidated(root: zarr.Group, location: Location) -> None:
    if root.metadata.consolidated_metadata is None and location.protocol in _WEB:
        name = Path(location.url).name
        raise StoreError(
            f"{location.url} has no consolidated metadata, and a web server cannot list what is "
            "there, so it would look empty. Where its files are, type: "
            f"python -c \"import zarr; zarr.consolidate_metadata('{name}')\""
        )


def _nothing_there(location: Location) -> str:
    text = f"there is no Zarr store at {location.url}: neither zarr.json nor .zgroup is there"
    if not location.is_local:
        return f"{text}. Check the address"
    if Path(location.url).is_file():
        return (
            f"{location.url} is a file, not a Zarr store. Make a store of it: see "
            "nedx import --help for the formats"
        )
    parent = Path(location.url).parent
    stores = [path.name for path in parent.glob("*.zarr")] if parent.is_dir() else []
    near = close_matches(Path(location.url).name, stores)
    return f"{text}; in {parent}, {near}" if near else f"{text}. Check the path"


def _check(root: zarr.Group, location: Location) -> None:
    """Refuse the store of a newer nedx; warn of one that is still being written."""
    attrs = dict(root.attrs)
    if attrs.get("nedx_kind") == "model":
        raise NotDataError(
            f"{location.url} holds a model, not data. Type: nedx.load_model({location.url!r})"
        )
    refuse_newer(xr.Dataset(attrs=attrs))
    if attrs.get("nedx_status") != "partial":
        return
    done, resume = _progress(location)
    warnings.warn(
        f"{location.url} is unfinished{done}: the rest cannot be read. To finish it, type: "
        f"{resume}",
        IncompleteStoreWarning,
        stacklevel=3,
    )


def _progress(location: Location) -> tuple[str, str]:
    """Say how many blocks are done, where the store can be listed, and how to go on."""
    try:
        plan = StorePlan.read(location)
    except IncompleteStoreError:
        return "", "nedx.to_zarr(..., overwrite=True)"
    if location.protocol in _WEB:
        return "", plan.resume
    done = sum(key.endswith(".json") for key in location.list("_nedx/ledger"))
    return f" ({done} of {len(plan.blocks)} blocks are there)", plan.resume


def _token(root: zarr.Group, location: Location) -> str:
    """Name the content of a store for dask: stable where nedx says that it is complete."""
    if root.attrs.get("nedx_status") != "complete":
        return uuid.uuid4().hex
    return str(tokenize(location, root.metadata.to_dict()))


def _subject_groups(root: zarr.Group) -> list[str]:
    """Return the groups of subjects with their own voxels; none where all share one grid."""
    if root.attrs.get("nedx_kind") != "ragged" and next(iter(root.arrays()), None) is not None:
        return []
    return sorted(name for name, _ in root.groups() if _SUBJECT_GROUP.fullmatch(name))


def _descend(root: zarr.Group, path: str, location: Location) -> zarr.Group:
    try:
        node = root[path.strip("/")]
    except KeyError as error:
        names = [name for name, member in root.members(max_depth=None) if _is_group(member)]
        message = f"{location.url} has no group {path!r}: {close_matches(path, names)}"
        raise StoreError(message) from error
    if not isinstance(node, zarr.Group):
        raise StoreError(f"{path!r} in {location.url} is an array, not a group")
    return node


def _is_group(member: object) -> bool:
    return isinstance(member, zarr.Group)


def _refuse_empty(node: zarr.Group, lazy: xr.Dataset, location: Location) -> None:
    if lazy.variables:
        return
    groups = [name for name, _ in node.groups()]
    if groups:
        hint = f"it has groups: {', '.join(groups)}; type open_store(..., group={groups[0]!r})"
    else:
        hint = "its metadata may be out of date; where its files are, consolidate it again"
    raise StoreError(f"{location.url} holds no variables ({hint})")


def _open_ragged(
    root: zarr.Group, names: list[str], subject: Subjects | None, request: _Request
) -> xr.Dataset | xr.DataTree:
    wanted = chosen_subjects(subject, names)
    location = request.location
    shared = _lazy_dataset(root, location)
    shared.attrs.pop("nedx_kind", None)
    members = [_lazy_dataset(_descend(root, name, location), location) for name in wanted]
    opened = _open_datasets(members, None, request, shared)
    if subject is not None and len(opened) == 1:
        return opened[0].assign_attrs(subject_ids=wanted)
    top = xr.Dataset(attrs=dict(root.attrs))
    return xr.DataTree.from_dict({"/": top, **dict(zip(wanted, opened, strict=True))})


def _lazy_dataset(node: zarr.Group, location: Location) -> xr.Dataset:
    """Return what xarray sees of a group, before anything of it is read."""
    store = CheckedStore(node, location.url)
    return xr.open_dataset(store, chunks=None, create_default_indexes=False, decode_timedelta=False)


def _open_datasets(
    members: list[xr.Dataset], subject: Subjects | None, request: _Request, shared: xr.Dataset
) -> list[xr.Dataset]:
    """Read the labels of all Datasets at once, plan their variables, and select."""
    whole = [_inherit(ds, shared) for ds in members]
    sources: list[dict[str, xr.Variable]] = [
        {
            name: (own if name in own.variables else shared).variables[name]
            for name in _labels(ds, request.selection)
        }
        for ds, own in zip(whole, members, strict=True)
    ]
    # What subjects share is one object, and read once.
    unique = {id(variable): variable for labels in sources for variable in labels.values()}

    with ThreadPoolExecutor(_CONCURRENT) as pool:
        loaded = dict(zip(unique, pool.map(_load, unique.values()), strict=True))
    return [
        _finish(ds, {name: loaded[id(v)] for name, v in labels.items()}, subject, request)
        for ds, labels in zip(whole, sources, strict=True)
    ]


def _inherit(ds: xr.Dataset, shared: xr.Dataset) -> xr.Dataset:
    """Give a subject what the root holds for all of them."""
    coords = {
        name: variable
        for name, variable in shared.coords.variables.items()
        if name not in ds.variables and set(variable.dims) <= set(ds.dims)
    }
    return ds.assign_coords(coords).assign_attrs({**shared.attrs, **ds.attrs})


def _labels(ds: xr.Dataset, selection: Mapping[str, Any]) -> list[str]:
    """Return the labels that a selection of this Dataset needs."""
    names: list[Any] = ["image_id"]
    names += [dim for name in ds.data_vars if name != "roi_mask" for dim in ds[name].dims]
    names = [name for name in names if name != "roi"]
    if selection["roi"] is not None:
        names += ["roi", "roi_mask"]
    if selection["channel"] is not None:
        names += ["region", "channel_group"]
    return [name for name in dict.fromkeys(names) if name in ds.variables]


def _load(variable: xr.Variable) -> xr.Variable:
    """Read a label; strings as objects, for indexes and comparisons that work as ever."""
    variable = variable.load()
    if variable.dtype.kind != "U":
        return variable
    return xr.Variable(variable.dims, variable.values.astype(object), variable.attrs)


def _finish(
    ds: xr.Dataset, labels: Mapping[str, xr.Variable], subject: Subjects | None, request: _Request
) -> xr.Dataset:
    planned = {}
    if request.chunks is not None:
        asked = {} if request.chunks == "auto" else dict(request.chunks)
        planned = {
            name: plan_variable(ds.variables[name], asked, request.token)
            for name in ds.data_vars
            if name not in labels
        }
    result = ds.assign({**planned, **labels}).drop_encoding()
    coords = [name for name in labels if name in ds.coords]
    result = result.set_coords(coords)
    for name in coords:
        if result[name].dims == (name,) and name not in result.xindexes:
            result = result.set_xindex(name)
    result = select(restore_index(result), subject=subject, **request.selection)
    result.encoding["source"] = request.location.url
    return result
