"""fwRF models with Gaussian receptive fields on the maps of any backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.backbones.recipe import BackboneRecipe
from nedx.compute import cache
from nedx.compute.batches import batches
from nedx.compute.references import ModelRef, Positions
from nedx.encoding.fwrf_model import FwrfEncoder, FwrfTask, VoxelPart, stored_members
from nedx.encoding.fwrf_store import read_voxels, write_fwrf
from nedx.encoding.loading import LOADER, Network, backbone_ref
from nedx.encoding.recipe import EncoderRecipe
from nedx.errors import ModelError
from nedx.linear.receptive_field_grid import pool_maps
from nedx.store.location import Location

if TYPE_CHECKING:
    import torch

    from nedx.backbones import Backbone

GAUSSIAN_FIELDS = ("field", "w", "b")
"""Of each voxel: centre and size of its receptive field, weights and intercept."""
MODEL_TYPE = "fwrf_gaussian"
_POOLED_BYTES = 2**27


class GaussianFwrfEncoder(FwrfEncoder):
    """Predicts responses of voxels, each from all maps of a backbone under one Gaussian.

    St-Yves & Naselaris 2018 (NeuroImage 180). With the Gaussian ``g`` of voxel ``v``, which sums
    to one over the positions ``p`` of each map, and channel ``f``::

        y[v] = b[v] + sum_f w[v, f] s(sum_p g[v, p] F[f, p])

    where ``s(x) = log(1 + |x|) tanh(x)``, or nothing where the model does not compress. Each voxel
    has the coordinates ``rf_x`` (to the right), ``rf_y`` (upwards) and ``rf_size`` (standard
    deviation), degrees.

    Parameters
    ----------
    members, recipe, sources
        As of `FwrfEncoder`.
    aperture : float
        Side of what the network sees, degrees.
    compress : bool
        Whether pooled features are compressed.
    """

    fields = GAUSSIAN_FIELDS

    def __init__(
        self,
        members: Mapping[str, xr.Dataset],
        recipe: EncoderRecipe,
        sources: Sequence[ModelRef],
        *,
        aperture: float,
        compress: bool,
    ):
        super().__init__(members, recipe, sources, [backbone_ref(recipe.backbone)])
        self.aperture = aperture
        self.compress = compress

    def task(self, subject: str, recipe: EncoderRecipe, device: str) -> GaussianTask:
        """Return what computes the responses of a subject to a block of images."""
        return GaussianTask(
            subject, self.sources, self.trunks, recipe, device, self.aperture, self.compress
        )

    def _write(
        self, place: str | Path | Location, members: Mapping[str, Any], used: Sequence[int]
    ) -> Location:
        return write_gaussian(
            place, self.recipe, members, aperture=self.aperture, compress=self.compress
        )


@dataclass(frozen=True)
class GaussianTask(FwrfTask):
    """Computes the responses of one block of images; see `FwrfTask`.

    Parameters
    ----------
    aperture : float
        Side of what the network sees, degrees.
    compress : bool
        Whether pooled features are compressed.
    """

    aperture: float
    compress: bool

    def _fill(
        self, out: np.ndarray, batch: torch.Tensor, parts: Sequence[VoxelPart], device: str
    ) -> None:
        backbone = cache.get(backbone_ref(self.recipe.backbone), device, Network())
        maps = run_maps(backbone, batch)
        for part in parts:
            wanted = GaussianPart(self.subject, part.rows)
            head = cache.get(self.sources[part.source], device, wanted)
            values = head.read_out(maps, self.aperture, compress=self.compress)
            out[:, part.columns.array] = values[:, part.order.array]


@dataclass(frozen=True)
class GaussianPart:
    """What some voxels of one subject read out.

    Parameters
    ----------
    subject : str
        The group.
    rows : Positions
        Which voxels, sorted.
    """

    subject: str
    rows: Positions

    def read(self, ref: ModelRef, device: str) -> GaussianHead:
        """Read these voxels and no others."""
        import torch

        read = read_voxels(ref, self.subject, self.rows.array, GAUSSIAN_FIELDS)
        fields, which = np.unique(read["field"], axis=0, return_inverse=True)
        w, b = (torch.from_numpy(np.array(read[name])).to(device) for name in "wb")
        return GaussianHead(fields, which.reshape(-1), w, b)


@dataclass(frozen=True)
class GaussianHead:
    """What voxels read out of the maps of a backbone.

    Attributes
    ----------
    fields : ndarray (candidate, 3)
        x, y and size of the receptive fields, degrees.
    which : ndarray of int64, (voxel,)
        The receptive field of each voxel.
    w : tensor (voxel, feature), float32
        Weights.
    b : tensor (voxel,), float32
        Intercepts.
    """

    fields: np.ndarray
    which: np.ndarray
    w: torch.Tensor
    b: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.w.nbytes + self.b.nbytes

    def read_out(
        self, maps: Sequence[torch.Tensor], aperture: float, *, compress: bool
    ) -> np.ndarray:
        """Return float32 (image, voxel) of maps (image, channel, y, x); some fields at a time."""
        features = sum(each.shape[1] for each in maps)
        if features != self.w.shape[1]:
            raise ModelError(
                f"the backbone has maps of {features} channels, the model weighs {self.w.shape[1]}"
            )
        count = len(maps[0])
        out = np.empty((count, len(self.b)), np.float32)
        step = max(1, _POOLED_BYTES // (4 * count * features))
        for part in batches(len(self.fields), step):
            pooled = pool_maps(maps, self.fields[part], aperture, compress=compress)
            for number, each in enumerate(pooled, part.start):
                voxels = np.flatnonzero(self.which == number)
                # Features far from zero cancel out against the intercept.
                values = each.double() @ self.w[voxels].double().T + self.b[voxels]
                out[:, voxels] = values.float().cpu().numpy()
        return out


@lru_cache(maxsize=64)
def map_shapes(recipe: BackboneRecipe) -> dict[str, tuple[int, int]]:
    """Return channels and side of the map of each layer, without loading weights.

    Raises
    ------
    ModelError
        If a layer is no square map.
    """
    from nedx.backbones import feature_layout

    flat = feature_layout(recipe.model_copy(update={"pooling": "flatten"}))
    channels = feature_layout(recipe.model_copy(update={"pooling": "mean"}))
    shapes = {}
    for layer, width in flat.items():
        positions = width // channels[layer]
        side = math.isqrt(positions)
        if side < 2 or side * side != positions:
            raise ModelError(
                f"layer {layer!r} of {recipe.name} has {positions} positions of {channels[layer]} "
                "channels, which are no square map to place receptive fields on: choose "
                "layers=[...] before pooling and fully connected layers"
            )
        shapes[layer] = channels[layer], side
    return shapes


def run_maps(backbone: Backbone, batch: torch.Tensor) -> list[torch.Tensor]:
    """Return the maps (image, channel, y, x) of the layers of a backbone that does not pool."""
    shapes = map_shapes(backbone.recipe.model_copy(update={"image_size": batch.shape[-1]}))
    maps: list[torch.Tensor] = []

    def keep(layer: str, flat: torch.Tensor) -> None:
        channels, side = shapes[layer]
        maps.append(flat.reshape(len(flat), channels, side, side))

    backbone.run(batch, keep)
    return maps


def write_gaussian(
    place: str | Path | Location,
    recipe: EncoderRecipe,
    members: Mapping[str, tuple[xr.Dataset, Sequence[Mapping[str, np.ndarray]]]],
    *,
    aperture: float,
    compress: bool,
) -> Location:
    """Write a model, whole or not at all on a local disk.

    Parameters
    ----------
    place : str, Path or Location
        Where; must not exist.
    recipe : EncoderRecipe
        Its recipe.
    members : mapping of str to (Dataset, sequence of dict)
        For each subject the labels of its voxels with ``nedx_trunk (voxel)``, all 0, and their
        `GAUSSIAN_FIELDS`, some voxels after the other.
    aperture : float
        Degrees.
    compress : bool
        Whether pooled features are compressed.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """
    about = {"aperture": aperture, "compress": compress}
    return write_fwrf(place, recipe, members, [], model_type=MODEL_TYPE, about=about)


def open_gaussian(
    location: Location, recipe: EncoderRecipe, attrs: Mapping[str, Any]
) -> GaussianFwrfEncoder:
    """Open a stored model; weights are read when they are used.

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
    GaussianFwrfEncoder
    """
    ref = ModelRef(LOADER, location, MODEL_TYPE, str(attrs["weights_sha256"]))
    return GaussianFwrfEncoder(
        stored_members(location, attrs, GAUSSIAN_FIELDS),
        recipe,
        [ref],
        aperture=float(attrs["aperture"]),
        compress=bool(attrs["compress"]),
    )
