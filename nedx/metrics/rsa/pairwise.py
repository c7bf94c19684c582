"""Decoding of all pairs of images, at all times, without a loop over classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.rsa.blocks import all_pairs
from nedx.metrics.rsa.classifiers import lda, svm
from nedx.metrics.rsa.dissimilarity import labelled
from nedx.metrics.rsa.kernels import checked
from nedx.metrics.rsa.noise import Noise, whitened
from nedx.metrics.rsa.patterns import patterns

Classifier = Literal["svm", "lda"]

_BATCH_VALUES = 2**20


def pairwise_decoding(
    data: xr.DataArray | xr.Dataset,
    *,
    classifier: Classifier = "svm",
    cost: float = 1.0,
    shrinkage: float = 0.1,
    over: str | Sequence[str] | None = None,
    by: str = "image_id",
    folds: str = "repetition",
    n_folds: int | None = None,
    pseudotrials: int | None = None,
    seed: int = 0,
    noise: Noise | xr.DataArray | np.ndarray | None = None,
    block_size: int | None = None,
) -> xr.DataArray:
    """Decode which of two images was seen, for all pairs of images and all times, lazily.

    Every pair, time and fold has a classifier of its own, as if it were fitted by scikit-learn;
    all are solved at once from the inner products of the trials (see
    `nedx.metrics.rsa.classifiers`). Patterns are taken as they are, not standardised.

    Parameters
    ----------
    data : DataArray or Dataset
        Responses ``(..., image, repetition, <neuroid>[, time])`` or ``(..., trial, <neuroid>[,
        time])``; of a Dataset, ``response``.
    classifier : {"svm", "lda"}
        ``svm`` is scikit-learn's ``SVC(kernel="linear", C=cost)``, ``lda`` its
        ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)``.
    cost : float
        Of ``svm``; above 0.
    shrinkage : float
        Of ``lda``; above 0 and below 1.
    over, by, noise, block_size
        As `rdm` takes them. The noise covariance knows no labels beyond those of single images.
    folds : str
        ``"repetition"`` or a coordinate of trials such as ``"session"``.
    n_folds : int, optional
        Leave out a group of neighbouring repetitions at a time, of so many groups; by default
        each repetition on its own.
    pseudotrials : int, optional
        Average the repetitions in this many random groups first, the same for all images.
    seed : int
        Of `pseudotrials`.

    Returns
    -------
    DataArray
        ``decoding_accuracy (..., image, image_2[, time])``, the fraction of held-out trials that
        are classified correctly, averaged over folds; .5 is chance, half of a trial is right
        that lies on the boundary. float32, NaN on the diagonal.

    Raises
    ------
    SchemaError
        If there are fewer than two repetitions or pseudotrials, or an image is absent from a
        fold; when computed, if a pattern holds NaN.

    Notes
    -----
    The cost of a fit grows with the third power of the number of trials: average many
    repetitions in `pseudotrials`.
    """
    if classifier not in ("svm", "lda"):
        raise ValueError(f"classifier is 'svm' or 'lda', not {classifier!r}")
    if not 0 < shrinkage < 1 or cost <= 0:
        found = f"shrinkage={shrinkage}, cost={cost}"
        raise ValueError(f"shrinkage lies between 0 and 1 and cost above 0; found {found}")
    arrangement: dict[str, Any] = {"over": over, "by": by, "folds": folds, "block_size": block_size}
    given = patterns(data, **arrangement)
    if noise is not None:
        given = whitened(given, data, noise, arrangement)
    given = _spread(given)
    trials = given.data
    if pseudotrials is not None:
        trials = _pseudotrials(trials, pseudotrials, seed)
    left_out = _left_out(trials.shape[-2], n_folds)
    option = cost if classifier == "svm" else shrinkage / (given.sizes["pattern"] * (1 - shrinkage))
    decide = partial(svm, cost=option) if classifier == "svm" else partial(lda, ridge=option)
    kernel = partial(accuracies, decide=decide, left_out=left_out)
    made = all_pairs(trials, kernel, np.dtype(np.float32))
    long_name = "accuracy of decoding pairs of images"
    attrs = {"units": "1", "long_name": long_name, "method": "decoding", "classifier": classifier}
    return labelled(made, given, data, attrs).rename("decoding_accuracy")


def accuracies(
    a: np.ndarray, b: np.ndarray | None = None, *, decide: Any, left_out: list[np.ndarray]
) -> np.ndarray:
    """Decode all pairs of two blocks of images.

    Parameters
    ----------
    a, b : ndarray, (..., n, fold, pattern) and (..., m, fold, pattern)
        Without ``b``, all pairs within ``a``.
    decide : callable
        ``decide(gram, train=, test=)``, as `nedx.metrics.rsa.classifiers.svm`.
    left_out : list of ndarray of int
        The folds to test on in turn.

    Returns
    -------
    ndarray of float32, (..., n, m)
        Without ``b`` symmetric, NaN on the diagonal.
    """
    lead, other = a.shape[:-3], a if b is None else b
    shape = (a.shape[-3], other.shape[-3])
    first, second = np.triu_indices(shape[0], 1) if b is None else np.indices(shape).reshape(2, -1)
    found = np.full((*lead, *shape), np.nan, dtype=np.float32)
    size = max(_BATCH_VALUES // (2 * a.shape[-2]) ** 2, 1)
    for index in np.ndindex(*lead):
        mean = checked(a[index]).mean(axis=(0, 1), dtype=np.float64)
        x = a[index] - mean
        y = x if b is None else checked(b[index]) - mean
        for start in range(0, first.size, size):
            i, j = first[start : start + size], second[start : start + size]
            found[(*index, i, j)] = _accuracy(_grams(x, y, i, j), decide, left_out)
        if b is None:
            found[(*index, second, first)] = found[(*index, first, second)]
    return found


def _grams(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return the inner products of the trials of pairs: (pair, 2 fold, 2 fold)."""
    n_folds = x.shape[-2]
    gram = np.empty((i.size, 2 * n_folds, 2 * n_folds))
    own_x, own_y = (np.matmul(z, z.swapaxes(-1, -2)) for z in (x, y))
    gram[:, :n_folds, :n_folds] = own_x[i]
    gram[:, n_folds:, n_folds:] = own_y[j]
    rows = np.unique(i)
    between = np.tensordot(x[rows], y, axes=(-1, -1))
    gram[:, :n_folds, n_folds:] = between[np.searchsorted(rows, i), :, j]
    gram[:, n_folds:, :n_folds] = gram[:, :n_folds, n_folds:].swapaxes(-1, -2)
    return gram


