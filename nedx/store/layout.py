"""How arrays are cut: chunks for readers, shards and blocks for writers.

A chunk is what a reader fetches: 1-4 MB. A block is what one task writes: a range along the
sample dimension across all other dimensions, always whole shards, or whole chunks where there
are no shards. Shards are used only where the number of objects would hurt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
import zarr

from nedx.errors import AlignmentError, SelectionError, StoreError, close_matches
from nedx.schema import sample_dim

MAX_OBJECTS = 2000
"""Above this many chunks an array is sharded."""

_MB = 1_000_000
_PIECE_BYTES = 2**25
_BLOCK_MB = 256.0
_LARGEST_BLOCK_MB = 384.0
_LARGEST_SHARD_MB = 320.0
_FEW_IMAGES, _MANY_IMAGES, _MOST_IMAGES = 16, 64, 1024
_BLOCK_IMAGES = 256
_SENSORS = 1024
_WHOLE = ("y", "x", "rgb")


@dataclass(frozen=True)
class ArrayLayout:
    """How one array is stored.

    Parameters
    ----------
    chunks : tuple of int
        What a reader fetches.
    shards : tuple of int or None
        What is one object, a multiple of ``chunks``; None where each chunk is an object.
    """

    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.shards is not None and any(
            shard % chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)
        ):
            raise AlignmentError(
                f"shards {self.shards} are no multiple of the chunks {self.chunks}; "
                "give shards that hold whole chunks"
            )

    @property
    def unit(self) -> tuple[int, ...]:
        """The extent of one object, below which nothing may be written."""
        return self.shards or self.chunks

    def objects(self, shape: Sequence[int]) -> int:
        """Count the objects of an array of ``shape``."""
        return math.prod(_cells(shape, self.unit))


@dataclass(frozen=True)
class Block:
    """What one task writes: samples ``start`` to ``stop`` of all arrays of a group.

    Parameters
    ----------
    index : int
        Number of the block in the whole store.
    start, stop : int
        Range along the sample dimension.
    group : str
        Group of the store, ``""`` for the root.
    """

    index: int
    start: int
    stop: int
    group: str = ""

    @property
    def name(self) -> str:
        """The name of the block in the ledger."""
        return f"{self.index:06d}"


def by_range(blocks: Iterable[Block]) -> list[tuple[Block, ...]]:
    """Put blocks of the same samples together: one task writes them, whatever their group.

    Subjects with neuroids of their own are groups, and share the images: their blocks need the
    same features.
    """
    units: dict[tuple[int, int], list[Block]] = {}
    for block in blocks:
        units.setdefault((block.start, block.stop), []).append(block)
    return [tuple(unit) for unit in units.values()]


@dataclass(frozen=True)
class Layout:
    """How a Dataset is stored.

    Parameters
    ----------
    arrays : dict of str to ArrayLayout
        One for each variable.
    dim : str or None
        The sample dimension; None where the Dataset has none.
    block : int
        Number of samples in a block.
    size : int
        Number of samples.
    streamed : tuple of str
        The variables that are written block by block.
    """

    arrays: Mapping[str, ArrayLayout]
    dim: str | None = None
    block: int = 1
    size: int = 0
    streamed: tuple[str, ...] = field(default=())

    def ranges(self) -> list[tuple[int, int]]:
        """List the blocks as ranges along the sample dimension; none without streamed arrays."""
        if not self.streamed:
            return []
        return [(i, min(i + self.block, self.size)) for i in range(0, self.size, self.block)]


def plan_layout(
    dims: Sequence[str],
    shape: Sequence[int],
    dtype: np.dtype | type | str,
    *,
    sample: str | None = None,
    target_chunk_mb: float = 2.0,
    block: int | None = None,
    max_objects: int = MAX_OBJECTS,
) -> ArrayLayout:
    """Choose chunks, and shards where there would be too many objects.

    Parameters
    ----------
    dims, shape : sequences
        Names and sizes of the dimensions.
    dtype : dtype
        What is stored.
    sample : str, optional
        The sample dimension; ``"image"`` or ``"trial"`` where one of them is in ``dims``.
    target_chunk_mb : float
        Size of a chunk before compression, in MB.
    block : int, optional
        Number of samples that one task writes; shards have this extent. Chosen if None.
    max_objects : int
        With more chunks than this the array is sharded.

    Returns
    -------
    ArrayLayout
    """
    if sample is None:
        sample = next((d for d in ("image", "trial") if d in dims), None)
    itemsize = max(1, np.dtype(dtype).itemsize)
    chunks = _plan_chunks(tuple(dims), tuple(shape), itemsize, sample, target_chunk_mb * _MB, block)
    layout = ArrayLayout(chunks)
    if layout.objects(shape) <= max_objects:
        return layout
    return ArrayLayout(
        chunks, _plan_shards(tuple(dims), tuple(shape), chunks, itemsize, sample, block)
    )


def plan_dataset(
    ds: xr.Dataset,
    *,
    chunks: Mapping[str, Mapping[str, int]] | None = None,
    shards: Mapping[str, Mapping[str, int]] | None = None,
    block: int | None = None,
    max_objects: int = MAX_OBJECTS,
) -> Layout:
    """Choose how every variable of a Dataset is stored, and its blocks.

    Parameters
    ----------
    ds : Dataset
        Data variables along the sample dimension (``image`` or ``trial``) are written block by
        block, all others and the coordinates at once. A coordinate is one chunk.
    chunks, shards : mapping of variable to mapping of dimension to size, optional
        What to use instead; dimensions left out are whole.
    block : int, optional
        Number of samples in a block, rounded up to whole objects. Chosen if None.
    max_objects : int
        With more chunks than this an array is sharded.

    Returns
    -------
    Layout

    Raises
    ------
    StoreError
        If ``chunks`` or ``shards`` name what is not there.
    AlignmentError
        If shards do not hold whole chunks.
    """
    given = {"chunks": dict(chunks or {}), "shards": dict(shards or {})}
    _check_given(ds, given)
    dim = _sample_dim(ds)
    streamed = tuple(
        str(name)
        for name, var in ds.data_vars.items()
        if dim in var.dims and var.dtype.kind in "biufc"
    )
    block = block or _plan_block(ds, streamed, dim)
    arrays = {
        str(key): _array_layout(
            var,
            given,
            str(key),
            dim,
            block if key in streamed else None,
            max_objects,
            label=key in ds.coords,
        )
        for key, var in ds.variables.items()
    }
    if dim is None or not streamed:
        return Layout(arrays)
    units = [arrays[name].unit[ds[name].dims.index(dim)] for name in streamed]
    whole = math.lcm(*units)
    extent = whole * max(1, math.ceil(block / whole))
    return Layout(arrays, dim, extent, ds.sizes[dim], streamed)


def _array_layout(
    var: xr.Variable,
    given: Mapping[str, Mapping[str, Mapping[str, int]]],
    name: str,
    dim: str | None,
    block: int | None,
    max_objects: int,
    *,
    label: bool,
) -> ArrayLayout:
    """Choose the layout of one variable; ``block`` is None for what is not streamed."""
    if name in given["chunks"] or name in given["shards"]:
        return _given_layout(var, given["chunks"].get(name), given["shards"].get(name))
    if block is None and (label or var.ndim < 2 or var.dtype.kind not in "iufc"):
        return ArrayLayout(tuple(max(1, n) for n in var.shape))
    dims = tuple(str(d) for d in var.dims)
    return plan_layout(dims, var.shape, var.dtype, sample=dim, block=block, max_objects=max_objects)


def _sample_dim(ds: xr.Dataset) -> str | None:
    try:
        return sample_dim(ds)
    except SelectionError:
        return None


def _cells(shape: Sequence[int], unit: Sequence[int]) -> list[int]:
    return [math.ceil(n / u) for n, u in zip(shape, unit, strict=True)]


def _floor2(value: float) -> int:
    """Round down to a power of two, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)


