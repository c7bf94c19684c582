"""The images of THINGS as they are published with EEG and MEG: one folder for each concept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, SourceError
from nedx.schema import parse
from nedx.stimuli import open_images
from nedx.stimuli.decoding import SUFFIXES

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("training_images", "train_images"),
    "test": ("test_images",),
}
"""Where the images of each partition lie."""


def open_things_images(
    root: str | Path, *, partition: str | None = None, **options: Any
) -> xr.Dataset:
    """Open images of THINGS lazily, under the ids that recordings name them by.

    Parameters
    ----------
    root : str or Path
        A folder with ``training_images/<concept>/<file>`` and ``test_images/<concept>/<file>``,
        as THINGS-EEG2 comes, or with ``<concept>/<file>``, as THINGS itself does. Concepts may be
        numbered: ``00001_aardvark``.
    partition : {"train", "test"}, optional
        Both by default.
    **options
        As `nedx.open_images` takes them, such as ``size``, ``fit`` and ``chunks``.

    Returns
    -------
    Dataset
        ``pixels (image, y, x, rgb)`` uint8 with ``image_id`` (``things:aardvark_01b``),
        ``things_concept`` (also as ``category``), ``filename`` and, where folders tell,
        ``partition``; in the order of concepts and files, which is that of the numbers in
        recordings.

    Raises
    ------
    SelectionError
        If there is no such partition.
    SourceError
        If there are no images.
    StimulusError
        As of `nedx.open_images`.
    """
    folder = Path(root).expanduser()
    if partition not in (None, *FOLDERS):
        raise SelectionError(f"partition is 'train' or 'test', not {partition!r}")
    wanted = FOLDERS if partition is None else {partition: FOLDERS[partition]}
    found = {name: files_of(folder, places) for name, places in wanted.items()}
    if not any(found.values()) and partition is None:
        found = {"": files_of(folder, [""])}
    files = [file for part in found.values() for file in part]
    if not files:
        raise SourceError(
            f"{folder} holds no images: expected training_images/<concept>/<file> and "
            "test_images/<concept>/<file>, or <concept>/<file>"
        )
    ids = [image_id(file) for file in files]
    paths = [folder / file for file in files]
    opened = open_images(paths, image_ids=ids, image_set="things", **options)
    concepts = [concept_of(file) for file in files]
    labels = {"things_concept": concepts, "category": concepts, "filename": files}
    if "" not in found:
        labels["partition"] = [name for name, part in found.items() for _ in part]
    return parse(
        opened.assign_coords(
            {name: ("image", np.array(values, object)) for name, values in labels.items()}
        )
    )


def files_of(folder: Path, places: Sequence[str]) -> list[str]:
    """Return the images of the first place that holds some, by concept and name.

    Parameters
    ----------
    folder : Path
    places : sequence of str
        Folders in it, of which each holds one folder for each concept.

    Returns
    -------
    list of str
        Paths from ``folder``, such as ``test_images/00001_aircraft_carrier/x_06s.jpg``.
    """
    for place in places:
        files = [path for path in (folder / place).glob("*/*") if _is_image(path)]
        if files:
            files.sort(key=lambda path: (path.parent.name, path.name))
            return [path.relative_to(folder).as_posix() for path in files]
    return []


def _is_image(path: Path) -> bool:
    """Leave out what systems and notebooks hide beside images, which would shift their numbers."""
    hidden = path.name.startswith(".") or path.parent.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and not hidden


def image_id(file: str) -> str:
    """Return the id of an image by its file: ``things:aardvark_01b``."""
    return f"things:{file.rpartition('/')[2].rsplit('.', 1)[0]}"


def concept_of(file: str) -> str:
    """Return the concept of an image by its folder, without its number."""
    return re.sub(r"^\d+_", "", file.rpartition("/")[0].rpartition("/")[2])
