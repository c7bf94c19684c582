"""What the numbers in THINGS-EEG2 stand for: images, channels, regions of the scalp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nedx.errors import SourceError
from nedx.sources.mapped_pickles import open_pickled
from nedx.sources.things_images import concept_of, image_id

METADATA = "image_metadata.npy"
_PLACES = (METADATA, f"image_set/{METADATA}", f"Image_set/{METADATA}")
_FILES = {"train": "train_img_files", "test": "test_img_files"}
_CONCEPTS = {"train": "train_img_concepts", "test": "test_img_concepts"}
_SPLITS = {"train": "training_images", "test": "test_images"}

CITATION = (
    "Gifford AT, Dwivedi K, Roig G, Cichy RM (2022). A large and rich EEG dataset for modeling "
    "human visual object recognition. NeuroImage 264, 119754"
)
ATTRS = {
    "title": "THINGS-EEG2",
    "dataset": "things_eeg_2",
    "modality": "eeg",
    "source": "measured",
    "species": "human",
    "stimulus_type": "image",
    "license": "https://osf.io/3jk45",
    "references": CITATION,
}


@dataclass(frozen=True)
class Images:
    """The images of one partition, in the order of their numbers, which count from 1.

    Parameters
    ----------
    partition : str
        ``"train"`` or ``"test"``.
    files : tuple of str
        For example ``aardvark_01b.jpg``.
    concepts : tuple of str
        For example ``00001_aardvark``: the folder of each image.
    """

    partition: str
    files: tuple[str, ...]
    concepts: tuple[str, ...]

    def labels(self, rows: np.ndarray, dim: str) -> dict[str, Any]:
        """Return the coordinates of images by their positions, which count from 0."""
        folders = [self.concepts[row] for row in rows]
        paths = [
            f"{_SPLITS[self.partition]}/{folder}/{self.files[row]}"
            for folder, row in zip(folders, rows, strict=True)
        ]
        concepts = _strings(concept_of(path) for path in paths)
        return {
            "image_id": (dim, _strings(image_id(path) for path in paths)),
            "things_concept": (dim, concepts),
            "category": (dim, concepts),
            "filename": (dim, _strings(paths)),
            "partition": (dim, _strings([self.partition] * len(paths))),
        }


def _strings(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=object)


def read_images(place: str | Path) -> dict[str, Images]:
    """Read ``image_metadata.npy``.

    Parameters
    ----------
    place : path
        The file, or a folder that holds it, as it is or in ``image_set``.

    Returns
    -------
    dict of str to Images
        ``"train"`` and ``"test"``.

    Raises
    ------
    SourceError
        If it is not there, or its lists do not fit each other.
    """
    path = _find(Path(place))
    held = open_pickled(path)
    wanted = [*_FILES.values(), *_CONCEPTS.values()]
    if missing := [name for name in wanted if name not in held]:
        raise SourceError(
            f"{path} has no {', '.join(missing)}; it holds {', '.join(map(str, held))}. Fetch it "
            "again"
        )
    found = {}
    for partition, name in _FILES.items():
        files = tuple(str(file) for file in held[name])
        concepts = tuple(str(concept) for concept in held[_CONCEPTS[partition]])
        if len(files) != len(concepts):
            raise SourceError(
                f"{path} names {len(files)} files and {len(concepts)} concepts of {partition} "
                "images. Fetch it again"
            )
        found[partition] = Images(partition, files, concepts)
    return found


def _find(place: Path) -> Path:
    if place.is_file():
        return place
    for folder in (place, place.parent):
        for name in _PLACES:
            if (folder / name).is_file():
                return folder / name
    raise SourceError(
        f"{METADATA} says which image a number means, and is not in {place} (nor in its folder "
        "image_set). Type: nedx.sources.things_eeg2.pull(folder, what='metadata'), or give "
        "image_metadata="
    )
