"""Which images a model has seen: train, val, test or unseen, for each of its subjects."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import xarray as xr

from nedx.encoding.kinds import Encoder
from nedx.errors import NedxWarning
from nedx.metrics.repeats import labels_of


def partition_coords(ds: xr.Dataset, model: Encoder) -> dict[str, dict[str, xr.Variable]]:
    """Look the images up among those that the model was made with.

    Parameters
    ----------
    ds : Dataset
        With ``image_id``. What it says of ``partition`` itself is kept.
    model : LinearEncoder, FwrfEncoder or ReAlnetModel
        May have ``known_image`` (ids) and ``known_partition ([subject,] known_image)``.

    Returns
    -------
    dict of str to dict
        For each member ``{"partition": ([subject,] image)}``; empty where nothing is known.
    """
    found: dict[str, dict[str, xr.Variable]] = {name: {} for name in model.members}
    if "image_id" not in ds.coords or "partition" in ds:
        return found
    ids = labels_of(ds, "image_id")
    for name in model.members:
        home = model.known_images(name)
        if "known_partition" in home:
            found[name] = {"partition": _looked_up(home, ids)}
    seen = [coords["partition"].values == "train" for coords in found.values() if coords]
    if seen and len(ids) and all(trained.all() for trained in seen):
        warnings.warn(
            "all of these images are among those that the model was trained on; a score on them "
            "says nothing about new images",
            NedxWarning,
            stacklevel=5,
        )
    return found


def _looked_up(home: xr.Dataset, ids: np.ndarray) -> xr.Variable:
    known = pd.Index(labels_of(home, "known_image"))
    kinds = home["known_partition"].transpose(..., "known_image")
    positions = known.get_indexer(ids)
    values = kinds.values[..., positions].astype(object)
    values[..., positions < 0] = "unseen"
    return xr.Variable((*kinds.dims[:-1], "image"), values)
