"""decode: embeddings or features of responses, lazily and with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.compute import cache
from nedx.compute.batches import batches, checked
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.compute.planned import Indexer, PlannedArray
from nedx.compute.references import ModelRef
from nedx.decoding.feature_decoder_decode import decode_features, map_subjects
from nedx.decoding.feature_decoder_model import FeatureModel
from nedx.decoding.feature_decoder_samples import averaged_by
from nedx.decoding.fitting_in import fitting_response
from nedx.decoding.model import NeuralDecoder
from nedx.decoding.recipe import DecoderRecipe, Member
from nedx.decoding.samples import whose
from nedx.decoding.storing import LoadedNetwork, NetworkPart
from nedx.encoding.plans import EVERYTHING, Sliced
from nedx.errors import ModelError
from nedx.schema import DERIVED_FROM, role_dim, sample_dim, subject_label
from nedx.store.location import Location


def decode(
    ds: xr.Dataset | xr.DataTree,
    model: Any,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    average: str | None = None,
) -> Any:
    """Make embeddings of responses, or features of network layers.

    Nothing is computed and no weights are read before values are asked for. Images, subjects and
    repetitions that are selected later are all that is read and decoded.

    Parameters
    ----------
    ds : Dataset
        ``response ([subject,] image | trial[, repetition], channel, time)``. Channels are found by
        name, whatever their order; more channels and times than the model takes may be there.
        Decoders of features take ``response (..., voxel)``. Of a DataTree, each child is decoded.
    model : NeuralDecoder, FeatureModel, fitted EEGDecoder or FeatureDecoder, str, Path or Location
        A decoder, or where one lies.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    batch_size : int, optional
        Responses in one forward pass, instead of the recipe's; independent of chunks. Decoders
        of features have no use for it.
    average : str, optional
        A label of trials, such as ``"image_id"``: trials that agree in it are averaged first, and
        it becomes their ``image_id``.

    Returns
    -------
    Dataset or DataTree
        What was given, with ``embedding ([subject,] image | trial[, repetition], feature)``
        float32, whose attributes say what made it; or of a decoder of features with
        ``feature_<layer> ([subject, roi,] image | trial[, repetition], <unit dims>)``.

    Raises
    ------
    ModelError
        If channels are missing, times or units are others, or a subject has no network. While it
        computes: if responses are NaN or infinite.
    UnknownIdError, StoreError
        If there is no such model.

    Examples
    --------
    >>> found = test.ned.average_repetitions().ned.decode(decoder)
    """
    check_device(device)
    decoder = _decoder(model)
    if average is not None:
        ds = averaged_by(ds, average)
    if isinstance(decoder, FeatureModel):
        return map_subjects(ds, lambda one: _with_features(one, decoder, device))
    return map_subjects(ds, lambda one: _with_embedding(one, decoder, device, batch_size))


def _with_embedding(
    ds: xr.Dataset, decoder: NeuralDecoder, device: str, batch_size: int | None
) -> xr.Dataset:
    array = fitting_response(ds, decoder.recipe)
    sample, subject = sample_dim(ds), role_dim(ds, "subject")
    labels = [whose(ds)] if subject is None else [subject_label(str(s)) for s in ds[subject].values]
    members = tuple(decoder.member(label) for label in labels)
    known = "image_id" in ds.coords
    names = np.asarray(ds["image_id"] if known else np.arange(ds.sizes[sample]), dtype=object)
    size = decoder.recipe.batch_size if batch_size is None else batch_size
    task = DecodeTask(decoder.ref, device, size, decoder.recipe.network.n_outputs)
    axes = _Axes(array.dims.index(sample), None if subject is None else array.dims.index(subject))
    plan = DecodePlan(array.data, members, names, task, axes)
    dims = (*array.dims[:-2], "feature")
    found = xr.Variable(dims, PlannedArray(plan), _provenance(decoder, ds, device))
    return _with_partition(ds.assign(embedding=found), decoder, sample)


@dataclass(frozen=True)
class _Axes:
    """Where samples and subjects lie among the axes of the responses."""

    sample: int
    subject: int | None


@dataclass(frozen=True)
class DecodeTask:
    """Decodes one block of responses.

    Parameters
    ----------
    model : ModelRef
        The decoder.
    device : str
        As the user gave it; resolved where the task runs.
    batch_size : int
        Responses in a forward pass.
    n_outputs : int
        Width of the embedding.
    """

    model: ModelRef
    device: str
    batch_size: int
    n_outputs: int

    def __call__(
        self, block: np.ndarray, axes: _Axes, members: Sequence[Member], names: Sequence[object]
    ) -> np.ndarray:
        """Return float32 (..., feature) of responses (..., channel, time)."""
        device = resolve_device(self.device)
        out = np.empty((*block.shape[:-2], self.n_outputs), np.float32)
        for i, member in enumerate(members):
            where = () if axes.subject is None else (slice(None),) * axes.subject + (i,)
            own = block[where]
            sample = axes.sample - (axes.subject is not None and axes.subject < axes.sample)
            own = np.moveaxis(own, sample, 0).astype(np.float32, copy=False)
            checked(own, own.shape, np.float32, "the response", names=names)
            network = cache.get(self.model, device, NetworkPart(member.network))
            flat = own.reshape(-1, *own.shape[-2:])
            found = embed(network, flat, member.subject, self.batch_size, device)
            out[where] = np.moveaxis(found.reshape(*own.shape[:-2], -1), 0, sample)
        return out


def embed(
    network: LoadedNetwork, x: np.ndarray, subject: int, batch_size: int, device: str
) -> np.ndarray:
    """Return embeddings (n, feature) float32 of responses (n, channel, time) float32.

    Parameters
    ----------
    network : LoadedNetwork
        On the device.
    x : ndarray
        In the units and the order of channels of the recipe.
    subject : int
        Which subject of the network; -1 for none of them.
    batch_size : int
        Responses in a forward pass.
    device : str
        A torch device.
    """
    import torch

    parts = []
    with torch.inference_mode(), forward_slot(device):
        for part in batches(len(x), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(x[part])).to(device)
            who = torch.full((len(batch),), subject, dtype=torch.int64, device=device)
            parts.append(network.module(batch, who).float().cpu())
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """Embeddings ``([subject,] sample[, repetition], feature)``, float32.

    Parameters
    ----------
    responses : dask array (..., channel, time)
        Planned ones are narrowed by indexing them.
    members : tuple of Member
        Of each subject; one where there is no axis of subjects.
    names : ndarray of object, (sample,)
        For errors.
    task : DecodeTask
        What to do with a block.
    axes : _Axes
        Where samples and subjects lie.
    """

    responses: da.Array
    members: tuple[Member, ...]
    names: np.ndarray = field(repr=False)
    task: DecodeTask
    axes: _Axes

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        last = self.responses.ndim - 1
        source = self.responses.rechunk({last - 1: -1, last: -1})
        lead = source.chunks[:-2]
        name = f"embedding-{tokenize(source.name, self.members, self.task, self.axes)}"
        graph = {
            (name, *where, 0): (self.task, (source.name, *where, 0, 0), self.axes, *labels)
            for where, labels in self._blocks(lead)
        }
        layered = HighLevelGraph.from_collections(name, graph, dependencies=[source])
        chunks = (*lead, (self.task.n_outputs,))
        meta = np.empty((0,) * len(chunks), np.float32)
        return da.Array(layered, name, chunks, meta=meta)

    def _blocks(self, lead: tuple[tuple[int, ...], ...]) -> Any:
        """Yield the place of each block, and whose responses to which images it holds."""
        edges = [np.cumsum((0, *lengths)) for lengths in lead]
        for where in product(*(range(len(lengths)) for lengths in lead)):
            spans = [slice(edges[a][i], edges[a][i + 1]) for a, i in enumerate(where)]
            own = (
                self.members
                if self.axes.subject is None
                else self.members[spans[self.axes.subject]]
            )
            yield where, (list(own), self.names[spans[self.axes.sample]])

    def narrow(self, indexers: tuple[Indexer, ...]) -> Any:
        """Return the plan of what remains: other responses are neither read nor decoded."""
        *lead, features = indexers
        responses = self.responses
        for axis, indexer in enumerate(lead):
            responses = responses[(EVERYTHING,) * axis + (indexer,)]
        members = self.members
        if self.axes.subject is not None:
            kept = np.arange(len(members))[lead[self.axes.subject]]
            members = tuple(members[i] for i in kept)
        names = self.names[lead[self.axes.sample]]
        narrowed = replace(self, responses=responses, members=members, names=names)
        if isinstance(features, slice) and features == EVERYTHING:
            return narrowed
        return Sliced(PlannedArray(narrowed), features)


def _with_features(ds: xr.Dataset, model: FeatureModel, device: str) -> xr.Dataset:
    return _with_partition(decode_features(ds, model, device=device), model, sample_dim(ds))


def _decoder(model: Any) -> NeuralDecoder | FeatureModel:
    """Return the decoder that a person means."""
    if hasattr(model, "fit"):
        if not hasattr(model, "model_"):
            raise ModelError(f"this {type(model).__name__} is not fitted yet; call its .fit first")
        model = model.model_
    if isinstance(model, str | Path | Location):
        from nedx.encoding.model import load_model

        model = load_model(model)
    if not isinstance(model, NeuralDecoder | FeatureModel):
        raise ModelError(
            f"decode takes a decoder, not {type(model).__name__}. Type: "
            "nedx.EEGDecoder().fit(responses, targets)"
        )
    return model


def _provenance(decoder: NeuralDecoder, ds: xr.Dataset, device: str) -> dict[str, Any]:
    recipe: DecoderRecipe = decoder.recipe
    attrs = {
        "long_name": "embedding decoded from the response",
        "units": "1",
        "source": ds["response"].attrs.get("source", ds.attrs.get("source")),
        "target": recipe.target,
        DERIVED_FROM: "response",
        "model_id": recipe.model_id,
        "model_version": recipe.version,
        "model_training_source": recipe.training_source,
        "weights_sha256": decoder.weights_sha256,
        "device_kind": resolve_device(device).partition(":")[0],
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    return {name: value for name, value in attrs.items() if value is not None}


def _with_partition(
    ds: xr.Dataset, decoder: NeuralDecoder | FeatureModel, sample: str
) -> xr.Dataset:
    """Say which images the decoder has seen, unless the responses say what they are for."""
    if "partition" in ds or "image_id" not in ds.coords or "known_image" not in decoder.known:
        return ds
    seen = dict(
        zip(
            decoder.known["known_image"].values,
            decoder.known["known_partition"].values,
            strict=True,
        )
    )
    kinds = [seen.get(name, "unseen") for name in ds["image_id"].values]
    return ds.assign_coords(partition=(sample, np.array(kinds, dtype=object)))
