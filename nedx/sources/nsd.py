"""The Natural Scenes Dataset (Allen et al. 2022, Nature Neuroscience 25:116-126), as published.

Single-trial betas of eight subjects to 73,000 photographs, in the layout of the bucket
``s3://natural-scenes-dataset``: ``nsddata_betas/ppdata/subjNN/<space>/<betas>/`` with
``betas_sessionNN.hdf5`` (or ``.nii.gz``; on fsaverage ``lh.`` and ``rh.betas_sessionNN.mgh``) and
``ncsnr``, ``nsddata/experiments/nsd/nsd_expdesign.mat``, label files of ROIs in
``nsddata/ppdata/subjNN/<space>/roi/`` and ``nsddata/freesurfer/fsaverage/label/``, their names in
``nsddata/freesurfer/*/label/<family>.mgz.ctab``. The photographs, ``nsd_stimuli.hdf5``, are opened
by ``nedx.open_images(path, image_set="nsd")``, with the same ``image_id``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx._rules import VERTICES_PER_HEMISPHERE
from nedx.compute.planned import PlannedArray
from nedx.errors import SelectionError, SourceError, close_matches
from nedx.schema import parse
from nedx.selection import Subjects, chosen_subjects
from nedx.sources.nifti import (
    VolumeFile,
    fortran_index,
    open_volumes,
    same_space,
    voxel_labels,
)
from nedx.sources.nsd_betas import BetasFile, Hemispheres, ScaledFile, open_betas
from nedx.sources.nsd_design import SESSIONS, TRIALS, chosen_sessions, trial_labels
from nedx.sources.nsd_rois import find_families, read_labels, read_names, roi_coords
from nedx.sources.sections import Missing, Section
from nedx.sources.trials import (
    Normalize,
    beta_attrs,
    beta_steps,
    check_normalize,
)
from nedx.sources.volumes import VolumesPlan
from nedx.store.location import Location

Space = Literal["func1pt8mm", "func1mm", "fsaverage"]
_SUBJECTS = [f"sub-{number:02d}" for number in range(1, len(SESSIONS) + 1)]
_SPACES = ("func1pt8mm", "func1mm", "fsaverage")
_CITATION = (
    "Allen EJ, St-Yves G, Wu Y, et al. (2022). A massive 7T fMRI dataset to bridge cognitive "
    "neuroscience and artificial intelligence. Nature Neuroscience 25, 116-126"
)


def open_nsd(
    root: str | Path | Location,
    *,
    subject: Subjects | None = None,
    space: Space = "func1pt8mm",
    sessions: Sequence[int] | None = None,
    mask: str | None = None,
    betas: str = "betas_fithrf_GLMdenoise_RR",
    normalize: Normalize = "zscore",
    missing: Missing = "error",
) -> xr.Dataset | xr.DataTree:
    """Open single-trial betas of NSD, lazily; labels, ROIs and ncsnr are read.

    Parameters
    ----------
    root : str, Path or Location
        What holds ``nsddata`` and ``nsddata_betas``: a folder or a bucket. A file with gzip is
        unpacked into the cache, once.
    subject : str, int or sequence, optional
        1 to 8; all by default.
    space : {"func1pt8mm", "func1mm", "fsaverage"}
        Voxels of the subject at 1.8 or 1 mm, or vertices of fsaverage.
    sessions : sequence of int, optional
        Counted from 1, as published; by default all that were scanned: 40, 32 or 30.
    mask : str, optional
        Which voxels: a family of ROIs such as ``"nsdgeneral"`` (the default of volumes),
        ``"streams"`` or ``"HCP_MMP1"``, of which those with any label; or ``"all"`` (the default
        of fsaverage), which in volumes includes what is outside the brain.
    betas : str
        The version, as its folder is called.
    normalize : {"zscore", "none"}
        z-score each voxel within each session (population standard deviation; a voxel that does
        not vary has 0), or percent signal change as published.
    missing : {"error", "zero"}
        What becomes of values that are not finite, which fsaverage has.

    Returns
    -------
    Dataset or DataTree
        Of one subject ``response (trial, voxel | vertex)``, float32; of several a DataTree with a
        child for each, as their trials differ. Trials are labelled as `trial_labels` says, voxels
        by the C index in the volume, ``i``, ``j``, ``k`` (from 0) and mm. ``ncsnr`` is as
        published; the ceiling of a mean over n presentations is ncsnr^2 / (ncsnr^2 + 1/n), a
        fraction of variance. ``roi_mask`` holds the ROIs, V1, V2 and V3 as ventral and dorsal part
        together, ``atlas_<name>`` the parcellations.

    Raises
    ------
    SelectionError
        If there is no such subject, space, session or mask.
    SourceError
        If files are missing, or are not of the same trials and voxels.
    StoreError, CorruptStoreError
        If a file cannot be read, is cut short or damaged.
    """
    if space not in _SPACES:
        raise SelectionError(f"no space is called {space!r}: {close_matches(space, _SPACES)}")
    check_normalize(normalize)
    wanted = None if sessions is None else [int(session) for session in sessions]
    where = Location.of(root)
    options = _Options(space, wanted, mask, betas, normalize, missing)
    names = chosen_subjects(subject, _SUBJECTS, "in NSD")
    opened = {name: _open_subject(where, int(name[-2:]), options) for name in names}
    if subject is not None and len(opened) == 1:
        return next(iter(opened.values()))
    top = xr.Dataset(attrs=_attrs(options, list(opened)))
    return parse(xr.DataTree.from_dict({"/": top, **opened}))


@dataclass(frozen=True)
class _Options:
    space: str
    sessions: list[int] | None
    mask: str | None
    betas: str
    normalize: Normalize
    missing: Missing


def _open_subject(root: Location, number: int, options: _Options) -> xr.Dataset:
    name = f"subj{number:02d}"
    folder = f"nsddata_betas/ppdata/{name}/{options.space}/{options.betas}"
    keys = _session_keys(root, folder, options.space)
    sessions = chosen_sessions(number, options.sessions, sorted(keys))
    trials = trial_labels(root, number, sessions)
    files = {session: _open_session(root, keys[session]) for session in sessions}
    _check_sessions(files)
    first = files[sessions[0]]
    if options.space == "fsaverage":
        labels, places = _vertices(root, name, first, options)
    else:
        labels, places = _voxels(root, name, first, options)
    neuroid = "vertex" if options.space == "fsaverage" else "voxel"
    labels = labels.assign_coords(_ncsnr(root, folder, first, places, neuroid))
    sections = [Section.whole(file, f"session {session}") for session, file in files.items()]
    plan = VolumesPlan.whole(sections, places, options.normalize, options.missing)
    response = xr.Variable(("trial", neuroid), PlannedArray(plan), beta_attrs(options.normalize))
    coords = {**trials.coords, **labels.coords}
    attrs = _attrs(options, [f"sub-{number:02d}"])
    return parse(xr.Dataset({"response": response}, coords, attrs))


def _session_keys(root: Location, folder: str, space: str) -> dict[int, tuple[str, ...]]:
    """Return the files of each session: one, of HDF5 and NIfTI the first, or left and right."""
    found: dict[int, dict[str, str]] = {}
    pattern = re.compile(r"(?:([lr]h)\.)?betas_session(\d+)\.(hdf5|nii\.gz|nii|mgh|mgz)")
    for key in root.list(folder):
        if match := pattern.fullmatch(key.rpartition("/")[2]):
            found.setdefault(int(match[2]), {})[match[1] or match[3]] = key
    if space == "fsaverage":
        sides = ("lh", "rh")
        return {n: (f["lh"], f["rh"]) for n, f in found.items() if all(s in f for s in sides)}
    kinds = ("hdf5", "nii", "nii.gz")
    first = {n: next((f[kind] for kind in kinds if kind in f), None) for n, f in found.items()}
    return {n: (key,) for n, key in first.items() if key is not None}


def _open_session(root: Location, keys: tuple[str, ...]) -> BetasFile | ScaledFile | Hemispheres:
    if len(keys) == 2:
        left, right = (open_volumes(root, key) for key in keys)
        return Hemispheres(left, right)
    if keys[0].endswith(".hdf5"):
        return open_betas(root, keys[0])
    file = open_volumes(root, keys[0])
    if np.dtype(file.dtype) != np.int16 or file.scale != (1.0, 0.0):
        raise SourceError(
            f"{file.url} holds {np.dtype(file.dtype)} with the scale {file.scale}, expected plain "
            "int16, 300 times percent: it is another kind of file"
        )
    return ScaledFile(file)


def _check_sessions(files: dict[int, Any]) -> None:
    """Raise where the sessions differ in their voxels, or not all trials are there."""
    faults = []
    shape = next(iter(files.values())).shape[:3]
    for session, file in files.items():
        if file.shape[3] != TRIALS:
            faults.append(
                f"session {session} has {file.shape[3]} trials ({file.url}), the design {TRIALS}"
            )
        if file.shape[:3] != shape:
            faults.append(f"session {session} has voxels {file.shape[:3]}, the first {shape}")
    if faults:
        raise SourceError(f"betas and design do not belong together: {'; '.join(faults)}")


def _voxels(
    root: Location, name: str, first: Any, options: _Options
) -> tuple[xr.Dataset, np.ndarray]:
    """Label the voxels of the mask, and say where they are in Fortran order."""
    families = find_families(root, name, options.space)
    reference = first.file if isinstance(first, ScaledFile) else None
    volumes: dict[str, np.ndarray] = {}
    for family, keys in families.items():
        volumes[family], file = read_labels(root, keys, reference)
        reference = reference or file
    if reference is None:
        raise SourceError(
            f"there are no ROIs in {root.url}/nsddata/ppdata/{name}/{options.space}/roi, which say "
            "where the voxels are: fetch nsdgeneral.nii.gz at least"
        )
    if reference.shape[:3] != first.shape[:3]:
        raise SourceError(
            f"{reference.url} has the shape {reference.shape[:3]}, {first.url} {first.shape[:3]}: "
            "fetch the ROIs of the same space"
        )
    chosen = options.mask or "nsdgeneral"
    mask = np.ones(first.shape[:3], bool) if chosen == "all" else _family(volumes, chosen) > 0
    labels = voxel_labels(mask, reference.affine, options.space)
    names = {family: read_names(root, name, family) for family in volumes}
    narrowed = {family: volume[mask] for family, volume in volumes.items()}
    rois = roi_coords(narrowed, names, "voxel")
    return labels.assign_coords(rois.coords), fortran_index(mask)


def _vertices(
    root: Location, name: str, first: Any, options: _Options
) -> tuple[xr.Dataset, np.ndarray]:
    """Label the vertices of the mask, the left hemisphere first."""
    half, count = first.left.shape[0], first.shape[0]
    densities = {n: density for (kind, density), n in VERTICES_PER_HEMISPHERE.items()}
    if half not in densities or count != 2 * half:
        raise SourceError(
            f"{first.url} have {half:,} and {count - half:,} vertices, fsaverage "
            f"{VERTICES_PER_HEMISPHERE['fsaverage', '164k']:,} in each hemisphere"
        )
    surfaces: dict[str, np.ndarray] = {}
    for family, keys in find_families(root, name, "fsaverage").items():
        numbers, _ = read_labels(root, keys, None)
        if numbers.size != count:
            raise SourceError(
                f"the labels of {family} are of {numbers.size:,} vertices, the betas {count:,}"
            )
        surfaces[family] = numbers.ravel()
    chosen = options.mask or "all"
    mask = np.ones(count, bool) if chosen == "all" else _family(surfaces, chosen) > 0
    vertices = np.flatnonzero(mask)
    names = {family: read_names(root, name, family) for family in surfaces}
    rois = roi_coords({f: numbers[mask] for f, numbers in surfaces.items()}, names, "vertex")
    about = {"space": "fsaverage", "density": densities[half], "n_vertices_lh": half}
    sides = np.where(vertices < half, "L", "R").astype(object)
    labels = xr.Dataset(
        coords={
            "vertex": ("vertex", vertices.astype(np.int32), about),
            "hemisphere": ("vertex", sides),
            "vertex_index": ("vertex", (vertices % half).astype(np.int32)),
        }
    )
    return labels.assign_coords(rois.coords), vertices


def _family(labels: dict[str, np.ndarray], chosen: str) -> np.ndarray:
    if chosen not in labels:
        raise SelectionError(
            f"there is no mask {chosen!r}: {close_matches(chosen, [*labels, 'all'])}"
        )
    return labels[chosen]


def _ncsnr(
    root: Location, folder: str, first: Any, places: np.ndarray, neuroid: str
) -> dict[str, Any]:
    """Return the published ncsnr; nothing where its files were not fetched."""
    keys = [f"{folder}/ncsnr.nii.gz"]
    if neuroid == "vertex":
        keys = [f"{folder}/{side}.ncsnr.mgh" for side in ("lh", "rh")]
    if not all(root.exists(key) for key in keys):
        return {}
    files: list[VolumeFile] = [open_volumes(root, key) for key in keys]
    reference = first.file if isinstance(first, ScaledFile) else None
    faults = same_space(reference, *files) if reference is not None else []
    if sum(int(np.prod(file.shape[:3])) for file in files) != int(np.prod(first.shape[:3])):
        faults.append(f"ncsnr {[file.shape[:3] for file in files]} and betas {first.shape[:3]}")
    if faults:
        raise SourceError(f"ncsnr is not of the voxels of the betas: {'; '.join(faults)}")
    values = np.concatenate([file.volume().ravel(order="F") for file in files])[places]
    about = {
        "units": "1",
        "long_name": "noise ceiling signal-to-noise ratio",
        "ceiling": "ncsnr^2 / (ncsnr^2 + 1/n), of a mean over n presentations",
    }
    return {"ncsnr": (neuroid, values.astype(np.float32), about)}


def _attrs(options: _Options, subjects: list[str]) -> dict[str, Any]:
    return {
        "title": f"Natural Scenes Dataset, {options.space}",
        "dataset": "nsd",
        "source": "measured",
        "modality": "fmri",
        "species": "human",
        "stimulus_type": "image",
        "license": "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions",
        "citation": _CITATION,
        "references": "https://doi.org/10.1038/s41593-021-00962-x",
        "subject_ids": subjects,
        "preprocessing": beta_steps(options.betas, options.normalize, options.missing),
    }
