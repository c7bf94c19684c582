"""From a model store to tensors: only the rows asked for, once in a process."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nedx.compute import cache
from nedx.compute.references import ModelRef, Positions
from nedx.errors import CorruptStoreError, ModelError
from nedx.store.location import Location

if TYPE_CHECKING:
    import torch
    import zarr

    from nedx.backbones.recipe import BackboneRecipe

LOADER = "nedx.encoding.loading:load"


@dataclass(frozen=True)
class Head:
    """One subject's place in a model store.

    Parameters
    ----------
    group : str
        The group that holds the arrays; ``""`` is the root.
    subject : int, optional
        Position along the subject axis of the arrays; None where they have none.
    place : str
        The store, where it is not the one that the reference names: models of single subjects
        are used together without copying them.
    """

    group: str = ""
    subject: int | None = None
    place: str = ""


class Part(Protocol):
    """Something of a model that is loaded on its own."""

    def read(self, ref: ModelRef, device: str) -> Any:
        """Load it onto a device."""


def load(ref: ModelRef, device: str, part: Hashable) -> Any:
    """Load a part of a model; the loader that references to encoders name."""
    return part.read(ref, device)  # type: ignore[attr-defined]


def backbone_ref(recipe: BackboneRecipe) -> ModelRef:
    """Return the reference to a backbone, which encoders that share it load once."""
    weights = recipe.weights.sha256 if recipe.weights else None
    return ModelRef(LOADER, None, recipe.model_dump_json(), weights or "")


@dataclass(frozen=True)
class Network:
    """The backbone."""

    def read(self, ref: ModelRef, device: str) -> Any:
        """Build it, a `nedx.backbones.Backbone`."""
        from nedx.backbones import BackboneRecipe, load_backbone

        return load_backbone(BackboneRecipe.model_validate_json(ref.recipe), device)


@dataclass(frozen=True)
class Arrays:
    """The handles of the arrays of one store; reads metadata only.

    Parameters
    ----------
    place : str
        The store: equal models may lie in several places, and not be whole in each.
    """

    place: str

    def read(self, ref: ModelRef, device: str) -> zarr.Group:
        """Open the root."""
        import zarr

        from nedx.store.guard import GuardedStore

        if ref.location is None:
            raise ModelError("this reference names no store to read weights from")
        store = GuardedStore(ref.location.zarr_store(), ref.location)
        return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=True)


@dataclass
class LoadedProjection:
    """Projections of several subjects side by side.

    Attributes
    ----------
    layers : dict of str to tensor (projection * component, width)
        What each layer is multiplied with; rows are the long ones, which is faster for products
        with few images.
    offset : tensor (projection * component), float32
        What is subtracted at the end.
    shape : (int, int)
        Number of projections and of components.
    """

    layers: dict[str, torch.Tensor]
    offset: torch.Tensor
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.layers.values(), self.offset))


@dataclass(frozen=True)
class Projection:
    """The projections of some subjects, or the one that all share.

    Parameters
    ----------
    heads : tuple of Head
        Whose.
    """

    heads: tuple[Head, ...]

    def read(self, ref: ModelRef, device: str) -> LoadedProjection:
        """Read layer by layer, in float32 whatever the backbone computes in.

        The sum over a layer is mostly the same for all images; in bfloat16 that would round off
        what differs.
        """
        import torch

        groups = [group_of(ref, head) for head in self.heads]
        root = group_of(ref, replace(self.heads[0], group=""))
        widths: dict[str, int] = dict(root.attrs["layer_widths"])
        sizes = [group["projection_offset"].shape[-1] for group in groups]
        count, size = len(groups), max(sizes)
        # Subjects with fewer components than the others are filled up with zeros.
        offset = torch.zeros(count, size)
        layers: dict[str, torch.Tensor] = {}
        start = 0
        for layer, width in widths.items():
            side_by_side = torch.zeros(count, size, width)
            for i, (head, group) in enumerate(zip(self.heads, groups, strict=True)):
                block = read_array(group["projection"], head.subject, slice(start, start + width))
                side_by_side[i, : sizes[i]] = torch.from_numpy(block).T
            layers[layer] = side_by_side.view(count * size, width).to(device)
            start += width
        for i, (head, group) in enumerate(zip(self.heads, groups, strict=True)):
            offset[i, : sizes[i]] = torch.from_numpy(
                read_array(group["projection_offset"], head.subject, slice(None))
            )
        return LoadedProjection(layers, offset.view(-1).to(device), (count, size))


@dataclass
class LoadedReadout:
    """The readout of some targets of one subject.

    Attributes
    ----------
    weights : tensor (target, component)
        Targets are the neuroids, or neuroids and times in C order.
    intercept : tensor (target)
        Float32.
    shape : tuple of int
        Of the targets.
    """

    weights: torch.Tensor
    intercept: torch.Tensor
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.weights.nbytes + self.intercept.nbytes


@dataclass(frozen=True)
class TargetBlock:
    """Some targets of one subject.

    Parameters
    ----------
    head : Head
        Whose.
    positions : tuple of Positions
        Stored rows, then positions along further axes such as time.
    """

    head: Head
    positions: tuple[Positions, ...]


@dataclass(frozen=True)
class Readout:
    """The readout of some targets of one subject.

    Parameters
    ----------
    block : TargetBlock
        Which.
    precision : str
        Of the backbone.
    """

    block: TargetBlock
    precision: str

    def read(self, ref: ModelRef, device: str) -> LoadedReadout:
        """Read these rows and no others."""
        import torch

        weights = torch.from_numpy(read_targets(ref, "readout", self.block))
        intercept = torch.from_numpy(read_targets(ref, "intercept", self.block))
        flat = weights.reshape(-1, weights.shape[-1])
        return LoadedReadout(
            flat.to(device, _dtype(self.precision)),
            intercept.reshape(-1).to(device),
            tuple(intercept.shape),
        )


def read_targets(ref: ModelRef, name: str, block: TargetBlock) -> np.ndarray:
    """Read some targets of one subject from ``readout`` or ``intercept``.

    Returns
    -------
    numpy.ndarray of float32, (*targets[, component])
        In the order of the positions, whatever the order on disk.
    """
    head = block.head
    array = group_of(ref, head)[name]
    sorted_positions, inverses = [], []
    for axis, positions in enumerate(block.positions):
        unique, inverse = np.unique(positions.array, return_inverse=True)
        size = array.shape[axis + (head.subject is not None)]
        whole = len(unique) == size
        sorted_positions.append(slice(None) if whole else unique)
        inverses.append(inverse)
    values = read_array(array, head.subject, *sorted_positions)
    for axis, inverse in enumerate(inverses):
        if not np.array_equal(inverse, np.arange(values.shape[axis])):
            values = values.take(inverse, axis=axis)
    return values


def read_array(array: Any, subject: int | None, *selection: slice | np.ndarray) -> np.ndarray:
    """Read float32 from a Zarr array; bytes that fail their checksum are said to be corrupt."""
    lead = () if subject is None else (subject,)
    try:
        values = array.oindex[(*lead, *selection)]
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError(
            f"the weights {array.path or array.name!r} cannot be read ({error}). "
            f"Fetch the model again, and check it: nedx verify {array.store_path.store}"
        ) from error
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"the weights {array.name!r} hold NaN or infinite values")
    return values if values.flags.writeable else values.copy()


def group_of(ref: ModelRef, head: Head) -> Any:
    """Return the Zarr group that holds the arrays of a subject."""
    if head.place:
        ref = replace(ref, location=Location.of(head.place))
    root = cache.get(ref, "cpu", Arrays(repr(ref.location)))
    return root[head.group] if head.group else root


def _dtype(precision: str) -> torch.dtype:
    """Return the dtype of products; float16 would overflow in sums over all features."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32
