"""encode: responses to images, lazily and with labels."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute.devices import check_device
from nedx.compute.planned import PlannedArray, Transposed
from nedx.encoding.fwrf_model import FwrfEncoder, FwrfPlan
from nedx.encoding.kinds import Encoder
from nedx.encoding.loading import Head
from nedx.encoding.model import LinearEncoder, load_model, targets_of
from nedx.encoding.plans import ComponentsPlan, ComponentsTask, ResponsePlan, ResponseTask
from nedx.encoding.realnet_model import ReAlnetModel
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.results import assembled, provenance
from nedx.encoding.storing import target_dims
from nedx.errors import ModelError, SelectionError, StimulusError
from nedx.schema import neuroid_dim, subject_label
from nedx.selection import Names, Subjects, Times

Precision = Literal["float32", "bf16", "fp16"]

# Names of one time axis may differ by what float arithmetic leaves.
_SECONDS = 1e-9


def encode(
    ds: xr.Dataset | xr.DataTree,
    model: Any,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    channel: Names | None = None,
    time: Times | None = None,
    device: str = "auto",
    keep_components: bool = False,
    precision: Precision | None = None,
    batch_size: int | None = None,
    preprocessing: str | None = None,
) -> xr.Dataset | xr.DataTree:
    """Predict responses to images.

    Nothing is computed and no weights are read before values are asked for. What is selected
    here, or later from the result, is all that is read and multiplied; the backbone runs once
    for all subjects.

    Parameters
    ----------
    ds : Dataset or DataTree
        ``pixels (image, y, x, rgb)`` uint8; or ``features (image, feature)`` of the model's
        layers; or ``components`` that an earlier call kept, which save the backbone. Of a
        DataTree each child is encoded for its own subject.
    model : LinearEncoder, FwrfEncoder, ReAlnetModel, fitted estimator, str, Path or Location
        A model, an estimator such as `RidgeEncoder`, or the id, path or URL of a model.
    subject, roi, channel, time
        What to predict, as in `nedx.open`; everything by default.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    keep_components : bool
        Whether to add ``components (image[, subject], component)``.
    precision : {"float32", "bf16", "fp16"}, optional
        Instead of the recipe's.
    batch_size : int, optional
        Images in one forward pass, instead of the recipe's; independent of chunks.
    preprocessing : str, optional
        Image policy instead of the recipe's, by its name: of published ViT models ``"berg"`` is
        how their toolbox applies them, ``"train"`` how they were fitted. The result says which.

    Returns
    -------
    Dataset or DataTree
        What was given, with ``response ([subject,] image, <neuroid>[, time])`` float32, or
        ``response_predicted`` where a response is there already, for the neuroids of that
        response. A DataTree where several subjects have neuroids of their own.

    Raises
    ------
    UnknownIdError, StoreError
        If there is no such model.
    SelectionError
        If a subject, ROI, channel or time is not there.
    StimulusError, ModelError
        If the images do not fit the model.
    """
    check_device(device)
    if not isinstance(ds, xr.Dataset | xr.DataTree):
        raise StimulusError(
            f"encode takes a Dataset of images, not {type(ds).__name__}. Type: "
            "nedx.open_images(images).ned.encode(model)"
        )
    if not isinstance(model, Encoder):
        # Each child of a tree is encoded for its own subject.
        whose = (list(ds.children) or None) if isinstance(ds, xr.DataTree) else subject
        stored = not hasattr(model, "fit")
        model = load_model(model, subject=whose, roi=roi) if stored else _fitted(model)
        if not isinstance(model, Encoder):
            raise ModelError(f"a {type(model).__name__} encodes no images")
    selection: dict[str, Any] = {"subject": subject, "roi": roi, "channel": channel, "time": time}
    given = {name: value for name, value in selection.items() if value is not None}
    options: dict[str, Any] = {
        "device": device,
        "keep_components": keep_components,
        "recipe": _overridden(model.recipe, precision, batch_size, preprocessing),
    }
    if isinstance(ds, xr.DataTree):
        return _encode_tree(ds, model, given, options)
    ds, chosen = _aligned(ds, model, given)
    return _encode(ds, chosen, **options)


def _encode(
    ds: xr.Dataset,
    model: Encoder,
    *,
    recipe: EncoderRecipe,
    device: str,
    keep_components: bool,
) -> xr.Dataset | xr.DataTree:
    attrs = provenance(model, recipe, device)
    if not isinstance(model, LinearEncoder):
        if keep_components:
            kind = type(model).__name__
            raise ModelError(f"a {kind} has no components to keep: leave keep_components out")
        images = _network_pixels(ds, model, recipe)
        if isinstance(model, ReAlnetModel):
            made = model.predicted(images, _names(ds), recipe, device, attrs)
            return assembled(ds, model, {"": made}, recipe)
        return assembled(ds, model, _fwrf(ds, images, model, recipe, device, attrs), recipe)
    heads = [head for name, ds in model.members.items() for head in targets_of(name, ds).heads]
    own = _own_projections(model)
    components = _components(ds, model, recipe, tuple(heads) if own else (Head(),), device)
    task = ResponseTask(model.ref, recipe.backbone.precision, device, subject_axis=False)
    responses = _linear(model, components, task, attrs, own=own)
    if keep_components and "components" not in ds:
        ds = ds.assign(components=_kept(components, model, recipe, own=own))
    return assembled(ds, model, responses, recipe)


def _linear(
    model: LinearEncoder,
    components: da.Array,
    task: ResponseTask,
    attrs: dict[str, Any],
    *,
    own: bool,
) -> dict[str, xr.Variable]:
    """Return what each member reads out of the components."""
    found = {}
    position = 0
    for name, member in model.members.items():
        target = targets_of(name, member)
        used = tuple(range(position, position + len(target.heads)))
        position += len(target.heads)
        plan = ResponsePlan(
            components, used if own else (0,) * len(used), target, _axis(task, target.subject_axis)
        )
        found[name] = _in_order(plan, target.subject_axis, target_dims(member), attrs)
    return found


def _fwrf(
    ds: xr.Dataset,
    images: da.Array,
    model: FwrfEncoder,
    recipe: EncoderRecipe,
    device: str,
    attrs: dict[str, Any],
) -> dict[str, xr.Variable]:
    plans = {
        name: FwrfPlan.of(images, _names(ds), model, name, recipe, device) for name in model.members
    }
    return {
        name: xr.Variable(("image", "voxel"), PlannedArray(plan), attrs)
        for name, plan in plans.items()
    }


def _network_pixels(
    ds: xr.Dataset, model: FwrfEncoder | ReAlnetModel, recipe: EncoderRecipe
) -> da.Array:
    """Return the images of models that have networks of their own, and so no features."""
    if "pixels" not in ds:
        raise StimulusError(
            f"a {type(model).__name__} takes 'pixels', found "
            f"{', '.join(map(str, ds.data_vars)) or 'nothing'}. "
            "Type: nedx.open_images('folder').ned.encode(model)"
        )
    return _pixels(ds["pixels"], recipe)


def _in_order(
    plan: ResponsePlan,
    subject_axis: bool,  # noqa: FBT001
    targets: tuple[str, ...],
    attrs: dict[str, Any],
) -> xr.Variable:
    """Name the axes of a response; repetitions come before the neuroids."""
    dims = (*(("subject",) if subject_axis else ()), "image", *targets)
    if "repetition" not in targets:
        return xr.Variable(dims, PlannedArray(plan), attrs)
    rest = [dim for dim in targets if dim != "repetition"]
    ordered = (*dims[: len(dims) - len(targets)], "repetition", *rest)
    axes = tuple(dims.index(dim) for dim in ordered)
    return xr.Variable(ordered, PlannedArray(Transposed(plan, axes)), attrs)


def _encode_tree(
    tree: xr.DataTree, model: Encoder, given: dict[str, Any], options: dict[str, Any]
) -> xr.DataTree:
    """Encode each child for its own subject; children share images, so the backbone runs once."""
    done: dict[str, xr.Dataset] = {}
    for name, child in tree.children.items():
        ds = child.to_dataset(inherit=True)
        for key in ("pixels", "features", "components"):
            if key in tree.to_dataset() and key not in ds:
                ds = ds.assign({key: tree[key]})
        own, chosen = _aligned(ds, model, {**given, "subject": name})
        out = _encode(own, chosen, **options)
        if isinstance(out, xr.DataTree):
            raise ModelError(f"the child {name!r} is not one subject")
        done[f"/{name}"] = out
    if not done:
        raise StimulusError("this DataTree has no children to encode; give a Dataset of images")
    return xr.DataTree.from_dict(
        {"/": tree.to_dataset().drop_vars("pixels", errors="ignore"), **done}
    )


def _fitted(estimator: Any) -> LinearEncoder:
    """Return what an estimator such as `RidgeEncoder` has learnt."""
    if not hasattr(estimator, "model_"):
        name = type(estimator).__name__
        raise ModelError(f"this {name} is not fitted yet; type: encoder.fit(stimuli, responses)")
    learnt: LinearEncoder = estimator.model_
    return learnt


def _axis(task: ResponseTask, subject_axis: bool) -> ResponseTask:  # noqa: FBT001
    return ResponseTask(task.model, task.precision, task.device, subject_axis)


def _overridden(
    recipe: EncoderRecipe,
    precision: Precision | None,
    batch_size: int | None,
    preprocessing: str | None,
) -> EncoderRecipe:
    from nedx.stimuli.preprocessing import policy

    if batch_size is not None and batch_size < 1:
        raise ModelError(f"batch_size must be at least 1, not {batch_size}")
    if precision not in (None, "float32", "bf16", "fp16"):
        raise ModelError(f"unknown precision {precision!r}; type 'float32', 'bf16' or 'fp16'")
    if preprocessing is not None:
        policy(preprocessing)
    changes = {"precision": precision, "batch_size": batch_size, "policy": preprocessing}
    given = {name: value for name, value in changes.items() if value is not None}
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update=given)})


def _own_projections(model: LinearEncoder) -> bool:
    """Whether each subject has a projection of its own."""
    first = next(iter(model.members.values()))
    return "projection" in first and (model.is_ragged or "subject" in first["projection"].dims)


def _aligned(ds: xr.Dataset, model: Encoder, given: dict[str, Any]) -> tuple[xr.Dataset, Encoder]:
    """Select from the model, and bring the labels of both together.

    Along what the call selects, and where no response is there, the model says which labels the
    result has; else the measured response does.
    """
    measured = "response" in ds
    if measured and model.is_ragged and "subject" not in given:
        given = {**given, "subject": _subject_of(ds)}
    selected = model.sel(**given)
    if len(selected.members) > 1:
        return ds, selected
    (member,) = selected.members.values()
    neuroid, *others = target_dims(member)
    if measured and neuroid not in ds["response"].dims:
        raise ModelError(
            f"the response is by {neuroid_dim(ds)!r}, the model predicts {neuroid!r}: drop the "
            "response, or take another model"
        )
    axis = {"roi": neuroid, "channel": neuroid}
    chosen = {axis.get(name, name) for name in given}
    of_model, of_ds = {}, {}
    for dim in ("subject", neuroid, *others, "roi"):
        if dim not in ds.dims or dim not in member.dims:
            continue
        if dim not in ds.coords or dim not in member.coords:
            if ds.sizes[dim] != member.sizes[dim]:
                raise SelectionError(
                    f"this Dataset has {ds.sizes[dim]} along {dim!r}, the model "
                    f"{member.sizes[dim]}, and there are no labels to match them by"
                )
        elif measured and dim not in chosen and dim != "roi":
            of_model[dim] = _matches(ds[dim].values, member[dim].values, dim, "the model")
        else:
            of_ds[dim] = _matches(member[dim].values, ds[dim].values, dim, "this Dataset")
    return ds.isel(of_ds), selected.isel(of_model) if of_model else selected


def _matches(wanted: np.ndarray, there: np.ndarray, dim: str, where: str) -> np.ndarray:
    """Return the position of each label wanted among those that are there."""
    if wanted.dtype.kind == "f":
        order = np.argsort(there)
        near = np.clip(np.searchsorted(there[order], wanted - _SECONDS), 0, len(there) - 1)
        positions = order[near]
        missing = wanted[np.abs(there[positions] - wanted) > _SECONDS]
    else:
        known = {str(label): i for i, label in enumerate(there)}
        missing = np.array([label for label in wanted if str(label) not in known])
        positions = np.array([known.get(str(label), 0) for label in wanted], dtype=np.int64)
    if len(missing):
        shown = ", ".join(str(label) for label in missing[:5])
        raise SelectionError(
            f"{where} lacks {len(missing)} of {len(wanted)} labels along {dim!r}: {shown}. "
            "Select the same neuroids of both"
        )
    return positions


def _subject_of(ds: xr.Dataset) -> str:
    """Return the one subject of a Dataset whose neuroids are its own."""
    if "subject" in ds.coords and ds["subject"].size == 1:
        return subject_label(str(ds["subject"].values.reshape(-1)[0]))
    ids = np.atleast_1d(ds.attrs.get("subject_ids", []))
    if len(ids) == 1:
        return subject_label(str(ids[0]))
    raise SelectionError("the response does not say whose it is; type subject=1")


def _components(
    ds: xr.Dataset,
    model: LinearEncoder,
    recipe: EncoderRecipe,
    heads: tuple[Head, ...],
    device: str,
) -> da.Array:
    """Return lazy components (image, projection, component)."""
    if "components" in ds:
        return _reused(ds, model, recipe, shared=heads == (Head(),))
    images = _images(ds, recipe, model)
    count = max(member.sizes["component"] for member in model.members.values())
    task = ComponentsTask(model.ref, recipe, heads, device)
    return PlannedArray(ComponentsPlan(images, _names(ds), task, count))


def _names(ds: xr.Dataset) -> np.ndarray:
    """Return what to call each image in an error."""
    known = "image_id" in ds.coords
    names = ds["image_id"].values if known else np.arange(ds.sizes["image"])
    return np.asarray(names, dtype=object)


def _images(ds: xr.Dataset, recipe: EncoderRecipe, model: LinearEncoder) -> da.Array:
    """Return pixels or features as a dask array with whole images, checked without computing."""
    if "pixels" in ds:
        return _pixels(ds["pixels"], recipe)
    if "features" not in ds:
        raise StimulusError(
            "there is nothing to encode: expected 'pixels', 'features' or 'components', found "
            f"{', '.join(map(str, ds.data_vars)) or 'nothing'}. "
            "Type: nedx.open_images('folder').ned.encode(model)"
        )
    features = ds["features"]
    width = sum(model.layer_widths.values())
    if features.dims != ("image", "feature") or features.sizes["feature"] != width:
        raise ModelError(
            f"features are {dict(features.sizes)}, the model takes (image, feature) with "
            f"{width} features of the layers {list(model.layer_widths)}. Type: "
            "nedx.encode_features(images, model.recipe.backbone)"
        )
    if features.dtype.kind != "f":
        raise ModelError(
            f"features are floats, these are {features.dtype}. Type: features.astype('float32')"
        )
    made_by = features.attrs.get("backbone")
    if made_by is not None and made_by != backbone_json(recipe):
        raise ModelError(
            "these features come from another backbone, or the same with other settings: they "
            f"were made by {made_by}, the model takes {backbone_json(recipe)}"
        )
    return dask_blocks(features)


def _pixels(pixels: xr.DataArray, recipe: EncoderRecipe) -> da.Array:
    from nedx.stimuli.preprocessing import check_pixels, policy

    check_pixels(pixels.dtype, pixels.shape, recipe.backbone.policy)
    size = recipe.backbone.image_size
    seen = policy(recipe.backbone.policy).output_shape(*pixels.shape[1:3])
    if size is not None and seen != (size, size):
        raise StimulusError(
            f"the model takes images of {size} x {size} pixels, these are {seen[0]} x "
            f"{seen[1]}. Type: nedx.open_images(source, fit='resize', size={size})"
        )
    return dask_blocks(pixels)


def dask_blocks(array: xr.DataArray) -> da.Array:
    """Return a dask array whose blocks hold whole images; lazy arrays stay so."""
    data = array.variable._data
    if isinstance(data, PlannedArray):
        return data
    if not isinstance(data, da.Array):
        per_image = max(1, array.nbytes // max(1, array.sizes["image"]))
        array = array.chunk({"image": int(np.clip(2**25 // per_image, 1, 4096))})
    whole: da.Array = array.data
    return whole.rechunk(dict.fromkeys(range(1, whole.ndim), -1))


def backbone_json(recipe: EncoderRecipe) -> str:
    """Return what decides the features: the backbone's recipe without its batch size."""
    return recipe.backbone.model_dump_json(exclude={"batch_size"})


