"""Trained ReAlnets: labelled channels and times, and the plan of what they predict."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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
from nedx.encoding.plans import EVERYTHING, image_blocks
from nedx.encoding.realnet_recipe import ReAlnetRecipe
from nedx.encoding.realnet_store import NetworkPart, selected_states, write_realnet
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import PREFIX
from nedx.errors import ModelError
from nedx.selection import Names, Subjects, Times, select
from nedx.store.location import Location

NETWORK = f"{PREFIX}network"
"""The coordinate that names the network of each subject."""


class ReAlnetModel:
    """Predicts responses by channel and time, a network of each subject.

    Parameters
    ----------
    labels : Dataset
        Coordinates of channels and times, ``nedx_network ([subject])``, and ``readout
        ([subject,] channel, time)``, which stands for the weights.
    recipe : ReAlnetRecipe
        Images, units, origin, and the architecture of the stored networks.
    ref : ModelRef
        The store.
    """

    is_ragged = False

    def __init__(self, labels: xr.Dataset, recipe: ReAlnetRecipe, ref: ModelRef):
        self.labels = labels
        self.recipe = recipe
        self.ref = ref

    @property
    def members(self) -> dict[str, xr.Dataset]:
        """The labels of what is predicted: all subjects share channels and times."""
        return {"": self.labels}

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names of the networks: labels of the subjects."""
        return tuple(str(name) for name in np.atleast_1d(self.labels[NETWORK].values))

    @property
    def weights_sha256(self) -> str:
        """Of the whole store, whatever is selected of it."""
        return self.ref.sha256

    def known_images(self, member: str) -> xr.Dataset:
        """Return the Dataset that says which images the networks have seen."""
        return self.members[member]

    def sel(
        self,
        *,
        subject: Subjects | None = None,
        roi: Names | None = None,
        channel: Names | None = None,
        time: Times | None = None,
    ) -> ReAlnetModel:
        """Select subjects, channels and times, as `nedx.open` takes them.

        Networks that are left out are not run, outputs not multiplied.

        Returns
        -------
        ReAlnetModel
            No axis is dropped.

        Raises
        ------
        SelectionError
            If something asked for is not there.
        """
        wanted: dict[str, Any] = {"subject": subject, "roi": roi, "channel": channel, "time": time}
        given = {name: value for name, value in wanted.items() if value is not None}
        return self._with(select(self.labels, **given)) if given else self

    def isel(self, positions: Mapping[str, np.ndarray]) -> ReAlnetModel:
        """Select by positions along subjects, channels and times."""
        return self._with(self.labels.isel(positions))

    def _with(self, labels: xr.Dataset) -> ReAlnetModel:
        chosen = copy.copy(self)
        chosen.labels = labels
        return chosen

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model, as selected, to a Zarr store.

        Raises
        ------
        StoreExistsError
            If something is at ``place``; nothing is changed.
        """
        channels, times = (self.labels[f"{PREFIX}{dim}"].values for dim in ("channel", "time"))
        shape = self.recipe.architecture
        outputs = _outputs(channels, times, shape.n_times)
        states = selected_states(self.ref, self.subjects, outputs)
        changed = {"n_channels": len(channels), "n_times": len(times)}
        update = {"architecture": shape.model_copy(update=changed)}
        recipe = self.recipe.model_copy(update=update)
        return write_realnet(place, recipe, placed(self.labels), states)

    def predicted(
        self,
        images: da.Array,
        names: np.ndarray,
        recipe: EncoderRecipe,
        device: str,
        attrs: Mapping[str, Any],
    ) -> xr.Variable:
        """Return lazy responses ``([subject,] image, channel, time)`` float32.

        Parameters
        ----------
        images : dask array (image, y, x, rgb)
            uint8 pixels.
        names : ndarray of object, (image,)
            Their ids, for errors.
        recipe : EncoderRecipe
            As this call wants it.
        device : str
            As the user gave it.
        attrs : mapping
            Of the responses.

        Raises
        ------
        ModelError
            If another precision than float32 is asked for.
        """
        if recipe.backbone.precision != "float32":
            raise ModelError("ReAlnets compute in float32: leave precision out")
        axis = "subject" in self.labels[NETWORK].dims
        plan = ReAlnetPlan(
            images,
            names,
            ReAlnetTask(self.ref, recipe, device),
            self.subjects,
            self.labels[f"{PREFIX}channel"].values.astype(np.int64),
            self.labels[f"{PREFIX}time"].values.astype(np.int64),
            self.recipe.architecture.n_times,
            axis,
        )
        dims = (*(("subject",) if axis else ()), "image", "channel", "time")
        return xr.Variable(dims, PlannedArray(plan), dict(attrs))

    def __repr__(self) -> str:
        sizes, recipe = self.labels.sizes, self.recipe
        return (
            f"<nedx.ReAlnetModel {recipe.model_id!r} version {recipe.version}: "
            f"{', '.join(self.subjects)}; channel {sizes['channel']}, time {sizes['time']}; "
            f"units {recipe.units}>"
        )


def placed(labels: xr.Dataset) -> xr.Dataset:
    """Say of each channel and time where it lies among the outputs, and stand for the weights."""
    sizes = labels.sizes
    dims = (*(("subject",) if "subject" in labels[NETWORK].dims else ()), "channel", "time")
    stands = np.broadcast_to(np.float32(0), tuple(sizes[dim] for dim in dims))
    positions = {f"{PREFIX}{dim}": (dim, np.arange(sizes[dim])) for dim in ("channel", "time")}
    return labels.assign(readout=(dims, stands)).assign_coords(positions)


def _outputs(channels: np.ndarray, times: np.ndarray, n_times: int) -> np.ndarray:
    """Return which outputs of a network some channels and times are, channels first."""
    flat: np.ndarray = (channels[:, None] * n_times + times).ravel()
    return flat


@dataclass(frozen=True)
class ReAlnetTask:
    """Computes the responses of one subject to one block of images.

    Parameters
    ----------
    model : ModelRef
        The store.
    recipe : EncoderRecipe
        As this call wants it.
    device : str
        As the user gave it; resolved where the task runs.
    """

    model: ModelRef
    recipe: EncoderRecipe
    device: str

    def __call__(
        self, block: Any, names: Sequence[object], network: str, outputs: Positions
    ) -> np.ndarray:
        """Return float32 (image, output).

        Parameters
        ----------
        block : ndarray or object with ``read(slice)`` and a length
            uint8 pixels (image, y, x, rgb), or what reads them.
        names : sequence
            The ``image_id`` of each, for errors.
        network : str
            Which.
        outputs : Positions
            Which of its outputs.
        """
        import torch

        from nedx.encoding.kernels import preprocessed
        from nedx.stimuli.preprocessing import policy

        device, backbone = resolve_device(self.device), self.recipe.backbone
        loaded = cache.get(self.model, device, NetworkPart(network))
        wanted = torch.from_numpy(outputs.array.copy()).to(device)
        read = block.__getitem__ if isinstance(block, np.ndarray) else block.read
        out, done = np.empty((len(block), len(outputs)), np.float32), 0
        size = backbone.batch_size
        for batch in preprocessed(read, len(block), policy(backbone.policy), size, device):
            with forward_slot(device):
                made = loaded.predict(batch, wanted, size)
            out[done : done + len(batch)] = made.cpu().numpy()
            done += len(batch)
        return checked(out, out.shape, np.float32, "responses", names=names)


@dataclass(frozen=True, eq=False)
class ReAlnetPlan:
    """Responses ``([subject,] image, channel, time)``, float32.

    Parameters
    ----------
    images : dask array
        Pixels (image, y, x, rgb).
    names : ndarray of object, (image,)
        Their ids, for errors.
    task : ReAlnetTask
        What to do with a block.
    networks : tuple of str
        Of the subjects.
    channels, times : ndarray of int64
        Positions among those of the store.
    n_times : int
        How many the store has.
    subject_axis : bool
        Whether there is an axis of subjects; without it there is one.
    """

    images: da.Array
    names: np.ndarray = field(repr=False)
    task: ReAlnetTask
    networks: tuple[str, ...]
    channels: np.ndarray = field(repr=False)
    times: np.ndarray = field(repr=False)
    n_times: int
    subject_axis: bool

    def build(self) -> da.Array:
        """Return the dask array, one task a network and block of images; computes nothing."""
        blocks, dependencies = image_blocks(self.images)
        lengths = self.images.chunks[0]
        outputs = Positions.of(_outputs(self.channels, self.times, self.n_times))
        shape = (len(self.channels), len(self.times))
        made_of = (self.images.name, self.task, self.networks, outputs, shape, self.subject_axis)
        name = f"realnet-{tokenize(*made_of)}"
        stops = np.cumsum(lengths)
        graph: dict[Any, Any] = {}
        for s, network in enumerate(self.networks):
            for i, (block, length, stop) in enumerate(zip(blocks, lengths, stops, strict=True)):
                flat = (f"outputs-{name}", s, i)
                graph[flat] = (self.task, block, self.names[stop - length : stop], network, outputs)
                lead = (s,) if self.subject_axis else ()
                size = (*(1 for _ in lead), length, *shape)
                graph[(name, *lead, i, 0, 0)] = (_shaped, flat, size)
        layered = HighLevelGraph.from_collections(name, graph, dependencies=dependencies)
        lead_chunks = ((1,) * len(self.networks),) if self.subject_axis else ()
        chunks = (*lead_chunks, lengths, *((size,) for size in shape))
        return da.Array(layered, name, chunks, dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> ReAlnetPlan:
        """Return the plan of what remains: no other network is run, no other image read."""
        subjects, images, channels, times = (
            indexers if self.subject_axis else (EVERYTHING, *indexers)
        )
        chosen = np.arange(len(self.networks))[subjects]
        return replace(
            self,
            images=self.images[images],
            names=self.names[images],
            networks=tuple(self.networks[i] for i in chosen),
            channels=self.channels[channels],
            times=self.times[times],
        )


def _shaped(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return values.reshape(size)
