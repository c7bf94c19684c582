"""RDMs of the neighbourhood of every neuroid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.repeats import response_of
from nedx.metrics.rsa.dissimilarity import LONG_NAMES, labelled, squared_units
from nedx.metrics.rsa.kernels import checked, exact
from nedx.metrics.rsa.patterns import BLOCK_BYTES, lead_dims, patterns
from nedx.schema import neuroid_dim

Method = Literal["correlation", "euclidean"]

_CACHE_VALUES = 2**18
"""What is gathered at a time stays in the cache."""


def searchlight_rdm(
    data: xr.DataArray | xr.Dataset,
    neighbours: Sequence[np.ndarray] | None = None,
    *,
    radius: float | None = None,
    coordinates: Sequence[str] = ("x", "y", "z"),
    centers: np.ndarray | None = None,
    method: Method = "correlation",
    by: str = "image_id",
) -> xr.DataArray:
    """Compare the patterns of images around every voxel, lazily, many centres at a time.

    Parameters
    ----------
    data : DataArray or Dataset
        Responses ``(..., image | trial, [repetition,] <neuroid>[, time])``; of a Dataset,
        ``response``. Presentations are averaged.
    neighbours : sequence of ndarray of int, optional
        The positions along the neuroid dim of each centre's neighbours.
    radius : float, optional
        Instead of `neighbours`: all within this distance, the centre included, in the units of
        `coordinates`.
    coordinates : sequence of str
        Coordinates of the neuroids: ``x, y, z`` (mm), or ``i, j, k`` (voxels).
    centers : ndarray of int, optional
        The positions of the centres; by default all neuroids.
    method : {"correlation", "euclidean"}
        As `rdm` defines them.
    by : str
        As `rdm` takes it.

    Returns
    -------
    DataArray
        ``rdm (..., image, image_2, <neuroid>[, time])`` of one centre each, with the coordinates
        of the centres, and ``n_neighbours (<neuroid>)``. Of a pattern that is constant, and of a
        single neighbour, the correlation is NaN.

    Raises
    ------
    SchemaError
        If there is one image only or a neighbourhood is empty; when computed, if a pattern holds
        NaN.
    SelectionError
        If coordinates are missing, or positions do not exist.
    """
    if method not in ("correlation", "euclidean"):
        raise ValueError(f"method is 'correlation' or 'euclidean', not {method!r}")
    response = response_of(data)
    dim = neuroid_dim(response)
    if dim is None:
        raise SelectionError(f"a searchlight needs a neuroid dim; there are {response.dims}")
    count = response.sizes[dim]
    centers = np.arange(count) if centers is None else np.asarray(centers)
    if centers.size and not 0 <= centers.min() <= centers.max() < count:
        spread = f"{centers.min()} to {centers.max()}"
        raise SelectionError(f"centers are positions from 0 to {count - 1}; found {spread}")
    if (neighbours is None) == (radius is None):
        raise SelectionError("give neighbours= or radius=")
    if radius is not None:
        neighbours = sphere_neighbours(response, radius, coordinates=coordinates, centers=centers)
    assert neighbours is not None
    index = _padded(neighbours, centers, count)
    given = patterns(data, by=by)
    made = _around(given, index, dim, method)
    attrs = {
        "units": squared_units(response, method, None),
        "long_name": LONG_NAMES[method],
        "method": method,
    }
    places = response.isel({dim: centers}).coords
    around = xr.DataArray(
        np.array([len(some) for some in neighbours]),
        dims=dim,
        coords={name: coord.variable for name, coord in places.items() if coord.dims == (dim,)},
    )
    found = labelled(made, given, data, attrs, centers=around).rename("rdm")
    return found.assign_coords(n_neighbours=(dim, around.values))


def sphere_neighbours(
    response: xr.DataArray | xr.Dataset,
    radius: float,
    *,
    coordinates: Sequence[str] = ("x", "y", "z"),
    centers: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Find the neuroids within a distance of each centre.

    Parameters
    ----------
    response : DataArray or Dataset
        With the coordinates.
    radius : float
        Above 0, in their units; neuroids at this distance belong to it.
    coordinates : sequence of str
        Of the neuroids, for example ``("i", "j", "k")``.
    centers : ndarray of int, optional
        Positions along the neuroid dim; by default all.

    Returns
    -------
    list of ndarray of int
        Positions, ascending, the centre among them.

    Raises
    ------
    SelectionError
        If coordinates are missing or the radius is not above 0.
    """
    from scipy.spatial import cKDTree

    dim = neuroid_dim(response)
    missing = [c for c in coordinates if c not in response.coords or response[c].dims != (dim,)]
    if missing:
        fault = (
            f"no coordinates {missing} of {dim}: name them with coordinates=, or give neighbours="
        )
        raise SelectionError(fault)
    if not radius > 0:
        raise SelectionError(f"radius is above 0, not {radius}")
    points = np.stack([response[c].values.astype(np.float64) for c in coordinates], axis=1)
    if unplaced := int((~np.isfinite(points)).any(axis=1).sum()):
        fault = f"{unplaced} of {len(points)} {dim}s have no finite {', '.join(coordinates)}"
        raise SelectionError(f"{fault}: leave them out, or give neighbours=")
    around = points if centers is None else points[centers]
    found = cKDTree(points).query_ball_point(around, radius, return_sorted=True)
    return [np.asarray(some, dtype=np.int64) for some in found]


