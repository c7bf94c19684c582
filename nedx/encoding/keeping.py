"""Fitted models lie in the cache, by their content, until they are written elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from nedx.config import cache_dir
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import hash_variables
from nedx.errors import StoreExistsError
from nedx.store.location import Location


def keep_model(
    recipe: EncoderRecipe,
    labels: Mapping[str, xr.Dataset],
    weights: Mapping[str, np.ndarray],
    write: Callable[[Location], object],
) -> Location:
    """Write a model to the cache, unless an equal one is there.

    Parameters
    ----------
    recipe : EncoderRecipe
        Its recipe.
    labels : mapping of str to Dataset
        Of each subject.
    weights : mapping of str to ndarray
        All of them.
    write : callable (Location)
        Writes it.

    Returns
    -------
    Location
        Where it lies.
    """
    names = tuple(sorted({str(name) for ds in labels.values() for name in ds.variables}))
    parts = (recipe.model_dump_json(), hash_variables(labels, names), hash_arrays(weights))
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    place = Location.of(cache_dir() / "models" / digest)
    if not place.exists("zarr.json"):
        os.makedirs(os.path.dirname(place.url), exist_ok=True)
        try:
            write(place)
        except (StoreExistsError, OSError):
            # Another process may have been faster.
            if not place.exists("zarr.json"):
                raise
    return place
