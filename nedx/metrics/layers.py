"""Features of layers, true beside predicted: joined by ``image_id``, compared layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.schema import role_dim, sample_dim

Features: TypeAlias = xr.DataArray | xr.Dataset
Statistics: TypeAlias = tuple[Features, Features]

PREFIX = "feature_"
SINGLE = ("features", "embedding", "response")
"""What is compared of a Dataset that holds no layers of their own."""

_KEPT = (
    *("model", "subject", "source", "target", "pair", "roi", "layer"),
    *("repetition", "time", "fold", "split"),
)
_SAMPLES = ("image", "trial")
_AXES = ("channel", "y", "x")
_NAMES = ("true", "predicted")
_NAME_THEM = "type .assign_coords(image_id=...)"
_WHAT = ("true features", "means", "standard deviations")
_BLOCK_BYTES = 2**25


def layers_of(data: Features) -> dict[str | None, xr.DataArray]:
    """Return the array of each layer.

    Parameters
    ----------
    data : DataArray or Dataset
        One layer, or ``feature_<layer>`` of several, or ``features (image, feature)`` with the
        coordinate ``layer (feature)``, or ``embedding`` or ``response``.

    Returns
    -------
    dict of str to DataArray
        By the name of the layer; None where layers are not told apart.

    Raises
    ------
    SchemaError
        If there is nothing of this.
    """
    if isinstance(data, xr.DataArray):
        return {None: data}
    if not isinstance(data, xr.Dataset):
        fault = f"found {type(data).__name__}, expected a DataArray or a Dataset"
        advice = "name its dims: xr.DataArray(values, dims=('image', 'unit')); of a DataTree take"
        raise SchemaError("what is compared", [fault, f"{advice} one Dataset: tree['sub-01'].ds"])
    names = variables_of(data)
    if names[0] in SINGLE:
        return _split(data[names[0]])
    return {name[len(PREFIX) :]: data[name] for name in names}


def variables_of(data: xr.Dataset) -> list[str]:
    """Return the names of what is compared of a Dataset; see `layers_of`."""
    layers = [str(name) for name in data if str(name).startswith(PREFIX)]
    found = layers or [name for name in SINGLE if name in data][:1]
    if not found:
        fault = f"no variables feature_<layer>, nor any of {', '.join(SINGLE)}; it has {list(data)}"
        raise SchemaError("what is compared", [fault])
    return found


def _split(array: xr.DataArray) -> dict[str | None, xr.DataArray]:
    if "layer" not in array.coords or array["layer"].ndim != 1 or "layer" in array.dims:
        return {None: array}
    (dim,) = array["layer"].dims
    names = labels_of(array, "layer")
    kept = array.drop_vars("layer")
    return {str(n): kept.isel({dim: np.flatnonzero(names == n)}) for n in dict.fromkeys(names)}


def by_layer(
    compare: Callable[..., xr.DataArray], true: Features, predicted: Features, *others: Features
) -> dict[str | None, xr.DataArray]:
    """Compare the layers that are predicted, each with the true features of that layer.

    Parameters
    ----------
    compare : callable
        ``compare(true, predicted, *others)`` of one layer.
    true, predicted, *others
        As `layers_of` takes them; units of a named layer flat in one and in space in another.

    Returns
    -------
    dict of str to DataArray

    Raises
    ------
    SchemaError
        If a predicted layer is absent elsewhere.
    """
    wanted, *there = (layers_of(data) for data in (predicted, true, *others))
    if None in wanted:
        wanted, *there = (_one_layer(layers) for layers in (wanted, *there))
    faults = [
        f"layer {name!r} is predicted, but there are no {what} of it: "
        f"{close_matches(name, (other for other in layers if other))}"
        for what, layers in zip(_WHAT, there, strict=False)
        for name in wanted
        if name not in layers
    ]
    if faults:
        raise SchemaError("what is compared", faults)
    found = {}
    for name, array in wanted.items():
        one, *rest = (layers[name] for layers in there)
        # An array without a name may be of anything.
        each = [one, array, *rest] if name is None else _alike([one, array, *rest])
        found[name] = compare(*each)
    return found


def _alike(arrays: Sequence[xr.DataArray]) -> Sequence[xr.DataArray]:
    """Lay the units of one layer flat (C order) in all, where some hold them flat already.

    Features that are computed of images are flat, those that are decoded lie in space.
    """
    units = [in_order(_own_dims(array)) for array in arrays]
    widths = {int(np.prod([a.sizes[d] for d in u])) for a, u in zip(arrays, units, strict=True)}
    if len({frozenset(dims) for dims in units}) == 1 or len(widths) > 1:
        return arrays
    if min(map(len, units)) != 1:
        return arrays
    return [unit_last(array, dims) for array, dims in zip(arrays, units, strict=True)]


def _own_dims(array: xr.DataArray) -> list[str]:
    samples = (*_SAMPLES, *(role_dim(array, role) for role in ("stimulus", "trial")))
    return [str(dim) for dim in array.dims if dim not in (*samples, *_KEPT)]


def in_order(dims: Sequence[str]) -> list[str]:
    """Return the dims of units with those in space as channel, y, x, by what they end with."""
    ends = [dim.rpartition("_")[2] for dim in dims]
    if not {*ends} <= {*_AXES}:
        return list(dims)
    return sorted(dims, key=lambda dim: _AXES.index(dim.rpartition("_")[2]))


def _one_layer(layers: Mapping[str | None, xr.DataArray]) -> dict[str | None, xr.DataArray]:
    if len(layers) == 1:
        return {None: next(iter(layers.values()))}
    found = ", ".join(str(name) for name in layers)
    fault = f"one array is compared with the layers {found}"
    raise SchemaError("what is compared", [fault, "give one layer, or both as feature_<layer>"])


def along_layer(
    found: Mapping[str | None, xr.DataArray], varying: Sequence[str] = ()
) -> xr.DataArray:
    """Stack results of the same dims along ``layer``; one without a name stays as it is.

    Parameters
    ----------
    found : mapping of str to DataArray
    varying : sequence of str
        Coordinates that differ between layers.
    """
    if None in found:
        return found[None]
    stacked = xr.concat(
        list(found.values()),
        dim="layer",
        coords=list(varying),
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    return stacked.assign_coords(layer=_objects(found))


def along_units(found: Mapping[str | None, xr.DataArray], lead: Sequence[Hashable]) -> xr.DataArray:
    """Put results of units one after another, with ``layer (unit)`` and ``unit_index (unit)``.

    ``unit_index`` is the place of a unit in its flattened layer (C order).
    """
    flat = [unit_last(array, [d for d in array.dims if d not in lead]) for array in found.values()]
    joined = xr.concat(
        flat,
        dim="unit",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    sizes = [array.sizes["unit"] for array in flat]
    index = np.concatenate([np.arange(size) for size in sizes])
    return joined.assign_coords(
        layer=("unit", np.repeat(_objects(found), sizes)), unit_index=("unit", index)
    )


def _objects(names: Iterable[str | None]) -> np.ndarray:
    return np.array(list(names), dtype=object)


def matched(
    true: xr.DataArray, predicted: xr.DataArray, *, names: tuple[str, str] = _NAMES
) -> tuple[xr.DataArray, xr.DataArray]:
    """Give every predicted sample the true features of its image.

    Parameters
    ----------
    true : DataArray (..., image, <unit dims>)
        Each image once, in any order, and perhaps more images than are predicted.
    predicted : DataArray (..., image | trial, <unit dims>)
    names : (str, str)
        What the two are called where they do not fit.

    Returns
    -------
    DataArray, DataArray
        Both with the samples of ``predicted``. Labels of samples are those of ``predicted``,
        all others those of ``true`` where it has them.

    Raises
    ------
    SchemaError
        If images are absent or named twice, or units differ in number or labels.
    """
    rows = lookup(true, predicted, names=names)
    of_true, sample = sample_dim(true), sample_dim(predicted)
    true = _without(true, of_true)
    true = true.isel({of_true: rows}) if rows is not None else true
    true = true.rename({of_true: sample}) if of_true != sample else true
    return _same_units(true, predicted, sample, names)


def candidates(true: xr.DataArray, predicted: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return true features on ``candidate``, with ``candidate_id``, and what was predicted.

    Raises
    ------
    SchemaError
        If units differ in number or labels.
    """
    of_true = sample_dim(true)
    labels = true["image_id"].values if _named(true) else None
    true = _without(true, of_true).rename({of_true: "candidate"})
    true, predicted = _same_units(true, predicted, "candidate", _NAMES)
    if labels is not None:
        true = true.assign_coords(candidate_id=("candidate", labels.astype(object)))
    return true, predicted


