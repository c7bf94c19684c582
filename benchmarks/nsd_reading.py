"""Random trials of an NSD session: from the HDF5 as it ships, and from the imported store."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
from scipy.io import savemat

import nedx
from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.sources.importing import import_source

TRIALS = 750
SHAPE = (40, 50, 40)
BRAIN = 0.32
CHOSEN = 100
BETAS = "betas_fithrf_GLMdenoise_RR"


def measure() -> list[Row]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root, place = Path(folder, "nsd"), Path(folder, "nsd.zarr")
        mask, betas = _brain(), _publish(root, rng)
        seconds = _timed(lambda: _import(root, place))
        chosen = np.sort(rng.choice(TRIALS, CHOSEN, replace=False))
        fancy, values = _timed_value(lambda: _fancy(betas, chosen))
        wanted = values[:, mask.T]

        def whole() -> np.ndarray:
            with h5py.File(betas, "r") as file:
                return file["betas"][:][chosen]

        def stored() -> np.ndarray:
            return nedx.open(str(place)).response.isel(trial=chosen).values

        found = stored()
        order = np.argsort(np.ravel_multi_index(np.nonzero(mask), SHAPE, order="F"))
        difference = np.abs(found[:, order] - wanted / 300).max() / np.abs(wanted / 300).max()
        times = interleave({"whole": whole, "store": stored})
    size = f"{CHOSEN} of {TRIALS} trials, {int(mask.sum()):,} of {mask.size:,} voxels"
    middle = statistics.median(times["store"])
    return [
        at_least("store over h5py's fancy index", fancy / middle, 100, note=size),
        at_least("store over reading the whole file", ratio(times["whole"], times["store"]), 5),
        Row("reading the trials from the store", middle, "s"),
        Row("importing the session", seconds, "s"),
        at_most("largest difference over largest value", float(difference), 5e-4, unit=""),
    ]


def _brain() -> np.ndarray:
    """Return an ellipsoid that holds about a third of the volume."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    distance = sum(axis**2 for axis in axes)
    return distance <= np.quantile(distance, BRAIN)


def _publish(root: Path, rng: np.random.Generator) -> Path:
    """Write one session of subject 1 as published; returns the file of its betas."""
    design = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    rois = root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    betas = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{BETAS}/betas_session01.hdf5"
    for path in (design, rois, betas):
        path.parent.mkdir(parents=True)
    images = 1 + np.tile(np.arange(10_000), (8, 1))
    ordering = rng.permutation(np.repeat(np.arange(1, 10_001), 3))
    names = {"masterordering": ordering[None], "subjectim": images, "sharedix": images[:1, :1000]}
    savemat(design, names)
    nibabel.save(nibabel.Nifti1Image(_brain().astype(np.int16), np.diag([1.8, 1.8, 1.8, 1])), rois)
    with h5py.File(betas, "w") as file:
        shape = (TRIALS, *SHAPE[::-1])
        data = file.create_dataset("betas", shape, np.int16, chunks=(TRIALS, 1, 1, 1))
        for plane in range(SHAPE[2]):
            values = 450 * rng.standard_normal((TRIALS, *SHAPE[1::-1]), np.float32)
            data[:, plane] = np.rint(values).astype(np.int16)
    return betas


def _import(root: Path, place: Path) -> object:
    return import_source("nsd", root, place, subject=1, sessions=[1], normalize="none")


def _fancy(betas: Path, chosen: np.ndarray) -> np.ndarray:
    with h5py.File(betas, "r") as file:
        values: np.ndarray = file["betas"][chosen]
    return values


def _timed(way: Callable[[], object]) -> float:
    return _timed_value(way)[0]


def _timed_value(way: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    value = way()
    return time.perf_counter() - start, value
