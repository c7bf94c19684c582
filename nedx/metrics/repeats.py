"""Which trials show the same image, and how to walk over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.schema import role_dim, sample_dim

# Columns of a strip, and elements of a tile of it: float32 that stays in a cache.
_STRIP, _TILE = 4096, 131072
# Trials of a tile at most: float32 is summed up over no more.
_TRIALS = 1024


def response_of(data: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Return the responses: an array itself, of a Dataset ``response``.

    Raises
    ------
    SchemaError
        If there is no ``response``.
    """
    if isinstance(data, xr.DataArray):
        return data
    if "response" not in data:
        raise SchemaError("the data", [f"no variable 'response'; there are {list(data)}"])
    return data["response"]


def labels_of(data: xr.DataArray | xr.Dataset, name: str) -> np.ndarray:
    """Return the values of a coordinate as strings of fixed width, whatever strings they are."""
    # numpy does not cast the strings that xarray reads from Zarr in one step.
    return np.asarray(data[name].values).astype(object).astype(str)


def image_codes(array: xr.DataArray) -> tuple[list[str], np.ndarray]:
    """Return the dims that single trials lie along, and the image of each trial as a number."""
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    if repetition is not None:
        codes = np.repeat(np.arange(array.sizes[sample]), array.sizes[repetition])
        return [sample, repetition], codes
    # Images are unique; only what trials show has to be read.
    if role_dim(array, "trial") == sample and "image_id" in array.coords:
        _, codes = np.unique(labels_of(array, "image_id"), return_inverse=True)
        return [sample], codes
    return [sample], np.arange(array.sizes[sample])


def has_repeats(array: xr.DataArray) -> bool:
    """Say whether any image may have been shown twice; reads labels only."""
    _, codes = image_codes(array)
    return codes.size > np.unique(codes).size


def repeats_of(data: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, list[str], np.ndarray]:
    """Return responses with repeats, their trial dims and the image of each trial.

    Raises
    ------
    SchemaError
        If there are no repeats.
    """
    array = response_of(data)
    dims, codes = image_codes(array)
    if codes.size == np.unique(codes).size:
        raise SchemaError(
            f"{array.name or 'the array'} of dims {array.dims}",
            [
                "no repeats: expected a dim 'repetition', or trials that share an image_id; "
                "open the single trials, not their mean"
            ],
        )
    return array, dims, codes


def n_repetitions(codes: np.ndarray) -> float:
    """Return the harmonic mean of the repeats of images, of the image of each trial."""
    counts = np.unique(codes, return_counts=True)[1]
    return round(float(1 / np.mean(1 / counts)), 6)


