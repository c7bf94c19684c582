"""fwRF models: labelled voxels, the plan of what they predict, and how they are opened."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.compute import cache
from nedx.compute.batches import checked
from nedx.compute.devices import forward_slot, resolve_device
from nedx.compute.planned import Indexer
from nedx.compute.references import ModelRef, Positions
from nedx.encoding.fwrf_store import FIELDS, TRUNKS, HeadPart, TrunkPart, read_voxels, write_fwrf
from nedx.encoding.loading import LOADER, Head, group_of
from nedx.encoding.plans import image_blocks
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import PREFIX
from nedx.errors import ModelError
from nedx.selection import Names, Subjects, Times, chosen_subjects, select
from nedx.store.location import Location
from nedx.store.models import open_labels

if TYPE_CHECKING:
    import torch

_SOURCE, _TRUNK, _ROW = _WHERE = tuple(f"{PREFIX}{n}" for n in ("source", "trunk", "row"))


class FwrfEncoder:
    """Predicts responses of voxels, each from its receptive field on the maps of a trunk.

    St-Yves & Naselaris 2018 (NeuroImage 180), in the form of St-Yves et al. 2023 (Nature
    Communications 14:3329); the formula stands at `nedx.encoding.fwrf.read_out_fwrf`. Each ROI
    was fitted with a trunk of its own: a voxel of two ROIs is there twice, and ``roi_mask`` says
    by which of them.

    Parameters
    ----------
    members : mapping of str to Dataset
        For each subject the labels of its voxels, ``voxel``, and where each lies:
        ``nedx_source``, ``nedx_row`` and ``nedx_trunk (voxel)``.
    recipe : EncoderRecipe
        Units and origin.
    sources : sequence of ModelRef
        The stores.
    trunks : sequence of ModelRef
        The trunks, by the hash of each.
    """

    is_ragged = True
    fields: tuple[str, ...] = FIELDS
    """What is stored of each voxel."""

    def __init__(
        self,
        members: Mapping[str, xr.Dataset],
        recipe: EncoderRecipe,
        sources: Sequence[ModelRef],
        trunks: Sequence[ModelRef],
    ):
        self.recipe = recipe
        self.members = dict(members)
        self.sources = tuple(sources)
        self.trunks = tuple(trunks)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Labels of the subjects."""
        return tuple(self.members)

    @property
    def rois(self) -> tuple[str, ...]:
        """Names of the ROIs that any subject has."""
        return tuple(
            dict.fromkeys(str(r) for ds in self.members.values() for r in ds["roi"].values)
        )

    @property
    def weights_sha256(self) -> str:
        """Of all stores that this was made of, whatever is selected of it."""
        joined = "".join(ref.sha256 for ref in self.sources)
        return hashlib.sha256(joined.encode()).hexdigest()

    def known_images(self, member: str) -> xr.Dataset:
        """Return the Dataset that says which images a member has seen, if it does."""
        return self.members[member]

    def sel(
        self,
        *,
        subject: Subjects | None = None,
        roi: Names | None = None,
        channel: Names | None = None,
        time: Times | None = None,
    ) -> FwrfEncoder:
        """Select subjects and ROIs; what is left out is never read.

        Parameters
        ----------
        subject, roi, channel, time
            As in `nedx.open`; of voxels, there are neither channels nor times.

        Returns
        -------
        FwrfEncoder

        Raises
        ------
        SelectionError
            If something asked for is not there; names the close matches.
        """
        arguments: dict[str, Any] = {"roi": roi, "channel": channel, "time": time}
        given = {name: value for name, value in arguments.items() if value is not None}
        names = chosen_subjects(subject, self.members)
        return self._with(
            {
                name: select(self.members[name], **given) if given else self.members[name]
                for name in names
            }
        )

    def isel(self, positions: Mapping[str, np.ndarray]) -> FwrfEncoder:
        """Select by positions along ``voxel``; for a model of one subject."""
        ((name, ds),) = self.members.items()
        return self._with({name: ds.isel(positions)})

    def _with(self, members: Mapping[str, xr.Dataset]) -> FwrfEncoder:
        chosen = copy.copy(self)
        chosen.members = dict(members)
        return chosen

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model, as selected, to one Zarr store.

        Raises
        ------
        StoreExistsError
            If something is at ``place``; nothing is changed.
        """
        used = sorted({int(t) for ds in self.members.values() for t in np.unique(ds[_TRUNK])})
        renumbered = {trunk: number for number, trunk in enumerate(used)}
        members = {}
        for name, ds in self.members.items():
            heads = [
                _taken(read_voxels(self.sources[source], name, rows, self.fields), order)
                for source, rows, order in _runs(ds)
            ]
            numbers = np.array([renumbered[int(t)] for t in ds[_TRUNK].values], np.int16)
            labels = ds.drop_vars([_SOURCE, _ROW]).assign_coords({_TRUNK: ("voxel", numbers)})
            members[name] = (labels, heads)
        return self._write(place, members, used)

    def _write(
        self, place: str | Path | Location, members: Mapping[str, Any], used: Sequence[int]
    ) -> Location:
        states = [_trunk_state(self.trunks[trunk]) for trunk in used]
        return write_fwrf(place, self.recipe, members, states)

    def task(self, subject: str, recipe: EncoderRecipe, device: str) -> FwrfTask:
        """Return what computes the responses of a subject to a block of images."""
        return FwrfTask(subject, self.sources, self.trunks, recipe, device)

    def __repr__(self) -> str:
        lines = [f"<nedx.FwrfEncoder {self.recipe.model_id!r} version {self.recipe.version}>"]
        lines += [f"    {label + ':':<12} {text}" for label, text in self._summary().items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for label, text in self._summary().items()
        )
        title = escape(f"{self.recipe.model_id} version {self.recipe.version}")
        return f"<table><caption>FwrfEncoder <b>{title}</b></caption>{rows}</table>"

    def _summary(self) -> dict[str, str]:
        recipe = self.recipe
        return {
            **{name: f"{ds.sizes['voxel']:,} voxels" for name, ds in self.members.items()},
            "rois": ", ".join(self.rois),
            "trunks": str(len(self.trunks)),
            "units": recipe.units,
            "trained on": recipe.training_data or recipe.dataset or "not said",
            "licence": recipe.license or "not said",
        }


def open_fwrf(location: Location, recipe: EncoderRecipe, attrs: Mapping[str, Any]) -> FwrfEncoder:
    """Open a stored fwRF model; weights are read when they are used.

    Parameters
    ----------
    location : Location
        The store.
    recipe : EncoderRecipe
        Its recipe.
    attrs : mapping
        The attributes of its root.

    Returns
    -------
    FwrfEncoder
    """
    ref = ModelRef(LOADER, location, "fwrf", str(attrs["weights_sha256"]))
    trunks = [ModelRef(LOADER, location, "fwrf", str(name)) for name in attrs[TRUNKS]]
    return FwrfEncoder(stored_members(location, attrs, FIELDS), recipe, [ref], trunks)


def stored_members(
    location: Location, attrs: Mapping[str, Any], fields: Sequence[str]
) -> dict[str, xr.Dataset]:
    """Return the labels of the voxels of each subject of a store, and where each lies in it."""
    members = {}
    for name in attrs["members"]:
        ds = open_labels(location, name, fields)
        count = ds.sizes["voxel"]
        members[name] = ds.assign_coords(
            {
                _SOURCE: ("voxel", np.zeros(count, np.int16)),
                _ROW: ("voxel", np.arange(count)),
            }
        )
    return members


def join_fwrf(models: Sequence[FwrfEncoder]) -> FwrfEncoder:
    """Use stored fwRF models of single ROIs as one; nothing is copied.

    Parameters
    ----------
    models : sequence of FwrfEncoder
        Made by one recipe; voxels of one subject are put one after the other.

    Returns
    -------
    FwrfEncoder

    Raises
    ------
    ModelError
        If they were made by other recipes.
    """
    first = models[0]
    if any(model.recipe != first.recipe for model in models):
        raise ModelError("these fwRF models cannot be used as one: they are of other recipes")
    sources: list[ModelRef] = []
    trunks: list[ModelRef] = []
    found: dict[str, list[xr.Dataset]] = {}
    for model in models:
        for name, ds in model.members.items():
            moved = {_SOURCE: len(sources), _TRUNK: len(trunks)}
            shifted = {key: (ds[key] + np.int16(by)).variable for key, by in moved.items()}
            found.setdefault(name, []).append(ds.assign_coords(shifted))
        sources += model.sources
        trunks += model.trunks
    members = {name: _side_by_side(parts) for name, parts in found.items()}
    return FwrfEncoder(members, first.recipe, sources, trunks)


def _side_by_side(parts: list[xr.Dataset]) -> xr.Dataset:
    """Put voxels one after the other; each is in the ROIs of its own part only."""
    every = dict.fromkeys(str(roi) for ds in parts for roi in ds["roi"].values)
    names = np.array(list(every), dtype=object)
    filled = [ds.reindex(roi=names, fill_value=False) for ds in parts]
    return xr.concat(
        [ds.reset_coords() for ds in filled],
        dim="voxel",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    ).pipe(lambda ds: ds.set_coords(list(ds.data_vars)))


def _runs(ds: xr.Dataset) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield source, sorted rows and their order of every run of voxels of one source."""
    source, row = ds[_SOURCE].values, ds[_ROW].values
    cuts = np.flatnonzero(np.diff(source)) + 1
    for part in np.split(np.arange(len(source)), cuts):
        if len(part):
            rows, order = np.unique(row[part], return_inverse=True)
            yield int(source[part[0]]), rows, order


