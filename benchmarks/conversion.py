"""Conversion between subjects: Gram matrices that are shared, and how close to the optimum."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

import nedx
from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.conversion.ridge import Gram

SUBJECTS, VOXELS, IMAGES, ALPHA = 5, 5000, 1200, 1000.0
_TIMED_VOXELS, _TIMED_IMAGES = 1500, 1800


def measure() -> list[Row]:
    return [*_shared_gram(), *_speed(), *_recovery()]


def _subject(values: np.ndarray, number: int, **coords: object) -> xr.Dataset:
    dims = ("image", "voxel") if values.ndim == 2 else ("image", "repetition", "voxel")
    attrs = {"units": "1", "normalization": "zscore", "normalization_scope": "run"}
    attrs["source"] = "synthetic"
    names = np.array([f"sim:{i:05d}" for i in range(len(values))], dtype=object)
    ds = xr.Dataset(
        {"response": (dims, values, attrs)},
        {"image_id": ("image", names), **coords},
        {"modality": "fmri", "subject": f"sub-{number:02d}"},
    )
    return nedx.parse(ds.assign_coords(voxel=np.arange(values.shape[-1], dtype=np.int32)))


def _drawn(voxels: int, images: int, subjects: int = SUBJECTS) -> xr.DataTree:
    """Return subjects that share 40 latents, with noise."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((images, 40), np.float32)
    made = {}
    for n in range(1, subjects + 1):
        values = latents @ rng.standard_normal((40, voxels), np.float32)
        values += 3 * rng.standard_normal(values.shape, np.float32)
        made[f"sub-{n:02d}"] = _subject(values, n)
    return xr.DataTree.from_dict(made)


def _shared_gram() -> list[Row]:
    """Fit all pairs of five subjects; count what is shared, and the memory of weights held."""
    tree = _drawn(VOXELS, IMAGES)
    start = time.perf_counter()
    fitted = nedx.RidgeConverter(alpha=ALPHA).fit(tree, pairs="all")
    took = time.perf_counter() - start
    note = f"{len(fitted.model_.pairs)} pairs of {SUBJECTS} subjects, {VOXELS} voxels"
    return [
        at_most("Gram matrices computed", fitted.grams_, SUBJECTS, "", note),
        Row("all pairs fitted and written", took, "s", note=f"{IMAGES} samples; {note}"),
    ]


def _speed() -> list[Row]:
    """Solve 20 pairs with what subjects share, and one by one as scikit-learn's ridge does."""
    import torch
    from sklearn.linear_model import Ridge
    from threadpoolctl import threadpool_limits

    z = {}
    for name, child in _drawn(_TIMED_VOXELS, _TIMED_IMAGES).children.items():
        values = child["response"].values
        z[name] = (values - values.mean(0)) / values.std(0, ddof=1)
    pairs = [(a, b) for a in z for b in z if a != b]

    def shared() -> np.ndarray:
        grams = {name: Gram(values, "cpu") for name, values in z.items()}
        return [grams[a].solve(z[b], ALPHA) for a, b in pairs][-1]

    def alone() -> np.ndarray:
        fits = [Ridge(ALPHA, fit_intercept=False).fit(z[a], z[b]) for a, b in pairs]
        return np.asarray(fits[-1].coef_.T)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            seconds = interleave({"ours": shared, "theirs": alone}, rounds=2)
            apart = float(np.abs(shared() - alone()).max())
    finally:
        torch.set_num_threads(before)
    note = f"{_TIMED_IMAGES} samples, {_TIMED_VOXELS} voxels, one thread"
    return [
        at_least(
            "20 pairs against scikit-learn's Ridge, one by one",
            ratio(seconds["theirs"], seconds["ours"]),
            1.3,
            note=note,
        ),
        at_most("largest difference of a weight", apart, 1e-5, ""),
    ]


def _recovery() -> list[Row]:
    """Convert between two subjects whose map is a known rotation."""
    rng = np.random.default_rng(1)
    rows, held, size, repeats, noise = 3000, 500, 100, 4, 0.7
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    spectrum = np.linspace(1.6, 0.5, size)
    signal = rng.standard_normal((rows + held, size)) * spectrum
    exact = [_subject(s[:rows].astype(np.float32), n) for n, s in ((1, signal), (2, signal @ turn))]
    rotated = nedx.ProcrustesConverter(standardize=False, device="cpu").fit(*exact)
    error = np.abs(rotated.model_.weights(1, 2)["weight"].values - turn).max()
    part = np.array(["train"] * rows + ["test"] * held, dtype=object)
    shape = (rows + held, repeats, size)
    subjects = {
        f"sub-0{n}": _subject(
            (s[:, None] + noise * rng.standard_normal(shape)).astype(np.float32),
            n,
            partition=("image", part),
        )
        for n, s in ((1, signal), (2, signal @ turn))
    }
    fitted = nedx.RidgeConverter(device="cpu").fit(xr.DataTree.from_dict(subjects), pairs="all")
    test = subjects["sub-01"].isel(image=slice(rows, None))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "converter.zarr"
        fitted.to_zarr(place)
        there = test.ned.convert(place)
        back = there.ned.convert(place)["response"].values
        made = there["response"].values.mean(1)
    covariance = np.diag(spectrum**2)
    best = np.linalg.solve(covariance + noise**2 / repeats * np.eye(size), covariance) @ turn
    original = test["response"].values
    truth = (signal @ turn)[rows:]
    share = _r(made, truth) / _r(original.mean(1) @ best, truth)
    repeated = _r(original[:, 0], original[:, 1])
    return [
        at_most("Procrustes: largest error of a known rotation", float(error), 1e-5, ""),
        at_least("ridge: correlation over that of the best linear map", share, 0.95, ""),
        at_least(
            "there and back: correlation with the original over that of two repeats",
            _r(back[:, 0], original[:, 0]) / repeated,
            1,
            note=f"two repeats correlate at {repeated:.2f}",
        ),
    ]


def _r(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean correlation of columns."""
    x, y = ((v - v.mean(0)) / v.std(0) for v in (x, y))
    return float((x * y).mean(0).mean())
