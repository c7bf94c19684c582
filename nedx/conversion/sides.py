"""What is known of the subjects of a converter: labels of their neuroids, units, origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from nedx.conversion.recipe import ConverterRecipe, Pair, Side, Space
from nedx.conversion.subjects import times_of
from nedx.schema import neuroid_dim, sample_dim

_RESPONSE = ("units", "normalization", "normalization_scope", "transform", "reference")
# What was measured of responses is not so of those that are converted into them.
_MEASURED = ("noise_ceiling", "ncsnr", "encoding_accuracy", "encoding_r2")
_DATASET = ("modality", "species", "dataset", "license", "citation", "space", "density")


def side_labels(ds: xr.Dataset) -> xr.Dataset:
    """Return what responses converted into these have as labels: coordinates of neuroids, ROIs.

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
