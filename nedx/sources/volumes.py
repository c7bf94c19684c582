"""Responses that lie in files of volumes, one file a session or run, as lazy arrays.

A source says which volume of which section every sample is, and which voxels are wanted; the plan
reads those and no others, but for the statistics of sections that are normalised.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import get_args

import dask.array as da
import numpy as np
from dask.base import tokenize

from nedx.compute.planned import Indexer
from nedx.errors import SelectionError
from nedx.sources.sections import PART_BYTES, Missing, Normalize, Section, SectionBlock
from nedx.store.lazy import TARGET_BYTES


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
        """Cut the voxels where the values of each lie together."""
        count = len(self.voxels)
        if not self._is_columnar:
            return [slice(0, count)]
        longest = max(len(section.volumes) for section in self.sections)
        step = max(1, PART_BYTES // (4 * max(1, longest)))
        return [slice(i, min(count, i + step)) for i in range(0, max(1, count), step)]

    def _row_groups(self) -> list[tuple[int, int]]:
        """Cut the samples at the ends of sections, and where the values of each lie together."""
        edges = [0, *(np.flatnonzero(np.diff(self.section)) + 1).tolist(), len(self.section)]
        runs = list(zip(edges[:-1], edges[1:], strict=True))
        if self._is_columnar:
            return runs
        step = max(1, TARGET_BYTES // (4 * max(1, len(self.voxels))))
        return [
            (i, min(last, i + step))
            for first, last in runs
            for i in range(first, max(last, first + 1), step)
        ]

    @property
    def _is_columnar(self) -> bool:
        return all(section.file.is_columnar for section in self.sections)

    def narrow(self, indexers: tuple[Indexer, ...]) -> VolumesPlan:
        """Return the plan of what remains."""
        samples, neuroids = indexers
        return replace(
            self,
            section=self.section[samples],
            sample=self.sample[samples],
            voxels=self.voxels[neuroids],
        )
