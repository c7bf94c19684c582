"""Time courses of runs as responses: one trial a volume, labelled by what was shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.planned import PlannedArray
from nedx.errors import SelectionError, SourceError
from nedx.schema import parse
from nedx.sources.nifti import VolumeFile, fortran_index, same_space, voxel_labels
from nedx.sources.sections import Missing, Normalize, Section
from nedx.sources.volumes import VolumesPlan


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Parameters
    ----------
    file : VolumeFile
        Where its volumes lie.
    volumes : numpy.ndarray of int64, (volume,)
        Which of the file they are.
    onsets : numpy.ndarray of float64, (volume,)
        Seconds from the beginning of the run.
    labels : mapping of str to arrays (volume,)
        Coordinates, among them ``category``.
    session : int or str
    run : int
        As published.
    """

    file: VolumeFile
    volumes: np.ndarray
    onsets: np.ndarray
    labels: Mapping[str, np.ndarray]
    session: int | str
    run: int


def open_runs(
    runs: list[Run],
    mask: VolumeFile | None,
    *,
    space: str,
    attrs: Mapping[str, Any],
    normalize: Normalize = "percent",
    missing: Missing = "error",
) -> xr.Dataset:
    """Open the volumes of runs lazily, normalised within each run.

    Parameters
    ----------
    runs : list of Run
        In their order, of the same voxels.
    mask : VolumeFile or None
        Of which voxels above 0 are taken; all where None.
    space : str
        Of the voxels, such as ``"T1w"``.
    attrs : mapping
        Of the Dataset.
    normalize : {"percent", "zscore"}
        The scanner's own units mean nothing, so that one of the two is needed.
    missing : {"error", "zero"}
        What becomes of values that are not finite.

    Returns
    -------
    Dataset
        ``response (trial, voxel)``, float32; ``session``, ``run``, ``onset`` (seconds) and the
        labels along ``trial``.

    Raises
    ------
    SelectionError
        If the values shall stay in the scanner's units.
    SourceError
        If runs or mask are not of the same voxels.
    """
    if normalize == "none":
        raise SelectionError("normalize is 'percent' or 'zscore': values of a scanner have no unit")
    first = runs[0].file
    others = {run.file.url: run.file for run in runs[1:]}.values()
    faults = same_space(first, *others, *([] if mask is None else [mask]))
    if faults:
        raise SourceError(f"the runs or the mask are not of the same voxels: {'; '.join(faults)}")
    inside = np.ones(first.shape[:3], bool) if mask is None else mask.volume() > 0
    sections = [Section(run.file, run.volumes, f"run {run.run}") for run in runs]
    plan = VolumesPlan.whole(sections, fortran_index(inside), normalize, missing)
    voxels = voxel_labels(inside, first.affine, space)
    response = xr.Variable(("trial", "voxel"), PlannedArray(plan), _units(normalize))
    steps: list[dict[str, Any]] = [{"step": normalize, "scope": "run"}]
    if missing == "zero":
        steps.append({"step": "missing", "filled_with": 0})
    about = {
        "source": "measured",
        "modality": "fmri",
        "species": "human",
        "stimulus_type": "image",
        "preprocessing": steps,
        **attrs,
    }
    labels = _labels(runs)
    if "image_id" not in labels:
        about["stimulus_identity"] = "none"
    return parse(xr.Dataset({"response": response}, {**labels, **voxels.coords}, about))


def _units(normalize: Normalize) -> dict[str, Any]:
    if normalize == "percent":
        return {"units": "percent", "long_name": "signal change from the mean of the run"}
    about = {"long_name": "signal", "normalization": "zscore", "normalization_scope": "run"}
    return {"units": "1", **about}


def _labels(runs: list[Run]) -> dict[str, Any]:
    lengths = [len(run.volumes) for run in runs]
    onsets = np.concatenate([run.onsets for run in runs])
    about = {"units": "s", "long_name": "time of the volume from the beginning of its run"}
    columns = {
        name: ("trial", np.concatenate([run.labels[name] for run in runs]))
        for name in runs[0].labels
    }
    return {
        **columns,
        "session": ("trial", np.repeat(_sessions(runs), lengths)),
        "run": ("trial", np.repeat(np.array([run.run for run in runs], np.int16), lengths)),
        "onset": ("trial", onsets, about),
    }


def _sessions(runs: list[Run]) -> np.ndarray:
    names = [run.session for run in runs]
    is_number = all(isinstance(name, int) for name in names)
    return np.array(names, np.int16 if is_number else object)
