"""THINGS-fMRI (Hebart et al. 2023, eLife 12:e82580): single-trial betas in table format.

Layout of the folder ``betas_csv``, as published at doi.org/10.25452/figshare.plus.20492835:
``sub-NN_ResponseData.h5`` (a table of pandas, voxels by trials), ``sub-NN_StimulusMetadata.csv``
(``trial_type``, ``session``, ``run``, ``trial_id``, ``stimulus``, ``concept``) and
``sub-NN_VoxelMetadata.csv`` (``voxel_id``, the indices ``voxel_x``, ``voxel_y``, ``voxel_z`` from
0, ceilings in percent, pRF parameters, and a column of 0 and 1 for each ROI). Columns and layout
were taken from the usage notes of github.com/ViCCo-Group/THINGS-data.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.planned import PlannedArray
from nedx.errors import (
    CorruptStoreError,
    SelectionError,
    SourceError,
    StoreError,
    close_matches,
    require,
)
from nedx.schema import parse
from nedx.selection import Names, Subjects, chosen_subjects
from nedx.sources.berg.hdf5 import HDF5_LOCK
from nedx.sources.berg.streams import opened, stamp, url_of
from nedx.sources.sections import Missing, Section
from nedx.sources.trials import (
    Normalize,
    beta_attrs,
    beta_steps,
    ceiling_of_percent,
    check_normalize,
    earlier_presentations,
)
from nedx.sources.volumes import VolumesPlan
from nedx.store.location import Location

TEST_REPETITIONS = 12
"""Of each test image, one a session."""
_MEASURES = re.compile(r"voxel_.*|subject_id|nc_.*|splithalf_.*|prf-.*|Unnamed: 0|")
"""Columns of voxels that are no ROI."""
_CITATION = (
    "Hebart MN, Contier O, Teichmann L, et al. (2023). THINGS-data, a multimodal collection of "
    "large-scale datasets for investigating object representations in human brain and behavior. "
    "eLife 12, e82580"
)


def open_things_fmri(
    root: str | Path | Location,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    normalize: Normalize = "zscore",
    missing: Missing = "error",
) -> xr.Dataset | xr.DataTree:
    """Open single-trial betas of THINGS-fMRI, lazily; the tables of trials and voxels are read.

    Parameters
    ----------
    root : str, Path or Location
        The folder or bucket ``betas_csv``.
    subject : str, int or sequence, optional
        1 to 3; all by default.
    roi : str or sequence of str, optional
        Only voxels of these ROIs, such as ``"V1"``, ``"lFFA"`` or ``"glasser-FFC"``.
    normalize : {"zscore", "none"}
        z-score each voxel within each session (population standard deviation), or as published.
    missing : {"error", "zero"}
        What becomes of values that are not finite.

    Returns
    -------
    Dataset or DataTree
        Of one subject ``response (trial, voxel)``, float32; of several a DataTree with a child
        for each. Trials have ``image_id`` (``"things:aardvark_01b"``), ``things_concept``,
        ``session`` and ``run`` (as published), ``repetition`` (from 0) and ``partition``, the
        published type of trial (train, test, or catch). Voxels have ``i``, ``j``, ``k`` (from 0),
        ``roi_mask``, the pRF parameters, and as fractions of variance ``noise_ceiling`` (of the
        mean of 12 test trials) and ``noise_ceiling_single_trial``.

    Raises
    ------
    SelectionError
        If there is no such subject or ROI.
    SourceError
        If the tables and the responses are not of the same voxels and trials.
    StoreError, CorruptStoreError
        If a file is missing, cut short or damaged.
    """
    check_normalize(normalize)
    where = Location.of(root)
    names = chosen_subjects(subject, ["sub-01", "sub-02", "sub-03"], "in THINGS-fMRI")
    children = {name: _open_subject(where, name, roi, normalize, missing) for name in names}
    if subject is not None and len(names) == 1:
        return next(iter(children.values()))
    top = xr.Dataset(attrs={**next(iter(children.values())).attrs, "subject_ids": names})
    return parse(xr.DataTree.from_dict({"/": top, **children}))


@dataclass(frozen=True)
class ResponseTable:
    """``ResponseData.h5``: a table of pandas whose rows are voxels.

    Parameters
    ----------
    location : Location
        A folder or bucket.
    key : str
        The file in it.
    name : str
        The dataset that holds the values, float64 (voxel, trial).
    shape : tuple of int
        ``(voxel, 1, 1, trial)``.
    stamp : str
        Changes when the file does.
    """

    location: Location
    key: str
    name: str
    shape: tuple[int, ...]
    stamp: str

    is_columnar = True

    @property
    def url(self) -> str:
        """The file, for messages."""
        return url_of(self.location, self.key)

    def read(self, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Read float32 ``(trial, voxel)``: of each run of rows the columns from first to last."""
        values = np.empty((len(volumes), len(voxels)), np.float32)
        if not values.size:
            return values
        rows, order = np.unique(voxels, return_inverse=True)
        first, last = int(volumes.min()), int(volumes.max()) + 1
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        found = np.empty((len(rows), last - first), np.float32)
        with _opened_table(self.location, self.key) as container:
            for start, stop in zip(edges[:-1], edges[1:], strict=True):
                wanted = slice(int(rows[start]), int(rows[stop - 1]) + 1)
                found[start:stop] = container[self.name][wanted, first:last]
        values[:] = found[order][:, volumes - first].T
        return values


