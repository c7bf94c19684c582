"""The chunked layer of encoding: dask graphs that know how to compute less of themselves.

Two layers. `ComponentsPlan` has one task for each block of images: read, preprocess, run the
backbone, project, for all subjects at once. `ResponsePlan` has one for each block of images and
block of targets: multiply the components with these rows of the readout. Blocks of responses
share the components that they need, and both carry references to weights, never weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.compute import cache
from nedx.compute.devices import resolve_device
from nedx.compute.planned import Indexer, PlannedArray
from nedx.compute.references import ModelRef, Positions
from nedx.encoding import kernels
from nedx.encoding.loading import (
    Head,
    Network,
    Projection,
    Readout,
    TargetBlock,
    backbone_ref,
    read_targets,
)
from nedx.encoding.recipe import EncoderRecipe

BLOCK_BYTES = 32 * 2**20
"""The most that a block of responses, or the rows of the readout behind it, should take."""

EVERYTHING = slice(None)


@dataclass(frozen=True)
class ComponentsTask:
    """Computes the components of one block of images.

    Parameters
    ----------
    model : ModelRef
        The encoder.
    recipe : EncoderRecipe
        Its recipe, as this call wants it.
    heads : tuple of Head
        Whose projections.
    device : str
        As the user gave it; resolved where the task runs.
    """

    model: ModelRef
    recipe: EncoderRecipe
    heads: tuple[Head, ...]
    device: str

    def __call__(self, block: Any, names: Sequence[object]) -> np.ndarray:
        """Return float32 (image, projection, component).

        Parameters
        ----------
        block : ndarray or object with ``read(slice)`` and a length
            uint8 pixels (image, y, x, rgb), what reads them, or features (image, feature).
        names : sequence
            The ``image_id`` of each, for errors.
        """
        from nedx.stimuli.preprocessing import policy

        device = resolve_device(self.device)
        backbone = self.recipe.backbone
        projection = cache.get(self.model, device, Projection(self.heads))
        if getattr(block, "ndim", 4) == 2:
            return kernels.project_features(
                block,
                projection=projection,
                batch_size=backbone.batch_size,
                device=device,
                names=names,
            )
        return kernels.project_images(
            block.__getitem__ if isinstance(block, np.ndarray) else block.read,
            len(block),
            backbone=cache.get(backbone_ref(backbone), device, Network()),
            projection=projection,
            policy=policy(backbone.policy),
            device=device,
            names=names,
        )


@dataclass(frozen=True, eq=False)
class ComponentsPlan:
    """Components ``(image, projection, component)`` of images, float32.

    Parameters
    ----------
    images : dask array
        Pixels (image, y, x, rgb), or features (image, feature). Pixels that are planned are read
        inside the task, batch by batch, and never lie in the graph.
    names : ndarray of object, (image,)
        Their ids, for errors.
    task : ComponentsTask
        What to do with a block.
    count : int
        Number of components.
    """

    images: da.Array
    names: np.ndarray = field(repr=False)
    task: ComponentsTask
    count: int

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        heads = self.task.heads
        blocks, dependencies = image_blocks(self.images)
        lengths = self.images.chunks[0]
        name = f"components-{tokenize(self.images.name, self.task)}"
        stops = np.cumsum(lengths)
        graph = {
            (name, i, 0, 0): (self.task, block, self.names[stop - length : stop])
            for i, (block, length, stop) in enumerate(zip(blocks, lengths, stops, strict=True))
        }
        layered = HighLevelGraph.from_collections(name, graph, dependencies=dependencies)
        chunks = (lengths, (len(heads),), (self.count,))
        return da.Array(layered, name, chunks, dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> Any:
        """Return the plan of what remains: other images are not read, other subjects not projected.

        The components themselves are all computed, as they come out of one product.
        """
        images, projections, components = indexers
        heads = tuple(self.task.heads[i] for i in np.arange(len(self.task.heads))[projections])
        narrowed = replace(
            self,
            images=self.images[images],
            names=self.names[images],
            task=replace(self.task, heads=heads),
        )
        if isinstance(components, slice) and components == EVERYTHING:
            return narrowed
        return Sliced(PlannedArray(narrowed), components)


@dataclass(frozen=True, eq=False)
class Sliced:
    """Some of the last axis of a planned array, taken after it is computed."""

    whole: PlannedArray
    kept: Indexer

    def build(self) -> da.Array:
        """Return the sliced array."""
        return da.Array.__getitem__(self.whole, (..., self.kept))

    def narrow(self, indexers: tuple[Indexer, ...]) -> Sliced:
        """Narrow the planned array, and slice what remains."""
        *others, last = indexers
        kept = np.arange(self.whole.shape[-1])[self.kept][last]
        whole = self.whole[(*others, EVERYTHING)]
        return Sliced(whole, kept)


@dataclass(frozen=True, eq=False)
class Targets:
    """Which targets of which subjects.

    Parameters
    ----------
    heads : tuple of Head
        The subjects.
    rows : ndarray of int64, (subject, neuroid)
        Where the neuroids lie on disk.
    rest : tuple of ndarray of int64
        Positions along further axes, such as time.
    subject_axis : bool
        Whether results have an axis for subjects; without it there is one head.
    """

    heads: tuple[Head, ...]
    rows: np.ndarray = field(repr=False)
    rest: tuple[np.ndarray, ...] = ()
    subject_axis: bool = True

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        return tokenize("nedx.Targets", self.heads, self.rows, self.rest, self.subject_axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of neuroids and further axes."""
        return self.rows.shape[1], *(len(positions) for positions in self.rest)

    def narrow(self, subjects: Indexer, targets: Sequence[Indexer]) -> Targets:
        """Return what remains."""
        chosen = np.arange(len(self.heads))[subjects]
        neuroids, *others = targets
        return Targets(
            tuple(self.heads[i] for i in chosen),
            self.rows[chosen][:, neuroids],
            tuple(p[other] for p, other in zip(self.rest, others, strict=True)),
            self.subject_axis,
        )

    def chunks(self, images: int, components: int) -> tuple[tuple[int, ...], ...]:
        """Cut the neuroids so that neither responses nor weights of a block exceed the bound."""
        neuroids, *others = self.shape
        row_bytes = 4 * int(np.prod(others)) * max(images, components, 1)
        step = int(np.clip(BLOCK_BYTES // max(row_bytes, 1), 1, max(neuroids, 1)))
        cut = tuple(min(step, neuroids - start) for start in range(0, neuroids, step)) or (0,)
        return cut, *((size,) for size in others)

    def blocks(self, cut: Sequence[int]) -> Iterator[tuple[int, int, TargetBlock]]:
        """Yield (subject, number, block) of every block of targets."""
        rest = tuple(Positions.of(positions) for positions in self.rest)
        stops = np.cumsum(cut)
        for (s, head), (b, size) in product(enumerate(self.heads), enumerate(cut)):
            rows = Positions.of(self.rows[s, stops[b] - size : stops[b]])
            yield s, b, TargetBlock(head, (rows, *rest))


@dataclass(frozen=True)
class ResponseTask:
    """Multiplies a block of components with some rows of one readout."""

    model: ModelRef
    precision: str
    device: str
    subject_axis: bool

    def __call__(self, components: np.ndarray, member: int, block: TargetBlock) -> np.ndarray:
        """Return float32 ([1,] image, *targets) from components (image, projection, component)."""
        device = resolve_device(self.device)
        readout = cache.get(self.model, device, Readout(block, self.precision))
        values = kernels.read_out(components[:, member], readout, device)
        return values[None] if self.subject_axis else values


@dataclass(frozen=True, eq=False)
class ResponsePlan:
    """Responses ``([subject,] image, *targets)`` to images, float32.

    Parameters
    ----------
    components : dask array (image, projection, component)
        Planned or kept; narrowed by indexing it.
    members : tuple of int
        Which projection each subject uses.
    targets : Targets
        What is predicted.
    task : ResponseTask
        What to do with a block.
    """

    components: da.Array
    members: tuple[int, ...]
    targets: Targets
    task: ResponseTask

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        lengths = self.components.chunks[0]
        target_chunks = self.targets.chunks(max(lengths), self.components.shape[2])
        name = f"response-{tokenize(self.components.name, self.members, self.targets, self.task)}"
        tail = (0,) * (len(target_chunks) - 1)
        graph: dict[Any, Any] = {}
        for s, b, block in self.targets.blocks(target_chunks[0]):
            # One node holds the block, which all blocks of images refer to.
            where = (f"targets-{name}", s, b)
            graph[where] = block
            for i in range(len(lengths)):
                key = (name, *((s,) if self.targets.subject_axis else ()), i, b, *tail)
                source = (self.components.name, i, 0, 0)
                graph[key] = (self.task, source, self.members[s], where)
        layered = HighLevelGraph.from_collections(name, graph, dependencies=[self.components])
        lead = ((1,) * len(self.members),) if self.targets.subject_axis else ()
        return da.Array(layered, name, (*lead, lengths, *target_chunks), dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> ResponsePlan:
        """Return the plan of what remains: only its images, its subjects and its rows are read."""
        subjects, images, *targets = (
            indexers if self.targets.subject_axis else (EVERYTHING, *indexers)
        )
        chosen = np.arange(len(self.members))[subjects]
        members = tuple(self.members[i] for i in chosen)
        projections: Indexer = EVERYTHING
        if len(set(self.members)) > 1:
            # Each subject has a projection of its own: only those left are computed.
            projections = np.array(sorted(set(members)), dtype=np.int64)
            members = tuple(int(np.searchsorted(projections, member)) for member in members)
        components = self.components
        for key in ((images,), (EVERYTHING, projections)):
            components = components[key]
        return replace(
            self,
            components=components,
            members=members,
            targets=self.targets.narrow(subjects, targets),
        )


@dataclass(frozen=True, eq=False)
class WeightsPlan:
    """Readout or intercept of a stored model, ``([subject,] *targets[, component])``, lazily.

    Parameters
    ----------
    model : ModelRef
        Where they lie.
    name : {"readout", "intercept"}
        Which.
    targets : Targets
        In the order of the labels, not of the store.
    components : int, optional
        Number of components; None for the intercept.
    """

    model: ModelRef
    name: str
    targets: Targets
    components: int | None = None

    def build(self) -> da.Array:
        """Return the dask array, without reading anything."""
        cut, *others = self.targets.chunks(1, self.components or 1)
        name = f"{self.name}-{tokenize(self.model, self.targets, self.components)}"
        tail = (0,) * (len(others) + (self.components is not None))
        graph: dict[Any, Any] = {}
        for s, b, block in self.targets.blocks(cut):
            key = (name, *((s,) if self.targets.subject_axis else ()), b, *tail)
            graph[key] = (_read_weights, self.model, self.name, block, self.targets.subject_axis)
        lead = ((1,) * len(self.targets.heads),) if self.targets.subject_axis else ()
        last = ((self.components,),) if self.components is not None else ()
        return da.Array(graph, name, (*lead, cut, *others, *last), dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> Any:
        """Return the plan of what remains."""
        if not self.targets.subject_axis:
            indexers = (EVERYTHING, *indexers)
        subjects, *targets = indexers
        components: Indexer = EVERYTHING
        if self.components is not None:
            *targets, components = targets
        narrowed = replace(self, targets=self.targets.narrow(subjects, targets))
        if isinstance(components, slice) and components == EVERYTHING:
            return narrowed
        return Sliced(PlannedArray(narrowed), components)


def _read_weights(
    model: ModelRef,
    name: str,
    block: TargetBlock,
    subject_axis: bool,  # noqa: FBT001
) -> np.ndarray:
    values = read_targets(model, name, block)
    return values[None] if subject_axis else values


def image_blocks(images: da.Array) -> tuple[list[Any], list[da.Array]]:
    """Return what stands for each block of images in a graph, and what the graph depends on.

    Planned pixels give an object that reads them; other arrays a key of their own graph, after
    all axes but the first are made one chunk.
    """
    block = getattr(getattr(images, "plan", None), "block", None)
    if block is not None:
        stops = np.cumsum(images.chunks[0])
        spans = zip(stops, images.chunks[0], strict=True)
        return [block(int(stop - size), int(stop)) for stop, size in spans], []
    tail = (0,) * (images.ndim - 1)
    return [(images.name, i, *tail) for i in range(images.numblocks[0])], [images]
