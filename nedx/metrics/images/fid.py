"""The Frechet distance of two sets of images (FID), in closed form and in one pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute.batches import checked
from nedx.errors import NedxWarning
from nedx.metrics.images.distributions import groups, row_blocks


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set, the covariance as a factor.

    Parameters
    ----------
    count : int
        Number of images.
    mean : ndarray of float64, (feature,)
    factor : ndarray of float64, (row, feature)
        ``factor.T @ factor`` is the sum of squares and products about the mean.
    """

    count: int
    mean: np.ndarray
    factor: np.ndarray


def fid(true: Any, reconstructed: Any) -> xr.DataArray:
    """Compare the distribution of reconstructions with that of the true images, lazily.

    The Frechet distance of two Gaussians, |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) with
    covariances of n - 1 (Heusel et al. 2017, GANs trained by a two time-scale update rule,
    NeurIPS, equation 6). With C = F'F the trace of the root is the sum of the singular values of
    F1 F2', so that no root of a singular matrix is taken: exact for fewer images than features.

    FID is biased upwards, by more the fewer images there are: only figures of equal counts can
    be compared, and `kid` has no such bias.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, feature)`` of the true images; published figures take the 2,048 of the
        last pooling of Inception.
    reconstructed : DataArray, Dataset or mapping of str to either
        ``features (..., image | trial, feature)`` of as many reconstructions. Of several by name
        the names become the dim ``model``.

    Returns
    -------
    DataArray
        ``fid (...)`` float64, "1", over the leading dims; ``n_true``, ``n_reconstructed`` and
        ``n_features`` are in the attributes.

    Raises
    ------
    SchemaError
        If counts or widths differ, or there are fewer than two images.
    ModelError
        When computed, if features are NaN or infinite.

    Warns
    -----
    NedxWarning
        If there are fewer images than features.
    """
    found = groups(true, reconstructed, equal=True)
    count, width = found.true.shape
    if count < width:
        warnings.warn(
            f"{count} images for {width} features: FID is far above that of many images, and can "
            "be compared with figures of the same count only; report nedx.metrics.images.kid too",
            NedxWarning,
            stacklevel=2,
        )
    values = found.compared(_distance, _moments, 1)[..., 0]
    attrs = {
        "units": "1",
        "long_name": "Frechet distance of features",
        "definition": "|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))",
        "better": "lower",
        "n_features": width,
        **found.counts,
    }
    return xr.DataArray(values, dims=found.dims, coords=found.coords, attrs=attrs, name="fid")


def moments(rows: np.ndarray) -> Moments:
    """Return the moments of features (image, feature)."""
    rows = rows.astype(np.float64)
    rows = checked(rows, rows.shape, np.float64, "the features of images")
    mean = rows.mean(axis=0)
    return Moments(len(rows), mean, _short(rows - mean))


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two sets together (Chan, Golub & LeVeque 1983)."""
    count = a.count + b.count
    apart = np.sqrt(a.count * b.count / count) * (b.mean - a.mean)
    mean = a.mean + (b.count / count) * (b.mean - a.mean)
    return Moments(count, mean, _short(np.vstack([a.factor, b.factor, apart])))


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance of two Gaussians."""
    f, g = (part.factor / np.sqrt(part.count - 1) for part in (a, b))
    root = np.linalg.svd(f @ g.T, compute_uv=False).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + (f * f).sum() + (g * g).sum() - 2 * root
    # Of equal sets rounding may leave less than nothing.
    return float(max(distance, 0.0))


def _short(factor: np.ndarray) -> np.ndarray:
    """Return a factor of the same product with no more rows than columns."""
    if len(factor) <= factor.shape[1]:
        return factor
    return np.asarray(np.linalg.qr(factor, mode="r"))


def _moments(array: da.Array) -> Any:
    """Return the moments of a set, merged in a tree, delayed."""
    block_moments, merged = dask.delayed(moments, pure=False), dask.delayed(merge, pure=False)
    parts = [block_moments(block) for block in row_blocks(array)]
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [merged(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


@dask.delayed(pure=False)
def _distance(a: Moments, b: Moments) -> np.ndarray:
    return np.array([frechet(a, b)])