def neighbourhood_rdms(patterns: np.ndarray, table: np.ndarray, *, method: str) -> np.ndarray:
    """Compare the patterns of each neighbourhood.

    Parameters
    ----------
    patterns : ndarray, (image, neuroid) or (..., 1, image, neuroid)
    table : ndarray of int, (center, neighbour)
        Positions of neighbours; -1 where there are fewer.
    method : str
        As `searchlight_rdm` takes it.

    Returns
    -------
    ndarray, (center, image, image) or (..., center, image, image)
    """
    count, width = patterns.shape[-2:]
    compare = _correlation if method == "correlation" else _euclidean
    checked(patterns[..., np.newaxis, :])
    made = np.empty((*patterns.shape[:-3], len(table), count, count), dtype=patterns.dtype)
    flat = made.reshape(-1, len(table), count, count)
    step = max(_CACHE_VALUES // (count * table.shape[1]), 1)
    for out, values in zip(flat, patterns.reshape(-1, count, width), strict=True):
        # Position -1 is a row of zeros; a row of images is read at once.
        rows = np.zeros((width + 1, count), dtype=patterns.dtype)
        rows[:-1] = values.T
        for start in range(0, len(table), step):
            part = table[start : start + step]
            compare(rows[part], part >= 0, out[start : start + step])
    return made


def _around(given: xr.DataArray, index: np.ndarray, dim: str, method: str) -> Any:
    """Return the lazy RDMs ``(..., center, image, image)`` of arranged patterns."""
    condition, lead = str(given.dims[-3]), lead_dims(given)
    values = given.isel(fold=0).drop_vars(list(given.coords))
    values = values.chunk({condition: -1, **dict.fromkeys(lead, 1)})
    # What is gathered, and the RDMs of a block of centres.
    count = given.sizes[condition]
    size = max(BLOCK_BYTES // (8 * count * max(index.shape[1], count)), 1)
    table = xr.DataArray(index, dims=(dim, "neighbour")).chunk({dim: size}, token=uuid4().hex)
    return xr.apply_ufunc(
        neighbourhood_rdms,
        values,
        table,
        kwargs={"method": method},
        input_core_dims=[[condition, "pattern"], ["neighbour"]],
        output_core_dims=[[condition, "second"]],
        dask="parallelized",
        output_dtypes=[given.dtype],
        dask_gufunc_kwargs={"output_sizes": {"second": count}},
    ).data


def _padded(neighbours: Sequence[np.ndarray], centers: np.ndarray, count: int) -> np.ndarray:
    """Return neighbours as a table (center, neighbour), -1 where there are fewer."""
    if len(neighbours) != len(centers):
        raise SelectionError(f"{len(neighbours)} neighbourhoods of {len(centers)} centers")
    lengths = np.array([len(some) for some in neighbours])
    if not lengths.size or not lengths.all():
        fault = f"{int((lengths == 0).sum())} of {lengths.size} neighbourhoods are empty"
        raise SchemaError("the neighbours", [f"{fault}: leave those centers out"])
    table = np.full((lengths.size, lengths.max()), -1, dtype=np.int64)
    flat = np.concatenate([np.asarray(some) for some in neighbours])
    if flat.min() < 0 or flat.max() >= count:
        wrong = flat.min() if flat.min() < 0 else flat.max()
        raise SelectionError(f"neighbours are positions from 0 to {count - 1}; found {wrong}")
    table[np.arange(table.shape[1]) < lengths[:, np.newaxis]] = flat
    return table


def _correlation(gathered: np.ndarray, there: np.ndarray, out: np.ndarray) -> None:
    """Compare (center, neighbour, image), zero where absent, into (center, image, image)."""
    mean = gathered.sum(axis=1, keepdims=True) / there.sum(axis=1)[:, np.newaxis, np.newaxis]
    gathered -= mean.astype(gathered.dtype)
    if not there.all():
        gathered *= there[..., np.newaxis]
    norm = np.sqrt(np.einsum("ckn,ckn->cn", gathered, gathered))[:, np.newaxis]
    rounding = 8 * np.finfo(gathered.dtype).eps * np.sqrt(there.shape[1])
    norm[norm <= rounding * np.abs(mean)] = np.nan
    gathered /= norm
    np.matmul(gathered.swapaxes(1, 2), gathered, out=out)
    np.subtract(1, out, out=out)
    np.clip(out, 0, 2, out=out)
    exact(out)


def _euclidean(gathered: np.ndarray, there: np.ndarray, out: np.ndarray) -> None:
    """Compare as `_correlation` does, from float64."""
    # What images share takes digits, and no part in distances.
    values = gathered - gathered.mean(axis=2, keepdims=True, dtype=np.float64)
    product = np.matmul(values.swapaxes(1, 2), values)
    norm = np.einsum("cnn->cn", product)
    distance = norm[:, :, np.newaxis] + norm[:, np.newaxis] - 2 * product
    np.maximum(distance, 0, out=distance)
    out[...] = exact(distance) / there.sum(axis=1)[:, np.newaxis, np.newaxis]
