"""Principal components of standardised features, exact, from Gram matrices.

The Gram matrix of the samples is summed over blocks of features (where these are as many as the
samples or more), else that of the features over blocks of samples, so the matrix of features is
never held. Two passes are needed: standardising and the Gram matrix come before the components.
Features that come in blocks of features (or lie in memory) are gone through twice. Those that
come in blocks of images, as a network makes them, are computed once and kept on disk between the
passes: computing them again would cost far more than reading a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import dask.array as da
import numpy as np

from nedx.compute.devices import resolve_device
from nedx.errors import ModelError
from nedx.linear.keeping import Features, rereadable
from nedx.linear.streaming import Matrix, column_blocks

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Solver = Literal["exact", "randomised"]

_BLOCK_BYTES = 2**26
_STRIP = 256
_OVERSAMPLED = 20
_ITERATIONS = 4


@dataclass(frozen=True)
class StandardizedPCA:
    """A scaler and the components of what it gives.

    Attributes
    ----------
    mean, scale : ndarray of float64, (feature,)
        Population mean and standard deviation; the scale is 1 for a constant feature, and for all
        where features were only centred.
    components : ndarray of float32, (component, feature)
        Orthonormal rows, by falling variance; the largest loading of each is positive.
    scores : ndarray of float64, (sample, component)
        The training samples in these components.
    variance : ndarray of float64, (component,)
        Variance of each component, over ``samples - 1``.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    scores: np.ndarray
    variance: np.ndarray

    def transform(self, features: np.ndarray | da.Array) -> np.ndarray | da.Array:
        """Project features on the components.

        Parameters
        ----------
        features : ndarray or dask array, (sample, feature)

        Returns
        -------
        ndarray or dask array of float64, (sample, component)
            Lazy where `features` are.
        """
        return ((features - self.mean) / self.scale) @ self.components.T


@dataclass
class _Spread:
    """What features are standardised by, found block by block."""

    mean: torch.Tensor
    scale: torch.Tensor
    standardize: bool

    @classmethod
    def unknown(cls, matrix: Matrix, *, standardize: bool) -> _Spread:
        import torch

        ones = torch.ones(matrix.shape[1], dtype=torch.float64, device=matrix.device)
        return cls(torch.zeros_like(ones), ones, standardize)

    def find(self, part: slice, x: torch.Tensor) -> torch.Tensor:
        """Return a block (sample, feature) standardised by itself."""
        mean = x.mean(0)
        centred = x - mean
        # The mean in single precision leaves a trace of itself.
        rest = centred.mean(0)
        centred -= rest
        self.mean[part] = mean.double() + rest
        if self.standardize:
            self.set_scale(part, centred.square().mean(0).double())
            centred /= self.scale[part].to(x.dtype)
        return centred

    def set_scale(self, part: slice, variance: torch.Tensor) -> None:
        spread = variance.clamp(min=0).sqrt()
        varies = spread > 1e-12 * self.mean[part].abs()
        self.scale[part] = spread.where(varies, spread.new_ones(()))

    def apply(self, part: slice, x: torch.Tensor) -> torch.Tensor:
        """Return a block (sample, feature) standardised by what was found."""
        mean = self.mean[part].to(x.dtype)
        centred = x - mean
        centred -= (self.mean[part] - mean.double()).to(x.dtype)
        return centred.div_(self.scale[part].to(x.dtype))


