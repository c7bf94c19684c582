"""How well fwRF models predict: r of each voxel over images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.encoding.estimators.checks import check_same_units
from nedx.encoding.fwrf_checks import voxel_positions
from nedx.encoding.fwrf_samples import Responses, split_samples, without_partition
from nedx.errors import ModelError, NedxWarning
from nedx.metrics.correlation import pearson_r

if TYPE_CHECKING:
    from nedx.encoding.fwrf_model import FwrfEncoder


def image_correlations(
    model: FwrfEncoder,
    predict: Callable[[xr.Dataset], xr.Dataset | xr.DataTree],
    stimuli: xr.Dataset,
    responses: Responses | None,
    policy: str,
) -> dict[str, np.ndarray]:
    """Correlate predictions with the mean response to each image.

    Parameters
    ----------
    model : FwrfEncoder
        Which predicts.
    predict : callable (Dataset) -> Dataset or DataTree
        Predicts ``response (image, voxel)`` of each subject.
    stimuli : Dataset
        The images.
    responses : Dataset or DataTree, optional
        As they are fitted to; every response counts, of whatever partition.
    policy : str
        Of the images.

    Returns
    -------
    dict of str to ndarray of float32, (voxel,)
        Pearson's r of each subject's voxels; 0 where predictions or responses are constant.

    Raises
    ------
    ModelError
        If responses have other units or another normalisation than those fitted to, or are of
        subjects, voxels or images that are not predicted.

    Warns
    -----
    NedxWarning
        If the model was fitted to some of the images.
    """
    own = without_partition(stimuli if responses is None else responses)
    bare = stimuli.drop_vars(["partition", "response"], errors="ignore")
    predicted = predict(bare)
    found = {}
    split = split_samples(bare, own, None, policy)
    labelled = True
    for given in own.children.values() if isinstance(own, xr.DataTree) else [own]:
        if "response" in given:
            attrs = {str(key): value for key, value in given["response"].attrs.items()}
            check_same_units(model.recipe, attrs)
            labelled &= "voxel" in given["response"].coords
    for name, samples in split.training.items():
        if isinstance(predicted, xr.DataTree) and name not in predicted.children:
            raise ModelError(
                f"the model predicts {', '.join(predicted.children)}, the responses are of {name}"
            )
        ds = predicted[name].to_dataset() if isinstance(predicted, xr.DataTree) else predicted
        images, means = samples.finite_means("test")
        _warn_of_training(model, name, split.image_id[images])
        wanted = samples.labels["voxel"].values
        if not labelled and len(wanted) != ds.sizes["voxel"]:
            raise ModelError(
                f"{len(wanted)} voxels of {name} without labels, {ds.sizes['voxel']} are "
                "predicted: label the voxels, or give all"
            )
        voxels = voxel_positions(name, ds["voxel"].values, wanted)
        rows = ds["response"].isel(image=images, voxel=voxels).transpose("image", "voxel")
        found[name] = correlations(rows.values, means)
    return found


def _warn_of_training(model: FwrfEncoder, subject: str, ids: np.ndarray) -> None:
    member = subject if subject in model.members else next(iter(model.members))
    known = model.known_images(member)
    if "known_partition" not in known:
        return
    trained = known["known_image"].values[known["known_partition"].values == "train"]
    count = int(np.isin(ids.astype(str), trained.astype(str)).sum())
    if count:
        warnings.warn(
            f"{count} of {len(ids)} images of {subject!r} were used in training, so r is too high: "
            "leave the responses to them out",
            NedxWarning,
            stacklevel=4,
        )


def correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Correlate responses (image, voxel) over images.

    Returns
    -------
    ndarray of float32, (voxel,)
        Pearson's r; 0 where one of both is constant.
    """
    a, b = (xr.DataArray(each, dims=("image", "voxel")) for each in (predicted, measured))
    return np.nan_to_num(pearson_r(a, b, "image").values).astype(np.float32)
