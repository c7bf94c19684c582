"""The kernel distance of two sets of images (KID): unbiased, whatever the counts."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.images.distributions import groups, row_blocks, whole


def kid(
    true: Any,
    reconstructed: Any,
    *,
    n_subsets: int = 100,
    subset_size: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare two sets of images by the maximum mean discrepancy of their features, lazily.

    The mean over random subsets of the unbiased squared MMD with the kernel
    (x.y / n_features + 1)^3 (Binkowski et al. 2018, Demystifying MMD GANs, ICLR; Gretton et al.
    2012, Journal of Machine Learning Research 13:723, equation 3). It does not depend on the
    number of images, and may be below zero.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, feature)`` of the true images.
    reconstructed : DataArray, Dataset or mapping of str to either
        ``features (..., image | trial, feature)``, in any number. Of several by name the names
        become the dim ``model``. A task holds both sets in memory.
    n_subsets : int
        How many subsets are drawn.
    subset_size : int, optional
        Images in a subset of each set; by default half of the smaller set, at most 1,000.
    level : float
        Share of the subsets that lies within the interval.
    seed : int
        Of the subsets; all groups share them.

    Returns
    -------
    Dataset
        ``kid (...)`` and ``kid_interval (..., bound)``, bound "lower" and "upper", float64, "1",
        over the leading dims. The interval is that of the values of single subsets, wider than
        that of their mean.

    Raises
    ------
    SchemaError
        If widths differ, or there are fewer images than a subset takes.
    ValueError
        If a setting is out of range.
    ModelError
        When computed, if features are NaN or infinite.
    """
    found = groups(true, reconstructed, equal=False)
    smaller = found.smallest
    size = max(2, min(1000, smaller // 2)) if subset_size is None else subset_size
    if n_subsets < 1 or size < 2 or not 0 < level < 1:
        raise ValueError(
            "n_subsets is at least 1, subset_size at least 2 and level between 0 and 1, not "
            f"{n_subsets}, {size} and {level}; type kid(true, reconstructed, subset_size=100)"
        )
    if size > smaller:
        fault = f"subsets of {size}, and {found.counts} images: type subset_size={smaller // 2}"
        raise SchemaError("the features", [fault])
    settings = {"size": size, "n_subsets": n_subsets, "level": level, "seed": seed}

    def compare(x: Any, y: Any) -> Any:
        return dask.delayed(mean_and_interval, pure=False)(x, y, **settings)

    values = found.compared(compare, lambda array: whole(row_blocks(array)), 3)
    attrs = {
        "units": "1",
        "long_name": "kernel distance of features",
        "definition": "unbiased squared MMD, kernel (x.y / n_features + 1)^3, mean of subsets",
        "better": "lower",
        "n_features": found.true.shape[1],
        "n_subsets": n_subsets,
        "subset_size": size,
        "seed": seed,
        **found.counts,
    }
    interval = {**attrs, "long_name": f"interval of {100 * level:g} % of the subsets"}
    return xr.Dataset(
        {
            "kid": (found.dims, values[..., 0], attrs),
            "kid_interval": ((*found.dims, "bound"), values[..., 1:], interval),
        },
        coords={**found.coords, "bound": np.array(["lower", "upper"], dtype=object)},
    )


def mean_and_interval(
    x: np.ndarray, y: np.ndarray, *, size: int, n_subsets: int, level: float, seed: int
) -> np.ndarray:
    """Return mean, lower and upper bound of the values of subsets, (3,).

    Parameters
    ----------
    x, y : ndarray of float64, (image, feature)
        The two sets.
    size, n_subsets, level, seed
        See `kid`.
    """
    rng = np.random.default_rng(seed)
    values = np.empty(n_subsets)
    for subset in range(n_subsets):
        drawn = (rng.choice(len(part), size, replace=False) for part in (x, y))
        values[subset] = squared_mmd(x[next(drawn)], y[next(drawn)])
    outside = (1 - level) / 2
    return np.array([values.mean(), *np.quantile(values, [outside, 1 - outside])])


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD of two sets, ndarrays (image, feature)."""
    n, m = len(x), len(y)
    within_x, within_y, between = (_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    alike = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    alike += (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(alike - 2 * between.mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found: np.ndarray = (x @ y.T / x.shape[1] + 1) ** 3
    return found