def fit_pca(
    features: Features,
    count: int,
    *,
    standardize: bool = True,
    solver: Solver = "exact",
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
) -> StandardizedPCA:
    """Standardise features and find their first principal components.

    Memory beyond the result is O(n^2 + n x block) for n samples and more features, O(p^2 + p x
    block) for p features and more samples, O(n x (count + block)) for the randomised solver.

    Parameters
    ----------
    features : ndarray, dask array or iterator of ndarray, (sample, feature)
        Finite. A dask array in one block of features, or an iterator over blocks of images, is
        gone through once and, beyond 256 MB, kept in a temporary file as wide as its dtype; a
        dask array cut along features is computed twice and never kept. float64 is multiplied as
        such, all else in float32; sums are float64.
    count : int
        Components to keep; at most ``samples - 1`` and the number of features are there.
    standardize : bool
        Divide each feature by its standard deviation; else it is only centred.
    solver : {"exact", "randomised"}
        From the Gram matrix, or by subspace iteration (Halko, Martinsson & Tropp 2011, SIAM
        Review 53:217, algorithm 4.4) with 4 iterations and 20 dimensions to spare, for samples
        and features too many for a Gram matrix; 5 passes more, exact where variances fall fast.
    seed : int
        Of the randomised solver.
    folder : path, optional
        Where the temporary file goes; the system's folder for these by default.
    device : str
        Where to compute.

    Returns
    -------
    StandardizedPCA

    Raises
    ------
    ModelError
        If fewer than two samples are given, values are not finite, or the disk is too small.
    """
    if solver not in ("exact", "randomised"):
        raise ModelError(f"solver is {solver!r}; type 'exact' or 'randomised'")
    if count < 1:
        raise ModelError(f"{count} components were asked for; type one or more")
    with rereadable(features, folder) as source:
        matrix = Matrix(source, "features", device=resolve_device(device))
        samples, width = matrix.shape
        if samples < 2:
            raise ModelError(f"principal components need two samples or more, not {samples}")
        spread = _Spread.unknown(matrix, standardize=standardize)
        count = min(count, samples - 1, width)
        if solver == "randomised":
            return _randomised(matrix, spread, count, seed)
        return (_wide if width >= samples else _tall)(matrix, spread, count)


def _wide(matrix: Matrix, spread: _Spread, count: int) -> StandardizedPCA:
    """Solve by the Gram matrix of the samples, summed over blocks of features."""
    samples = matrix.shape[0]
    gram = spread.mean.new_zeros(samples, samples)
    for _, z in _first(matrix, spread):
        _add_lower(gram, z.T)
    values, vectors = _largest(gram, count, matrix.dtype)
    return _from_scores(matrix, spread, vectors * values.sqrt())


def _tall(matrix: Matrix, spread: _Spread, count: int) -> StandardizedPCA:
    """Solve by the Gram matrix of the features, summed over blocks of samples."""
    import torch

    samples, width = matrix.shape
    gram = spread.mean.new_zeros(width, width)
    total = gram.new_zeros(width)
    origin = None
    for _, x in matrix.pieces():
        if origin is None:
            # Sums about a point near the mean lose no digits when the mean is taken away.
            origin = x.mean(0)
        x = x - origin
        total += x.sum(0, dtype=torch.float64)
        _add_lower(gram, x)
    assert origin is not None
    mean, everything = total / samples, slice(None)
    gram -= samples * torch.outer(mean, mean)
    spread.mean = origin.double() + mean
    if spread.standardize:
        spread.set_scale(everything, gram.diagonal() / samples)
    gram /= spread.scale[:, None] * spread.scale
    values, vectors = _largest(gram, count, matrix.dtype)
    vectors *= _signs(vectors.T)
    scores = [spread.apply(everything, x) @ vectors.to(x.dtype) for _, x in matrix.pieces()]
    return _result(spread, vectors.T, torch.cat(scores).double(), values / (samples - 1))