def _taken(arrays: Mapping[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[order] for name, values in arrays.items()}


def _trunk_state(ref: ModelRef) -> dict[str, np.ndarray]:
    group = group_of(ref, Head(f"{TRUNKS}/{ref.sha256}"))
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


@dataclass(frozen=True, eq=False)
class FwrfPlan:
    """Responses ``(image, voxel)`` of one subject, float32.

    Parameters
    ----------
    images : dask array
        Pixels (image, y, x, rgb).
    names : ndarray of object, (image,)
        Their ids, for errors.
    task : FwrfTask
        Whose voxels, of which stores.
    source, trunk, row : ndarray of int64, (voxel,)
        Where each voxel lies.
    """

    images: da.Array
    names: np.ndarray = field(repr=False)
    task: FwrfTask
    source: np.ndarray = field(repr=False)
    trunk: np.ndarray = field(repr=False)
    row: np.ndarray = field(repr=False)

    @classmethod
    def of(
        cls,
        images: da.Array,
        names: np.ndarray,
        model: FwrfEncoder,
        subject: str,
        recipe: EncoderRecipe,
        device: str,
    ) -> FwrfPlan:
        """Return the plan of all voxels of a subject."""
        task = model.task(subject, recipe, device)
        where = (model.members[subject][name].values.astype(np.int64) for name in _WHERE)
        return cls(images, names, task, *where)

    def build(self) -> da.Array:
        """Return the dask array, one task a block of images, without computing anything."""
        blocks, dependencies = image_blocks(self.images)
        lengths = self.images.chunks[0]
        parts = self._parts()
        name = f"fwrf-{tokenize(self.images.name, self.task, parts)}"
        # One node holds the parts, which all blocks of images refer to.
        where = (f"voxels-{name}", 0)
        stops = np.cumsum(lengths)
        graph: dict[Any, Any] = {
            (name, i, 0): (self.task, block, self.names[stop - length : stop], where)
            for i, (block, length, stop) in enumerate(zip(blocks, lengths, stops, strict=True))
        }
        graph[where] = VoxelParts(parts, len(self.row))
        layered = HighLevelGraph.from_collections(name, graph, dependencies=dependencies)
        return da.Array(layered, name, (lengths, (len(self.row),)), dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> FwrfPlan:
        """Return the plan of what remains: no other image, voxel or trunk is read."""
        images, voxels = indexers
        return replace(
            self,
            images=self.images[images],
            names=self.names[images],
            source=self.source[voxels],
            trunk=self.trunk[voxels],
            row=self.row[voxels],
        )

    def _parts(self) -> tuple[VoxelPart, ...]:
        """Return what is read of each store for each trunk, those of one trunk together."""
        pairs = sorted(set(zip(self.trunk.tolist(), self.source.tolist(), strict=True)))
        # Equal trunks run once, wherever they lie.
        pairs.sort(key=lambda pair: self.task.trunks[pair[0]].sha256)
        parts = []
        for trunk, source in pairs:
            columns = np.flatnonzero((self.trunk == trunk) & (self.source == source))
            rows, order = np.unique(self.row[columns], return_inverse=True)
            packed = (Positions.of(each) for each in (rows, order, columns))
            parts.append(VoxelPart(trunk, source, *packed))
        return tuple(parts)


@dataclass(frozen=True)
class VoxelPart:
    """Voxels of one store that read one trunk.

    Parameters
    ----------
    trunk, source : int
        Numbers of both.
    rows : Positions
        Rows of the store, sorted.
    order : Positions
        Of these rows, the one of each column.
    columns : Positions
        Where in the response.
    """

    trunk: int
    source: int
    rows: Positions
    order: Positions
    columns: Positions


@dataclass(frozen=True)
class VoxelParts:
    """All parts of a response, and its number of voxels."""

    parts: tuple[VoxelPart, ...]
    count: int


@dataclass(frozen=True)
class FwrfTask:
    """Computes the responses of one block of images.

    Parameters
    ----------
    subject : str
        Whose voxels.
    sources, trunks : tuple of ModelRef
        Stores, and trunks in them.
    recipe : EncoderRecipe
        As this call wants it.
    device : str
        As the user gave it; resolved where the task runs.
    """

    subject: str
    sources: tuple[ModelRef, ...]
    trunks: tuple[ModelRef, ...]
    recipe: EncoderRecipe
    device: str

    def __call__(self, block: Any, names: Sequence[object], voxels: VoxelParts) -> np.ndarray:
        """Return float32 (image, voxel).

        Parameters
        ----------
        block : ndarray or object with ``read(slice)`` and a length
            uint8 pixels (image, y, x, rgb), or what reads them.
        names : sequence
            The ``image_id`` of each, for errors.
        voxels : VoxelParts
            Which.
        """
        import torch

        from nedx.encoding.kernels import preprocessed
        from nedx.stimuli.preprocessing import policy

        device, backbone = resolve_device(self.device), self.recipe.backbone
        read = block.__getitem__ if isinstance(block, np.ndarray) else block.read
        out = np.empty((len(block), voxels.count), np.float32)
        chosen, done = policy(backbone.policy), 0
        for batch in preprocessed(read, len(block), chosen, backbone.batch_size, device):
            with forward_slot(device), torch.inference_mode():
                self._fill(out[done : done + len(batch)], batch, voxels.parts, device)
            done += len(batch)
        return checked(out, out.shape, np.float32, "responses", names=names)

    def _fill(
        self, out: np.ndarray, batch: torch.Tensor, parts: Sequence[VoxelPart], device: str
    ) -> None:
        from nedx.backbones.gnet import MAPS
        from nedx.encoding.fwrf import read_out_fwrf

        running, maps = "", []
        for part in parts:
            ref = self.trunks[part.trunk]
            if ref.sha256 != running:
                trunk = cache.get(ref, device, TrunkPart(ref.sha256))
                running, maps = ref.sha256, [each for _, each in trunk.walk(batch, tuple(MAPS))]
            head = cache.get(self.sources[part.source], device, HeadPart(self.subject, part.rows))
            values = read_out_fwrf(maps, head).cpu().numpy()
            out[:, part.columns.array] = values[:, part.order.array]
