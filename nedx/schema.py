"""What a nedx Dataset looks like: `parse` makes one valid, `validate` only checks.

The names and units are those of the field (BIDS, MNE, NSD, BrainIO, CF). Nothing here computes:
arrays that are held lazily are judged by their dtype, dims and attributes only.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import numpy as np
import xarray as xr

from nedx._roles import (
    NEUROIDS,
    ROLES,
    neuroid_dim,
    restore_index,
    role_dim,
    role_of,
    sample_dim,
    subject_label,
)
from nedx._rules import (
    CANONICAL_ORDER,
    KINDS,
    MODALITIES,
    NORMALIZATIONS,
    SCHEMA_VERSION,
    SCOPES,
    SOURCES,
    UNIT_SPELLINGS,
    UNITS,
    VARIABLES,
    find_faults,
    find_kind,
    refuse_newer,
)
from nedx.errors import SchemaError

__all__ = [
    "DERIVED_FROM",
    "NEUROIDS",
    "ROLES",
    "SCHEMA_VERSION",
    "neuroid_dim",
    "parse",
    "parse_without_units",
    "restore_index",
    "role_dim",
    "role_of",
    "sample_dim",
    "schema_as_json",
    "subject_label",
    "validate",
]

DERIVED_FROM = "derived_from"
"""The attribute that names the variable which another was computed of, as decoded features are."""
CONVENTIONS = f"CF-1.11, nedx-{SCHEMA_VERSION}"

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataTree)


def validate(ds: xr.Dataset | xr.DataTree, kind: str | None = None) -> None:
    """Check that a Dataset obeys the schema; computes nothing and changes nothing.

    Parameters
    ----------
    ds : Dataset or DataTree
        Responses ``response ([model, subject,] image | trial[, repetition], <neuroid>[, time])``,
        stimuli ``pixels (image, y, x, rgb)`` or features ``features (image, feature)``. Of a
        DataTree every node that holds one of these is checked.
    kind : {"responses", "stimuli", "features"}, optional
        What it is; found from its variables by default.

    Raises
    ------
    SchemaError
        If anything is wrong; one message names every fault and what to type instead.
    """
    if isinstance(ds, xr.DataTree):
        nodes = _nodes(ds)
        faults = [
            f"{path}: {fault}"
            for path, node in nodes.items()
            for fault in find_faults(node, kind or find_kind(node))
        ]
        if not nodes:
            faults = ["no group holds 'response', 'pixels' or 'features'"]
        if faults:
            raise SchemaError("The DataTree", faults)
        return
    kind = kind or find_kind(ds)
    faults = find_faults(ds, kind)
    if faults:
        raise SchemaError(f"The {kind} Dataset" if kind else "The Dataset", faults)


@overload
def parse(ds: xr.Dataset, kind: str | None = None) -> xr.Dataset: ...
@overload
def parse(ds: xr.DataTree, kind: str | None = None) -> xr.DataTree: ...
def parse(ds: xr.Dataset | xr.DataTree, kind: str | None = None) -> xr.Dataset | xr.DataTree:
    """Make a Dataset obey the schema where that is safe, and check the rest.

    Strings become objects, subjects BIDS labels, times seconds, float64 responses float32;
    dimensions get their roles and the canonical order; known spellings of a unit become the
    schema's (values are never rescaled, but for times in ms); ``image_id`` becomes the index.

    Parameters
    ----------
    ds : Dataset or DataTree
        See `validate`.
    kind : {"responses", "stimuli", "features"}, optional
        What it is; found from its variables by default.

    Returns
    -------
    Dataset or DataTree
        A new object; lazy arrays stay lazy.

    Raises
    ------
    SchemaError
        If anything remains wrong.
    """
    if isinstance(ds, xr.DataTree):
        parsed = {
            path: _parse(node, kind or find_kind(node)) if path in _nodes(ds) else node
            for path, node in _datasets(ds).items()
        }
        tree = xr.DataTree.from_dict(parsed)
        validate(tree, kind)
        return tree
    kind = kind or find_kind(ds)
    parsed_ds = _parse(ds, kind)
    validate(parsed_ds, kind)
    return parsed_ds


def parse_without_units(ds: xr.Dataset) -> xr.Dataset:
    """Make responses obey the schema, in all but a unit that nobody has said.

    Some files do not tell the unit of their responses. These can be used and averaged, and are not
    valid until somebody says it.

    Raises
    ------
    SchemaError
        If anything else is wrong, or a unit is said that responses cannot have.
    """
    modality = str(ds.attrs.get("modality"))
    if "response" not in ds or "units" in ds["response"].attrs or modality not in UNITS:
        return parse(ds, "responses")
    any_unit = ds["response"].assign_attrs(units=UNITS[modality][0])
    parsed = parse(ds.assign(response=any_unit), "responses")
    del parsed["response"].attrs["units"]
    return parsed


def schema_as_json() -> dict[str, Any]:
    """Return the schema as plain JSON values; the golden file of the tests is this."""
    return {
        "nedx_schema_version": SCHEMA_VERSION,
        "conventions": CONVENTIONS,
        "roles": {role: list(names) for role, names in ROLES.items()},
        "canonical_order": list(CANONICAL_ORDER),
        "kinds": {kind: list(names) for kind, names in KINDS.items()},
        "variables": {
            name: {"dims": rule.dims, "dtypes": list(rule.dtypes), "range": _span(rule.span)}
            for name, rule in VARIABLES.items()
        },
        "units": {modality: list(units) for modality, units in UNITS.items()},
        "normalizations": list(NORMALIZATIONS),
        "normalization_scopes": list(SCOPES),
        "modalities": list(MODALITIES),
        "sources": list(SOURCES),
    }


def _span(span: tuple[float, float] | None) -> list[float | None] | None:
    """Spell an open end as None: JSON has no infinity."""
    return None if span is None else [end if np.isfinite(end) else None for end in span]


def _datasets(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    return {node.path: node.to_dataset(inherit=True) for node in tree.subtree}


def _nodes(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the groups that hold responses, stimuli or features; ``truth`` keeps its own."""
    return {
        path: ds
        for path, ds in _datasets(tree).items()
        if find_kind(ds) and "truth" not in path.split("/")
    }


