"""Whether two RDMs are more alike than with their images shuffled."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from nedx.metrics.rsa.comparison import condition_dims, joined

Method = Literal["spearman", "pearson", "cosine"]


def rdm_permutation_test(
    a: xr.DataArray,
    b: xr.DataArray,
    method: Method = "spearman",
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Test whether RDMs are related, by permuting the images of one; lazily.

    Rows and columns are permuted together, which keeps what distances owe to shared images (Mantel
    1967, Cancer Research 27:209; Kriegeskorte et al. 2008, Frontiers in Systems Neuroscience
    2:4).

    Parameters
    ----------
    a, b : DataArray
        As `compare_rdms` takes them; an RDM lies in memory whole.
    method : {"spearman", "pearson", "cosine"}
        As `compare_rdms` defines them.
    n_permutations : int
        How many random permutations, the same for all RDMs.
    seed : int
        Of the permutations.

    Returns
    -------
    Dataset
        ``similarity`` and ``p_value``, the share of permutations that reach the similarity, the
        one found among them: (1 + count) / (1 + n_permutations). Both float64, "1"; NaN where an
        RDM holds NaN above the diagonal.

    Raises
    ------
    SchemaError
        As `compare_rdms`.
    """
    if method not in ("spearman", "pearson", "cosine"):
        raise ValueError(f"method is 'spearman', 'pearson' or 'cosine', not {method!r}")
    if n_permutations < 1:
        raise ValueError(f"n_permutations is at least 1, not {n_permutations}")
    a, b = joined(a, b)
    dims = condition_dims(a)
    found = xr.apply_ufunc(
        permuted_similarities,
        a.chunk(dict.fromkeys(dims, -1)),
        b.chunk(dict.fromkeys(dims, -1)),
        kwargs={"method": method, "n_permutations": n_permutations, "seed": seed},
        input_core_dims=[dims, dims],
        output_core_dims=[["statistic"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"statistic": 2}},
    )
    shared = {"units": "1", "method": method}
    similarity, p_value = (found.isel(statistic=i).drop_attrs(deep=False) for i in (0, 1))
    label = f"{method} similarity of RDMs"
    return xr.Dataset(
        {
            "similarity": similarity.assign_attrs(shared, long_name=label),
            "p_value": p_value.assign_attrs(
                shared, long_name=f"p of {label}", n_permutations=n_permutations, seed=seed
            ),
        }
    )


def permuted_similarities(
    x: np.ndarray, y: np.ndarray, *, method: str, n_permutations: int, seed: int
) -> np.ndarray:
    """Compare symmetric matrices, and again with the rows and columns of one permuted.

    Parameters
    ----------
    x, y : ndarray, (..., n, n)
        Leading axes broadcast.
    method : str
        As `rdm_permutation_test` takes it.
    n_permutations, seed : int

    Returns
    -------
    ndarray of float64, (..., 2)
        Similarity and p.
    """
    x, y = _standardised(x, method), _standardised(y, method)
    similarity = np.einsum("...ij,...ij->...", x, y)
    rng = np.random.default_rng(seed)
    count = np.zeros(similarity.shape)
    for _ in range(n_permutations):
        order = rng.permutation(x.shape[-1])
        again = np.einsum("...ij,...ij->...", x, y[..., order[:, np.newaxis], order])
        # Rounding must not tell a permutation from the same one in another order.
        count += again >= similarity - 1e-12
    p_value = np.where(np.isnan(similarity), np.nan, (1 + count) / (1 + n_permutations))
    return np.stack([similarity, p_value], axis=-1)


def _standardised(matrices: np.ndarray, method: str) -> np.ndarray:
    """Rank or centre what lies above the diagonal, divide by its norm, and make it symmetric."""
    from scipy.stats import rankdata

    above = np.triu_indices(matrices.shape[-1], 1)
    pairs = matrices[..., *above].astype(np.float64)
    if method == "spearman":
        pairs = rankdata(pairs, axis=-1)
    if method != "cosine":
        pairs = pairs - pairs.mean(axis=-1, keepdims=True)
    squares = (pairs**2).sum(axis=-1, keepdims=True)
    pairs /= np.sqrt(np.where(squares > 0, squares, np.nan))
    made = np.zeros(matrices.shape)
    made[..., *above] = pairs
    # Every pair is there twice.
    made += np.swapaxes(made, -1, -2)
    return made / np.sqrt(2)