def _near2(value: float) -> int:
    """Round to the nearest power of two, at least 1."""
    return 1 << max(0, round(math.log2(max(1.0, value))))


def _plan_chunks(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    itemsize: int,
    sample: str | None,
    target: float,
    block: int | None,
) -> tuple[int, ...]:
    extents = {d: max(1, n) for d, n in zip(dims, shape, strict=True)}
    # Subjects and models are read one at a time.
    extents.update({d: 1 for d in ("subject", "model") if d in extents and len(dims) > 1})
    rest = itemsize * math.prod(n for d, n in extents.items() if d != sample)
    if sample in extents:
        most = min(extents[sample], block or extents[sample], _MOST_IMAGES)
        fit = _near2(target / rest)
        sensors = all(n <= _SENSORS for d, n in extents.items() if d != sample)
        pixels = any(d in _WHOLE for d in dims)
        if pixels or fit >= min(most, _FEW_IMAGES if sensors else _MANY_IMAGES):
            extents[sample] = min(most, fit)
            return tuple(extents.values())
        extents[sample] = min(most, _MANY_IMAGES)
    _split(extents, itemsize, target, keep=(sample,) if sample else ())
    return tuple(extents.values())


def _split(extents: dict[str, int], itemsize: int, target: float, keep: Sequence[str]) -> None:
    """Cut the longest dimensions until a chunk has the target size."""
    while (size := itemsize * math.prod(extents.values())) > 1.5 * target:
        free = [d for d in extents if d not in keep and extents[d] > 1]
        if not free:
            return
        longest = max(free, key=lambda d: extents[d])
        others = size / extents[longest]
        extents[longest] = max(1, min(_near2(target / others), extents[longest]))
        keep = (*keep, longest)


