"""Multivariate noise normalisation: channels made uncorrelated and equally noisy.

Guggenmos, Sterzer & Cichy 2018 (NeuroImage 173:434): responses are multiplied by the inverse
square root of the covariance of the noise. Covariances are shrunk as by Ledoit & Wolf 2004
(J. Multivariate Anal. 88:365), after each channel was scaled to unit variance, and scaled back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.preprocessing.steps import (
    apply_by_group,
    groups_of,
    response_of,
    samples_of,
    with_step,
)
from nedx.schema import neuroid_dim, role_dim

_BLOCK_VALUES = 2**21


def noise_covariance(
    values: np.ndarray, conditions: np.ndarray, per: Literal["time", "trial"] = "time"
) -> np.ndarray:
    """Return the covariance of the noise between channels.

    Parameters
    ----------
    values : float array (trial, channel, time)
    conditions : array (trial,)
        The image of each trial.
    per : {"time", "trial"}
        ``"time"``: for each condition and time point the shrunk covariance over its trials,
        averaged over time, then over conditions; conditions of one trial say nothing and are left
        out. ``"trial"``, which published code calls ``"epochs"``: for each trial the shrunk
        covariance over its times, averaged over the trials of a condition, then over conditions.

    Returns
    -------
    float64 array (channel, channel)

    Raises
    ------
    SelectionError
        If ``per="time"`` and no condition has two trials.
    """
    names, condition, counts = np.unique(conditions, return_inverse=True, return_counts=True)
    total = np.zeros((values.shape[1],) * 2)
    if per == "trial":
        weight = 1 / (names.size * counts[condition])
        for rows in _pieces(np.arange(len(values)), values[0].size):
            samples = np.swapaxes(values[rows], 1, 2)
            total += weighted_covariance(samples, weight[rows])
        return total
    repeated = counts > 1
    if not repeated.any():
        raise SelectionError(
            "the noise is what differs between trials of one image, and no image has two; "
            "give per='trial'"
        )
    times, used = values.shape[2], int(repeated.sum())
    order = np.argsort(condition, kind="stable")
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts[repeated]):
        trials = order[starts[counts == count][:, None] + np.arange(count)]
        for rows in _pieces(trials, int(count) * values[0].size):
            samples = np.moveaxis(values[rows], 3, 1).reshape(-1, int(count), values.shape[1])
            total += weighted_covariance(samples, np.full(len(samples), 1 / (used * times)))
    return total


def _pieces(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut rows into pieces of about 16 MB of float64 values."""
    step = max(1, _BLOCK_VALUES // max(1, size))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def weighted_covariance(samples: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted sum of the shrunk covariances of many small sets.

    Parameters
    ----------
    samples : float array (set, sample, channel)
    weight : float64 array (set,)

    Returns
    -------
    float64 array (channel, channel)
        Each set's covariance is ``(1 - s) C + s mu diag(C)``, where mu is the mean variance of
        the scaled channels (1 where none is constant) and s the shrinkage of Ledoit and Wolf.
    """
    centred = samples - samples.mean(1, keepdims=True, dtype=np.float64)
    _, count, channels = centred.shape
    variance = (centred**2).mean(1)
    scaled = centred / np.sqrt(np.where(variance > 0, variance, 1))[:, None]
    mu = (scaled**2).mean((1, 2))
    if count <= channels:
        gram = scaled @ np.swapaxes(scaled, 1, 2)
    else:
        gram = np.swapaxes(scaled, 1, 2) @ scaled
    squared = (gram**2).sum((1, 2)) / count**2
    delta = (squared - channels * mu**2) / channels
    beta = (((scaled**2).sum(2) ** 2).sum(1) / count - squared) / (channels * count)
    beta = np.minimum(beta, delta)
    shrinkage = np.divide(beta, delta, out=np.zeros_like(beta), where=(beta != 0) & (delta > 0))
    shares = np.sqrt(weight * (1 - shrinkage) / count)[:, None, None]
    flat = (centred * shares).reshape(-1, channels)
    diagonal = ((weight * shrinkage * mu)[:, None] * variance).sum(0)
    total: np.ndarray = flat.T @ flat + np.diag(diagonal)
    return total


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric inverse square root of a covariance, float64 (channel, channel).

    Raises
    ------
    SelectionError
        If it is not finite, or singular: channels that are constant, or copies of each other.
    """
    if not np.isfinite(covariance).all():
        raise SelectionError(
            "the noise covariance is not finite: responses hold NaN or infinite values. Leave "
            "these trials or channels out with ds.ned.sel(...)"
        )
    values, vectors = np.linalg.eigh(covariance)
    smallest, largest = float(values[0]), float(values[-1])
    if smallest <= largest * np.finfo(np.float64).eps * len(values):
        raise SelectionError(
            f"the noise covariance is singular (eigenvalues {smallest:.2g} to {largest:.2g}): a "
            "channel is constant, or a mixture of others (as after an average reference). Leave "
            "it out with ds.ned.sel(channel=[...])"
        )
    root: np.ndarray = (vectors / np.sqrt(values)) @ vectors.T
    return root


def whiten(
    ds: xr.Dataset,
    *,
    fit: Literal["train", "train_and_test"] = "train",
    per: Literal["time", "trial"] = "time",
    scope: Literal["session", "train"] = "session",
) -> xr.Dataset:
    """Normalise responses by the covariance of their noise (MVNN), lazily.

    Parameters
    ----------
    ds : Dataset
        Responses ``(trial, channel, time)`` with ``image_id``, ``partition`` and, for sessions,
        ``session`` along ``trial``.
    fit : {"train", "train_and_test"}
        The covariance is that of training trials; or, as in Gifford et al. 2022 (NeuroImage
        264:119754), the mean of those of training and of test trials: test data then have shaped
        what a model is tested on.
    per : {"time", "trial"}
        See `noise_covariance`. Gifford et al. take ``"time"``; NICE and what followed it
        ``"trial"`` of training trials.
    scope : {"session", "train"}
        One covariance for each session, or one for all.

    Returns
    -------
    Dataset
        ``response`` float32 with ``units="1"``, ``normalization="whitened"`` and the scope; a
        step is added to the attribute ``preprocessing``. The covariance of a session needs all
        its training trials in memory, all else is done block by block.

    Raises
    ------
    SchemaError
        If the dims are others.
    SelectionError
        If ``image_id``, ``partition`` or ``session`` is missing, or a session has no training
        trials. When computed: if the covariance is singular.
    """
    if fit not in ("train", "train_and_test"):
        raise SelectionError(f"fit is 'train' or 'train_and_test', not {fit!r}")
    if per not in ("time", "trial"):
        raise SelectionError(f"per is 'time' or 'trial', not {per!r}")
    if scope not in ("session", "train"):
        raise SelectionError(f"scope is 'session' or 'train', not {scope!r}")
    labels, group = groups_of(ds, scope)
    response = response_of(ds)
    _check_dims(response)
    partitions = ["train"] if fit == "train" else ["train", "test"]
    known = {name: samples_of(ds, name) for name in partitions}
    images = ds["image_id"].values.astype(str)
    channels = response.shape[1]
    roots = []
    for position, label in enumerate(labels):
        parts = {name: rows[group[rows] == position] for name, rows in known.items()}
        if empty := [name for name, rows in parts.items() if not rows.size]:
            raise SelectionError(
                f"session {label} has no {empty[0]} trials to take the noise covariance of; leave "
                "it out, or give scope='train'"
            )
        values = [response[rows].data for rows in parts.values()]
        names = [images[rows] for rows in parts.values()]
        root = dask.delayed(_root_of, pure=True)(values, names, per)
        roots.append(da.from_delayed(root, (channels, channels), np.float64))
    made = apply_by_group(response, group, [roots], _multiply)
    made.attrs = {
        **response.attrs,
        "units": "1",
        "normalization": "whitened",
        "normalization_scope": scope,
        "normalization_fit": fit,
    }
    return with_step(ds.assign(response=made), "whiten", scope=scope, fit=fit, per=per)


def _check_dims(response: xr.DataArray) -> None:
    wanted = (role_dim(response, "trial"), neuroid_dim(response), role_dim(response, "time"))
    if response.dims != wanted:
        fault = f"'response' has dims {response.dims}; whitening needs (trial, channel, time)"
        raise SchemaError("What shall be whitened", [fault])


def _root_of(
    values: list[np.ndarray], conditions: list[np.ndarray], per: Literal["time", "trial"]
) -> np.ndarray:
    """Return the inverse root of the mean of the covariances of some sets of trials."""
    pairs = zip(values, conditions, strict=True)
    return inverse_root(np.mean([noise_covariance(v, c, per) for v, c in pairs], axis=0))


def _multiply(values: np.ndarray, root: np.ndarray) -> np.ndarray:
    product: np.ndarray = root @ values
    return product
