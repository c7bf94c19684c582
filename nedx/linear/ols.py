"""Ordinary least squares, in closed form, from one pass over lazy targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nedx.compute.devices import resolve_device
from nedx.errors import ModelError
from nedx.linear.design import Design
from nedx.linear.moments import sum_targets
from nedx.linear.streaming import Matrix, check_paired, column_blocks

MEMORY = 2**28
"""Bytes that a block of targets may take by default."""


@dataclass(frozen=True)
class OLSFit:
    """Fitted least squares: ``Y = X coef + intercept``.

    Attributes
    ----------
    coef : ndarray (feature, target)
        Weights; float64 where the targets are, else float32.
    intercept : ndarray of float64, (target,)
    """

    coef: np.ndarray
    intercept: np.ndarray


def fit_ols(
    x: Any, y: Any, *, minimum_norm: bool = False, device: str = "auto", memory: int = MEMORY
) -> OLSFit:
    """Fit least squares with an intercept.

    The eigenvectors of the features' Gram matrix, or of the samples' where these are fewer, are
    found once for all targets; with ``X = U sqrt(S) V'`` centred, the weights are
    ``V sqrt(S)^-1 U'Y``.

    Parameters
    ----------
    x : ndarray or dask array, (sample, feature)
        Features.
    y : ndarray or dask array, (sample, target)
        Responses, read once, block by block.
    minimum_norm : bool
        Where features are collinear, or as many as the samples, take the smallest weights of all
        that fit best (the pseudo-inverse). Else these are an error, because no weights are best.
    device : str
        Where to compute.
    memory : int
        Bytes that a block of targets may take.

    Returns
    -------
    OLSFit

    Raises
    ------
    ModelError
        If shapes differ, values are not finite, or the weights are not determined.
    """
    single = np.dtype(getattr(y, "dtype", np.asarray(y).dtype)) != np.float64
    dtype = np.dtype(np.float32 if single else np.float64)
    place = resolve_device(device)
    targets = Matrix(y, "responses", dtype, place)
    check_paired(len(x), targets)
    design = Design(x, dtype, place)
    kept = design.values > design.values[0] * _rounding(design)
    rank = int(kept.sum())
    if rank < design.features and not minimum_norm:
        raise ModelError(_undetermined(design.samples, design.features, rank))
    width = max(64, memory // ((3 * rank + 2 * design.features) * dtype.itemsize))
    coefs, intercepts = [], []
    for block in column_blocks(targets, width):
        sums = sum_targets(design, targets.columns(block), None)
        coef = design.weights(kept[:, None] * sums.cross[0])
        mean = sums.origin + sums.y[0] / design.samples
        coefs.append(coef.cpu().numpy())
        intercepts.append((mean - design.of_mean(coef)).cpu().numpy())
    return OLSFit(np.concatenate(coefs, axis=1), np.concatenate(intercepts))


def _rounding(design: Design) -> float:
    """Return the share of the largest variance below which an axis may be made of rounding."""
    error = 10 * float(np.finfo(design.x.dtype).eps)
    # The Gram matrix of samples is multiplied in the dtype of the features, that of features not.
    return error if design.wide else error**2


def _undetermined(samples: int, features: int, rank: int) -> str:
    if samples <= features:
        found = f"{samples} samples do not determine the weights of {features} features"
    else:
        found = (
            f"the {features} features span {rank} dimensions only: some are constant or collinear"
        )
    return (
        f"{found}; project them on fewer principal components, fit a ridge, or type "
        "minimum_norm=True"
    )