@contextmanager
def _opened_table(location: Location, key: str) -> Iterator[Any]:
    h5py = require("h5py", "hdf5")
    with HDF5_LOCK, opened(location, key) as file:
        try:
            with h5py.File(file, "r") as container:
                yield container
        except StoreError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            raise CorruptStoreError(
                f"{url_of(location, key)} is cut short, damaged or no HDF5 ({error}). Fetch it "
                "again"
            ) from error


def _open_table(root: Location, key: str, voxels: int, trials: int) -> ResponseTable:
    """Find the values among the blocks of pandas, and compare their shape with the tables."""
    shapes = {}
    with _opened_table(root, key) as container:
        blocks = container.get("ResponseData", {})
        for name in blocks:
            if re.fullmatch(r"block\d+_values", name):
                shapes[f"ResponseData/{name}"] = blocks[name].shape, blocks[name].dtype
    floats = {name: shape for name, (shape, dtype) in shapes.items() if dtype.kind == "f"}
    if len(floats) != 1:
        raise SourceError(
            f"{root.url}/{key} holds {len(floats)} blocks of floats below ResponseData, expected "
            "one: it is another kind of file"
        )
    name, shape = next(iter(floats.items()))
    if shape != (voxels, trials):
        raise SourceError(
            f"{root.url}/{key} has (voxels, trials) {shape}, VoxelMetadata.csv {voxels:,} voxels "
            f"and StimulusMetadata.csv {trials:,} trials: they are not of the same subject"
        )
    return ResponseTable(root, key, name, (voxels, 1, 1, trials), stamp(root, key))


