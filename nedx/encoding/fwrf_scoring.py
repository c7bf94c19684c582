"""How well fwRF models predict: r of each voxel over images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from nedx.encoding.fwrf_samples import Responses, split_samples, without_partition
from nedx.metrics.correlation import pearson_r


def image_correlations(
    predict: Callable[[xr.Dataset], xr.Dataset | xr.DataTree],
    stimuli: xr.Dataset,
    responses: Responses | None,
    policy: str,
) -> dict[str, np.ndarray]:
    """Correlate predictions with the mean response to each image.

    Parameters
    ----------
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
    """
    own = without_partition(stimuli if responses is None else responses)
    bare = stimuli.drop_vars(["partition", "response"], errors="ignore")
    predicted = predict(bare)
    found = {}
    for name, samples in split_samples(bare, own, None, policy).training.items():
        ds = predicted[name].to_dataset() if isinstance(predicted, xr.DataTree) else predicted
        images, means = samples.image_means()
        rows = ds["response"].isel(image=images).transpose("image", "voxel")
        found[name] = correlations(rows.values, means)
    return found


def correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Correlate responses (image, voxel) over images.

    Returns
    -------
    ndarray of float32, (voxel,)
        Pearson's r; 0 where one of both is constant.
    """
    a, b = (xr.DataArray(each, dims=("image", "voxel")) for each in (predicted, measured))
    return np.nan_to_num(pearson_r(a, b, "image").values).astype(np.float32)
