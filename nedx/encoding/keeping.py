"""Fitted models lie in the cache, by their content, until they are written elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import hash_variables
from nedx.store.location import Location
from nedx.store.models import keep


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
    return keep("".join(parts), write)