def whole(array: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Put whole ``dims`` in every block, and fewer neuroids in exchange."""
    if array.chunks is None:
        return array
    others = {dim: "auto" for dim in array.dims if dim not in dims}
    return array.chunk({**others, **dict.fromkeys(dims, -1)})


def averaged(array: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Average the repeats of each image; return also the dim of images.

    float16 comes as float32: a sum over repeats, or later over subjects, would overflow.
    """
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    if repetition is not None:
        return array.mean(repetition, skipna=True, keep_attrs=True), sample
    if not has_repeats(array):
        return array, sample
    _, codes = image_codes(array)
    images = int(codes.max()) + 1
    mean = xr.apply_ufunc(
        _image_means,
        whole(array, [sample]),
        kwargs={"codes": codes},
        input_core_dims=[[sample]],
        output_core_dims=[["_image"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"_image": images}},
        keep_attrs="override",
    )
    return mean, "_image"


def by_column(
    values: np.ndarray,
    codes: np.ndarray,
    kernel: Callable[[np.ndarray, Any], np.ndarray],
    n_found: int,
    prepare: Callable[[list[np.ndarray]], Any] = lambda groups: groups,
    *,
    hopeful: bool = False,
) -> np.ndarray:
    """Apply a kernel to strips of neuroids that miss the same trials.

    What is absent is judged for each neuroid alone, so that chunks make no difference.

    Parameters
    ----------
    values : ndarray, (..., trial)
        NaN or infinite where a trial is absent.
    codes : ndarray of int, (trial,)
        The image of each trial.
    kernel : callable
        ``kernel(strip (trial, column), prepared)`` to (n_found, column).
    n_found : int
        How many numbers the kernel returns of a column.
    prepare : callable
        From the groups to what the kernel needs; a group (image, repetition) holds the trials
        of the images with the same number of repeats.
    hopeful : bool
        Look for absent trials only where the kernel returns what is not finite: for kernels that
        take no longer than looking.

    Returns
    -------
    ndarray of float64, (n_found, ...)
    """
    shape = values.shape[:-1]
    columns = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
    found = np.empty((n_found, columns.shape[1]))

    @lru_cache(maxsize=2)
    def prepared(packed: bytes) -> Any:
        there = np.unpackbits(np.frombuffer(packed, np.uint8), count=codes.size).astype(bool)
        return prepare(_groups(codes, there))

    everything = np.packbits(np.ones(codes.size, bool)).tobytes()
    for start in range(0, columns.shape[1], _STRIP):
        strip = columns[:, start : start + _STRIP]
        if hopeful:
            with np.errstate(invalid="ignore", over="ignore"):
                found[:, start : start + _STRIP] = kernel(strip, prepared(everything))
            if np.isfinite(found[:, start : start + _STRIP]).all():
                continue
        for members, packed in _patterns(strip):
            chosen = strip if members is None else strip[:, members]
            target = slice(start, start + _STRIP) if members is None else start + members
            found[:, target] = kernel(chosen, prepared(packed))
    return found.reshape(n_found, *shape)


def tiles(strip: np.ndarray, group: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the images of a group and their values (image, repetition, column), a few at a time.

    float16 and float32 come as float32, all else as float64.
    """
    images, repetitions = group.shape
    step = max(1, min(_TILE // strip.shape[1], _TRIALS) // repetitions)
    dtype = np.float32 if strip.dtype in (np.float16, np.float32) else np.float64
    first = int(group[0, 0])
    adjacent = np.array_equal(group.ravel(), np.arange(first, first + group.size))
    for start in range(0, images, step):
        part = slice(start, min(start + step, images))
        rows = group[part]
        if adjacent:
            tile = strip[rows[0, 0] : rows[-1, -1] + 1].reshape(*rows.shape, -1)
        else:
            tile = strip[rows]
        yield part, tile.astype(dtype, copy=False)


def _groups(codes: np.ndarray, there: np.ndarray) -> list[np.ndarray]:
    """Return the trials of the images, (image, repetition), one array for each count."""
    order = np.argsort(codes, kind="stable")
    order = order[there[order]]
    _, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    return [
        order[starts[counts == count][:, np.newaxis] + np.arange(count)]
        for count in np.unique(counts)
    ]


def _patterns(strip: np.ndarray) -> Iterator[tuple[np.ndarray | None, bytes]]:
    """Yield columns that miss the same trials (None: all), and what is there as packed bits."""
    with np.errstate(invalid="ignore", over="ignore"):
        ones = np.ones(len(strip), np.result_type(strip.dtype, np.float32))
        complete = np.isfinite(ones @ strip).all()
    if complete:
        yield None, np.packbits(np.ones(len(strip), bool)).tobytes()
        return
    packed = np.packbits(np.isfinite(strip), axis=0)
    patterns, which = np.unique(packed, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        yield np.flatnonzero(which.ravel() == number), patterns[:, number].tobytes()


def _image_means(values: np.ndarray, *, codes: np.ndarray) -> np.ndarray:
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    values = values[..., order].astype(np.float64)
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.add.reduceat(np.where(there, values, 0), starts, axis=-1) / np.add.reduceat(
            there, starts, axis=-1, dtype=np.float64
        )
