"""Beginning and ending a store: what is there before the first block and after the last."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import dask.base
import numpy as np
import xarray as xr
import zarr

from nedx._rules import find_false
from nedx.errors import AlignmentError, SchemaError, StoreError, StoreExistsError
from nedx.store import ledger
from nedx.store.codecs import prepare, template
from nedx.store.layout import Block, Layout, plan_dataset
from nedx.store.location import Location
from nedx.store.manifest import STATE, RecordingStore, StoredObject

_log = logging.getLogger(__name__)
_VOLATILE = ("date_created", "history", "nedx_status")
_MEANING = ("units", "normalization", "normalization_scope", "transform")
"""Attributes without which numbers mean something else; others differ between machines."""
_TASK_BYTES = 384_000_000
_FEW_SAMPLES = 16
_MARKS = ("zarr.json", ".zgroup", ".zarray", ledger.CREATING)


def dataset_groups(ds: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the Datasets of a tree by group, the root first; inherited coordinates left out."""
    if isinstance(ds, xr.Dataset):
        return {"": ds}
    if not isinstance(ds, xr.DataTree):
        raise StoreError(
            f"a store holds a Dataset or a DataTree, not {type(ds).__name__}. Type: "
            "array.to_dataset(name='response')"
        )
    groups = {node.path.strip("/"): node.to_dataset(inherit=False) for node in ds.subtree}
    return {"": groups.pop(""), **groups} if "" in groups else {"": xr.Dataset(), **groups}


def dataset_recipe(
    ds: xr.Dataset | xr.DataTree, dtype: str = "float32", keep_bits: int | None = 10
) -> dict[str, str]:
    """Return a fingerprint of each part: of its units, and its values or the graph of lazy ones."""
    parts = {"options": f"{dtype}, keep_bits={keep_bits}"}
    for group, node in dataset_groups(ds).items():
        prefix = f"{group}/" if group else ""
        attrs = {str(k): v for k, v in node.attrs.items() if k not in _VOLATILE}
        parts[f"{prefix}attrs"] = dask.base.tokenize(sorted(attrs.items(), key=lambda a: a[0]))
        for name, var in node.variables.items():
            parts[f"{prefix}{name}"] = dask.base.tokenize(
                *(var.dims, var.shape, str(var.dtype), _content(node, var, str(name))),
                [str(var.attrs.get(attr)) for attr in _MEANING],
            )
    return parts


def _content(ds: xr.Dataset, var: xr.Variable, name: str) -> Any:
    source = ds.encoding.get("source")
    # Xarray has no public way to ask whether a variable has been read.
    if source is not None and not var._in_memory and not var.chunks:
        return source, name
    values = var.data
    if isinstance(values, np.ndarray) and values.dtype.kind in "OTU":
        return [str(v) for v in values.ravel()]
    return values


