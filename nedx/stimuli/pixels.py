"""The plan behind lazy pixels: which images of a source, and which part of each."""

from __future__ import annotations

from dataclasses import dataclass, field

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.compute.planned import Indexer, PlannedArray
from nedx.stimuli.sources import PixelSource, as_slice

CHUNK_BYTES = 32 * 2**20
"""About what a block of pixels holds: many images a task, few blocks in memory."""

Window = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class PixelBlock:
    """The images of one block; knows their files only, so that it travels light.

    Parameters
    ----------
    source : PixelSource
        Where they are read from.
    indices : numpy.ndarray of int64, (image,)
        Their positions in the source.
    window : tuple of 3 arrays or None
        Positions along y, x and rgb to keep; None keeps all.
    """

    source: PixelSource
    indices: np.ndarray
    window: Window = (None, None, None)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, part: slice = slice(None)) -> np.ndarray:
        """Read a part of the images, uint8 (image, y, x, rgb); safe in several threads."""
        pixels = self.source.read(self.indices[part])
        expected = (len(self.indices[part]), *self.source.shape[1:])
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise RuntimeError(
                f"{type(self.source).__name__} gave {pixels.dtype} {pixels.shape}, "
                f"uint8 {expected} was promised"
            )
        for axis, keep in enumerate(self.window, start=1):
            if keep is not None:
                pixels = pixels[(slice(None),) * axis + (as_slice(keep),)]
        return pixels

    def __call__(self) -> np.ndarray:
        """Read all of the images; what a dask task calls."""
        return self.read()


@dataclass(frozen=True, eq=False)
class PixelPlan:
    """Lazy ``pixels (image, y, x, rgb)``, uint8.

    Selecting images keeps the plan exact: only they are read. A selection of ``y``, ``x`` or
    ``rgb`` is applied after reading.

    Parameters
    ----------
    source : PixelSource
        Where pixels are read from.
    indices : numpy.ndarray of int64, (image,)
        Positions in the source, in the order wanted.
    chunk : int
        Images in a block.
    window : tuple of 3 arrays or None
        Positions along y, x and rgb that are kept; None keeps all.
    """

    source: PixelSource
    indices: np.ndarray = field(repr=False)
    chunk: int
    window: Window = field(default=(None, None, None), repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes of image, y, x and rgb."""
        kept = (
            size if keep is None else len(keep)
            for size, keep in zip(self.source.shape[1:], self.window, strict=True)
        )
        y, x, rgb = kept
        return len(self.indices), y, x, rgb

    @property
    def is_whole(self) -> bool:
        """Whether images are read as they are, without a window."""
        return all(keep is None for keep in self.window)

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        return tokenize("nedx.PixelPlan", self.source, self.indices, self.chunk, self.window)

    def block(self, start: int, stop: int) -> PixelBlock:
        """Return what is needed to read images ``start`` to ``stop`` of the plan."""
        source, indices = self.source.portion(self.indices[start:stop])
        return PixelBlock(source, indices, self.window)

    def build(self) -> da.Array:
        """Return the dask array, one task a block, without reading anything."""
        count, *sizes = self.shape
        name = f"pixels-{tokenize(self)}"
        starts = range(0, count, self.chunk)
        # Without images there is one empty block, as dask has it.
        lengths = tuple(min(self.chunk, count - start) for start in starts) or (0,)
        graph = {
            (name, i, 0, 0, 0): (self.block(i * self.chunk, i * self.chunk + length),)
            for i, length in enumerate(lengths)
        }
        chunks = (lengths, *((size,) for size in sizes))
        return da.Array(graph, name, chunks, dtype=np.uint8)

    def narrow(self, indexers: tuple[Indexer, ...]) -> PixelPlan:
        """Return the plan of what remains."""
        images, *others = indexers
        y, x, rgb = (
            _narrow_axis(keep, size, indexer)
            for keep, size, indexer in zip(self.window, self.source.shape[1:], others, strict=True)
        )
        return PixelPlan(self.source, self.indices[images], self.chunk, (y, x, rgb))


def _narrow_axis(keep: np.ndarray | None, size: int, indexer: Indexer) -> np.ndarray | None:
    if isinstance(indexer, slice) and indexer == slice(None):
        return keep
    positions = np.arange(size) if keep is None else keep
    return positions[indexer]


def chunk_images(shape: tuple[int, ...]) -> int:
    """Choose how many images of ``shape (image, y, x, rgb)`` a block holds.

    About `CHUNK_BYTES`, in multiples of 32 where images are small enough, since networks take
    that many at a time.
    """
    count = max(1, CHUNK_BYTES // max(1, int(np.prod(shape[1:]))))
    if count > 32:
        count = round(count / 32) * 32
    return int(min(count, max(1, shape[0])))


def plan_pixels(source: PixelSource, chunks: int | None = None) -> PlannedArray:
    """Return lazy pixels of all images of a source."""
    chunk = chunks or chunk_images(source.shape)
    return PlannedArray(PixelPlan(source, np.arange(source.shape[0]), chunk))
