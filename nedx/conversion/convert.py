"""convert: responses of one subject in the neuroids of another, lazily and with labels."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.devices import check_device, resolve_device
from nedx.compute.planned import PlannedArray
from nedx.conversion.model import Converter
from nedx.conversion.plans import ConvertPlan, ConvertTask
from nedx.conversion.recipe import Pair, Side
from nedx.conversion.subjects import checked
from nedx.decoding.fitting_in import time_faults
from nedx.decoding.samples import each_subject, whose
from nedx.errors import ModelError, SelectionError, close_matches
from nedx.preprocessing.steps import with_step
from nedx.schema import neuroid_dim, role_dim, sample_dim, subject_label
from nedx.selection import Subjects
from nedx.store.location import Location

_ALIKE = ("units", "normalization", "normalization_scope", "transform")
_OF_SUBJECT = ("subject", "subject_ids", "space", "density", "volume_shape", "affine", "montage")


def convert(
    ds: xr.Dataset | xr.DataTree,
    model: Any,
    *,
    subject: Subjects | None = None,
    device: str = "auto",
) -> xr.Dataset | xr.DataTree:
    """Turn responses of one subject into those of another.

    Nothing is computed and no weights are read before values are asked for. Images, trials and
    neuroids of the target that are selected later are all that is read and multiplied.

    Parameters
    ----------
    ds : Dataset or DataTree
        ``response (image | trial[, repetition], <neuroid>[, time])`` of one subject, or of
        several as children or along a dimension. Neuroids are found by label, whatever their
        order; more than the converter takes may be there.
    model : Converter, fitted RidgeConverter and the like, str, Path or Location
        A converter, or where one lies.
    subject : str, int or list of these, optional
        Into whose responses; needed where there are several targets for one of several sources.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    Dataset or DataTree
        ``response (image | trial[, repetition], <target's neuroid>[, time])`` float32 in the units
        of the target, with the labels of its neuroids; samples keep theirs. Of several sources a
        child for each but the target itself, of several targets a child for each.

    Raises
    ------
    ModelError
        If neuroids, times or units are others than the converter takes. While it computes: if
        responses are NaN or infinite.
    SelectionError
        If nothing converts these subjects.
    UnknownIdError, StoreError
        If there is no such model.

    Examples
    --------
    >>> other = fmri["sub-01"].to_dataset().ned.convert(converter, subject="sub-02")
    """
    check_device(device)
    converter = _converter(model).sel(subject=subject)
    if isinstance(ds, xr.DataTree) or role_dim(ds, "subject") is not None:
        return _of_several(dict(each_subject(ds)), converter, device)
    pairs = _pairs_of(converter, whose(ds))
    made = {pair.target: _converted(ds, converter, pair, device) for pair in pairs}
    if len(made) == 1 and not isinstance(subject, list | tuple):
        return next(iter(made.values()))
    return xr.DataTree.from_dict(made)


def _of_several(sources: dict[str, xr.Dataset], converter: Converter, device: str) -> xr.DataTree:
    targets = sorted({target for _, target in converter.pairs})
    if len(targets) != 1:
        raise SelectionError(
            f"several subjects can be converted into {', '.join(targets)}; choose one: "
            f"subject={targets[0]!r}"
        )
    made = {}
    for name, ds in sources.items():
        if name != targets[0]:
            made[name] = _converted(ds, converter, converter.pair(name, targets[0]), device)
    if not made:
        raise SelectionError(f"there is nobody to convert but {targets[0]} itself")
    return xr.DataTree.from_dict(made)


def _converter(model: Any) -> Converter:
    """Return the converter that a person means."""
    if hasattr(model, "fit"):
        if not hasattr(model, "model_"):
            raise ModelError(
                f"this {type(model).__name__} is not fitted yet; type: .fit(source, target)"
            )
        model = model.model_
    if isinstance(model, str | Path | Location):
        from nedx.encoding.model import load_model

        model = load_model(model)
    if not isinstance(model, Converter):
        raise ModelError(
            f"convert takes a converter, not {type(model).__name__}. Type: "
            "nedx.RidgeConverter().fit(source, target)"
        )
    return model


def _pairs_of(converter: Converter, source: str | None) -> list[Pair]:
    """Return the pairs that start from a subject; the only source, where it says nobody's."""
    there = sorted({pair.source for pair in converter.recipe.pairs})
    if source is None:
        if len(there) > 1:
            raise SelectionError(
                f"the responses do not say whose they are; the converter takes {', '.join(there)}. "
                "Type: ds.assign_attrs(subject='sub-01')"
            )
        source = there[0]
    found = [pair for pair in converter.recipe.pairs if pair.source == source]
    if not found:
        raise SelectionError(f"nothing converts {source} here: {close_matches(source, there)}")
    return found


def _converted(ds: xr.Dataset, converter: Converter, pair: Pair, device: str) -> xr.Dataset:
    recipe = converter.recipe
    source, target = recipe.sides[pair.source], recipe.sides[pair.target]
    ds = checked(pair.source, ds, paired=False)
    fitting = _fitting(ds, source, converter.labels(pair.source), pair)
    array = fitting["response"]
    time = role_dim(array, "time")
    shape = (target.size,) if target.times is None else (target.size, len(target.times))
    task = ConvertTask(
        converter.ref, pair.name, recipe.kernel, recipe.space, device, shape, time is not None
    )
    named = "image_id" in ds.coords
    names = np.asarray(ds["image_id"].values if named else range(array.shape[0]), dtype=object)
    data = array.data if array.chunks is not None else array.chunk().data
    plan = ConvertPlan(data, names, task)
    dims = [target.neuroid if dim == neuroid_dim(array) else dim for dim in array.dims]
    attrs = _provenance(converter, pair, ds, device)
    kept = fitting.drop_vars(["response", *({"affine"} & set(fitting.variables))])
    kept = kept.drop_dims([d for d in (neuroid_dim(array), "roi") if d in kept.dims])
    if target.times is not None:
        kept = kept.assign_coords({str(time): (time, np.array(target.times), ds[time].attrs)})
    labels = converter.labels(pair.target)
    made = kept.assign(response=xr.Variable(dims, PlannedArray(plan), attrs))
    made = made.assign_coords(labels.coords)
    return _recorded(_with_partition(made, converter), pair, target)


def _fitting(ds: xr.Dataset, side: Side, labels: xr.Dataset, pair: Pair) -> xr.Dataset:
    """Return responses with the neuroids and times of a converter, in its order.

    Raises
    ------
    ModelError
        With all that does not fit.
    """
    array = ds["response"]
    dim = str(neuroid_dim(array))
    faults = []
    if dim != side.neuroid:
        faults.append(f"neuroids are {dim}s, the converter takes {side.neuroid}s")
    if side.response_attrs:
        faults += [
            f"{name} is {array.attrs.get(name)!r}, the converter takes "
            f"{side.response_attrs.get(name)!r}"
            for name in _ALIKE
            if array.attrs.get(name) != side.response_attrs.get(name)
        ]
    positions, fault = _positions(ds, dim, side, labels)
    faults += fault
    time = role_dim(array, "time")
    chosen = {dim: positions}
    if side.times is not None:
        if time is None:
            faults.append("they have no times")
        else:
            times = np.asarray(ds[time].values, dtype=np.float64)
            found = time_faults(times, side.times)
            faults += [fault.replace("decoder", "converter") for fault in found]
            chosen[time] = np.abs(times[:, None] - np.array(side.times)).argmin(0)
    if faults:
        raise ModelError(
            f"these responses do not fit the converter of {pair.source} to {pair.target}: "
            + "; ".join(faults)
        )
    changed = {
        name: where
        for name, where in chosen.items()
        if not np.array_equal(where, np.arange(ds.sizes[name]))
    }
    return ds.isel(changed) if changed else ds


def _positions(
    ds: xr.Dataset, dim: str, side: Side, labels: xr.Dataset
) -> tuple[np.ndarray, list[str]]:
    """Return where the neuroids of a converter lie in responses, and what is wrong."""
    if dim not in labels.coords or dim not in ds.coords:
        size = ds.sizes[dim]
        wrong = f"there are {size:,} {dim}s, the converter takes {side.size:,}"
        return np.arange(size), [] if size == side.size else [wrong]
    where = {str(name): i for i, name in enumerate(ds[dim].values)}
    wanted = [str(name) for name in labels[dim].values]
    missing = [name for name in wanted if name not in where]
    if missing:
        wrong = (
            f"{len(missing):,} of {len(wanted):,} {dim}s that the converter takes are missing, "
            f"{missing[0]!r} the first, of the {len(where):,} there"
        )
        return np.arange(ds.sizes[dim]), [wrong]
    return np.array([where[name] for name in wanted], dtype=np.int64), []


def _provenance(converter: Converter, pair: Pair, ds: xr.Dataset, device: str) -> dict[str, Any]:
    recipe = converter.recipe
    origin = ds["response"].attrs.get("source", ds.attrs.get("source"))
    attrs = {
        **recipe.sides[pair.target].response_attrs,
        "long_name": f"response converted from {pair.source} to {pair.target}",
        # Nobody has measured them, whatever they were made of.
        "source": "synthetic",
        "converted_from": pair.source,
        "converted_from_source": origin,
        "model_id": recipe.model_id,
        "model_version": recipe.version,
        "model_training_source": recipe.training_source,
        "weights_sha256": converter.weights_sha256,
        "device_kind": resolve_device(device).partition(":")[0],
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    return {name: value for name, value in attrs.items() if value is not None}


def _recorded(ds: xr.Dataset, pair: Pair, target: Side) -> xr.Dataset:
    """Say of a Dataset whose responses it holds now."""
    attrs = {name: value for name, value in ds.attrs.items() if name not in _OF_SUBJECT}
    attrs |= {name: value for name, value in target.attrs.items() if name in _OF_SUBJECT}
    ds = ds.drop_attrs(deep=False).assign_attrs(attrs)
    ds = ds.assign_attrs(subject=pair.target, subject_ids=[pair.target], source="synthetic")
    if "subject" in ds.coords:
        label = xr.Variable((), np.array(subject_label(pair.target), dtype=object))
        ds = ds.drop_vars("subject").assign_coords(subject=label)
    return with_step(ds, "convert", source=pair.source, target=pair.target)


def _with_partition(ds: xr.Dataset, converter: Converter) -> xr.Dataset:
    """Say which images the converter has seen, unless the responses say what they are for."""
    seen = set(map(str, converter.known_images))
    if "partition" in ds or "image_id" not in ds.coords or not seen:
        return ds
    kinds = ["train" if str(name) in seen else "unseen" for name in ds["image_id"].values]
    sample = sample_dim(ds["response"])
    return ds.assign_coords(partition=(sample, np.array(kinds, dtype=object)))