def _accuracy(gram: np.ndarray, decide: Any, left_out: list[np.ndarray]) -> np.ndarray:
    every = np.arange(gram.shape[-1] // 2)
    right = np.zeros(gram.shape[0])
    for test in left_out:
        values = decide(gram, train=np.setdiff1d(every, test), test=test)
        # The first half of the columns are trials of the first class, which is negative.
        hits = np.sign(values) * np.repeat([-1, 1], test.size)
        right += (hits.mean(axis=1) + 1) / 2
    return right / len(left_out)


def _spread(given: xr.DataArray) -> xr.DataArray:
    """Cut the leading dims into pieces that keep several cores busy."""
    if given.ndim == 3:
        return given
    last = given.dims[-4]
    largest = max(given.variable.chunksizes[last])
    return given.chunk({last: min(largest, -(-given.sizes[last] // 16))})


def _left_out(count: int, n_folds: int | None) -> list[np.ndarray]:
    n_folds = count if n_folds is None else n_folds
    if not 2 <= n_folds <= count:
        fault = f"{count} repetitions or pseudotrials cannot be left out in {n_folds} folds"
        raise SchemaError("the responses", [f"{fault}: decoding needs at least 2 of each image"])
    return np.array_split(np.arange(count), n_folds)


def _pseudotrials(trials: da.Array, count: int, seed: int) -> da.Array:
    """Average random groups of folds: (..., condition, count, pattern)."""
    n_folds = trials.shape[-2]
    if not 2 <= count <= n_folds:
        fault = f"{n_folds} repetitions cannot be averaged in {count} pseudotrials"
        raise SchemaError("the responses", [f"{fault}: give 2 to {n_folds}"])
    means = np.zeros((count, n_folds))
    order = np.random.default_rng(seed).permutation(n_folds)
    for row, group in zip(means, np.array_split(order, count), strict=True):
        row[group] = 1 / group.size
    chunks = (*trials.chunks[:-2], (count,), trials.chunks[-1])
    return trials.map_blocks(_averaged, means, dtype=trials.dtype, chunks=chunks)


def _averaged(trials: np.ndarray, means: np.ndarray) -> np.ndarray:
    return np.matmul(means, trials).astype(trials.dtype)
