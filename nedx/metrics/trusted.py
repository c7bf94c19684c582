"""Keep the neuroids that a model predicts, or that can be predicted, well enough."""

from __future__ import annotations

import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.schema import neuroid_dim


def trusted(
    ds: xr.Dataset,
    *,
    min_accuracy: float | None = None,
    min_noise_ceiling: float | None = None,
) -> xr.Dataset:
    """Select the neuroids whose accuracy and noise ceiling are high enough, lazily.

    Parameters
    ----------
    ds : Dataset
        With ``encoding_accuracy`` or ``noise_ceiling ([subject,] <neuroid>[, time])``.
    min_accuracy : float, optional
        The lowest ``encoding_accuracy`` (Pearson r, above -1 and at most 1).
    min_noise_ceiling : float, optional
        The lowest ``noise_ceiling`` (fraction of variance, 0 to 1).

    Returns
    -------
    Dataset
        The neuroids that reach both for any subject at any time, with ``trusted ([subject,]
        <neuroid>[, time])``, bool, which says whose and when. Where a value is NaN nothing is
        trusted.

    Raises
    ------
    SelectionError
        If no threshold is given or one is out of range, the Dataset does not say how accurate
        it is, or no neuroid is good enough; the message says how good the best one is.
    """
    thresholds = {"encoding_accuracy": min_accuracy, "noise_ceiling": min_noise_ceiling}
    given = {name: value for name, value in thresholds.items() if value is not None}
    if not given:
        raise SelectionError("say what to trust: type min_accuracy=0.3 or min_noise_ceiling=0.1")
    dim = neuroid_dim(ds)
    if dim is None:
        raise SelectionError("there is no neuroid axis to select from")
    reached: xr.DataArray | bool = True
    for name, least in given.items():
        reached = reached & _reaches(ds, name, least, dim)
    assert isinstance(reached, xr.DataArray)
    mask = reached.variable
    kept = np.flatnonzero(mask.any([d for d in mask.dims if d != dim]).values)
    if not kept.size:
        raise SelectionError(f"no {dim} reaches {' and '.join(_bests(ds, given))}; ask for less")
    mask.attrs = {"long_name": "accurate enough", **given}
    return ds.assign_coords(trusted=mask).isel({dim: kept})


def _reaches(ds: xr.Dataset, name: str, least: float, dim: str) -> xr.DataArray:
    lowest = -1 if name == "encoding_accuracy" else 0
    if not lowest <= least <= 1:
        raise SelectionError(f"{name} is from {lowest} to 1, not {least}; 30 % is 0.3")
    if name not in ds.variables or dim not in ds[name].dims:
        raise SelectionError(
            f"this Dataset does not say {name!r} for each {dim}; compute it with ds.ned.score(), "
            "or open data that carry it"
        )
    values = ds[name].reset_coords(drop=True).compute()
    reaches: xr.DataArray = values >= least
    return reaches


def _bests(ds: xr.Dataset, given: dict[str, float]) -> list[str]:
    return [
        f"{name} {least:g} (the best is {float(ds[name].max()):.3g})"
        for name, least in given.items()
    ]
