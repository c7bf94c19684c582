"""Accuracy and noise ceilings against the plain numpy expressions for them, one thread each."""

from __future__ import annotations

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio

IMAGES, VOXELS = 1000, 20_000
CEILING_IMAGES, REPETITIONS, CEILING_VOXELS = 5000, 3, 4000
SPLITS = 10


def measure() -> list[Row]:
    """Compare the speed of voxelwise r, of the noise ceiling and of split halves."""
    with threadpool_limits(limits=1):
        return [*_correlation(), *_noise_ceiling(), *_split_half()]


def _correlation() -> list[Row]:
    from nedx.metrics.correlation import pearson_r

    rng = np.random.default_rng(0)
    x = rng.standard_normal((IMAGES, VOXELS), dtype=np.float32)
    y = 0.5 * x + rng.standard_normal(x.shape, dtype=np.float32)
    measured, predicted = (xr.DataArray(a, dims=("image", "voxel")) for a in (x, y))
    seconds = interleave(
        {"plain": lambda: _plain_r(x, y), "nedx": lambda: pearson_r(measured, predicted, "image")},
        rounds=15,
    )
    found = pearson_r(measured, predicted, "image").values
    truth = _plain_r(x.astype(np.float64), y.astype(np.float64))
    note = f"{IMAGES} images x {VOXELS} voxels, float32; numpy: centre, multiply, sum, divide"
    return [
        at_least("voxelwise r vs numpy", ratio(seconds["plain"], seconds["nedx"]), 4, note=note),
        at_most("largest error of r", float(abs(found - truth).max()), 1e-6, ""),
    ]


def _plain_r(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).sum(0) / (np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0))


def _noise_ceiling() -> list[Row]:
    from nedx.metrics.noise_ceiling import noise_ceiling

    values = _repeats(CEILING_IMAGES, REPETITIONS, CEILING_VOXELS)
    array = xr.DataArray(values, dims=("image", "repetition", "voxel"))
    seconds = interleave(
        {"plain": lambda: _plain_ceiling(values), "nedx": lambda: noise_ceiling(array)}, rounds=7
    )
    error = abs(noise_ceiling(array).values - _plain_ceiling(values.astype(np.float64)))
    note = f"{CEILING_IMAGES} images x {REPETITIONS} x {CEILING_VOXELS} voxels; numpy: var over var"
    return [
        at_least("noise ceiling vs numpy", ratio(seconds["plain"], seconds["nedx"]), 4, note=note),
        at_most("largest error of the ceiling", float(error.max()), 1e-5, ""),
    ]


def _repeats(images: int, repetitions: int, voxels: int) -> np.ndarray:
    """Return (image, repetition, voxel) with signal over noise from 0 to 2."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((images, repetitions, voxels), dtype=np.float32)
    signal = rng.standard_normal((images, 1, voxels), dtype=np.float32)
    values += signal * np.linspace(0, 2, voxels, dtype=np.float32)
    return values


def _plain_ceiling(values: np.ndarray) -> np.ndarray:
    noise = values.var(axis=1, ddof=1).mean(axis=0)
    total = values.reshape(-1, values.shape[-1]).var(axis=0, ddof=1)
    signal = np.maximum(total - noise, 0)
    return signal / (signal + noise / values.shape[1])


def _split_half() -> list[Row]:
    from nedx.metrics.split_half import split_half

    values = _repeats(1000, 4, 4000)
    array = xr.DataArray(values, dims=("image", "repetition", "voxel"))
    kept = {}

    def plain() -> None:
        kept["plain"] = _plain_split_half(values)

    def ours() -> None:
        kept["nedx"] = split_half(array, n_splits=SPLITS).values

    seconds = interleave({"plain": plain, "nedx": ours}, rounds=5)
    # Other random halves: the ceilings agree to what the choice of 10 splits leaves open.
    error = float(np.abs(kept["plain"] - kept["nedx"]).mean())
    note = f"1000 images x 4 x 4000 voxels, {SPLITS} splits; numpy: gather halves, mean, correlate"
    return [
        at_least("split half vs numpy", ratio(seconds["plain"], seconds["nedx"]), 5, note=note),
        at_most("mean difference of other splits", error, 0.02, ""),
    ]


def _plain_split_half(values: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    images, repetitions = values.shape[:2]
    r = np.zeros(values.shape[-1])
    for _ in range(SPLITS):
        order = rng.permuted(np.tile(np.arange(repetitions), (images, 1)), axis=1)
        shuffled = np.take_along_axis(values, order[:, :, np.newaxis], axis=1)
        halves = np.split(shuffled, 2, axis=1)
        r += _plain_r(*(half.mean(axis=1) for half in halves)) / SPLITS
    r = np.maximum(r, 0)
    return 2 * r / (1 + r)