def lookup(
    true: xr.DataArray, predicted: xr.DataArray, *, names: tuple[str, str] = _NAMES
) -> np.ndarray | None:
    """Return the row of ``true`` that each predicted sample is of; None where they are the same.

    Raises
    ------
    SchemaError
        If there is nothing, images are absent or named twice, or only one of the two names them.
    """
    samples = sample_dim(true), sample_dim(predicted)
    sizes = true.sizes[samples[0]], predicted.sizes[samples[1]]
    if 0 in sizes:
        raise SchemaError("what is compared", ["no image was selected"])
    named = _named(true), _named(predicted)
    if not any(named):
        if sizes[0] != sizes[1] or samples[0] != samples[1]:
            fault = f"{sizes[0]} {names[0]} and {sizes[1]} {names[1]} samples without image_id"
            raise SchemaError("what is compared", [fault, _NAME_THEM])
        return None
    if not all(named):
        unnamed = names[1] if named[0] else names[0]
        fault = f"no image_id on what is {unnamed}: nothing is joined by position"
        raise SchemaError("what is compared", [fault, _NAME_THEM])
    ids, wanted = (labels_of(array, "image_id") for array in (true, predicted))
    order = np.argsort(ids, kind="stable")
    twice = ids[order][1:][ids[order][1:] == ids[order][:-1]]
    if twice.size:
        fault = f"{twice.size} rows are of an image that is there already, such as {twice[0]}"
        raise SchemaError(f"what is {names[0]}", [fault, "keep one row of each image"])
    place = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), ids.size - 1)]
    absent = np.unique(wanted[ids[place] != wanted])
    if absent.size:
        fault = f"{absent.size} {names[1]} images are not {names[0]}, for example {absent[0]}"
        advice = "select those that are: .sel(image_id=...)"
        raise SchemaError("what is compared", [fault, advice])
    return None if np.array_equal(place, np.arange(ids.size)) else place


