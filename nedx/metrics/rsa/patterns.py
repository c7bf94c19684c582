"""The patterns that an RDM compares: one a condition, or one a condition and fold, lazily."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError, close_matches
from nedx.metrics.repeats import labels_of, response_of
from nedx.schema import neuroid_dim, role_dim, sample_dim

BLOCK_BYTES = 32 * 2**20
"""About the largest that one block of patterns, or of an RDM, becomes by default."""


def patterns(
    data: xr.DataArray | xr.Dataset,
    *,
    over: str | Sequence[str] | None = None,
    by: str = "image_id",
    folds: str | None = None,
    block_size: int | None = None,
) -> xr.DataArray:
    """Arrange responses as patterns of conditions, lazily.

    Parameters
    ----------
    data : DataArray or Dataset
        Responses ``(..., image | trial, [repetition,] <neuroid>[, time])``; of a Dataset,
        ``response``.
    over : str or sequence of str, optional
        The dims that make up a pattern; the neuroid dim by default.
    by : str
        The coordinate whose equal values are one condition, ``image_id`` by default.
    folds : str, optional
        ``"repetition"``, or a coordinate of trials such as ``"session"``: one pattern for each
        of its values. Without it, all presentations of a condition are averaged, those that are
        NaN left out.
    block_size : int, optional
        How many conditions a block holds; by default what fits in 32 MiB, at most 2,048.

    Returns
    -------
    DataArray
        ``(..., <condition>, fold, pattern)`` of float32 or float64, where condition is the image
        dim or is named after `by`. ``fold`` and ``pattern`` lie in one block.

    Raises
    ------
    SchemaError
        If there is one condition only, or conditions are absent from a fold.
    SelectionError
        If a dim or a coordinate is not there.
    """
    array = response_of(data)
    sample = sample_dim(array)
    over = _pattern_dims(array, over, (sample, role_dim(array, "repetition")))
    condition = by if by != "image_id" else role_dim(array, "stimulus") or "image"
    array = _folded(_lazy(array), (condition, by), folds, block_size)
    if array.sizes[condition] < 2:
        raise SchemaError(_name(array), [f"one {condition} only: an RDM compares at least two"])
    return _arranged(array, condition, over, block_size)


def lead_dims(array: xr.DataArray) -> list[str]:
    """Return the dims of arranged patterns that are neither condition, fold nor pattern."""
    return [str(dim) for dim in array.dims[:-3]]


def _name(array: xr.DataArray) -> str:
    return f"{array.name or 'the array'} of dims {array.dims}"


def _lazy(array: xr.DataArray) -> xr.DataArray:
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    # A token of its own: hashing the values would take as long as comparing them.
    return array if array.chunks is not None else array.chunk({}, token=uuid4().hex)


def _pattern_dims(
    array: xr.DataArray, over: str | Sequence[str] | None, taken: tuple[str | None, ...]
) -> list[str]:
    if over is None:
        over = neuroid_dim(array)
        if over is None:
            raise SelectionError(f"no neuroid dim among {array.dims}: name the dims with over=")
    dims = [over] if isinstance(over, str) else list(over)
    for dim in dims:
        if dim in taken or dim not in array.dims:
            options = [d for d in array.dims if d not in taken]
            raise SelectionError(
                f"over={dim!r} is no dim of patterns: {close_matches(dim, options)}"
            )
    return dims


def _folded(
    array: xr.DataArray, named: tuple[str, str], folds: str | None, block_size: int | None
) -> xr.DataArray:
    """Give the array a condition dim and a dim ``fold``; ``named`` as `_averaged` takes it."""
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    if repetition is not None:
        if folds not in (None, repetition):
            fault = f"folds of an array with a dim {repetition!r} are folds={repetition!r}"
            raise SelectionError(fault)
        if folds is None:
            array = array.mean(repetition, skipna=True)
        else:
            array = array.rename({repetition: "fold"}).drop_vars("fold", errors="ignore")
        folds = None
    if named[1] != "image_id" or role_dim(array, "trial") == sample:
        array = _averaged(array, sample, named, folds, block_size)
        array = array.isel(part=0) if folds is None else array.rename(part="fold")
    elif folds is not None:
        raise SchemaError(_name(array), [f"no repeats: expected a dim or coordinate {folds!r}"])
    return array if "fold" in array.dims else array.expand_dims("fold")


def _labels(array: xr.DataArray, sample: str, by: str) -> np.ndarray:
    """Return the label of every sample."""
    if by in array.coords and array[by].dims == (sample,):
        return labels_of(array, by)
    options = [name for name, coord in array.coords.items() if coord.dims == (sample,)]
    raise SelectionError(f"no coordinate {by!r} of {sample}: {close_matches(by, options)}")


def _averaged(
    array: xr.DataArray,
    sample: str,
    named: tuple[str, str],
    folds: str | None,
    block_size: int | None,
) -> xr.DataArray:
    """Average the samples of every condition and fold: ``(..., condition, part)``.

    ``named`` is the dim to make, and the coordinate whose values are its conditions.
    """
    condition, by = named
    there, codes = np.unique(_labels(array, sample, by), return_inverse=True)
    fold_names, fold_codes = _fold_codes(array, sample, codes, folds)
    n_folds = fold_names.size
    cells = codes * n_folds + fold_codes
    counts = np.bincount(cells, minlength=there.size * n_folds)
    if absent := np.flatnonzero(counts == 0).tolist():
        rows = ", ".join(
            f"{there[c // n_folds]} in {folds} {fold_names[c % n_folds]}" for c in absent[:3]
        )
        fault = f"{len(absent)} conditions are absent from a fold: {rows}; select what all have"
        raise SchemaError(_name(array), [fault])
    array = array.transpose(..., sample).isel({sample: np.argsort(cells, kind="stable")})
    block = _block_size(there.size, array.size // array.sizes[sample] * n_folds, block_size)
    sizes = da.core.normalize_chunks((block,), (there.size,))[0]
    per_condition = counts.reshape(-1, n_folds).sum(axis=1)
    bounds = np.cumsum([0, *sizes])
    trials = tuple(
        int(per_condition[a:b].sum()) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    )
    means = _cell_means(array.chunk({sample: trials}).data, counts, sizes, n_folds)
    coords = {name: coord for name, coord in array.coords.items() if sample not in coord.dims} | {
        by: (condition, there.astype(object))
    }
    dims = [dim for dim in array.dims if dim != sample]
    return xr.DataArray(means, dims=[*dims, condition, "part"], coords=coords, name=array.name)


def _fold_codes(
    array: xr.DataArray, sample: str, codes: np.ndarray, folds: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the names of the folds, and the fold of every sample."""
    if folds is None:
        return np.array(["all"]), np.zeros(codes.size, dtype=int)
    if folds in array.coords and array[folds].dims == (sample,):
        return np.unique(array[folds].values, return_inverse=True)
    if folds != "repetition":
        options = [name for name, coord in array.coords.items() if coord.dims == (sample,)]
        raise SelectionError(f"no coordinate {folds!r} to fold by: {close_matches(folds, options)}")
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    occurrence = np.empty(codes.size, dtype=int)
    lengths = np.diff(starts, append=codes.size)
    occurrence[order] = np.arange(codes.size) - np.repeat(starts, lengths)
    return np.arange(occurrence.max() + 1), occurrence


