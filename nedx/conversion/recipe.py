"""What makes a converter, beside its weights: its subjects, its pairs, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from nedx.conversion.subjects import times_of
from nedx.schema import neuroid_dim, sample_dim

Kernel = Literal["linear", "content_network", "unet"]
Space = Literal["neuroid", "neuroid_time"]


class Side(BaseModel):
    """One subject's responses: what is taken from it, or given in its place.

    Parameters
    ----------
    neuroid : str
        Name of the neuroid axis, such as ``"voxel"``.
    size : int
        Neuroids.
    times : tuple of float, optional
        s from stimulus onset, where responses were fitted at these times and no others.
    response_attrs : dict
        Units and normalisation of the responses.
    attrs : dict
        What else is known of them: modality, space, licence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    neuroid: str
    size: int = Field(ge=1)
    times: tuple[float, ...] | None = None
    response_attrs: dict[str, Any] = Field(default_factory=dict)
    attrs: dict[str, Any] = Field(default_factory=dict)


class Pair(BaseModel):
    """From whom to whom.

    Parameters
    ----------
    source, target : str
        Labels of subjects.
    n_samples : int
        What it was fitted to: images, trials, or trials at each time.
    alpha : dict of str to float
        The penalty of each region, or the one of ``"all"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    target: str
    n_samples: int = 0
    alpha: dict[str, float] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its group in the store."""
        return f"{self.source}-to-{self.target}"


class ConverterRecipe(BaseModel):
    """What a converter takes, what it gives, and where it comes from.

    Parameters
    ----------
    kernel : {"linear", "content_network", "unet"}
        How standardised responses are turned into others.
    space : {"neuroid", "neuroid_time"}
        Whether neuroids are mixed alike at every time, or neuroids and times together.
    method : str
        How it was fitted.
    sides : dict of str to Side
        The subjects.
    pairs : tuple of Pair
        Which conversions there are.
    model_id, version, dataset, training_data, license, citation, fitted_by : str, optional
        Identity, origin and terms.
    training_source : {"measured", "synthetic"}, optional
        Whether it was fitted to recordings or to a simulation.
    seed : int
        Of all that was random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kernel: Kernel = "linear"
    space: Space = "neuroid"
    method: str
    sides: dict[str, Side]
    pairs: tuple[Pair, ...]
    model_id: str = "unnamed"
    version: str = "1"
    dataset: str | None = None
    training_data: str | None = None
    training_source: Literal["measured", "synthetic"] | None = None
    license: str | None = None
    citation: str | None = None
    fitted_by: str | None = None
    seed: int = 0


_RESPONSE = ("units", "normalization", "normalization_scope", "transform", "reference")
# What was measured of responses is not so of those that are converted into them.
_MEASURED = ("noise_ceiling", "ncsnr", "encoding_accuracy", "encoding_r2")
_PLACES = ("space", "density", "volume_shape", "affine", "montage")
_DATASET = ("modality", "species", "dataset", "license", "citation", *_PLACES)


def side_labels(ds: xr.Dataset) -> xr.Dataset:
    """Return what responses converted into these have as labels: of neuroids, ROIs, the volume.

    Parameters
    ----------
    ds : Dataset
        ``response (sample[, repetition], neuroid[, time])``.

    Returns
    -------
    Dataset
        Coordinates only, in memory.
    """
    dim = str(neuroid_dim(ds["response"]))
    kept = {
        name: coord.variable.copy()
        for name, coord in ds.coords.items()
        if set(coord.dims) <= {dim, "roi"} and coord.dims and name not in _MEASURED
    }
    if "roi_mask" in ds and set(ds["roi_mask"].dims) == {"roi", dim}:
        kept["roi_mask"] = ds["roi_mask"].variable.copy()
    if "affine" in ds and dim not in ds["affine"].dims:
        kept["affine"] = ds["affine"].variable.copy()
    if dim not in kept:
        kept[dim] = xr.Variable(dim, np.arange(ds.sizes[dim], dtype=np.int32))
    return xr.Dataset(coords={name: variable.load() for name, variable in kept.items()})


def side_of(ds: xr.Dataset, space: Space) -> Side:
    """Return what a recipe says of one subject."""
    dim = str(neuroid_dim(ds["response"]))
    times = times_of(ds) if space == "neuroid_time" else None
    return Side(
        neuroid=dim,
        size=ds.sizes[dim],
        times=None if times is None else tuple(times.tolist()),
        response_attrs=_json({k: v for k, v in ds["response"].attrs.items() if k in _RESPONSE}),
        attrs=_json({k: v for k, v in ds.attrs.items() if k in _DATASET}),
    )


def recipe_of(
    subjects: Mapping[str, xr.Dataset],
    pairs: tuple[Pair, ...],
    *,
    method: str,
    images: int,
    citation: str | None = None,
    space: Space = "neuroid",
    **fields: Any,
) -> ConverterRecipe:
    """Return the recipe of what was fitted to some subjects."""
    first = next(iter(subjects.values()))
    names = [str(first.attrs[k]) for k in ("modality", "dataset") if k in first.attrs]
    source = first["response"].attrs.get("source", first.attrs.get("source"))
    repeats = "single trials" if sample_dim(first["response"]) == "trial" else "responses"
    return ConverterRecipe(
        space=space,
        method=method,
        sides={name: side_of(ds, space) for name, ds in subjects.items()},
        pairs=pairs,
        model_id="-".join([*names, method.partition(",")[0].replace(" ", "_")]),
        dataset=first.attrs.get("dataset"),
        training_data=f"{repeats} to {images} images, {len(subjects)} subjects",
        training_source=source,
        license=first.attrs.get("license"),
        citation=citation,
        **fields,
    )


def _json(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the attributes that JSON can hold."""
    found = {}
    for name, value in attrs.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        try:
            found[str(name)] = json.loads(json.dumps(plain))
        except TypeError:
            continue
    return found
