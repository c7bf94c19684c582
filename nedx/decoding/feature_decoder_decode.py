"""Features of responses, lazily and with labels: what `nedx.decode` does with a `FeatureModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.compute import cache
from nedx.compute.batches import checked
from nedx.compute.devices import forward_slot, resolve_device
from nedx.compute.planned import Indexer, PlannedArray
from nedx.compute.references import ModelRef, Positions
from nedx.decoding.feature_decoder_model import FeatureModel
from nedx.decoding.feature_decoder_recipe import WHOLE, unit_dims
from nedx.decoding.feature_decoder_samples import LABEL, MADE_BY, checked_responses, lazy
from nedx.decoding.feature_decoder_storing import LoadedUnits, UnitsPart
from nedx.decoding.samples import whose
from nedx.encoding.plans import EVERYTHING
from nedx.errors import ModelError
from nedx.metrics.repeats import labels_of
from nedx.schema import DERIVED_FROM, role_dim, sample_dim, subject_label

_UNITS_PER_TASK = 4096
_UNITS_AT_ONCE = 512


def decode_features(ds: xr.Dataset, model: FeatureModel, *, device: str = "auto") -> xr.Dataset:
    """Add ``feature_<layer>`` of each layer of a model to the responses of its subjects.

    Parameters
    ----------
    ds : Dataset
        ``response ([subject,] image | trial[, repetition], <neuroid>)``, with the neuroids that
        the model was fitted to; where both name them, in any order, and those of its ROIs will do.
    model : FeatureModel
        What to apply; select of it first: ``model.sel(layer="fc6", roi="V1")``.
    device : str
        Where to compute.

    Returns
    -------
    Dataset
        What was given, with ``feature_<layer> ([subject, roi,] image | trial[, repetition], <unit
        dims>)`` float32: ``<layer>_channel``, ``<layer>_y``, ``<layer>_x`` or ``<layer>_unit``.
        ``roi`` is a dimension where the model has several, and a coordinate where it has one.

    Raises
    ------
    ModelError
        If neuroids, units or subjects are others than those of the model. While it computes: if
        responses are NaN or infinite.
    """
    subject = role_dim(ds, "subject") if isinstance(ds, xr.Dataset) else None
    if subject is not None and subject in ds["response"].dims:
        labels = [subject_label(str(name)) for name in ds[subject].values]
        parts = [_arrays(ds.isel({subject: i}), model, n, device) for i, n in enumerate(labels)]
        found = {name: xr.concat([p[name] for p in parts], subject) for name in parts[0]}
    else:
        found = _arrays(ds, model, whose(ds) if isinstance(ds, xr.Dataset) else None, device)
    made = ds
    rois = np.array(model.recipe.rois, dtype=object)
    if len(rois) > 1:
        if "roi" in made.dims:
            # The ROIs of the responses are another axis than those that were decoded from.
            made = made.drop_dims("roi")
        made = made.assign_coords(roi=rois)
    elif rois[0] != WHOLE:
        if "roi" in made.dims:
            made = made.drop_dims("roi")
        made = made.assign_coords(roi=rois[0])
    return made.assign({name: array.variable for name, array in found.items()})


def map_subjects(
    responses: xr.Dataset | xr.DataTree, apply: Callable[[xr.Dataset], xr.Dataset]
) -> xr.Dataset | xr.DataTree:
    """Apply to a Dataset, or to each child of a DataTree, which is a subject called by its name."""
    if isinstance(responses, xr.Dataset):
        return apply(responses)
    mapped = {"/": responses.to_dataset(inherit=False)}
    for name, child in responses.children.items():
        ds = child.to_dataset(inherit=True)
        labelled = ds if whose(ds) else ds.assign_coords(subject=subject_label(str(name)))
        mapped[name] = apply(labelled) if "response" in ds else ds
    return xr.DataTree.from_dict(mapped, name=responses.name)


def _arrays(
    ds: xr.Dataset, model: FeatureModel, subject: str | None, device: str
) -> dict[str, xr.DataArray]:
    """Return the lazy features of one subject by the names of their variables."""
    member = model.member(subject)
    array = _fitting(checked_responses(ds), model, member)
    neuroid = str(array.dims[-1])
    sample = sample_dim(ds)
    names = ds["image_id"].values if "image_id" in ds.coords else np.arange(ds.sizes[sample])
    task = DecodeFeaturesTask(model.ref, device, model.recipe.subjects[member], neuroid)
    source = lazy(array.drop_vars(list(array.coords)))
    rois = model.recipe.rois
    found = {}
    for layer, shape in model.recipe.layers.items():
        plan = DecodeFeaturesPlan(
            source,
            np.asarray(names, dtype=object),
            tuple(f"{member}/{roi}" for roi in rois),
            layer,
            shape,
            tuple(np.arange(size) for size in shape),
            task,
        )
        dims = ("roi", *array.dims[:-1], *unit_dims(layer, shape))
        attrs = _provenance(model, ds, layer, device)
        made = xr.DataArray(PlannedArray(plan), dims=dims, attrs=attrs)
        found[f"feature_{layer}"] = made if len(rois) > 1 else made.isel(roi=0)
    return found


def _fitting(array: xr.DataArray, model: FeatureModel, member: str) -> xr.DataArray:
    """Return the neuroids that the model was fitted to, in their order, found by their labels.

    Raises
    ------
    ModelError
        If responses have other units, or do not have all of these neuroids.
    """
    recipe, neuroid = model.recipe, str(array.dims[-1])
    faults = []
    for name, otherwise in MADE_BY.items():
        given, wanted = array.attrs.get(name, otherwise), getattr(recipe, name)
        if given != wanted:
            faults.append(f"{name} is {given!r}, the decoder takes {wanted!r}")
    places = None
    if neuroid != recipe.neuroid:
        faults.append(f"they are of {neuroid}s, the decoder takes {recipe.neuroid}s")
    else:
        places, missing = _places(array, model, member)
        if missing or (places is None and array.sizes[neuroid] != recipe.subjects[member]):
            named = f"; {len(missing):,} are missing, first {missing[0]!r}" if missing else ""
            faults.append(
                f"they have {array.sizes[neuroid]:,} {neuroid}s, the decoder was fitted to all "
                f"{recipe.subjects[member]:,} of {member}: give these, the decoder chooses ROIs "
                f"itself{named}"
            )
    if faults:
        raise ModelError("these responses do not fit the decoder: " + "; ".join(faults))
    return array if places is None else array.isel({neuroid: places})


def _places(
    array: xr.DataArray, model: FeatureModel, member: str
) -> tuple[np.ndarray | None, list[str]]:
    """Return where the neuroids of a model lie, None where they are as they come.

    Without labels of either they are taken as they come. Also which are missing that are read.
    """
    neuroid, labels = str(array.dims[-1]), model.neuroids(member)
    if LABEL not in labels or neuroid not in array.coords:
        return None, []
    there, wanted = labels_of(array, neuroid), labels_of(labels, LABEL)
    if np.array_equal(there, wanted):
        return None, []
    names, first = np.unique(there, return_index=True)
    if names.size < there.size:
        raise ModelError(f"several {neuroid}s of these responses have the same label: rename them")
    found = np.minimum(np.searchsorted(names, wanted), names.size - 1)
    lacking = np.flatnonzero(names[found] != wanted)
    if lacking.size:
        # Those outside of the ROIs are not read: any other may stand in their place.
        lacking = np.intersect1d(lacking, model.read(member))
    return first[found], wanted[lacking].tolist()


def _provenance(model: FeatureModel, ds: xr.Dataset, layer: str, device: str) -> dict[str, Any]:
    recipe = model.recipe
    attrs = {
        "long_name": "features decoded from the response",
        "units": "1",
        "layer": layer,
        DERIVED_FROM: "response",
        "source": ds["response"].attrs.get("source", ds.attrs.get("source")),
        "model_id": recipe.model_id,
        "model_version": recipe.version,
        "model_training_source": recipe.training_source,
        "weights_sha256": model.weights_sha256,
        "device_kind": resolve_device(device).partition(":")[0],
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    return {name: value for name, value in attrs.items() if value is not None}


@dataclass(frozen=True)
class DecodeFeaturesTask:
    """Decodes some units of one block of responses.

    Parameters
    ----------
    model : ModelRef
        Where the weights lie.
    device : str
        As the user gave it; resolved where the task runs.
    neuroids : int
        How many a response has.
    neuroid : str
        What they are.
    """

    model: ModelRef
    device: str
    neuroids: int
    neuroid: str

    def __call__(
        self, block: np.ndarray, part: UnitsPart, shape: tuple[int, ...], names: Sequence[object]
    ) -> np.ndarray:
        """Return float32 (1, ..., *shape) of responses (..., neuroid)."""
        device = resolve_device(self.device)
        loaded = cache.get(self.model, "cpu", part)
        # What other neuroids are does not matter: some are NaN wherever there is no brain.
        own = block[..., loaded.position].astype(np.float32, copy=False)
        checked(own, own.shape, np.float32, "the response", names=names)
        with forward_slot(device):
            found = predict_units(own.reshape(-1, own.shape[-1]), loaded, device)
        return found.reshape(1, *block.shape[:-1], *shape)


def predict_units(x: np.ndarray, loaded: LoadedUnits, device: str) -> np.ndarray:
    """Return features (n, unit) float32 of responses (n, voxel), ``(z W + b) s + m``.

    Parameters
    ----------
    x : ndarray
        The voxels of the ROI, in the units of the responses.
    loaded : LoadedUnits
        Weights of standardised responses to standardised features.
    device : str
        A torch device.
    """
    import torch

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    z = tensor((x - loaded.response_mean) / loaded.response_deviation)
    out = np.empty((len(x), len(loaded.bias)), np.float32)
    for start in range(0, out.shape[1], _UNITS_AT_ONCE):
        part = slice(start, start + _UNITS_AT_ONCE)
        weight = tensor(loaded.weight[part])
        dense = weight.new_zeros(len(weight), z.shape[1])
        dense.scatter_(1, tensor(loaded.index[part]), weight)
        out[:, part] = (z @ dense.T + tensor(loaded.bias[part])).cpu().numpy()
    return out * loaded.feature_deviation + loaded.feature_mean


@dataclass(frozen=True, eq=False)
class DecodeFeaturesPlan:
    """Features ``(roi, sample[, repetition], *units)`` of one layer, float32.

    Parameters
    ----------
    responses : dask array (..., neuroid)
        Planned ones are narrowed by indexing them.
    names : ndarray of object, (sample,)
        For errors.
    groups : tuple of str
        ``<subject>/<roi>`` of each ROI.
    layer : str
        The layer.
    shape : tuple of int
        Of all its units.
    window : tuple of ndarray of int64
        Positions along each axis of the units.
    task : DecodeFeaturesTask
        What to do with a block.
    """

    responses: da.Array
    names: np.ndarray = field(repr=False)
    groups: tuple[str, ...]
    layer: str
    shape: tuple[int, ...]
    window: tuple[np.ndarray, ...] = field(repr=False)
    task: DecodeFeaturesTask

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        source = self.responses.rechunk({self.responses.ndim - 1: -1})
        lead = source.chunks[:-1]
        parts = self._unit_parts()
        name = "decoded-features-" + tokenize(
            source.name, self.groups, self.layer, self.window, self.task
        )
        stops = np.cumsum((0, *lead[0]))
        zeros = (0,) * (len(self.window) - 1)
        graph = {}
        for (r, group), (u, (positions, shape)) in product(
            enumerate(self.groups), enumerate(parts)
        ):
            part = UnitsPart(group, self.layer, positions)
            for where in product(*(range(len(lengths)) for lengths in lead)):
                names = self.names[stops[where[0]] : stops[where[0] + 1]]
                block = (source.name, *where, 0)
                graph[(name, r, *where, u, *zeros)] = (self.task, block, part, shape, names)
        chunks = (
            (1,) * len(self.groups),
            *lead,
            tuple(shape[0] for _, shape in parts),
            *((len(keep),) for keep in self.window[1:]),
        )
        layered = HighLevelGraph.from_collections(name, graph, dependencies=[source])
        return da.Array(layered, name, chunks, meta=np.empty((0,) * len(chunks), np.float32))

    def _unit_parts(self) -> list[tuple[Positions, tuple[int, ...]]]:
        """Cut the units along their first axis: the positions and the shape of each part."""
        first, *others = self.window
        further = tuple(len(keep) for keep in others)
        step = max(1, _UNITS_PER_TASK // max(1, int(np.prod(further))))
        parts = []
        for start in range(0, max(1, len(first)), step):
            some = first[start : start + step]
            places = np.ravel_multi_index(np.ix_(some, *others), self.shape)
            parts.append((Positions.of(places.ravel()), (len(some), *further)))
        return parts

    def narrow(self, indexers: tuple[Indexer, ...]) -> DecodeFeaturesPlan:
        """Return the plan of what remains: other units and responses are not read."""
        rois = np.arange(len(self.groups))[indexers[0]]
        lead = indexers[1 : self.responses.ndim]
        units = indexers[self.responses.ndim :]
        responses = self.responses
        for axis, indexer in enumerate(lead):
            responses = responses[(EVERYTHING,) * axis + (indexer,)]
        return replace(
            self,
            responses=responses,
            names=self.names[lead[0]],
            groups=tuple(self.groups[i] for i in rois),
            window=tuple(keep[one] for keep, one in zip(self.window, units, strict=True)),
        )