def prepared_groups(ds: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return what can be stored of each group, and mark the root as partial."""
    from nedx import __version__

    groups = dataset_groups(ds)
    if not any(node.variables for node in groups.values()):
        raise StoreError(
            "there is nothing to write: this Dataset has no variables. Type: "
            "images.ned.encode(model).ned.to_zarr(place)"
        )
    if false := [fault for node in groups.values() for fault in find_false(node)]:
        raise SchemaError("what shall be written", false)
    made = {
        group: prepare(_labelled(node), f"group {group!r}" if group else "the Dataset")
        for group, node in groups.items()
    }
    root = made[""]
    root.attrs.update(
        date_created=datetime.now(UTC).isoformat(timespec="seconds"), nedx_status="partial"
    )
    root.attrs.setdefault("code_version", f"nedx {__version__}")
    if any(group.startswith("sub-") for group in made) and not root.data_vars:
        root.attrs.setdefault("nedx_kind", "ragged")
    return made


def _labelled(ds: xr.Dataset) -> xr.Dataset:
    """Compute lazy coordinates: they are written with the template, not block by block."""
    lazy = [name for name, coord in ds.coords.items() if coord.chunks is not None]
    if not lazy:
        return ds
    (known,) = dask.base.compute({name: ds.coords[name].variable for name in lazy})
    return ds.assign_coords(known)


def plan_groups(groups: Mapping[str, xr.Dataset], block: int | None = None) -> dict[str, Layout]:
    """Choose the layout of each group, with the same blocks in all.

    One task then writes the same images of all groups, and computes once what they share.

    Parameters
    ----------
    groups : mapping of str to Dataset
        Of one store.
    block : int, optional
        Number of samples in a block, rounded up to whole objects. Chosen if None.

    Returns
    -------
    dict of str to Layout
    """
    plans = {group: plan_dataset(node, block=block) for group, node in groups.items()}
    streamed = {group: plan for group, plan in plans.items() if plan.streamed}
    if len(streamed) < 2:
        return plans
    common = block or min(plan.block for plan in streamed.values())
    per_sample = sum(
        groups[group][name].nbytes / max(1, plan.size)
        for group, plan in streamed.items()
        for name in plan.streamed
    )
    while block is None and common > _FEW_SAMPLES and common * per_sample > _TASK_BYTES:
        common //= 2
    plans = {group: plan_dataset(node, block=common) for group, node in groups.items()}
    # Whole objects may have made blocks longer.
    common = max(plans[group].block for group in streamed)
    return {group: plan_dataset(node, block=common) for group, node in groups.items()}


def chosen_layouts(
    groups: Mapping[str, xr.Dataset], given: Layout | Mapping[str, Layout] | None
) -> dict[str, Layout]:
    """Take or choose the layout of each group, and refuse blocks that would share objects."""
    if isinstance(given, Layout):
        given = {"": given}
    chosen = {**plan_groups(groups), **(given or {})}
    for group, node in groups.items():
        layout = chosen[group]
        if set(layout.arrays) != {str(name) for name in node.variables}:
            raise StoreError(
                f"the layout names {', '.join(layout.arrays)}, the Dataset has "
                f"{', '.join(map(str, node.variables))}; type plan_dataset(ds)"
            )
        for name in layout.streamed:
            unit = layout.arrays[name].unit[node[name].dims.index(layout.dim or "")]
            if layout.block % unit:
                raise AlignmentError(
                    f"blocks of {layout.block} samples would share objects of {name!r}, which hold "
                    f"{unit}; give blocks that are a multiple of {unit}"
                )
    return chosen


def make_plan(
    groups: Mapping[str, xr.Dataset],
    layouts: Mapping[str, Layout],
    recipe: str | Mapping[str, str],
    location: Location,
    keep_bits: int | None,
    extra: Mapping[str, Any] | None,
    resume: str | None,
) -> ledger.StorePlan:
    """Make the plan: the blocks of all groups, numbered through."""
    ranges = [(group, *r) for group in groups for r in layouts[group].ranges()]
    return ledger.StorePlan(
        recipe=recipe_parts(recipe),
        blocks=tuple(Block(i, start, stop, g) for i, (g, start, stop) in enumerate(ranges)),
        streamed={g: layouts[g].streamed for g in groups if layouts[g].streamed},
        dims={g: str(layouts[g].dim) for g in groups if layouts[g].streamed},
        keep_bits=keep_bits,
        extra=dict(extra or {}),
        resume=resume or f"nedx.to_zarr(ds, {location.url!r}, resume=True)",
    )


def write_template(
    location: Location,
    groups: Mapping[str, xr.Dataset],
    layouts: Mapping[str, Layout],
    *,
    dtype: str,
    keep_bits: int | None,
) -> None:
    """Write the metadata, and all that is not streamed; note what was written."""
    store = RecordingStore(location.zarr_store(read_only=False))
    for group, node in groups.items():
        made, encoding = template(node, layouts[group], dtype=dtype, keep_bits=keep_bits)
        streamed = set(layouts[group].streamed)
        held = [name for name in made.variables if name not in streamed]
        made = made.assign({n: made[n].load() for n in held if n in made.data_vars})
        with _quiet():
            made.to_zarr(
                store,
                group=group or None,
                mode="a",
                compute=False,
                safe_chunks=False,
                write_empty_chunks=True,
                encoding=encoding,
                zarr_format=3,
                consolidated=False,
            )
    _consolidate(location)
    ledger.write_template(location, {k: v for k, v in store.written.items() if not is_metadata(k)})


def _consolidate(location: Location) -> None:
    with _quiet():
        zarr.consolidate_metadata(location.zarr_store(read_only=False), zarr_format=3)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what zarr says of consolidated metadata, and of our build state beside the arrays."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message=f"Object at {STATE} is not recognized")
        yield


def mark_complete(location: Location) -> None:
    """Set the status without touching any other attribute, and consolidate again."""
    group = zarr.open_group(location.zarr_store(read_only=False), mode="r+", use_consolidated=False)
    group.update_attributes({"nedx_status": "complete"})
    _consolidate(location)


def refuse_existing(location: Location, *, overwrite: bool) -> None:
    """Raise where there is something already, or delete the store if asked to."""
    filesystem, path = location.filesystem()
    filesystem.invalidate_cache()
    if not location.exists() or (filesystem.isdir(path) and not filesystem.ls(path)):
        return
    if not overwrite:
        unfinished = location.exists(ledger.PLAN) or location.exists(ledger.CREATING)
        also = "resume=True to go on with it, " if unfinished else ""
        raise StoreExistsError(
            f"{location.url} exists already and was left as it is; give {also}another path, "
            "or overwrite=True to delete it"
        )
    if not any(location.exists(key) for key in _MARKS):
        raise StoreExistsError(
            f"{location.url} exists and is no Zarr store, so it was left as it is; give another "
            "path, or delete it yourself"
        )
    location.delete(recursive=True)


def refuse_own_source(location: Location, groups: Mapping[str, xr.Dataset]) -> None:
    """Raise where overwriting would delete what is still to be read."""
    for node in groups.values():
        sources = [node.encoding, *(var.encoding for var in node.variables.values())]
        if any(str(e.get("source", "")).rstrip("/") == location.url for e in sources):
            raise StoreExistsError(
                f"{location.url} is where these data are read from; overwriting would delete "
                "them. Write to another path, then delete the old one"
            )


def remove_leftovers(location: Location, objects: Mapping[str, StoredObject]) -> None:
    """Delete what a killed writer left beside the chunks; files elsewhere are not ours."""
    found = ledger.sizes(location)
    arrays = [key.removesuffix("zarr.json") for key in found if key.endswith("/zarr.json")]
    chunks = tuple(f"{array}c" for array in arrays)
    for key in found:
        if key in objects or is_metadata(key) or key.startswith(f"{STATE}/"):
            continue
        if key.endswith(".partial") or key.startswith(chunks):
            _log.info("removing %s, which a killed run left", key)
            location.delete(key)


def is_metadata(key: str) -> bool:
    """Whether a key is a metadata document."""
    return key == "zarr.json" or key.endswith("/zarr.json")


def recipe_parts(recipe: str | Mapping[str, str]) -> dict[str, str]:
    """Return a recipe as named parts."""
    return {"recipe": recipe} if isinstance(recipe, str) else dict(recipe)


def check_recipe(
    location: Location, begun: str | Mapping[str, str], now: Mapping[str, str]
) -> None:
    """Raise where a store was begun by another recipe than this, naming what differs."""
    if isinstance(begun, str):
        if begun != ledger.recipe_fingerprint(now):
            raise StoreError(
                f"{location.url} is complete, and was made by another recipe; give another path, "
                "or overwrite=True to delete it"
            )
        return
    differ = [k for k in sorted({*begun, *now}) if begun.get(k) != now.get(k)]
    if differ:
        raise StoreError(
            f"{location.url} was begun by another recipe: {', '.join(differ)} differ. Resume it "
            "with what it was begun with, give another path, or overwrite=True to delete it"
        )