def _read_csv(root: Location, key: str, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read a table as columns of str."""
    try:
        text = root.read(key).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no file {root.url}/{key}. Check the root, which is the folder betas_csv"
        ) from error
    rows = list(csv.DictReader(io.StringIO(text)))
    names = list(rows[0]) if rows else []
    if lacking := [name for name in needed if name not in names]:
        raise SourceError(f"{root.url}/{key} lacks {', '.join(lacking)}, or is cut short")
    if any(None in row.values() for row in rows):
        raise SourceError(f"{root.url}/{key} is cut short: its last line is torn. Fetch it again")
    return {name: np.array([row[name] for row in rows], dtype=object) for name in names}


def _numbers(column: np.ndarray) -> np.ndarray:
    """Return a column of numbers, float64; an empty cell, as pandas writes NaN, is NaN."""
    return np.array([float(value or "nan") for value in column], np.float64)


def _open_subject(
    root: Location, name: str, roi: Names | None, normalize: Normalize, missing: Missing
) -> xr.Dataset:
    columns = ("trial_type", "session", "run", "stimulus", "concept")
    trials = _read_csv(root, f"{name}_StimulusMetadata.csv", columns)
    key = f"{name}_VoxelMetadata.csv"
    places = ("voxel_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial", "nc_testset")
    voxels = _read_csv(root, key, places)
    count = len(voxels["voxel_id"])
    table = _open_table(root, f"{name}_ResponseData.h5", count, len(trials["stimulus"]))
    masks = {
        column: _numbers(values) > 0
        for column, values in voxels.items()
        if not _MEASURES.fullmatch(column)
    }
    chosen = _chosen(masks, roi, count)
    sessions = trials["session"].astype(np.int16)
    sections = [
        Section(table, np.flatnonzero(sessions == number), f"session {number}")
        for number in np.unique(sessions).tolist()
    ]
    order = np.concatenate([section.volumes for section in sections])
    plan = VolumesPlan.whole(sections, chosen, normalize, missing)
    response = xr.Variable(("trial", "voxel"), PlannedArray(plan), beta_attrs(normalize))
    coords = {
        **_trial_coords({column: values[order] for column, values in trials.items()}),
        **_voxel_coords(
            {column: values[chosen] for column, values in voxels.items()},
            {column: mask[chosen] for column, mask in masks.items()},
            f"{root.url}/{key}",
        ),
    }
    attrs = {
        "title": "THINGS-fMRI, single-trial betas",
        "dataset": "things_fmri",
        "source": "measured",
        "modality": "fmri",
        "species": "human",
        "stimulus_type": "image",
        "license": "CC0-1.0",
        "citation": _CITATION,
        "references": "https://doi.org/10.7554/eLife.82580",
        "subject_ids": [name],
        "preprocessing": beta_steps("single-trial, table format", normalize, missing),
    }
    return parse(xr.Dataset({"response": response}, coords, attrs))


def _chosen(masks: dict[str, np.ndarray], roi: Names | None, count: int) -> np.ndarray:
    if roi is None:
        return np.arange(count)
    names = [roi] if isinstance(roi, str) else list(roi)
    if unknown := [name for name in names if name not in masks]:
        raise SelectionError(f"there is no ROI {unknown[0]!r}: {close_matches(unknown[0], masks)}")
    return np.flatnonzero(np.any([masks[name] for name in names], axis=0))


def _trial_coords(trials: dict[str, np.ndarray]) -> dict[str, Any]:
    names = [str(name).removesuffix(".jpg") for name in trials["stimulus"]]
    ids = np.array([f"things:{name}" for name in names], dtype=object)
    columns: dict[str, Any] = {
        "image_id": ids,
        "filename": trials["stimulus"],
        "things_concept": trials["concept"],
        "session": trials["session"].astype(np.int16),
        "run": trials["run"].astype(np.int16),
        "repetition": earlier_presentations(ids.astype(str)),
        "partition": trials["trial_type"],
    }
    return {column: ("trial", values) for column, values in columns.items()}


def _voxel_coords(
    voxels: dict[str, np.ndarray], masks: dict[str, np.ndarray], url: str
) -> dict[str, Any]:
    coords: dict[str, Any] = {
        "voxel": ("voxel", voxels["voxel_id"].astype(np.int32), {"space": "T1w"}),
        **{
            index: ("voxel", voxels[f"voxel_{axis}"].astype(np.int32))
            for index, axis in zip("ijk", "xyz", strict=True)
        },
        "noise_ceiling": (
            "voxel",
            *ceiling_of_percent(_numbers(voxels["nc_testset"]), url, TEST_REPETITIONS),
        ),
        "noise_ceiling_single_trial": (
            "voxel",
            *ceiling_of_percent(_numbers(voxels["nc_singletrial"]), url, 1),
        ),
    }
    for column, values in voxels.items():
        if column.startswith("prf-"):
            coords[column.replace("-", "_")] = ("voxel", _numbers(values).astype(np.float32))
    if masks:
        families = ["HCP_MMP1" if name.startswith("glasser-") else "localizer" for name in masks]
        coords["roi"] = np.array(list(masks), dtype=object)
        coords["roi_group"] = ("roi", np.array(families, dtype=object))
        coords["roi_mask"] = (("roi", "voxel"), np.stack(list(masks.values())))
    return coords
