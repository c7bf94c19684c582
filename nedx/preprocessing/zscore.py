"""Z-scores of responses by session, run or training set."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.preprocessing.steps import (
    apply_by_group,
    groups_of,
    response_of,
    samples_of,
    with_step,
)
from nedx.schema import role_dim, sample_dim

SCOPES = ("session", "run", "train")


def zscore(
    ds: xr.Dataset,
    scope: Literal["session", "run", "train"] = "session",
    *,
    fit: Literal["all", "train"] | None = None,
) -> xr.Dataset:
    """Standardise responses of each neuroid and time point, lazily.

    Mean and standard deviation (over samples, without Bessel's correction, as scikit-learn's
    ``StandardScaler``) are those of the scope. What does not vary is only centred.

    Parameters
    ----------
    ds : Dataset
        Responses ``(image | trial[, repetition], <neuroid>[, time])``.
    scope : {"session", "run", "train"}
        Within each session, within each run, or by all training samples together.
    fit : {"all", "train"}, optional
        The samples that mean and standard deviation are taken of: by default all of a session or
        run, as published for NSD and for NED's EEG, and training samples for ``"train"``. All
        samples include test data.

    Returns
    -------
    Dataset
        ``response`` float32 with ``units="1"``, ``normalization="zscore"`` and the scope; a step
        is added to the attribute ``preprocessing``.

    Raises
    ------
    SelectionError
        If the coordinates ``session``, ``run`` or ``partition`` that this needs are missing, or a
        session has no sample to take a mean of.
    """
    if scope not in SCOPES:
        raise SelectionError(f"scope is one of {', '.join(SCOPES)}, not {scope!r}")
    if fit not in (None, "all", "train"):
        raise SelectionError(f"fit is 'all' or 'train', not {fit!r}")
    taken = fit or ("train" if scope == "train" else "all")
    labels, group = groups_of(ds, scope)
    response = response_of(ds)
    dim = sample_dim(ds)
    known = samples_of(ds, "train") if taken == "train" else np.arange(ds.sizes[dim])
    over = [d for d in (dim, role_dim(response, "repetition")) if d is not None]
    axes = tuple(response.dims.index(d) for d in over)
    means, deviations = [], []
    for position, label in enumerate(labels):
        rows = known[group[known] == position]
        if not rows.size:
            raise SelectionError(
                f"{scope} {label} has no training sample to be z-scored by; leave it out, or give "
                "fit='all'"
            )
        part = response.isel({dim: rows}).data
        means.append(part.mean(axes, dtype=np.float64))
        deviations.append(part.std(axes, dtype=np.float64))
    made = apply_by_group(response, group, [means, deviations], standardise)
    # What an earlier whitening was fitted to is not what these z-scores are.
    kept = {name: value for name, value in response.attrs.items() if name != "normalization_fit"}
    made.attrs = {
        **kept,
        "units": "1",
        "normalization": "zscore",
        "normalization_scope": scope,
    }
    return with_step(ds.assign(response=made), "zscore", scope=scope, fit=taken)


def standardise(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Subtract the mean, and divide by the deviation where it is not 0."""
    return (values - mean) / np.where(deviation > 0, deviation, 1)