def _cell_means(
    trials: da.Array, counts: np.ndarray, sizes: tuple[int, ...], n_folds: int
) -> da.Array:
    """Average sorted trials ``(..., trial)`` over cells: ``(..., condition, fold)``."""
    axes = tuple(range(trials.ndim))
    per_block = tuple(size * n_folds for size in sizes)
    return da.blockwise(
        _block_means,
        (*axes, trials.ndim),
        trials,
        axes,
        da.from_array(counts, chunks=(per_block,)),
        axes[-1:],
        new_axes={trials.ndim: n_folds},
        adjust_chunks={axes[-1]: sizes},
        align_arrays=False,
        n_folds=n_folds,
        dtype=trials.dtype,
        meta=np.empty((0,) * (trials.ndim + 1), dtype=trials.dtype),
    )


def _block_means(trials: np.ndarray, counts: np.ndarray, *, n_folds: int) -> np.ndarray:
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(trials, starts, axis=-1, dtype=np.float64)
    if np.isnan(sums).any():
        # As the mean over a dim of repetitions does; NaN where nothing is left.
        absent = np.isnan(trials)
        sums = np.add.reduceat(np.where(absent, 0, trials), starts, axis=-1, dtype=np.float64)
        left = np.add.reduceat(~absent, starts, axis=-1, dtype=np.float64)
        counts = np.where(left > 0, left, np.nan)
    return (sums / counts).reshape(*sums.shape[:-1], -1, n_folds).astype(trials.dtype)


def _block_size(count: int, values_each: int, block_size: int | None) -> int:
    if block_size is not None:
        if block_size < 1:
            raise ValueError(f"block_size is at least 1, not {block_size}")
        return min(count, block_size)
    return int(np.clip(BLOCK_BYTES // (8 * max(values_each, 1)), 64, 2048).clip(max=count))


def _arranged(
    array: xr.DataArray, condition: str, over: list[str], block_size: int | None
) -> xr.DataArray:
    """Return ``(..., condition, fold, pattern)`` in blocks of conditions and of leading dims."""
    lead = [str(dim) for dim in array.dims if dim not in (condition, "fold", *over)]
    array = array.transpose(*lead, condition, "fold", *over)
    width = int(np.prod([array.sizes[dim] for dim in ("fold", *over)]))
    size = _block_size(array.sizes[condition], width, block_size)
    array = array.chunk({condition: size, "fold": -1, **dict.fromkeys(over, -1)})
    array = array.chunk(_lead_chunks(array, lead, size * max(size, width)))
    shape = [array.sizes[dim] for dim in (*lead, condition, "fold")]
    coords = {
        name: coord for name, coord in array.coords.items() if not {*coord.dims} & {"fold", *over}
    }
    dims = [*lead, condition, "fold", "pattern"]
    return xr.DataArray(array.data.reshape(*shape, -1), dims=dims, coords=coords, name=array.name)


def _lead_chunks(array: xr.DataArray, lead: list[str], values_each: int) -> dict[str, int]:
    """Put as many of the last leading dim into a block as fit, of the others one."""
    fits = max(BLOCK_BYTES // (8 * values_each), 1)
    chunks = {}
    for dim in reversed(lead):
        chunks[dim] = min(fits, array.sizes[dim])
        fits = max(fits // array.sizes[dim], 1)
    return chunks
