"""The decoder of features: linear, with a few voxels for each unit, stored and applied lazily."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute.references import ModelRef
from nedx.decoding.feature_decoder_recipe import FeatureDecoderRecipe
from nedx.decoding.feature_decoder_storing import (
    UNIT_ARRAYS,
    VOXEL_ARRAYS,
    FeatureModelWriter,
)
from nedx.encoding.loading import Head, group_of
from nedx.errors import ModelError, SelectionError, close_matches
from nedx.selection import Names, Subjects, listed_subjects
from nedx.store.location import Location
from nedx.store.models import open_labels, write_whole


class FeatureModel:
    """Makes features of responses: what `FeatureDecoder` has learnt, and `decode` applies.

    Parameters
    ----------
    recipe : FeatureDecoderRecipe
        What it takes, what it gives, where it comes from.
    ref : ModelRef
        Where its weights lie.
    known : Dataset
        ``known_image`` and ``known_partition (known_image)``, the images that it has seen.
    """

    def __init__(self, recipe: FeatureDecoderRecipe, ref: ModelRef, known: xr.Dataset):
        self.recipe, self.ref, self.known = recipe, ref, known

    @property
    def subjects(self) -> tuple[str, ...]:
        """Labels of the subjects that it decodes."""
        return tuple(self.recipe.subjects)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it decodes."""
        return tuple(self.recipe.layers)

    @property
    def weights_sha256(self) -> str:
        """Of the whole model, whatever is selected of it."""
        return self.ref.sha256

    def member(self, subject: str | None) -> str:
        """Return the subject whose weights decode a subject.

        Raises
        ------
        ModelError
            If none does.
        """
        members = self.recipe.subjects
        if subject in members:
            return str(subject)
        if subject is None and len(members) == 1:
            return next(iter(members))
        whose = "of nobody in particular" if subject is None else f"of {subject!r}"
        raise ModelError(
            f"the responses are {whose}, the decoder was fitted to {', '.join(members)}: "
            f"{close_matches(subject, members)} Convert them to one of these subjects first, or "
            "fit a decoder of their own"
        )

    def sel(
        self,
        *,
        subject: Subjects | None = None,
        roi: Names | None = None,
        layer: Names | None = None,
    ) -> FeatureModel:
        """Select subjects, ROIs and layers; the weights of others are never read.

        Raises
        ------
        SelectionError
            If one is not there.
        """
        changes: dict[str, object] = {}
        if subject is not None:
            labels = listed_subjects(subject)
            changes["subjects"] = _chosen("subject", labels, self.recipe.subjects)
        if layer is not None:
            changes["layers"] = _chosen("layer", _listed(layer), self.recipe.layers)
        if roi is not None:
            rois = _chosen("ROI", _listed(roi), dict.fromkeys(self.recipe.rois))
            changes["rois"] = tuple(rois)
        chosen = copy.copy(self)
        chosen.recipe = self.recipe.model_copy(update=changes)
        return chosen

    def weights(
        self, layer: str, *, subject: str | int | None = None, roi: str | None = None
    ) -> xr.Dataset:
        """Open the weights of one layer lazily, as `nedx.sources.bdata` opens published ones.

        Parameters
        ----------
        layer : str
            Which.
        subject, roi : optional
            Whose, and which; needed where there are several.

        Returns
        -------
        Dataset
            ``index (unit, selected)`` int32, positions of voxels, rising; ``weight (unit,
            selected)``, ``bias``, ``feature_mean``, ``feature_deviation (unit)``,
            ``response_mean``, ``response_deviation (voxel)`` float32, and ``position (voxel)``
            among the subject's neuroids. Units are in C order of the attribute ``unit_shape``.

        Raises
        ------
        SelectionError
            If it is not there, or there are several.
        """
        only = self.sel(subject=subject, roi=roi, layer=layer)
        for what, found in (("subject", only.subjects), ("roi", only.recipe.rois)):
            if len(found) != 1:
                raise SelectionError(f"give {what}=, one of: {', '.join(found)}")
        (whose,), (where,) = only.subjects, only.recipe.rois
        group = f"{whose}/{where}"
        units, voxels = (group_of(self.ref, Head(g)) for g in (f"{group}/{layer}", group))
        arrays = {name: units[name] for name in UNIT_ARRAYS}
        arrays |= {name: voxels[name] for name in VOXEL_ARRAYS}
        variables = {
            name: (array.metadata.dimension_names, da.from_zarr(array, chunks=array.chunks))
            for name, array in arrays.items()
        }
        attrs = {
            "unit_shape": list(self.recipe.layers[layer]),
            "layer": layer,
            "subject": whose,
            "roi": where,
        }
        return xr.Dataset(variables, attrs=attrs)

    def neuroids(self, subject: str) -> xr.Dataset:
        """Return the labels of the neuroids of a subject's responses, by which they are found.

        Returns
        -------
        Dataset
            ``neuroid_label (<neuroid>)``; empty where the responses had none.
        """
        assert self.ref.location is not None
        return open_labels(self.ref.location, subject).load()

    def read(self, subject: str) -> np.ndarray:
        """Return which neuroids of a subject are read for the ROIs of the model, int64, rising."""
        groups = (group_of(self.ref, Head(f"{subject}/{roi}")) for roi in self.recipe.rois)
        return np.unique(np.concatenate([group["position"][:] for group in groups]))

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model, or what is selected of it; `nedx.load_model` opens it.

        Raises
        ------
        StoreExistsError
            If something is there; nothing is changed.
        """

        def write(location: Location) -> None:
            writer = FeatureModelWriter(location)
            for subject in self.subjects:
                writer.subject(subject, self.neuroids(subject))
            for subject, roi in product(self.subjects, self.recipe.rois):
                group = f"{subject}/{roi}"
                for layer in self.layers:
                    ds = self.weights(layer, subject=subject, roi=roi)
                    if layer == self.layers[0]:
                        writer.voxels(group, {name: ds[name].values for name in VOXEL_ARRAYS})
                    for part in _blocks(ds):
                        some = ds.isel(unit=part)
                        arrays = {name: some[name].values for name in UNIT_ARRAYS}
                        writer.units(f"{group}/{layer}", ds.sizes["unit"], part, arrays)
            writer.finish(self.recipe, self.known)

        return write_whole(place, write)

    def __repr__(self) -> str:
        recipe = self.recipe
        units = sum(int(np.prod(shape)) for shape in recipe.layers.values())
        about = {
            "layers": f"{', '.join(self.layers)} ({units:,} units)",
            "subjects": ", ".join(f"{name} ({n:,})" for name, n in recipe.subjects.items()),
            "ROIs": ", ".join(recipe.rois),
            "voxels": f"up to {recipe.n_voxels:,} for each unit, of units {recipe.units!r}",
            "trained on": recipe.training_data or recipe.dataset or "not said",
            "source": recipe.training_source or "not said",
            "licence": recipe.license or "not said",
        }
        lines = [f"<nedx.FeatureModel {recipe.model_id!r} version {recipe.version}>"]
        return "\n".join([*lines, *(f"    {k + ':':<12} {text}" for k, text in about.items())])


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _chosen(what: str, wanted: Sequence[str], there: dict) -> dict:
    for name in wanted:
        if name not in there:
            raise SelectionError(f"unknown {what} {name!r}: {close_matches(name, there)}")
    return {name: there[name] for name in wanted}


def _blocks(ds: xr.Dataset) -> Iterator[slice]:
    step = 16 * ds["weight"].data.chunksize[0]
    for start in range(0, ds.sizes["unit"], step):
        yield slice(start, min(start + step, ds.sizes["unit"]))
