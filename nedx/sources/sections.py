"""Sections of recordings, a session or a run: read in parts, and normalised as a whole."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from dask.base import tokenize

from nedx.errors import SourceError

Normalize = Literal["none", "zscore", "percent"]
"""What is done within each section: nothing, a z-score, or percent of the mean."""

Missing = Literal["error", "zero"]
"""What becomes of values that are not finite."""

PART_BYTES = 2**23
"""What statistics are taken of at a time: copies of it are made, as float64."""

_ONE_AT_A_TIME = threading.Lock()
"""Tasks of one section need the same statistics: the first takes them, the others wait."""


class VolumeReader(Protocol):
    """A file of volumes, of which any values can be read; small and picklable.

    Voxels are numbered in Fortran order (the first axis of the volume is the fastest), as
    NIfTI, MGH and NSD's HDF5 files hold them.
    """

    @property
    def url(self) -> str:
        """The file, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(i, j, k, volume)``."""

    @property
    def is_columnar(self) -> bool:
        """Whether the values of one voxel lie together, rather than those of one volume."""

    def read(self, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Read float32 ``(volume, voxel)`` at int64 positions, in their order."""


@dataclass(frozen=True, eq=False)
class Section:
    """Volumes of one file that belong together: a session or a run.

    Parameters
    ----------
    file : VolumeReader
        Where they lie.
    volumes : numpy.ndarray of int64, (volume,)
        Which of the file they are, in the order of the samples.
    name : str
        For messages, such as ``"session 3"``.
    """

    file: VolumeReader
    volumes: np.ndarray
    name: str

    @classmethod
    def whole(cls, file: VolumeReader, name: str) -> Section:
        """Return the section of all volumes of a file."""
        return cls(file, np.arange(file.shape[-1]), name)

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        return tokenize("nedx.Section", self.file, self.volumes)

    def refuse(self, fault: str) -> None:
        """Raise SourceError for a fault of these volumes."""
        raise SourceError(f"{self.name} ({self.file.url}): {fault}")


@dataclass(frozen=True)
class Statistics:
    """What each voxel's values are normalised by.

    Parameters
    ----------
    mean : numpy.ndarray of float64, (voxel,)
        Of the finite values; 0 where there is none.
    deviation : numpy.ndarray of float64, (voxel,)
        Of the population; infinite where the values do not vary.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, batches: Iterable[np.ndarray]) -> Statistics:
        """Take the statistics of values ``(volume, voxel)`` that come in parts.

        Parts are joined as Chan, Golub & LeVeque (1983, American Statistician 37:242, equation
        2.1) do; NaN are left out.
        """
        count, mean, squares, low, high = 0.0, 0.0, 0.0, np.inf, -np.inf
        for batch in batches:
            found = np.isfinite(batch)
            part = found.sum(0).astype(np.float64)
            values = np.where(found, batch, 0).astype(np.float64)
            middle = values.sum(0) / np.maximum(part, 1)
            values -= middle
            values *= found
            step = middle - mean
            total = np.maximum(count + part, 1)
            squares = squares + np.einsum("ij,ij->j", values, values)
            squares = squares + step**2 * (count * part / total)
            mean = mean + step * (part / total)
            count = count + part
            low = np.minimum(low, np.where(found, batch, np.inf).min(0))
            high = np.maximum(high, np.where(found, batch, -np.inf).max(0))
        deviation = np.sqrt(squares / np.maximum(count, 1))
        return cls(np.asarray(mean), np.where(low < high, deviation, np.inf))

    def applied(self, values: np.ndarray, normalize: Normalize) -> np.ndarray:
        """Normalise float32 ``(volume, voxel)``, in place."""
        if normalize == "percent":
            values *= (100 / self.mean).astype(np.float32)
            values -= 100
        elif normalize == "zscore":
            values -= self.mean.astype(np.float32)
            values /= self.deviation.astype(np.float32)
        return values


@dataclass(frozen=True, eq=False)
class SectionBlock:
    """Some samples and voxels of one section; what a dask task calls.

    Parameters
    ----------
    section : Section
    samples : numpy.ndarray of int64, (sample,)
        Which of its volumes.
    voxels : numpy.ndarray of int64, (voxel,)
        In Fortran order.
    normalize : {"none", "zscore", "percent"}
    missing : {"error", "zero"}
    """

    section: Section
    samples: np.ndarray
    voxels: np.ndarray
    normalize: Normalize
    missing: Missing

    def __call__(self) -> np.ndarray:
        """Read float32 ``(sample, voxel)``, normalised by the statistics of the whole section.

        Of a file whose voxels lie together the section is read once. Of others the statistics are
        taken first, once in a process, and then only the samples are read.
        """
        if self.normalize == "none":
            return self._filled(self._read(self.samples))
        if self.section.file.is_columnar:
            values = self._read(np.arange(len(self.section.volumes)))
            statistics = self._checked(Statistics.of([values]))
            values = values[self.samples]
        else:
            with _ONE_AT_A_TIME:
                statistics = _statistics(_Wanted(self))
            values = self._read(self.samples)
        return self._filled(statistics.applied(values, self.normalize))

    def whole(self) -> Statistics:
        """Take the statistics of the section in parts that fit in memory."""
        return self._checked(Statistics.of(self._batches()))

    def _batches(self) -> Iterator[np.ndarray]:
        count = len(self.section.volumes)
        step = max(1, PART_BYTES // (4 * max(1, len(self.voxels))))
        for first in range(0, count, step):
            yield self._read(np.arange(first, min(count, first + step)))

    def _read(self, samples: np.ndarray) -> np.ndarray:
        values = self.section.file.read(self.section.volumes[samples], self.voxels)
        finite = np.isfinite(values)
        if not finite.all():
            if self.missing == "error":
                self._refuse_missing(finite, samples)
            values[~finite] = np.nan
        return values

    def _refuse_missing(self, finite: np.ndarray, samples: np.ndarray) -> None:
        row, column = np.argwhere(~finite)[0]
        shape = self.section.file.shape[:3]
        place = tuple(int(n) for n in np.unravel_index(self.voxels[column], shape, order="F"))
        self.section.refuse(
            f"{int((~finite).sum()):,} values are not finite, the first of volume "
            f"{int(self.section.volumes[samples[row]])} at voxel {place}, both counted from 0. "
            "Type missing='zero' to have them as 0, as publications do, or give a mask without them"
        )

    def _checked(self, statistics: Statistics) -> Statistics:
        low = int((statistics.mean <= 0).sum())
        if self.normalize == "percent" and low:
            self.section.refuse(
                f"{low:,} voxels have a mean of 0 or below, of which there is no percent: give a "
                "mask of the brain, or normalize='zscore'"
            )
        return statistics

    def _filled(self, values: np.ndarray) -> np.ndarray:
        if self.missing == "zero":
            values[np.isnan(values)] = 0
        return values


class _Wanted:
    """The statistics of a section as a key: blocks of the same voxels share them."""

    def __init__(self, block: SectionBlock):
        self.block = block
        parts = (block.section, block.voxels, block.normalize, block.missing)
        self.token = tokenize(*parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Wanted) and other.token == self.token

    def __hash__(self) -> int:
        return hash(self.token)


@functools.lru_cache(maxsize=8)
def _statistics(wanted: _Wanted) -> Statistics:
    return wanted.block.whole()
