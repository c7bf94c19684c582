"""LAION-fMRI: single-trial betas of GLMsingle (TYPED) of five subjects, in T1w space at 1.8 mm.

Layout of the bucket ``s3://laion-fmri``, below ``derivatives/glmsingle-tedana/sub-NN``:
``ses-NN/func/sub-NN_ses-NN_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz``
(a volume a trial), ``..._desc-SingletrialBetas_trials.tsv`` beside it (``session``, ``run``,
``beta_index`` from 0, ``label``), and of the subject ``..._desc-Noiseceiling{4,12,All}rep_statmap``
in percent and ``..._stat-rsquare_desc-R2mean_statmap``, whose voxels above 0 are the brain. ROIs
are ``derivatives/rois/sub-NN/<category>/sub-NN_space-T1w_res-1pt8_label-<ROI>_mask.nii.gz``. The
layout was taken from the documentation of github.com/ViCCo-Group/LAION-fMRI.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.planned import PlannedArray
from nedx.errors import SelectionError, SourceError, StoreError, close_matches
from nedx.schema import parse
from nedx.selection import Names, Subjects, chosen_subjects
from nedx.sources.nifti import VolumeFile, fortran_index, open_volumes, same_space, voxel_labels
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

SUBJECTS = ["sub-01", "sub-03", "sub-05", "sub-06", "sub-07"]
CEILINGS: dict[str, int | str] = {
    "Noiseceiling4rep": 4,
    "Noiseceiling12rep": 12,
    "NoiseceilingAllrep": "all",
}
"""Published ceilings, and over how many repetitions."""
_BETAS = "derivatives/glmsingle-tedana"
_IMAGE = re.compile(r"\.(?:jpe?g|png)$", re.IGNORECASE)


def open_laion_fmri(
    root: str | Path | Location,
    *,
    subject: Subjects | None = None,
    sessions: Sequence[int] | None = None,
    roi: Names | None = None,
    ceiling: str = "Noiseceiling12rep",
    normalize: Normalize = "zscore",
    missing: Missing = "error",
) -> xr.Dataset | xr.DataTree:
    """Open single-trial betas of LAION-fMRI, lazily; labels, ROIs and the ceiling are read.

    Parameters
    ----------
    root : str, Path or Location
        What holds ``derivatives``: a folder or a bucket. Files with gzip are unpacked into the
        cache, once.
    subject : str, int or sequence, optional
        1, 3, 5, 6 or 7, the number in the label; all by default.
    sessions : sequence of int, optional
        The numbers in their labels; all that are there by default.
    roi : str or sequence of str, optional
        Only voxels of these ROIs; the brain by default.
    ceiling : {"Noiseceiling12rep", "Noiseceiling4rep", "NoiseceilingAllrep"}
        Which of the published ceilings becomes ``noise_ceiling``.
    normalize : {"zscore", "none"}
        z-score each voxel within each session (population standard deviation), as is advised, or
        as published: ridge regression made the betas smaller than the percent they are in.
    missing : {"error", "zero"}
        What becomes of values that are not finite, which are published at the edge of the brain.

    Returns
    -------
    Dataset or DataTree
        Of one subject ``response (trial, voxel)``, float32; of several a DataTree with a child
        for each. Trials have ``image_id`` (``"laion:<label>"``), ``filename``, ``session``,
        ``run``, ``repetition`` (from 0, in the sessions that are open) and ``is_shared``; the
        published splits are lists of labels of their own, and not read. Voxels have ``i``, ``j``,
        ``k`` (from 0), mm, ``roi_mask`` and ``noise_ceiling``, a fraction of variance.

    Raises
    ------
    SelectionError
        If there is no such subject, ROI or ceiling.
    SourceError
        If files are missing, or are not of the same trials and voxels.
    StoreError, CorruptStoreError
        If a file cannot be read, is cut short or damaged.
    """
    check_normalize(normalize)
    if ceiling not in CEILINGS:
        raise SelectionError(f"there is no ceiling {ceiling!r}: {close_matches(ceiling, CEILINGS)}")
    where = Location.of(root)
    wanted = None if sessions is None else [int(session) for session in sessions]
    names = chosen_subjects(subject, SUBJECTS, "in LAION-fMRI")
    children: dict[str, xr.Dataset] = {}
    for name in names:
        trials, sections = _open_sessions(where, name, wanted)
        labels, places = _voxels(where, name, sections[0].file, roi, ceiling)
        plan = VolumesPlan.whole(sections, places, normalize, missing)
        response = xr.Variable(("trial", "voxel"), PlannedArray(plan), beta_attrs(normalize))
        ds = xr.Dataset({"response": response}, labels.coords, _attrs([name], normalize, missing))
        children[name] = parse(ds.assign_coords(trials))
    if subject is not None and len(names) == 1:
        return children[names[0]]
    top = xr.Dataset(attrs=_attrs(names, normalize, missing))
    return parse(xr.DataTree.from_dict({"/": top, **children}))


def _open_sessions(
    root: Location, name: str, wanted: list[int] | None
) -> tuple[dict[str, Any], list[Section]]:
    """Return the labels of the trials, and the volumes of each session."""
    pattern = re.compile(
        rf".*/ses-(\d+)/func/{name}_ses-\d+_task-images_.*SingletrialBetas_statmap"
    )
    keys = {int(m[1]): key for key in root.list(f"{_BETAS}/{name}") if (m := pattern.match(key))}
    keys = {number: key for number, key in keys.items() if key.endswith((".nii", ".nii.gz"))}
    sessions = sorted(keys) if wanted is None else wanted
    if missing := [number for number in sessions if number not in keys]:
        raise SourceError(
            f"the betas of session {missing[0]} of {name} are missing; there are those of "
            f"{', '.join(map(str, sorted(keys))) or 'none'}"
        )
    if not sessions:
        raise SourceError(f"{root.url}/{_BETAS}/{name} holds no betas: check the root")
    tables, sections, files = [], [], []
    for number in sessions:
        file = open_volumes(root, keys[number])
        session = f"ses-{number:02d}"
        key = f"{_BETAS}/{name}/{session}/func/{name}_{session}_task-images_desc-SingletrialBetas"
        rows = _read_trials(root, f"{key}_trials.tsv", file)
        volumes = np.array([int(row["beta_index"]) for row in rows])
        tables += [(number, row) for row in rows]
        files.append(file)
        sections.append(Section(file, volumes, f"session {number} of {name}"))
    faults = same_space(*files)
    if faults:
        raise SourceError(f"the sessions are not of the same voxels: {'; '.join(faults)}")
    return _trial_coords(tables), sections


def _read_trials(root: Location, key: str, file: VolumeFile) -> list[dict[str, str]]:
    try:
        text = root.read(key).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {root.url}/{key}. Fetch it") from error
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    needed = ("run", "beta_index", "label")
    if not rows or any(row.get(name) is None for row in rows for name in needed):
        raise SourceError(f"{root.url}/{key} is cut short, or lacks one of {', '.join(needed)}")
    for line, row in enumerate(rows, start=2):
        if not (row["beta_index"].isdigit() and row["run"].removeprefix("run-").isdigit()):
            raise SourceError(
                f"line {line} of {root.url}/{key} has the beta_index {row['beta_index']!r} and the "
                f"run {row['run']!r}, expected whole numbers"
            )
    numbers = sorted(int(row["beta_index"]) for row in rows)
    if numbers != list(range(file.shape[3])):
        raise SourceError(
            f"{root.url}/{key} has {len(rows):,} trials, numbered {numbers[0]} to {numbers[-1]}, "
            f"{file.url} {file.shape[3]:,} volumes from 0: they are not of the same session"
        )
    return rows


def _trial_coords(tables: list[tuple[int, dict[str, str]]]) -> dict[str, Any]:
    labels = [row["label"] for _, row in tables]
    ids = np.array([f"laion:{_IMAGE.sub('', label)}" for label in labels], dtype=object)
    columns: dict[str, Any] = {
        "image_id": ids,
        "filename": np.array(labels, dtype=object),
        "session": np.array([number for number, _ in tables], np.int16),
        "run": np.array([int(row["run"].removeprefix("run-")) for _, row in tables], np.int16),
        "repetition": earlier_presentations(ids.astype(str)),
        "is_shared": np.array([label.startswith("shared_") for label in labels]),
    }
    return {name: ("trial", values) for name, values in columns.items()}


def _voxels(
    root: Location, name: str, first: Any, roi: Names | None, ceiling: str
) -> tuple[xr.Dataset, np.ndarray]:
    """Label the voxels of the brain or the ROIs, and say where they are in Fortran order."""
    folder = f"{_BETAS}/{name}/{name}_task-images_space-T1w"
    brain = open_volumes(root, f"{folder}_stat-rsquare_desc-R2mean_statmap.nii.gz")
    pattern = re.compile(
        rf".*/(?P<group>[^/]+)/{name}_space-T1w_res-1pt8_label-(?P<roi>[^_]+)_mask\.nii(?:\.gz)?"
    )
    found = {
        match["roi"]: (match["group"], open_volumes(root, key))
        for key in root.list(f"derivatives/rois/{name}")
        if (match := pattern.fullmatch(key))
    }
    faults = same_space(first, brain, *(file for _, file in found.values()))
    if faults:
        raise SourceError(f"masks are not of the voxels of the betas: {'; '.join(faults)}")
    masks = {one: file.volume() > 0 for one, (_, file) in found.items()}
    inside = np.nan_to_num(brain.volume()) > 0
    if roi is not None:
        names = [roi] if isinstance(roi, str) else list(roi)
        if unknown := [one for one in names if one not in masks]:
            near = close_matches(unknown[0], masks)
            raise SelectionError(f"there is no ROI {unknown[0]!r} of {name}: {near}")
        inside &= np.any([masks[one] for one in names], axis=0)
    labels = voxel_labels(inside, first.affine, "T1w")
    coords: dict[str, Any] = {}
    if masks:
        groups = [found[one][0] for one in masks]
        coords["roi"] = np.array(list(masks), dtype=object)
        coords["roi_group"] = ("roi", np.array(groups, dtype=object))
        coords["roi_mask"] = (("roi", "voxel"), np.stack([m[inside] for m in masks.values()]))
    key = f"{folder}_desc-{ceiling}_statmap.nii.gz"
    if root.exists(key):
        percent = open_volumes(root, key).volume()
        values, about = ceiling_of_percent(percent[inside], f"{root.url}/{key}", CEILINGS[ceiling])
        coords["noise_ceiling"] = ("voxel", values, about)
    return labels.assign_coords(coords), fortran_index(inside)


def _attrs(subjects: list[str], normalize: Normalize, missing: Missing) -> dict[str, Any]:
    return {
        "title": "LAION-fMRI, single-trial betas",
        "dataset": "laion_fmri",
        "source": "measured",
        "modality": "fmri",
        "species": "human",
        "stimulus_type": "image",
        "references": "https://github.com/ViCCo-Group/LAION-fMRI",
        "subject_ids": subjects,
        "preprocessing": beta_steps("GLMsingle TYPED (FITHRF_GLMDENOISE_RR)", normalize, missing),
    }
