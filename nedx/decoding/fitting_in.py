"""Whether responses are of the kind that a decoder takes, told before anything is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from nedx.decoding.recipe import DecoderRecipe
from nedx.errors import ModelError, close_matches
from nedx.schema import neuroid_dim, role_dim, sample_dim

_STEP = 1e-3
"""s; between times, where there is but one of them."""
_SAME = {"normalization": None, "normalization_scope": None, "transform": None}


def fitting_response(ds: xr.Dataset, recipe: DecoderRecipe) -> xr.DataArray:
    """Return the responses that a decoder takes, its channels and times in its order, lazily.

    Parameters
    ----------
    ds : Dataset
        ``response ([subject,] image | trial[, repetition], channel, time)``.
    recipe : DecoderRecipe
        What is wanted.

    Returns
    -------
    DataArray
        ``([subject,] image | trial[, repetition], channel, time)`` without coordinates, chunked.

    Raises
    ------
    ModelError
        With all that does not fit.
    """
    array = checked_response(ds)
    channel, time = array.dims[-2:]
    faults = [
        *unit_faults(array.attrs, recipe),
        *channel_faults(ds[channel].values, recipe.channels),
        *time_faults(ds[time].values, recipe.times),
    ]
    if faults:
        raise ModelError("these responses do not fit the decoder: " + "; ".join(faults))
    where = {str(name): i for i, name in enumerate(ds[channel].values)}
    order = np.array([where[name] for name in recipe.channels])
    times = np.asarray(ds[time].values, dtype=np.float64)
    kept = np.abs(times[:, None] - np.array(recipe.times)).argmin(0)
    chosen = {channel: order, time: kept}
    changed = {
        dim: positions
        for dim, positions in chosen.items()
        if not np.array_equal(positions, np.arange(array.sizes[dim]))
    }
    array = array.drop_vars(list(array.coords)).isel(changed)
    return array if array.chunks is not None else array.chunk()


def checked_response(ds: xr.Dataset) -> xr.DataArray:
    """Return ``response ([subject,] sample[, repetition], channel, time)``, if that is what it is.

    Raises
    ------
    ModelError
        If there is none, or it has other dims.
    """
    if not isinstance(ds, xr.Dataset):
        raise ModelError(f"responses are a Dataset with 'response', not {type(ds).__name__}")
    if "response" not in ds:
        raise ModelError(f"there is no 'response' to decode, only {list(map(str, ds.data_vars))}")
    array = ds["response"]
    channel, time = neuroid_dim(array), role_dim(array, "time")
    if channel != "channel" or time is None:
        raise ModelError(
            f"decoders take responses by channel and time, these have {list(map(str, array.dims))}"
        )
    for dim in (channel, time):
        if dim not in ds.coords:
            raise ModelError(f"the dimension {dim!r} has no labels: set ds.coords[{dim!r}]")
    known = [role_dim(array, "subject"), sample_dim(array), role_dim(array, "repetition")]
    order = [*(dim for dim in known if dim is not None), channel, time]
    foreign = [str(dim) for dim in array.dims if dim not in order]
    if foreign:
        raise ModelError(
            f"decoders take no dimension {foreign[0]!r}. Type: ds.isel({foreign[0]}=0)"
        )
    if array.dtype.kind != "f":
        raise ModelError(f"responses are floats, these are {array.dtype}")
    return array if list(array.dims) == order else array.transpose(*order)


def unit_faults(attrs: Mapping[Any, Any], recipe: DecoderRecipe) -> list[str]:
    """Say how units and normalisation differ from those of a decoder."""
    faults = []
    if attrs.get("units", "1") != recipe.units:
        faults.append(f"units are {attrs.get('units', '1')!r}, the decoder takes {recipe.units!r}")
    for name, otherwise in _SAME.items():
        given, wanted = attrs.get(name, otherwise), getattr(recipe, name)
        if given != wanted:
            faults.append(f"{name} is {given!r}, the decoder takes {wanted!r}")
    return faults


def channel_faults(given: Sequence[object] | np.ndarray, wanted: Sequence[str]) -> list[str]:
    """Say which channels are missing, or there more than once."""
    there = [str(name) for name in given]
    several = [name for name, count in Counter(there).items() if count > 1]
    if several:
        return [f"several channels are called {several[0]!r}: names must be unique"]
    missing = [name for name in wanted if name not in there]
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return [
        f"{len(missing)} of {len(wanted)} channels are missing: {shown} "
        f"({close_matches(missing[0], there)})"
    ]


def time_faults(given: np.ndarray, wanted: Sequence[float]) -> list[str]:
    """Say how times differ from those of a decoder."""
    times, window = np.asarray(given, dtype=np.float64), np.asarray(wanted)
    # One time alone tells no step: that of the others tells how near it has to lie.
    steps = [float(np.median(np.diff(each))) for each in (window, times) if len(each) > 1]
    step = abs(steps[0]) if steps else _STEP
    if len(times) > 1 and len(window) > 1:
        own = float(np.median(np.diff(times)))
        if abs(own - step) > 1e-3 * step:
            return [
                f"they are sampled at {1 / own:g} Hz, the decoder takes {1 / step:g} Hz: resample "
                "them as the training data were"
            ]
    near = np.abs(times[:, None] - window).min(0) if len(times) else np.full(len(window), np.inf)
    if (near > 0.01 * step).any():
        there = f"{times[0]:g} to {times[-1]:g} s" if len(times) else "nothing"
        return [
            f"they span {there}, the decoder takes {window[0]:g} to {window[-1]:g} s at the "
            "samples that it was fitted to"
        ]
    return []
