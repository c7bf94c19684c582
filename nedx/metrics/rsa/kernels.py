"""Dissimilarities of all pairs of two blocks of patterns, on plain arrays.

Each takes (..., n, fold, pattern) and (..., m, fold, pattern) and returns (..., n, m); without the
second it compares the first with itself.
"""

from __future__ import annotations

import numpy as np

from nedx.errors import SchemaError

_ROUNDING = 8.0


def correlation(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Return 1 - Pearson r of patterns, in their precision; NaN where one is constant."""
    left = _unit(a)
    right = left if b is None else _unit(b)
    # In place: a block of the RDM is the largest thing here.
    distance = np.matmul(left, right.swapaxes(-1, -2))
    np.subtract(1, distance, out=distance)
    np.clip(distance, 0, 2, out=distance)
    return exact(distance) if b is None else distance


def euclidean(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Return the squared Euclidean distance of patterns over their length, from float64."""
    left, right = (shifted[..., 0, :] for shifted in _shifted(a, b))
    norms = [np.einsum("...p,...p->...", side, side) for side in (left, right)]
    distance = norms[0][..., :, np.newaxis] + norms[1][..., np.newaxis, :]
    distance -= 2 * np.matmul(left, right.swapaxes(-1, -2))
    np.maximum(distance, 0, out=distance)
    distance /= a.shape[-1]
    return (exact(distance) if b is None else distance).astype(a.dtype)


def crossnobis(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Return the cross-validated squared distance over the length of patterns, from float64.

    The mean over all ordered pairs of folds k != l of (a_k - b_k) . (a_l - b_l), which equals
    leave-one-fold-out (Walther et al. 2016, NeuroImage 137:188, equation 6). Of the sum s over M
    folds, sum_{k != l} a_k . b_l = s_a . s_b - sum_k a_k . b_k: one matrix product.
    """
    n_folds, length = a.shape[-2:]
    joined, other = (_with_sum(shifted) for shifted in _shifted(a, b))
    signs = np.repeat([1.0, *[-1.0] * n_folds], length)
    norms = [np.einsum("...p,...p,p->...", side, side, signs) for side in (joined, other)]
    distance = norms[0][..., :, np.newaxis] + norms[1][..., np.newaxis, :]
    distance -= 2 * np.matmul(joined * signs, other.swapaxes(-1, -2))
    distance /= n_folds * (n_folds - 1) * length
    return (exact(distance) if b is None else distance).astype(a.dtype)


def checked(patterns: np.ndarray) -> np.ndarray:
    """Return patterns (..., condition, fold, pattern), or say that some are not finite."""
    _finite(patterns.sum(axis=(-2, -1)))
    return patterns


def _unit(patterns: np.ndarray) -> np.ndarray:
    """Centre patterns and divide by their norm; NaN where nothing but rounding is left."""
    patterns = patterns[..., 0, :]
    mean = patterns.mean(axis=-1, keepdims=True, dtype=np.float64)
    centred = patterns - mean.astype(patterns.dtype)
    norm = np.sqrt(_finite(np.einsum("...p,...p->...", centred, centred)))[..., np.newaxis]
    rounding = _ROUNDING * np.finfo(patterns.dtype).eps * np.sqrt(patterns.shape[-1])
    norm[norm <= rounding * np.abs(mean)] = np.nan
    centred /= norm
    return centred


def _shifted(a: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Take what the conditions of ``a`` share from both: distances stay, large means cancel."""
    shared = checked(a).mean(axis=-3, keepdims=True, dtype=np.float64)
    shifted = a - shared
    return shifted, shifted if b is None else checked(b) - shared


def _with_sum(patterns: np.ndarray) -> np.ndarray:
    """Join the sum over folds and the folds: (..., n, (1 + fold) pattern)."""
    joined = np.concatenate([patterns.sum(axis=-2, keepdims=True), patterns], axis=-2)
    return joined.reshape(*joined.shape[:-2], -1)


def _finite(sums: np.ndarray) -> np.ndarray:
    """Return a sum over each pattern, or say that some hold what cannot be compared."""
    if bad := int(np.count_nonzero(~np.isfinite(sums))):
        fault = (
            f"{bad} of {sums.size} patterns hold NaN or infinite values; leave out those neuroids "
            "or images: ds.isel(voxel=finite)"
        )
        raise SchemaError("the responses of an RDM", [fault])
    return sums


def exact(distance: np.ndarray) -> np.ndarray:
    """Remove what rounding left on the diagonal, in place; NaN stays."""
    diagonal = np.einsum("...ii->...i", distance)
    diagonal[~np.isnan(diagonal)] = 0
    return distance
