"""Procrustes: the rotation of one subject's responses that comes closest to another's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nedx.conversion.base import LinearConverter, Solved, Solver
from nedx.conversion.regions import AREAS, Method, Region
from nedx.conversion.training import Work


def orthogonal_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return R that minimises ``|X R - Y|``, with orthonormal rows or columns.

    With ``X'Y = U S V'`` it is ``U V'`` (Schoenemann 1966, Psychometrika 31:1). Where sizes
    differ this is what remains of the square solution for the smaller side padded with zeros.

    Parameters
    ----------
    x : ndarray (row, source)
    y : ndarray (row, target)

    Returns
    -------
    ndarray of float64, (source, target)
    """
    left, _, right = np.linalg.svd(x.T.astype(np.float64) @ y, full_matrices=False)
    found: np.ndarray = left @ right
    return found


class ProcrustesConverter(LinearConverter):
    """Rotate one subject's responses into another's.

    The map between z-scores (ddof=1) is orthogonal, with the smaller side padded by zeros; it is
    not scaled. There is no penalty to choose.

    Parameters
    ----------
    method : {"full", "whole", "subarea"}
        See `RidgeConverter`.
    areas : sequence of str
        Of ``method="subarea"``.
    standardize : bool
        Whether z-scores are mapped; else responses are only centred.
    device : str
        Where `predict` computes.

    Attributes
    ----------
    model_ : Converter
    """

    kind = "procrustes"
    citation = "https://doi.org/10.1007/BF02289451"

    def __init__(
        self,
        method: Method = "full",
        *,
        areas: Sequence[str] = AREAS,
        standardize: bool = True,
        device: str = "auto",
    ):
        self.method = method
        self.areas = areas
        self.standardize = standardize
        self.device = device

    def _solver(self, works: Sequence[Work]) -> Solver:
        return _rotation


def _rotation(work: Work, part: Region) -> Solved:
    x, y = work.source.values.z[:, part.source], work.target.values.z[:, part.target]
    return Solved(orthogonal_map(x, y))
