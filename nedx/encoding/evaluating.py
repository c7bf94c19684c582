"""Compare the predictions of an encoding model with responses to other images."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.encoding.encode import encode
from nedx.encoding.estimators.checks import check_same_units
from nedx.encoding.estimators.measured import measured, members, row_positions
from nedx.encoding.kinds import Encoder
from nedx.metrics.repeats import labels_of
from nedx.schema import role_dim, sample_dim


def evaluate(
    model: Encoder,
    stimuli: xr.Dataset,
    responses: xr.Dataset | xr.DataTree,
    *,
    device: str = "auto",
    **options: Any,
) -> xr.Dataset | xr.DataTree:
    """Predict the responses to images, and score the predictions; lazily.

    Parameters
    ----------
    model : LinearEncoder, FwrfEncoder or ReAlnetModel
        What to score.
    stimuli : Dataset
        ``pixels`` or ``features`` of at least the images of the responses.
    responses : Dataset or DataTree
        ``response`` to images that the model has not seen, with repetitions where a ceiling is
        wanted.
    device : str
        Where the backbone runs.
    **options
        Of `nedx.score`.

    Returns
    -------
    Dataset or DataTree
        The responses with ``response_predicted`` and what `nedx.score` adds.

    Raises
    ------
    ModelError
        If images are not among the stimuli, or the responses have other units or another
        normalisation than the model was fitted to.

    Warns
    -----
    NedxWarning
        If the model was fitted to some of the images.
    """
    scored = {
        name: _scored(model, stimuli, ds, name or None, device, options)
        for name, ds in members(responses).items()
    }
    if set(scored) == {""}:
        return scored[""]
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in scored.items()})


def _scored(
    model: Encoder,
    stimuli: xr.Dataset,
    ds: xr.Dataset,
    subject: str | None,
    device: str,
    options: dict[str, Any],
) -> xr.Dataset:
    from nedx.metrics.scoring import score

    check_same_units(model.recipe, ds["response"].attrs)
    ds = ds.drop_vars(["pixels", "features", "components"], errors="ignore")
    sample = sample_dim(ds)
    one = measured(ds)
    rows = row_positions(stimuli, {"": one})[""]
    first, which = np.arange(ds.sizes[sample]), np.arange(ds.sizes[sample])
    if one.image_id is not None:
        ids = labels_of(ds, "image_id")
        _, first, which = np.unique(ids, return_index=True, return_inverse=True)
        order = {str(label): row for label, row in zip(one.image_id, rows, strict=True)}
        rows = np.array([order[ids[i]] for i in first])
    ds = _with_partition(ds, model, subject or "", sample)
    predicted = _predicted(
        model, stimuli.isel(image=rows), ds.isel({sample: first}), subject, device
    )
    along = predicted.isel(image=which).drop_vars(["image_id", "partition"], errors="ignore")
    if sample != "image":
        along = along.rename(image=sample)
    kept = {*ds.dims, "image_id", "partition", "noise_ceiling"} & set(ds.coords)
    bare = ds[["response"]].reset_coords(drop=True).assign_coords({n: ds[n].variable for n in kept})
    scored = score(bare.assign(response_predicted=along.variable), **options)
    return ds.assign(scored.drop_vars(list(kept)).variables)


def _predicted(
    model: Encoder,
    stimuli: xr.Dataset,
    ds: xr.Dataset,
    subject: str | None,
    device: str,
) -> xr.DataArray:
    """Predict for one row an image; measured responses only say for which neuroids."""
    repetition = role_dim(ds, "repetition")
    if repetition is not None:
        ds = ds.isel({repetition: 0}, drop=True)
    ds = ds.rename({sample_dim(ds): "image"}) if sample_dim(ds) != "image" else ds
    name = "pixels" if "pixels" in stimuli else "features"
    images = stimuli[name].variable
    given = ds.assign({name: images})
    out = encode(given, model, subject=subject, device=device)
    predicted: xr.DataArray = out["response_predicted"]  # type: ignore[assignment]
    if "repetition" in predicted.dims:
        predicted = predicted.mean("repetition", keep_attrs=True)
    if "subject" in predicted.dims and "subject" not in ds.dims:
        # One of several on a grid, of whom the responses have no dim.
        if "subject" in ds.coords:
            predicted = predicted.sel(subject=ds["subject"].values[()], drop=True)
        elif subject is not None:
            predicted = predicted.isel(subject=0, drop=True)
    return predicted


def _with_partition(ds: xr.Dataset, model: Encoder, member: str, sample: str) -> xr.Dataset:
    """Mark the images that the model has seen, so that what scores them can warn."""
    member = member if member in model.members else next(iter(model.members))
    home = model.known_images(member)
    if "known_partition" not in home or "image_id" not in ds.coords:
        return ds
    kinds = home["known_partition"]
    trained = (kinds == "train").any([dim for dim in kinds.dims if dim != "known_image"])
    seen = np.isin(
        labels_of(ds, "image_id"), home["known_image"].values[trained.values].astype(str)
    )
    before = ds["partition"].values if "partition" in ds.coords else np.full(len(seen), "unseen")
    return ds.assign_coords(partition=(sample, np.where(seen, "train", before).astype(object)))