def _parse(ds: xr.Dataset, kind: str | None) -> xr.Dataset:
    refuse_newer(ds)
    ds = _parse_strings(_parse_image_labels(ds))
    ds = _parse_subjects(_parse_time(ds))
    for dim in ds.dims:
        role = role_of(ds, dim)
        if role is not None and dim in ds.coords and "nedx_role" not in ds[dim].attrs:
            ds = ds.assign_coords({dim: ds[dim].assign_attrs(nedx_role=role)})
    for name in KINDS.get(kind or "", ()):
        if name in ds:
            ds = ds.assign({name: _parse_variable(ds, name)})
    ds = ds.assign_attrs(
        {"Conventions": CONVENTIONS, **ds.attrs, "nedx_schema_version": SCHEMA_VERSION}
    )
    return restore_index(ds)


def _parse_image_labels(ds: xr.Dataset) -> xr.Dataset:
    """Give ``image`` no coordinate of its own: labels become image_id, positions go away."""
    if "image" not in ds.coords or "image" not in ds.dims:
        return ds
    values = ds["image"].values
    if values.dtype.kind in "OUST" and "image_id" not in ds.coords:
        return ds.drop_indexes("image").rename_vars(image="image_id")
    if np.array_equal(values, np.arange(values.size)):
        return ds.drop_vars("image")
    return ds


def _parse_strings(ds: xr.Dataset) -> xr.Dataset:
    """Cast strings to objects: Zarr has no stable form for those of fixed width."""
    for name, variable in ds.variables.items():
        if variable.dtype.kind in "US":
            values = np.asarray(variable.values)
            if values.dtype.kind == "S":
                values = np.char.decode(values)
            cast = {name: xr.Variable(variable.dims, values.astype(object), variable.attrs)}
            ds = ds.assign_coords(cast) if name in ds.coords else ds.assign(cast)
    return ds


def _parse_subjects(ds: xr.Dataset) -> xr.Dataset:
    dim = role_dim(ds, "subject")
    if dim is None or dim not in ds.coords:
        return ds
    labels = np.array([subject_label(s) for s in ds[dim].values.tolist()], dtype=object)
    return ds.assign_coords({dim: (dim, labels, ds[dim].attrs)})


def _parse_time(ds: xr.Dataset) -> xr.Dataset:
    """Spell times as float64 seconds; only timedeltas and ms are converted."""
    dim = role_dim(ds, "time")
    if dim is None or dim not in ds.coords:
        return ds
    values, attrs = ds[dim].values, dict(ds[dim].attrs)
    if values.dtype.kind == "m":
        values = values / np.timedelta64(1, "s")
    elif attrs.get("units") in ("ms", "millisecond", "milliseconds"):
        values = values.astype(np.float64) / 1000
    elif attrs.get("units", "s") not in ("s", "second", "seconds", "sec"):
        return ds
    attrs = {"long_name": "time from stimulus onset", **attrs, "units": "s"}
    return ds.assign_coords({dim: (dim, values.astype(np.float64), attrs)})


def _parse_variable(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Return a main variable in canonical order, as float32, with its unit spelled right."""
    array = ds[name]
    order = _canonical(array)
    if order != array.dims:
        array = array.transpose(*order)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    units = array.attrs.get("units")
    if units in UNIT_SPELLINGS:
        array = array.assign_attrs(units=UNIT_SPELLINGS[units])
    return array


def _canonical(array: xr.DataArray) -> tuple[Any, ...]:
    """Return the dims in canonical order; those the schema does not know keep their place last."""
    ranks = {dim: _rank(array, dim) for dim in array.dims}
    return tuple(sorted(array.dims, key=lambda dim: ranks[dim]))


def _rank(array: xr.DataArray, dim: Any) -> int:
    role = role_of(array, dim) or str(dim)
    return CANONICAL_ORDER.index(role) if role in CANONICAL_ORDER else len(CANONICAL_ORDER)
