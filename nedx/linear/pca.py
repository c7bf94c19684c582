"""Principal components of standardised features, exact, from Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nedx.errors import ModelError

_BLOCK = 4096


@dataclass(frozen=True)
class StandardizedPCA:
    """A scaler and the components of what it gives.

    Attributes
    ----------
    mean, scale : ndarray of float64, (feature,)
        Population mean and standard deviation; the scale of a constant feature is 1.
    components : ndarray of float32, (component, feature)
        Orthonormal rows, by falling variance.
    scores : ndarray of float64, (sample, component)
        The training samples in these components.
    variance : ndarray of float64, (component,)
        Variance of each component, over ``samples - 1``.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    scores: np.ndarray
    variance: np.ndarray


def fit_pca(features: np.ndarray, count: int) -> StandardizedPCA:
    """Standardise features and find their first principal components, exactly.

    The eigenvectors of the sample-by-sample Gram matrix give the components, so features may be
    far more than samples; they are gone through in blocks of columns, in float32 products that
    are summed in float64.

    Parameters
    ----------
    features : ndarray (sample, feature)
        Finite.
    count : int
        Components to keep; at most ``samples - 1`` and the number of features are there.

    Returns
    -------
    StandardizedPCA

    Raises
    ------
    ModelError
        If fewer than two samples are given, or values are not finite.
    """
    samples, width = features.shape
    if samples < 2:
        raise ModelError(f"principal components need two samples or more, not {samples}")
    mean, scale = np.empty(width), np.empty(width)
    gram = np.zeros((samples, samples))
    for start in range(0, width, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = np.asarray(features[:, part], np.float64)
        mean[part] = block.mean(0)
        spread = block.std(0)
        scale[part] = np.where(spread > 1e-12 * np.abs(mean[part]), spread, 1.0)
        single = ((block - mean[part]) / scale[part]).astype(np.float32)
        gram += single @ single.T
    if not np.isfinite(gram).all():
        bad = np.flatnonzero(~np.isfinite(np.asarray(features)).all(1))[:5]
        raise ModelError(f"features hold NaN or infinity, first in samples {bad.tolist()}")
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1]
    kept = order[: min(count, samples - 1, width)]
    kept = kept[values[kept] > 1e-7 * values[order[0]]]
    roots = np.sqrt(values[kept])
    left = vectors[:, kept] / roots
    components = np.empty((len(kept), width), np.float32)
    for start in range(0, width, _BLOCK):
        part = slice(start, start + _BLOCK)
        scaled = (np.asarray(features[:, part], np.float64) - mean[part]) / scale[part]
        components[:, part] = left.T @ scaled
    return StandardizedPCA(
        mean, scale, components, vectors[:, kept] * roots, values[kept] / (samples - 1)
    )
