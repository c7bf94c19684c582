"""Responses that lie in files of volumes, one file a session or run, as lazy arrays.

A source says which volume of which section every sample is, and which voxels are wanted; the plan
reads those and no others. What is normalised within its section (a session, a run) is read as a
whole section, whichever of its samples are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.compute.planned import Indexer
from nedx.errors import SelectionError, SourceError
from nedx.store.lazy import TARGET_BYTES

Normalize = Literal["none", "zscore", "percent"]
"""What is done within each section: nothing, a z-score, or percent of the mean."""

Missing = Literal["error", "zero"]
"""What becomes of values that are not finite."""


_COLUMNS = 4096


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


@dataclass(frozen=True, eq=False)
class SectionBlock:
    """Some samples and voxels of one section; what a dask task calls."""

    section: Section
    samples: np.ndarray
    voxels: np.ndarray
    normalize: Normalize
    missing: Missing

    def __call__(self) -> np.ndarray:
        """Read float32 ``(sample, voxel)``, normalised within the section."""
        chosen, volumes = self.samples, self.section.volumes
        if self.normalize == "none":
            volumes, chosen = volumes[chosen], np.arange(len(chosen))
        values = self.section.file.read(volumes, self.voxels)
        finite = np.isfinite(values)
        if finite.all():
            normalized = _normalized(values, self.normalize, self._refuse)
        else:
            if self.missing == "error":
                self._refuse_missing(finite)
            values[~finite] = np.nan
            normalized = np.nan_to_num(
                _normalized(values, self.normalize, self._refuse), copy=False
            )
        return normalized if len(chosen) == len(normalized) else normalized[chosen]

    def _refuse_missing(self, finite: np.ndarray) -> None:
        row, column = np.argwhere(~finite)[0]
        shape = self.section.file.shape[:3]
        place = tuple(int(n) for n in np.unravel_index(self.voxels[column], shape, order="F"))
        self._refuse(
            f"{int((~finite).sum()):,} values are not finite, the first of volume {int(row)} at "
            f"voxel {place}, both counted from 0. Type missing='zero' to have them as 0, as "
            "publications do, or give a mask without them"
        )

    def _refuse(self, fault: str) -> None:
        raise SourceError(f"{self.section.name} ({self.section.file.url}): {fault}")


@dataclass(frozen=True, eq=False)
class VolumesPlan:
    """Lazy float32 ``(sample, neuroid)`` of sections.

    Parameters
    ----------
    sections : tuple of Section
        At least one.
    section : numpy.ndarray of int64, (sample,)
        Which section a sample is in.
    sample : numpy.ndarray of int64, (sample,)
        Which of the volumes of its section it is.
    voxels : numpy.ndarray of int64, (neuroid,)
        Which voxels, in Fortran order.
    normalize : {"none", "zscore", "percent"}
        What is done within each section: z-scores with the population's standard deviation, of
        which a voxel that does not vary has 0; or 100 (x / mean - 1).
    missing : {"error", "zero"}
        What becomes of values that are not finite; statistics leave them out.
    """

    sections: tuple[Section, ...]
    section: np.ndarray = field(repr=False)
    sample: np.ndarray = field(repr=False)
    voxels: np.ndarray = field(repr=False)
    normalize: Normalize = "none"
    missing: Missing = "error"

    @classmethod
    def whole(
        cls,
        sections: list[Section],
        voxels: np.ndarray,
        normalize: Normalize = "none",
        missing: Missing = "error",
    ) -> VolumesPlan:
        """Return the plan of all samples of all sections, one after the other.

        Raises
        ------
        SelectionError
            If there is no such way to normalise, or to treat what is missing.
        """
        for name, given, known in (
            ("normalize", normalize, get_args(Normalize)),
            ("missing", missing, get_args(Missing)),
        ):
            if given not in known:
                raise SelectionError(f"{name} is one of {', '.join(known)}, not {given!r}")
        lengths = [len(section.volumes) for section in sections]
        section = np.repeat(np.arange(len(sections)), lengths)
        sample = np.concatenate([np.arange(length) for length in lengths])
        return cls(tuple(sections), section, sample, voxels, normalize, missing)

    def __dask_tokenize__(self) -> str:
        parts = (self.section, self.sample, self.voxels, self.normalize, self.missing)
        return tokenize("nedx.VolumesPlan", self.sections, *parts)

    def build(self) -> da.Array:
        """Return the dask array; no task reads more than one section, or reads it twice."""
        order = np.argsort(self.section, kind="stable")
        ordered = replace(self, section=self.section[order], sample=self.sample[order])
        array = ordered._build()
        if np.array_equal(order, np.arange(len(order))):
            return array
        return da.take(array, np.argsort(order), axis=0)

    def _build(self) -> da.Array:
        groups = self._voxel_groups()
        rows = self._row_groups()
        name = f"volumes-{tokenize(self)}"
        graph = {
            (name, row, column): (
                SectionBlock(
                    self.sections[int(self.section[first])] if last > first else self.sections[0],
                    self.sample[first:last],
                    self.voxels[group],
                    self.normalize,
                    self.missing,
                ),
            )
            for row, (first, last) in enumerate(rows)
            for column, group in enumerate(groups)
        }
        chunks = (
            tuple(last - first for first, last in rows),
            tuple(group.stop - group.start for group in groups),
        )
        return da.Array(graph, name, chunks, dtype=np.float32)

    def _voxel_groups(self) -> list[slice]:
        """Cut the voxels where that does not make tasks read the same bytes."""
        count = len(self.voxels)
        columnar = all(section.file.is_columnar for section in self.sections)
        apart = columnar or bool(np.all(np.diff(self.voxels) > 0))
        if not apart or (self.normalize == "none" and not columnar):
            return [slice(0, count)]
        longest = max(len(section.volumes) for section in self.sections)
        step = max(1, TARGET_BYTES // (4 * max(1, longest)))
        return [slice(i, min(count, i + step)) for i in range(0, max(1, count), step)]

    def _row_groups(self) -> list[tuple[int, int]]:
        """Cut the samples at the ends of sections, and where a section can be read in parts."""
        edges = [0, *(np.flatnonzero(np.diff(self.section)) + 1).tolist(), len(self.section)]
        runs = list(zip(edges[:-1], edges[1:], strict=True))
        if self.normalize != "none" or all(s.file.is_columnar for s in self.sections):
            return runs
        step = max(1, TARGET_BYTES // (4 * max(1, len(self.voxels))))
        return [
            (i, min(last, i + step))
            for first, last in runs
            for i in range(first, max(last, first + 1), step)
        ]

    def narrow(self, indexers: tuple[Indexer, ...]) -> VolumesPlan:
        """Return the plan of what remains."""
        samples, neuroids = indexers
        return replace(
            self,
            section=self.section[samples],
            sample=self.sample[samples],
            voxels=self.voxels[neuroids],
        )


def _normalized(values: np.ndarray, normalize: Normalize, refuse: Any) -> np.ndarray:
    """Normalise float32 ``(volume, voxel)`` along the volumes, in place; NaN are left out."""
    if normalize != "none":
        # Deviations are taken of float64 copies, of which only a part is held.
        for first in range(0, values.shape[1], _COLUMNS):
            part = values[:, first : first + _COLUMNS]
            # A voxel without any value becomes one that does not vary, which has 0.
            part[:, np.isnan(part).all(0)] = 1
            (_to_percent if normalize == "percent" else _to_zscores)(part, refuse)
    return values


def _to_percent(values: np.ndarray, refuse: Any) -> None:
    mean = np.nanmean(values, axis=0, dtype=np.float64)
    if low := int((mean <= 0).sum()):
        refuse(
            f"{low:,} voxels have a mean of 0 or below, of which there is no percent: give a "
            "mask of the brain, or normalize='zscore'"
        )
    values *= (100 / mean).astype(np.float32)
    values -= 100


def _to_zscores(values: np.ndarray, _: Any) -> None:
    constant = np.nanmax(values, axis=0) == np.nanmin(values, axis=0)
    values -= np.nanmean(values, axis=0, dtype=np.float64).astype(np.float32)
    deviation = np.nanstd(values, axis=0, dtype=np.float64)
    deviation[constant] = np.inf
    values /= deviation.astype(np.float32)
