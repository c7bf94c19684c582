"""What several datasets of single-trial betas share: repetitions, ceilings, attributes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from nedx.errors import SelectionError, SourceError
from nedx.sources.sections import Missing

Normalize = Literal["zscore", "none"]
"""z-scores within session, or percent as published."""


def check_normalize(normalize: str) -> None:
    """Raise SelectionError for another word than ``"zscore"`` and ``"none"``."""
    if normalize not in ("zscore", "none"):
        raise SelectionError(f"normalize is 'zscore' or 'none', not {normalize!r}")


def earlier_presentations(images: np.ndarray) -> np.ndarray:
    """Count the earlier presentations of each image.

    Parameters
    ----------
    images : numpy.ndarray, (trial,)
        In the order in which they were shown.

    Returns
    -------
    numpy.ndarray of int16, (trial,)
    """
    _, numbers = np.unique(images, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    starts = np.r_[True, np.diff(numbers[order]) != 0]
    position = np.arange(len(numbers))
    found = np.empty(len(numbers), np.int16)
    found[order] = position - np.maximum.accumulate(np.where(starts, position, 0))
    return found


def ceiling_of_percent(percent: np.ndarray, url: str, repetitions: int | str) -> tuple[Any, ...]:
    """Return a ceiling published in percent as a fraction of variance, with its attributes.

    Parameters
    ----------
    percent : numpy.ndarray, (voxel,)
        NaN, where there is none, is 0.
    url : str
        For messages.
    repetitions : int or str
        Over which responses were averaged.

    Returns
    -------
    values : numpy.ndarray of float32, (voxel,)
    attrs : dict

    Raises
    ------
    SourceError
        If values lie outside 0 to 100.
    """
    values = np.nan_to_num(np.asarray(percent, np.float64))
    if values.size and (values.min() < 0 or values.max() > 100):
        raise SourceError(
            f"the noise ceilings in {url} run from {values.min():g} to {values.max():g}, which is "
            "no percent of variance"
        )
    about = {
        "units": "1",
        "valid_range": [0, 1],
        "method": "ncsnr",
        "n_repetitions": repetitions,
        "long_name": "explainable fraction of variance",
    }
    return (values / 100).astype(np.float32), about


def beta_attrs(normalize: Normalize) -> dict[str, Any]:
    """Return the attributes of single-trial betas."""
    about = {"long_name": "beta", "source": "measured"}
    if normalize == "none":
        return {**about, "units": "percent"}
    return {**about, "units": "1", "normalization": "zscore", "normalization_scope": "session"}


def beta_steps(version: str, normalize: Normalize, missing: Missing) -> list[dict[str, Any]]:
    """Return the steps of the attribute ``preprocessing``."""
    steps: list[dict[str, Any]] = [{"step": "betas", "version": version, "units": "percent"}]
    if normalize == "zscore":
        steps.append({"step": "zscore", "scope": "session", "deviation": "population"})
    if missing == "zero":
        steps.append({"step": "missing", "filled_with": 0})
    return steps
