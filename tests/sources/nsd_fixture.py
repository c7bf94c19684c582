"""Small files in the layout of the bucket natural-scenes-dataset, and the values they hold."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
from scipy.io import savemat

SHAPE = (6, 7, 5)
TRIALS = 750
SHARED = 1000
IMAGES = 10_000
AFFINE = np.array([[1.8, 0, 0, -5.0], [0, 1.8, 0, -6.0], [0, 0, 1.8, -4.0], [0, 0, 0, 1]])
BETAS = "betas_fithrf_GLMdenoise_RR"
HALF = 2562


def write_design(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ordering (trial,) and images (subject, column), both counted from 1 as published."""
    rng = np.random.default_rng(7)
    images = np.stack([1 + rng.permutation(73_000)[:IMAGES] for _ in range(8)])
    images[:, :SHARED] = images[0, :SHARED]
    # Each image is in the experiment three times, in a random order.
    ordering = rng.permutation(np.repeat(np.arange(1, IMAGES + 1), 3))
    folder = root / "nsddata/experiments/nsd"
    folder.mkdir(parents=True)
    savemat(
        folder / "nsd_expdesign.mat",
        {
            "masterordering": ordering[None],
            "subjectim": images,
            "sharedix": np.sort(images[:1, :SHARED]),
        },
    )
    return ordering, images


def save(values: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = nibabel.MGHImage if path.suffix in (".mgh", ".mgz") else nibabel.Nifti1Image
    nibabel.save(kind(values, affine), path)


def write_volumes(root: Path, sessions: int = 2) -> np.ndarray:
    """Write int16 betas of sub-01 (session, i, j, k, trial) as HDF5, and what belongs to them."""
    rng = np.random.default_rng(1)
    betas = rng.integers(-900, 900, (sessions, *SHAPE, TRIALS)).astype(np.int16)
    betas[:, 1, 2, 3] = 0
    folder = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{BETAS}"
    folder.mkdir(parents=True)
    for number, session in enumerate(betas, start=1):
        with h5py.File(folder / f"betas_session{number:02d}.hdf5", "w") as file:
            # MATLAB writes the axes in reverse.
            file.create_dataset("betas", data=session.T, chunks=(TRIALS, 1, 1, 1))
    save(rng.random(SHAPE, np.float32), folder / "ncsnr.nii.gz")
    rois = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    save(general_mask().astype(np.int16), rois / "nsdgeneral.nii.gz")
    save(visual_labels(), rois / "prf-visualrois.nii.gz")
    save(np.where(general_mask(), 5, -1).astype(np.int16), rois / "streams.nii.gz")
    names = root / "nsddata/freesurfer/subj01/label"
    names.mkdir(parents=True)
    visual = ["Unknown", "V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"]
    lines = [f"{number} {name}" for number, name in enumerate(visual)]
    (names / "prf-visualrois.mgz.ctab").write_text("\n".join(lines) + "\n")
    streams = ["Unknown", "early", "midventral", "midlateral", "midparietal", "ventral"]
    lines = [f"{number} {name}" for number, name in enumerate(streams)]
    (names / "streams.mgz.ctab").write_text("\n".join(lines) + "\n")
    return betas


def general_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 2:6, 1:4] = True
    return mask


def visual_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int16)
    labels[1, 2:6, 1:4], labels[2, 2:4, 1:4], labels[3, 2, 1] = 1, 2, 7
    return labels


def write_surfaces(root: Path, subject: str) -> np.ndarray:
    """Write float32 betas of one session on fsaverage (hemisphere, vertex, trial)."""
    rng = np.random.default_rng(int(subject[-1]))
    betas = rng.standard_normal((2, HALF, TRIALS)).astype(np.float32)
    folder = root / f"nsddata_betas/ppdata/{subject}/fsaverage/{BETAS}"
    for side, values in zip(("lh", "rh"), betas, strict=True):
        save(values[:, None, None], folder / f"{side}.betas_session01.mgh")
        save(rng.random((HALF, 1, 1), np.float32), folder / f"{side}.ncsnr.mgh")
        labels = np.zeros((HALF, 1, 1), np.int16)
        labels[10:30] = 1
        save(labels, root / f"nsddata/freesurfer/fsaverage/label/{side}.nsdgeneral.mgz")
    return betas
