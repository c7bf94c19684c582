"""Pre-generated responses in the folders, names, keys and dtypes of NED, with random values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.berg.models import save
from tests.berg.tree import write_fwrf_metadata, write_ned_eeg

NAME = "synthetic_neural_responses"
NOW, BEFORE, FIRST = "since 2024-10", "until 2024-10", "until 2024-05"
ERAS = (NOW, BEFORE, FIRST)
COUNTS = {"nsd": 40, "imagenet_val": 15, "things": 12}
"""Images of each set; the published ones are 73,000, 50,000 and 26,107."""

SPLITS = {"train": [1, 3, 30_000], "val": [5], "test": [7, 39]}
_CONCEPTS = ("aardvark", "abacus", "accordion", "acorn")
_CLASSES = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "great white shark"}


@dataclass(frozen=True)
class Written:
    """What one file holds, and where it is."""

    values: np.ndarray
    metadata: dict[str, Any]
    path: Path
    metadata_path: Path


def nsd_labels(count: int) -> dict[str, np.ndarray]:
    """Return the design: of the images some are shown in the last sessions only."""
    rng = np.random.default_rng(900)
    half = count // 2
    early = rng.integers(0, half, (8, 7500))
    late = rng.integers(half, count - 2, (8, 2500))
    return {
        "subjectim": np.concatenate([early, late], axis=1),
        "masterordering": np.repeat(np.arange(10_000), 3)[None],
    }


def image_labels(image_set: str, count: int) -> dict[str, Any]:
    if image_set == "nsd":
        return {"nsd_labels": nsd_labels(count)}
    if image_set == "imagenet_val":
        numbers = np.sort(np.arange(count) % len(_CLASSES))
        return {"imagenet_val_labels": {"label_number": numbers, "label_names": dict(_CLASSES)}}
    index = np.sort(np.arange(count) % len(_CONCEPTS))
    paths = {}
    for row, concept in enumerate(index.tolist()):
        name = _CONCEPTS[concept]
        nth = row - int(np.flatnonzero(index == concept)[0]) + 1
        paths[row] = f"{name}/{name}_{nth:02d}b.jpg"
    labels = {
        "image_concept_index": index,
        "image_paths": paths,
        "unique_id": dict(enumerate(_CONCEPTS)),
    }
    return {"things_labels": labels}


def names(root: Path, image_set: str, era: str, model: tuple[str, str, str], tail: str) -> Any:
    """Return the paths of values and metadata."""
    modality, dataset, name = model
    top = "pregenerated_insilico_neural_responses" if era == NOW else NAME
    train = f"train_dataset-{dataset}"
    folder = root / top / f"modality-{modality}" / train / f"model-{name}" / f"imageset-{image_set}"
    long = f"_training_dataset-{dataset}_model-{name}_imageset-{image_set}" if era == FIRST else ""
    return folder / f"{NAME}{long}_{tail}.h5", folder / f"{NAME}_metadata{long}_{tail}.npy"


def write_responses(
    root: Path,
    image_set: str = "nsd",
    era: str = NOW,
    *,
    modality: str = "fmri",
    subject: int = 1,
    roi: str = "V1",
    voxels: int = 7,
    count: int | None = None,
    chunks: tuple[int, ...] | None = None,
) -> Written:
    """Write the responses of one subject (of fMRI: of one ROI) and their metadata."""
    count = COUNTS[image_set] if count is None else count
    tail = f"sub-{subject:02d}"
    rng = np.random.default_rng([901, subject, len(image_set)])
    if modality == "fmri":
        metadata = write_fwrf_metadata(root, subject, roi, voxels, ned=True)
        metadata["encoding_models"]["train_val_test_nsd_image_splits"] = {
            f"{name}_img_num": np.array(numbers) for name, numbers in SPLITS.items()
        }
        shape: tuple[int, ...] = (count, voxels)
        paths = names(root, image_set, era, ("fmri", "nsd", "fwrf"), f"{tail}_roi-{roi}")
    else:
        metadata = write_ned_eeg(root, subject, 6)["metadata"]
        shape = (count, 4, len(metadata["eeg"]["ch_names"]), len(metadata["eeg"]["times"]))
        paths = names(root, image_set, era, ("eeg", "things_eeg_2", "vit_b_32"), tail)
    values = rng.standard_normal(shape, dtype=np.float32)
    metadata = {**metadata, **image_labels(image_set, count)}
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(paths[0], "w") as file:
        file.create_dataset(
            NAME, data=values, chunks=chunks, compression="gzip" if chunks else None
        )
    save(paths[1], metadata)
    return Written(values, metadata, *paths)


def write_sparse(path: Path, shape: tuple[int, int], rows: dict[int, np.ndarray]) -> None:
    """Write a file of the full shape that takes up the space of a few rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(shape)
        made = h5py.h5d.create(file.id, NAME.encode(), h5py.h5t.IEEE_F32LE, space, layout)
        values = h5py.Dataset(made)
        for row, value in rows.items():
            values[row] = value
