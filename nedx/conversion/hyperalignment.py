"""Hyperalignment: every subject is rotated into a template of all, and out of it again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nedx.conversion.base import Solved, Solver
from nedx.conversion.procrustes import ProcrustesConverter, orthogonal_map
from nedx.conversion.regions import Region
from nedx.conversion.training import Work


def hyperalign(data: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find rotations of several subjects into a common space (Haxby et al. 2011, Neuron 72:404).

    First each is rotated to a running average, that of the first to begin with; then each to the
    mean of the other rotated ones; last, each to the mean of all that gave.

    Parameters
    ----------
    data : sequence of ndarray (row, neuroid)
        Of each subject; neuroids may differ in number.

    Returns
    -------
    list of ndarray of float64, (neuroid, common)
        Orthonormal rows; the common space is as wide as the widest subject.
    """
    width = max(each.shape[1] for each in data)
    target = np.pad(data[0].astype(np.float64), ((0, 0), (0, width - data[0].shape[1])))
    aligned = [target]
    for each in data[1:]:
        turned = each @ orthogonal_map(each, target)
        target = (target + turned) / 2
        aligned.append(turned)
    total = np.sum(aligned, axis=0)
    again = []
    for each, turned in zip(data, aligned, strict=True):
        others = (total - turned) / (len(data) - 1)
        again.append(each @ orthogonal_map(each, others))
    template = np.mean(again, axis=0)
    return [orthogonal_map(each, template) for each in data]


class HyperalignmentConverter(ProcrustesConverter):
    """Rotate one subject's responses into a template of all subjects, and on into another's.

    The template is of all subjects that `pairs` name, in the order of their labels, on the images
    that all of them saw; they may differ in the number of neuroids. With two subjects it comes to
    Procrustes. Takes the parameters of `ProcrustesConverter`.

    Attributes
    ----------
    model_ : Converter
    """

    kind = "hyperalignment"
    citation = "https://doi.org/10.1016/j.neuron.2011.08.026"
    jointly = True

    def _solver(self, works: Sequence[Work]) -> Solver:
        members: dict[str, dict[str, np.ndarray]] = {}
        for work in works:
            for part in work.parts:
                columns = members.setdefault(part.name, {})
                columns[work.source.name] = work.source.values.z[:, part.source]
                columns[work.target.name] = work.target.values.z[:, part.target]
        maps = {}
        for region, columns in members.items():
            # The template depends on who comes first: not on the order of pairs.
            names = sorted(columns)
            found = hyperalign([columns[name] for name in names])
            maps[region] = dict(zip(names, found, strict=True))

        def solve(work: Work, part: Region) -> Solved:
            of = maps[part.name]
            return Solved(of[work.source.name] @ of[work.target.name].T)

        return solve
