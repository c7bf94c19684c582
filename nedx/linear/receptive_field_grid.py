"""Ridge on maps pooled by Gaussian receptive fields, one of a grid chosen for each voxel.

St-Yves & Naselaris 2018, The feature-weighted receptive field (NeuroImage 180): each voxel pools
all maps over one Gaussian; which one is found by trying all of a grid on images held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

_VOXELS_AT_A_TIME = 4096


def candidate_grid(aperture: float, sizes: Sequence[float], spacing: float) -> np.ndarray:
    """Return the receptive fields to try.

    For each size ``n = ceil(aperture / (size * spacing))`` centres along each axis, from one edge
    of the aperture to the other; one in the middle where ``n`` is 1.

    Parameters
    ----------
    aperture : float
        Width and height of what is seen, degrees.
    sizes : sequence of float
        Standard deviations, degrees.
    spacing : float
        The most between two centres, in standard deviations.

    Returns
    -------
    ndarray of float64, (candidate, 3)
        x (to the right), y (upwards) and size, degrees from the middle.

    Raises
    ------
    ModelError
        If a number is not positive.
    """
    if not sizes or min(*sizes, aperture, spacing) <= 0:
        raise ModelError(
            f"aperture {aperture}, sizes {list(sizes)} and spacing {spacing} must be positive"
        )
    found = []
    for size in sizes:
        count = int(np.ceil(aperture / (size * spacing)))
        across = np.linspace(-aperture / 2, aperture / 2, count) if count > 1 else np.zeros(1)
        x, y = np.meshgrid(across, across)
        found.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, size)], 1))
    return np.concatenate(found)


def gaussian_fields(fields: np.ndarray, side: int, aperture: float) -> np.ndarray:
    """Return Gaussians on the grid of a map.

    Parameters
    ----------
    fields : ndarray (candidate, 3)
        From `candidate_grid`.
    side : int
        Rows and columns of the map, which covers the aperture.
    aperture : float
        Degrees.

    Returns
    -------
    ndarray of float32, (candidate, side * side)
        In C order from the upper left; each sums to one. The nearest position has it all where a
        field is much smaller than the grid.
    """
    across = (np.arange(side) + 0.5) * aperture / side - aperture / 2
    x, y, size = np.asarray(fields, np.float64).T[:, :, None]
    # Rows of an image run downwards.
    rows, columns = (((across - z) / size) ** 2 for z in (-y, x))
    exponent = -(rows[:, :, None] + columns[:, None, :]).reshape(len(fields), -1) / 2
    weights = np.exp(exponent - exponent.max(1, keepdims=True))
    normalized: np.ndarray = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalized


def pool_maps(
    maps: Sequence[torch.Tensor], fields: np.ndarray, aperture: float, *, compress: bool
) -> torch.Tensor:
    """Pool maps over receptive fields.

    Parameters
    ----------
    maps : sequence of tensor (image, channel, y, x)
        Square; of several sizes.
    fields : ndarray (candidate, 3)
        From `candidate_grid`.
    aperture : float
        What the maps cover, degrees.
    compress : bool
        Whether pooled features pass through ``log(1 + |x|) tanh(x)``.

    Returns
    -------
    tensor of float32, (candidate, image, feature)
        Channels of the first map, of the second, ...
    """
    import torch

    parts = []
    for each in maps:
        weights = torch.from_numpy(gaussian_fields(fields, each.shape[-1], aperture))
        flat = each.float().flatten(2).transpose(1, 2)
        parts.append(torch.matmul(weights.to(each.device), flat).transpose(0, 1))
    pooled = torch.cat(parts, 2)
    return torch.log1p(pooled.abs()) * torch.tanh(pooled) if compress else pooled


@dataclass
class CandidateSearch:
    """The best receptive field and penalty of each voxel so far.

    Attributes
    ----------
    alphas : ndarray of float64, (alpha,)
        Penalties tried, ascending, as in scikit-learn's ``Ridge`` on standardised features.
    training, held : ndarray of float32, (image, voxel)
        Responses to fit to, and to choose by; the mean of the former is taken off both.
    candidate : ndarray of int64, (voxel,)
        Which receptive field.
    alpha : ndarray of float64, (voxel,)
        Which penalty.
    loss : ndarray of float64, (voxel,)
        Mean squared error over the images held out.
    rising : ndarray of int8, (voxel,)
        -1 where smaller penalties, and 1 where larger ones, would do better still.
    coef : ndarray of float32, (voxel, feature)
        Weights of pooled features, as they are.
    intercept : ndarray of float32, (voxel,)
        In units of the responses.
    """

    alphas: np.ndarray
    training: np.ndarray
    held: np.ndarray
    features: int
    candidate: np.ndarray = field(init=False)
    alpha: np.ndarray = field(init=False)
    loss: np.ndarray = field(init=False)
    rising: np.ndarray = field(init=False)
    coef: np.ndarray = field(init=False)
    intercept: np.ndarray = field(init=False)
    _middle: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        voxels = self.training.shape[1]
        self._middle = self.training.mean(0, dtype=np.float64).astype(np.float32)
        self.training, self.held = self.training - self._middle, self.held - self._middle
        self.candidate = np.zeros(voxels, np.int64)
        self.alpha = np.zeros(voxels)
        self.loss = np.full(voxels, np.inf)
        self.rising = np.zeros(voxels, np.int8)
        self.coef = np.zeros((voxels, self.features), np.float32)
        self.intercept = np.zeros(voxels, np.float32)

    def offer(self, candidate: int, training: np.ndarray, held: np.ndarray) -> None:
        """Fit all voxels by one receptive field, and keep it where it predicts better.

        With standardised features ``X = U S V'`` and penalty ``a`` the weights are
        ``V (V'X'y / (s^2 + a))``: one eigendecomposition serves all penalties and voxels.

        Parameters
        ----------
        candidate : int
            Its number.
        training, held : ndarray (image, feature)
            Pooled features.
        """
        x = np.asarray(training, np.float64)
        mean, scale = x.mean(0), x.std(0)
        # Constant but for rounding in float32: standardised, it would be noise at full size.
        scale[scale <= 1e-6 * np.abs(mean)] = 1
        x = (x - mean) / scale
        values, vectors = np.linalg.eigh(x.T @ x)
        values = values.clip(0)
        # Products with all voxels in float32: features are standardised, responses centred.
        seen = (((np.asarray(held, np.float64) - mean) / scale) @ vectors).astype(np.float32)
        rotated = (x @ vectors).T.astype(np.float32)
        shrinkage = (1 / (values + self.alphas[:, None])).astype(np.float32)[:, :, None]
        for start in range(0, self.training.shape[1], _VOXELS_AT_A_TIME):
            part = slice(start, start + _VOXELS_AT_A_TIME)
            cross = rotated @ self.training[:, part]
            errors = np.stack(
                [((seen @ (cross * each) - self.held[:, part]) ** 2).mean(0) for each in shrinkage]
            )
            best = errors.argmin(0)
            loss = errors[best, np.arange(len(best))]
            better = np.flatnonzero(loss < self.loss[part])
            alpha = self.alphas[best[better]]
            coef = vectors @ (cross[:, better] / (values[:, None] + alpha)) / scale[:, None]
            where = start + better
            self.candidate[where], self.alpha[where] = candidate, alpha
            self.rising[where] = _rising(errors[:, better], self.held[:, where].var(0))
            self.loss[where], self.coef[where] = loss[better], coef.T
            self.intercept[where] = self._middle[where] - mean @ coef

    def at_the_edge(self) -> dict[int, int]:
        """Return how many voxels, of those predicted at all, ask for smaller (-1), larger (1)."""
        predicted = self.loss < self.held.var(0)
        return {end: int((predicted & (self.rising == end)).sum()) for end in (-1, 1)}


def _rising(errors: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return the end of errors (alpha, voxel) at which they still fall by a 1000th of variance."""
    if len(errors) < 2:
        return np.zeros(errors.shape[1], np.int8)
    best, least = errors.argmin(0), errors.min(0)
    falls = [errors[beside] - least > 1e-3 * spread for beside in (1, -2)]
    last = len(errors) - 1
    return np.where((best == 0) & falls[0], -1, np.where((best == last) & falls[1], 1, 0))