def _randomised(matrix: Matrix, spread: _Spread, count: int, seed: int) -> StandardizedPCA:
    """Solve in the span of what random directions become when the data act on them."""
    import torch

    samples, width = matrix.shape
    size = min(count + _OVERSAMPLED, samples, width)
    random = torch.Generator().manual_seed(seed)
    basis = spread.mean.new_zeros(samples, size)
    for _, z in _first(matrix, spread):
        drawn = torch.randn(z.shape[1], size, generator=random, dtype=torch.float64)
        basis += (z @ drawn.to(z)).double()
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(basis).Q
        again = torch.zeros_like(basis)
        for _, z in _standardized(matrix, spread):
            again += (z @ (z.T @ basis.to(z.dtype))).double()
        basis = again
    basis = torch.linalg.qr(basis).Q
    gram = spread.mean.new_zeros(size, size)
    for _, z in _standardized(matrix, spread):
        _add_lower(gram, z.T @ basis.to(z.dtype))
    values, vectors = _largest(gram, count, matrix.dtype)
    return _from_scores(matrix, spread, basis @ vectors * values.sqrt())


def _from_scores(matrix: Matrix, spread: _Spread, scores: torch.Tensor) -> StandardizedPCA:
    """Find the components, in a second pass, whose scores (sample, component) are these."""
    import torch

    squared = scores.square().sum(0)
    left = scores / squared
    components = torch.empty(scores.shape[1], matrix.shape[1], device=scores.device)
    for part, z in _standardized(matrix, spread):
        components[:, part] = (left.T.to(z.dtype) @ z).float()
    signs = _signs(components)
    components *= signs[:, None]
    return _result(spread, components, scores * signs, squared / (matrix.shape[0] - 1))


def _result(
    spread: _Spread, components: torch.Tensor, scores: torch.Tensor, variance: torch.Tensor
) -> StandardizedPCA:
    return StandardizedPCA(
        spread.mean.cpu().numpy(),
        spread.scale.cpu().numpy(),
        components.float().contiguous().cpu().numpy(),
        scores.cpu().numpy(),
        variance.cpu().numpy(),
    )


def _first(matrix: Matrix, spread: _Spread) -> Iterator[tuple[slice, torch.Tensor]]:
    """Read blocks of features for the first time: check them and find their spread."""
    for part in _blocks(matrix):
        yield part, spread.find(part, matrix.columns(part).read(slice(0, matrix.shape[0])))


def _standardized(matrix: Matrix, spread: _Spread) -> Iterator[tuple[slice, torch.Tensor]]:
    """Read blocks of features again."""
    import torch

    for part in _blocks(matrix):
        values = np.asarray(matrix.values[:, part], matrix.dtype)
        yield part, spread.apply(part, torch.from_numpy(values).to(matrix.device))


def _blocks(matrix: Matrix) -> Iterator[slice]:
    width = max(1, _BLOCK_BYTES // (matrix.shape[0] * matrix.dtype.itemsize))
    return column_blocks(matrix, width)


def _add_lower(gram: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``rows' rows`` to the lower triangle of a Gram matrix, in strips."""
    for start in range(0, len(gram), _STRIP):
        stop = start + _STRIP
        gram[start:stop, :stop] += rows[:, start:stop].T @ rows[:, :stop]


def _largest(gram: torch.Tensor, count: int, dtype: np.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalues, falling, and their vectors, from the lower triangle."""
    import torch
    from scipy.linalg import eigh

    size = len(gram)
    if gram.is_cuda:
        values, vectors = (found[..., -count:] for found in torch.linalg.eigh(gram))
    else:
        some = [size - count, size - 1]
        found = eigh(gram.numpy(), subset_by_index=some, overwrite_a=True, check_finite=False)
        values, vectors = (torch.from_numpy(each) for each in found)
    least = 1e-7 if dtype == np.float32 else size * np.finfo(np.float64).eps
    kept = values > least * values[-1].clamp(min=0)
    if not kept.any():
        raise ModelError("all features are constant over the samples: there are no components")
    return values[kept].flip(0), vectors[:, kept].flip(1)


def _signs(components: torch.Tensor) -> torch.Tensor:
    """Return what makes the largest loading of each component (row) positive."""
    largest = components.abs().argmax(1, keepdim=True)
    return components.gather(1, largest)[:, 0].sign()