def _plan_shards(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    itemsize: int,
    sample: str | None,
    block: int | None,
) -> tuple[int, ...]:
    """Let one object hold a block, or one subject of it where a block is too big."""
    whole = [chunk * math.ceil(max(1, n) / chunk) for n, chunk in zip(shape, chunks, strict=True)]
    if sample in dims:
        axis = dims.index(sample)
        rest = itemsize * math.prod(whole) / whole[axis]
        wanted = block or _floor2(_BLOCK_MB * _MB / rest)
        whole[axis] = min(whole[axis], chunks[axis] * max(1, math.ceil(wanted / chunks[axis])))
    for axis in range(len(dims)):
        if itemsize * math.prod(whole) <= _LARGEST_SHARD_MB * _MB:
            break
        if dims[axis] == sample:
            continue
        others = itemsize * math.prod(whole) / whole[axis]
        most = int(_LARGEST_SHARD_MB * _MB / others) // chunks[axis]
        whole[axis] = chunks[axis] * max(1, most)
    return tuple(whole)


def _plan_block(ds: xr.Dataset, streamed: Sequence[str], dim: str | None) -> int:
    """Choose the samples of a block: it must fit in memory, whatever the other dimensions are."""
    if dim is None or not streamed:
        return 1
    per_sample = sum(
        ds[name].dtype.itemsize * ds[name].size / max(1, ds.sizes[dim]) for name in streamed
    )
    fit = _floor2(_BLOCK_MB * _MB / max(1.0, per_sample))
    few = _floor2(_LARGEST_BLOCK_MB * _MB / max(1.0, per_sample))
    wanted = fit if fit >= _FEW_IMAGES else max(1, few)
    chunks = [
        plan_layout(ds[name].dims, ds[name].shape, ds[name].dtype, sample=dim).chunks[  # type: ignore[arg-type]
            ds[name].dims.index(dim)
        ]
        for name in streamed
    ]
    return min(wanted, max(_BLOCK_IMAGES, _floor2(max(chunks))))


def _given_layout(
    var: xr.Variable, chunks: Mapping[str, int] | None, shards: Mapping[str, int] | None
) -> ArrayLayout:
    sizes = dict(zip(var.dims, (max(1, n) for n in var.shape), strict=True))
    cut = tuple(int((chunks or {}).get(str(d), n)) for d, n in sizes.items())
    if shards is None:
        return ArrayLayout(cut)
    whole = [c * math.ceil(n / c) for n, c in zip(sizes.values(), cut, strict=True)]
    held = tuple(int(shards.get(str(d), n)) for d, n in zip(sizes, whole, strict=True))
    return ArrayLayout(cut, held)


def _check_given(ds: xr.Dataset, given: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    for kind, layouts in given.items():
        for name, sizes in layouts.items():
            if name not in ds.variables:
                raise StoreError(
                    f"{kind} are given for {name!r}, which is not in the Dataset; "
                    + close_matches(name, ds.variables)
                )
            for dim, size in sizes.items():
                if dim not in ds[name].dims:
                    raise StoreError(
                        f"{kind} of {name!r} name the dimension {dim!r}; "
                        + close_matches(dim, ds[name].dims)
                    )
                if size < 1:
                    raise StoreError(f"{kind} of {name!r} along {dim!r} are {size}; give 1 or more")


def whole_objects(array: zarr.Array, axis: int, start: int, stop: int) -> Iterator[slice]:
    """Cut the samples of a block so that a piece holds whole objects, and few bytes.

    What is small is allocated again and again from the same memory; copies of whole blocks would
    be fetched from the system page by page, which takes as long as packing them.

    Parameters
    ----------
    array : zarr.Array
        What is written.
    axis : int
        Of the samples.
    start, stop : int
        The block.

    Yields
    ------
    slice
        Along ``axis``.
    """
    length = (array.shards or array.chunks)[axis]
    per_sample = array.dtype.itemsize * math.prod(array.shape) // max(1, array.shape[axis])
    step = max(1, _PIECE_BYTES // max(1, per_sample * length)) * length
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
