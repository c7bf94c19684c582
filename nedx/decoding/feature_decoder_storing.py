"""Decoders of features on disk: for each subject, ROI and layer the voxels and weights of units.

A group ``<subject>/<roi>/<layer>`` holds ``index`` and ``weight (unit, selected)``, ``bias``,
``feature_mean`` and ``feature_deviation (unit)``; ``<subject>/<roi>`` holds ``response_mean`` and
``response_deviation (voxel)``, and ``position (voxel)`` among the subject's neuroids, whose labels
are ``neuroid_label`` of ``<subject>``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

from nedx.compute.references import ModelRef, Positions
from nedx.decoding.feature_decoder_recipe import FeatureDecoderRecipe
from nedx.encoding.loading import LOADER, Head, group_of, read_array
from nedx.store.location import Location
from nedx.store.models import ModelWriter, create_array, open_labels, stored_recipe

if TYPE_CHECKING:
    from nedx.decoding.feature_decoder_model import FeatureModel

MODEL_TYPE = "feature_decoder"
UNITS_PER_CHUNK = 1024
UNIT_ARRAYS = ("index", "weight", "bias", "feature_mean", "feature_deviation")
"""What a layer has along its units."""
VOXEL_ARRAYS = ("position", "response_mean", "response_deviation")
"""What a ROI has along its voxels."""
_INTEGERS = ("index", "position")


class FeatureModelWriter:
    """Writes a decoder block by block of units, so that it need not fit into memory.

    Parameters
    ----------
    location : Location
        Where; nothing may be there.
    """

    def __init__(self, location: Location):
        self._writer = ModelWriter(location)
        self._digests: dict[str, Any] = {}

    def subject(self, name: str, labels: xr.Dataset) -> None:
        """Write the labels of a subject's neuroids, as `neuroid_labels` returns them."""
        self._writer.labels(labels, name)

    def voxels(self, group: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write what a subject's ROI has along its voxels."""
        into = self._writer.root.require_group(group)
        for name in VOXEL_ARRAYS:
            values = arrays[name]
            array = create_array(into, name, values.shape, _dtype(name), dims=("voxel",))
            self._put(array, slice(0, len(values)), values)

    def units(self, group: str, count: int, part: slice, arrays: Mapping[str, np.ndarray]) -> None:
        """Write some units of a layer, which come in order; ``count`` is how many there are."""
        into = self._writer.root.require_group(group)
        for name in UNIT_ARRAYS:
            values = arrays[name]
            if part.start == 0:
                wide = values.ndim == 2
                dims = ("unit", "selected") if wide else ("unit",)
                step = UNITS_PER_CHUNK if wide else 64 * UNITS_PER_CHUNK
                tail = values.shape[1:]
                chunks = (min(step, count), *tail)
                create_array(into, name, (count, *tail), _dtype(name), chunks=chunks, dims=dims)
            array = into[name]
            assert isinstance(array, zarr.Array)
            self._put(array, part, values)

    def finish(self, recipe: FeatureDecoderRecipe, known: xr.Dataset) -> str:
        """Write the recipe and the images it knows; return the hash of the weights."""
        weights = "".join(f"{k}{d.hexdigest()}" for k, d in sorted(self._digests.items()))
        sha256 = hashlib.sha256(weights.encode()).hexdigest()
        self._writer.labels(known)
        self._writer.finish(recipe, model_type=MODEL_TYPE, weights_sha256=sha256)
        return sha256

    def _put(self, array: zarr.Array, part: slice, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, array.dtype)
        array[part] = values
        digest = self._digests.setdefault(array.path, hashlib.sha256(str(array.shape).encode()))
        digest.update(values)


def _dtype(name: str) -> str:
    return "int32" if name in _INTEGERS else "float32"


@dataclass(frozen=True)
class LoadedUnits:
    """Some units of a layer, with what their voxels are standardised by; numpy arrays."""

    index: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    feature_mean: np.ndarray
    feature_deviation: np.ndarray
    position: np.ndarray
    response_mean: np.ndarray
    response_deviation: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in vars(self).values())


@dataclass(frozen=True)
class UnitsPart:
    """Some units of one layer, of one subject's ROI.

    Parameters
    ----------
    group : str
        ``<subject>/<roi>``.
    layer : str
        The layer.
    units : Positions
        Which, in C order of the layer.
    """

    group: str
    layer: str
    units: Positions

    def read(self, ref: ModelRef, device: str) -> LoadedUnits:
        """Read these units and no others; they stay on the processor."""
        units = self.units.array
        start = int(units[0]) if units.size else 0
        stop = start + units.size
        where = slice(start, stop) if np.array_equal(units, np.arange(start, stop)) else units
        layer, roi = (group_of(ref, Head(g)) for g in (f"{self.group}/{self.layer}", self.group))
        found = {name: read_array(layer[name], None, where) for name in UNIT_ARRAYS}
        found |= {name: read_array(roi[name], None, slice(None)) for name in VOXEL_ARRAYS}
        # Positions were read as float32, which holds whole numbers up to 2 ** 24.
        return LoadedUnits(
            **{k: v.astype(np.int64) if k in _INTEGERS else v for k, v in found.items()}
        )


def open_feature_model(location: Location, attrs: Mapping[str, Any]) -> FeatureModel:
    """Open a stored decoder; only metadata are read.

    Raises
    ------
    ModelError
        If its recipe is not valid.
    """
    from nedx.decoding.feature_decoder_model import FeatureModel

    recipe, sha256 = stored_recipe(FeatureDecoderRecipe, location, attrs, "decoder")
    ref = ModelRef(LOADER, location, recipe.model_dump_json(), sha256)
    return FeatureModel(recipe, ref, open_labels(location, ""))
