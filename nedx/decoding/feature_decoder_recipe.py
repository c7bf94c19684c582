"""What makes a decoder of features, beside its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nedx.backbones.recipe import BackboneRecipe

WHOLE = "all"
"""Stands for all neuroids, where no ROI was named."""


class FeatureDecoderRecipe(BaseModel):
    """What a decoder of features takes, what it gives, and where it comes from.

    Parameters
    ----------
    layers : dict of str to tuple of int
        The shape of each layer: ``(channel, y, x)`` or ``(unit,)``.
    subjects : dict of str to int
        How many neuroids each subject had.
    rois : tuple of str
        ROIs, each with weights of its own; ``("all",)`` where none was named.
    neuroid : str
        The dimension of the responses.
    n_voxels : int
        Neuroids chosen for each unit, at most.
    alpha : dict of str to float
        The penalty of each ``subject/roi/layer``.
    averaged : bool
        Whether trials of an image were averaged before the fit.
    backbone : BackboneRecipe, optional
        What computed the features, where that is known.
    units, normalization, normalization_scope, transform : str, optional
        Of the responses.
    model_id, version, dataset, training_data, license, citation, fitted_by : str, optional
        Identity, origin and terms.
    training_source : {"measured", "synthetic"}, optional
        Whether it was fitted to recordings or to a simulation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    layers: dict[str, tuple[int, ...]] = Field(min_length=1)
    subjects: dict[str, int] = Field(min_length=1)
    rois: tuple[str, ...] = (WHOLE,)
    neuroid: str = "voxel"
    n_voxels: int = Field(default=500, ge=1)
    alpha: dict[str, float] = Field(default_factory=dict)
    averaged: bool = False
    backbone: BackboneRecipe | None = None
    units: str = "1"
    normalization: str | None = None
    normalization_scope: str | None = None
    transform: str | None = None
    model_id: str = "unnamed"
    version: str = "0"
    dataset: str | None = None
    training_data: str | None = None
    training_source: Literal["measured", "synthetic"] | None = None
    license: str | None = None
    citation: str | None = None
    fitted_by: str | None = None


def unit_dims(layer: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the dims of the units of a layer, as those of feature files are called."""
    axes = {1: ("unit",), 3: ("channel", "y", "x")}.get(len(shape))
    axes = axes or tuple(f"axis{n}" for n in range(len(shape)))
    return tuple(f"{layer}_{axis}" for axis in axes)