def _fingerprint(model: LinearEncoder, recipe: EncoderRecipe) -> str:
    """Return what decides the components: backbone and projection."""
    projection = model._root.hashes()["projection_sha256"]
    return hashlib.sha256(f"{backbone_json(recipe)}{projection}".encode()).hexdigest()


def _kept(
    components: da.Array, model: LinearEncoder, recipe: EncoderRecipe, *, own: bool
) -> xr.DataArray:
    attrs = {
        "long_name": "projected features",
        "units": "1",
        "fingerprint": _fingerprint(model, recipe),
        "compute_dtype": recipe.backbone.precision,
    }
    if not own:
        return xr.DataArray(components[:, 0], dims=("image", "component"), attrs=attrs)
    dims = ("image", "subject", "component")
    labels = np.array(model.subjects, dtype=object)
    return xr.DataArray(components, dims=dims, coords={"subject": labels}, attrs=attrs)


def _reused(
    ds: xr.Dataset, model: LinearEncoder, recipe: EncoderRecipe, *, shared: bool
) -> da.Array:
    """Return the components of an earlier call, if they are this model's."""
    kept = ds["components"]
    expected = _fingerprint(model, recipe)
    if kept.attrs.get("fingerprint") != expected:
        raise ModelError(
            "the 'components' in this Dataset were made by another model, backbone or precision "
            f"(fingerprint {str(kept.attrs.get('fingerprint'))[:12]}, expected {expected[:12]}). "
            "Type: ds.drop_vars('components'), and encode the pixels"
        )
    values = dask_blocks(kept)
    return values[:, None, :] if shared else values