def _named(array: xr.DataArray) -> bool:
    return "image_id" in array.coords and array["image_id"].dims == (sample_dim(array),)


def _without(array: xr.DataArray, dim: str) -> xr.DataArray:
    return array.drop_vars([name for name, coord in array.coords.items() if dim in coord.dims])


def _same_units(
    true: xr.DataArray, predicted: xr.DataArray, sample: str, names: tuple[str, str]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Refuse other units; say labels once, those of ``true``."""
    shared = [dim for dim in true.dims if dim in predicted.dims and dim != sample]
    faults = [
        f"{true.sizes[dim]} {names[0]} and {predicted.sizes[dim]} {names[1]} along {dim!r}"
        for dim in shared
        if true.sizes[dim] != predicted.sizes[dim]
    ]
    if faults:
        advice = "compare units of the same layer and network, or neuroids of the same subject"
        raise SchemaError("what is compared", [*faults, advice])
    try:
        xr.align(true, predicted, join="exact", copy=False, exclude=[sample])
    except ValueError as error:
        raise SchemaError("what is compared", [f"labels differ: {error}"]) from error
    known = [name for name in true.coords if name in predicted.coords and name not in shared]
    return true, predicted.drop_vars([name for name in known if name not in predicted.dims])


def unit_dims(
    true: xr.DataArray, predicted: xr.DataArray, over: str | Sequence[str] | None
) -> list[str]:
    """Return the dims that make up a pattern.

    Parameters
    ----------
    true, predicted : DataArray
    over : str or sequence of str, optional
        Their names; by default the dims that both have, except those of samples and of what
        patterns are kept apart by, such as ``subject``, ``roi`` or ``time``.

    Raises
    ------
    SchemaError
        If there are none, or one of them is absent from one of the two.
    """
    taken = {sample_dim(true), sample_dim(predicted), *_SAMPLES}
    found = [str(dim) for dim in true.dims if dim in predicted.dims and dim not in taken]
    wanted = [dim for dim in found if dim not in _KEPT]
    if over is not None:
        wanted = [over] if isinstance(over, str) else list(over)
    if not wanted or not set(wanted) <= set(found):
        fault = f"no units: true features have {true.dims}, predicted ones {predicted.dims}"
        advice = f"name the dims of a pattern with over=; both have {', '.join(found) or 'none'}"
        raise SchemaError("what is compared", [fault, advice])
    extra = [dim for dim in true.dims if dim not in (*found, *taken, *_KEPT)]
    if extra and over is None:
        fault = f"true features have {true.dims}, predicted ones {predicted.dims}"
        raise SchemaError("what is compared", [fault, "give both the same dims of units"])
    return wanted


def unit_last(array: xr.DataArray, dims: Sequence[Hashable]) -> xr.DataArray:
    """Put ``dims`` into one, ``unit``, the last (C order), without labels of them."""
    kept = [dim for dim in array.dims if dim not in dims]
    array = array.transpose(*kept, *dims)
    width = int(np.prod([array.sizes[dim] for dim in dims]))
    data = array.data.reshape(*array.shape[: len(kept)], width)
    coords = {n: c for n, c in array.coords.items() if not {*c.dims} & {*dims}}
    return xr.DataArray(data, coords, (*kept, "unit"), array.name, array.attrs)


def lazy_patterns(
    true: xr.DataArray, predicted: xr.DataArray, dims: Sequence[str], samples: tuple[str, str]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Arrange both as lazy ``(..., sample, unit)``, blocks of all samples and the same units.

    Leading dims are those of either. A unit is left out of all samples where one of them is not
    finite, so that a block must hold all of them.
    """
    rows = max(a.sizes[s] for a, s in zip((true, predicted), samples, strict=True))
    step = max(1, _BLOCK_BYTES // (8 * rows))
    arrays = [unit_last(_lazy(a, dims, step), dims) for a in (true, predicted)]
    both = dict.fromkeys((*arrays[1].dims, *arrays[0].dims))
    lead = [dim for dim in both if dim not in (*samples, "unit")]
    sizes = {dim: a.sizes[dim] for a in arrays for dim in lead if dim in a.dims}
    found = []
    for array, sample in zip(arrays, samples, strict=True):
        array = array.expand_dims({d: n for d, n in sizes.items() if d not in array.dims})
        array = array.transpose(*lead, sample, "unit")
        chunks = {**dict.fromkeys(lead, 1), sample: -1, "unit": step}
        found.append(in_chunks(array, chunks))
    return found[0], found[1]


def _lazy(array: xr.DataArray, dims: Sequence[str], step: int) -> xr.DataArray:
    """Give an array without chunks about those that it will have."""
    if array.chunks is not None:
        return array
    inner = int(np.prod([array.sizes[dim] for dim in dims[1:]]))
    return in_chunks(array, {dims[0]: max(1, step // inner)})


def in_chunks(array: xr.DataArray, chunks: Mapping[Any, Any]) -> xr.DataArray:
    """Chunk the values of an array, not its labels."""
    # A name of its own: hashing the values would take as long as comparing them.
    name = None if array.chunks is not None else f"{array.name or 'values'}-{uuid4().hex}"
    return array.copy(data=array.variable.chunk(dict(chunks), name=name).data)


def coords_of(*arrays: xr.DataArray, dims: Iterable[Hashable]) -> dict[Hashable, xr.DataArray]:
    """Return the coordinates that lie along ``dims`` only; the first to name one is right."""
    kept: dict[Hashable, xr.DataArray] = {}
    for array in arrays:
        for name, coord in array.coords.items():
            if {*coord.dims} <= {*dims}:
                kept.setdefault(name, coord)
    return kept
