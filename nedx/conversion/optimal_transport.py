"""Optimal transport: each neuroid's responses are sent to neuroids that answer alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np

from nedx.conversion.base import LinearConverter, Solved, Solver
from nedx.conversion.regions import AREAS, Method, Region
from nedx.conversion.training import Work
from nedx.errors import ModelError, NedxWarning, require

Cost = Literal["euclidean", "normalized_sqeuclidean"]
COSTS: dict[str, tuple[str, float, float, int]] = {
    "euclidean": ("euclidean", 0.1, 1e-3, 1000),
    "normalized_sqeuclidean": ("sqeuclidean", 0.01, 1e-7, 1000),
}
"""Distance, regularisation, tolerance and most iterations of each published convention."""


def transport_map(
    x: np.ndarray, y: np.ndarray, cost: Cost = "euclidean", reg: float | None = None
) -> tuple[np.ndarray, bool]:
    """Find the entropic transport plan between the profiles of neuroids, as a map.

    Parameters
    ----------
    x : ndarray (row, source)
    y : ndarray (row, target)
    cost : {"euclidean", "normalized_sqeuclidean"}
        The distance of profiles, and a plan times the number of source neuroids, whose rows then
        sum to 1 (Ho et al. 2023); or its square over the largest, and a plan times the number of
        target neuroids, whose columns sum to 1 (Bazeille et al. 2019, IPMI).
    reg : float, optional
        Weight of the entropy; that of the convention by default.

    Returns
    -------
    map : ndarray of float64, (source, target)
    converged : bool
    """
    ot: Any = require("ot", "ot")
    from scipy.spatial.distance import cdist

    metric, usual, tolerance, iterations = COSTS[cost]
    distance = cdist(x.T, y.T, metric)
    sizes = distance.shape
    if cost == "normalized_sqeuclidean":
        distance /= distance.max()
    plan, log = ot.sinkhorn(
        np.full(sizes[0], 1 / sizes[0]),
        np.full(sizes[1], 1 / sizes[1]),
        distance,
        usual if reg is None else reg,
        method="sinkhorn_log",
        numItermax=iterations,
        stopThr=tolerance,
        warn=False,
        log=True,
    )
    scale = sizes[0] if cost == "euclidean" else sizes[1]
    return plan * scale, bool(log["err"][-1] < tolerance)


class OptimalTransportConverter(LinearConverter):
    """Send z-scores (ddof=1) of one subject to neuroids of another that answer alike.

    Parameters
    ----------
    cost : {"euclidean", "normalized_sqeuclidean"}
        Which published convention, see `transport_map`.
    reg : float, optional
        Weight of the entropy; 0.1 and 0.01 by default, as published with each cost. Smaller
        sends to fewer neuroids, and takes longer.
    method, areas, standardize, device
        See `ProcrustesConverter`.

    Attributes
    ----------
    model_ : Converter
    """

    kind = "optimal transport"
    citation = "https://doi.org/10.1016/j.neuroimage.2023.120007"

    def __init__(
        self,
        cost: Cost = "euclidean",
        reg: float | None = None,
        *,
        method: Method = "full",
        areas: Sequence[str] = AREAS,
        standardize: bool = True,
        device: str = "auto",
    ):
        self.cost = cost
        self.reg = reg
        self.method = method
        self.areas = areas
        self.standardize = standardize
        self.device = device

    def _check(self, parts: Mapping[tuple[str, str], Sequence[Region]]) -> None:
        if self.cost not in COSTS:
            raise ModelError(f"cost is one of {', '.join(COSTS)}, not {self.cost!r}")
        number = isinstance(self.reg, Real) and not isinstance(self.reg, bool)
        if self.reg is not None and not (number and 0 < self.reg < np.inf):
            raise ModelError(f"reg is {self.reg!r}; type a positive number, such as 0.1")
        require("ot", "ot")

    def _solver(self, works: Sequence[Work]) -> Solver:
        return self._plan

    def _plan(self, work: Work, part: Region) -> Solved:
        x, y = work.source.values.z[:, part.source], work.target.values.z[:, part.target]
        found, converged = transport_map(x, y, self.cost, self.reg)
        if not converged:
            import warnings

            warnings.warn(
                f"the transport from {work.source.name} to {work.target.name} did not converge: "
                "try a larger reg",
                NedxWarning,
                stacklevel=2,
            )
        return Solved(found)
