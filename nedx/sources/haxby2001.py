"""Faces, houses and six other categories (Haxby et al. 2001, Science 293:2425-2430), one subject.

Layout of the folder, as published with PyMVPA: ``bold.nii.gz`` (one slice of 12 runs of 121
volumes, 2.5 s each), ``mask.nii.gz``, and ``attributes_literal.txt`` with a line
``category run`` for each volume. Which image was shown is not known.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr

from nedx.errors import SourceError, StoreError
from nedx.sources.nifti import open_volumes
from nedx.sources.sections import Missing, Normalize
from nedx.sources.timecourses import Run, open_runs
from nedx.store.location import Location

SECONDS_PER_VOLUME = 2.5


def open_haxby(
    root: str | os.PathLike[str] | Location,
    *,
    normalize: Normalize = "percent",
    missing: Missing = "error",
) -> xr.Dataset:
    """Open the volumes lazily, with the category of each.

    Parameters
    ----------
    root : path or Location
        The published folder.
    normalize : {"percent", "zscore"}
        Percent of each voxel's mean in the run, or a z-score within the run.
    missing : {"error", "zero"}
        What becomes of values that are not finite.

    Returns
    -------
    Dataset
        ``response (trial, voxel)``, float32, one trial a volume, with ``category`` (``"rest"``
        between blocks), ``session`` (1), ``run`` (from 0, as published) and ``onset``, seconds
        from the beginning of the run.

    Raises
    ------
    SourceError
        If files are not of the same volumes or voxels.
    StoreError, CorruptStoreError
        If a file is missing, cut short or damaged.
    """
    where = Location.of(root) if isinstance(root, Location) else Location.of(Path(root))
    categories, numbers = _attributes(where)
    bold = open_volumes(where, "bold.nii.gz")
    if bold.shape[3] != len(numbers):
        raise SourceError(
            f"{bold.url} has {bold.shape[3]:,} volumes, attributes_literal.txt {len(numbers):,} "
            "lines: they are not of the same recording"
        )
    runs = []
    for number in np.unique(numbers).tolist():
        volumes = np.flatnonzero(numbers == number)
        onsets = SECONDS_PER_VOLUME * np.arange(len(volumes))
        labels = {"category": categories[volumes]}
        runs.append(Run(bold, volumes, onsets, labels, session=1, run=number))
    attrs = {
        "title": "Haxby et al. 2001, subject 1, one slice",
        "dataset": "haxby2001",
        "license": "CC-BY-SA-3.0",
        "citation": (
            "Haxby JV, Gobbini MI, Furey ML, et al. (2001). Distributed and overlapping "
            "representations of faces and objects in ventral temporal cortex. Science 293, "
            "2425-2430"
        ),
        "subject_ids": ["sub-01"],
    }
    mask = open_volumes(where, "mask.nii.gz")
    return open_runs(runs, mask, space="bold", attrs=attrs, normalize=normalize, missing=missing)


def _attributes(root: Location) -> tuple[np.ndarray, np.ndarray]:
    """Return the category and the run of each volume."""
    name = "attributes_literal.txt"
    try:
        lines = root.read(name).decode().splitlines()
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {root.url}/{name}. Check the root") from error
    words = [line.split() for line in lines if line.strip()]
    if odd := [line for line in words if len(line) != 2 or not line[1].isdigit()]:
        raise SourceError(f"{root.url}/{name} has the line {odd[0]}, expected 'category run'")
    categories = np.array([category for category, _ in words], dtype=object)
    return categories, np.array([int(run) for _, run in words])
