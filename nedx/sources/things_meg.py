"""THINGS-MEG (Hebart et al. 2023; OpenNeuro ds004212): MEG of four people, 22,448 images of THINGS.

Read from the epochs that its authors publish, ``derivatives/preprocessed/preprocessed_P1-epo.fif``:
271 axial gradiometers, 0.1-40 Hz, 200 Hz, -0.1 to 1.3 s. The number of an event is that of an image
of THINGS, from 1, in the order of concepts and files; 999999 is a catch trial.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SourceError, StoreError
from nedx.preprocessing.epochs import repetition_of
from nedx.schema import parse, subject_label
from nedx.selection import Subjects, chosen_subjects
from nedx.sources.mne_files import open_mne
from nedx.store.location import Location

CATCH = 999_999
"""The event of a trial with an image that was made up; it is left out."""
TEST_REPETITIONS = 12
"""How often each of the 200 test images was shown; all others were shown once."""

_LISTS = ("image_paths.csv", "_image-paths.csv", "image-paths.csv")
_FOLDERS = ("", "derivatives/preprocessed", "preprocessed")
_PARTITIONS = {"exp": "train", "test": "test"}
_REGIONS = {
    "C": "central",
    "F": "frontal",
    "O": "occipital",
    "P": "parietal",
    "T": "temporal",
}
LARGEST_FIELD = 1e-6
"""T. Magnetic fields of the brain are some 1e-13 T; z-scores are about 1."""
ATTRS = {
    "title": "THINGS-MEG",
    "dataset": "things_meg_1",
    "license": "https://openneuro.org/datasets/ds004212",
    "references": "Hebart MN et al. (2023). THINGS-data. eLife 12, e82580",
}


def open_things_meg(
    root: str | Path | Location,
    *,
    subject: Subjects | None = None,
    image_paths: str | Path | None = None,
    zero_shot: bool = False,
) -> xr.Dataset | xr.DataTree:
    """Open single trials, lazily; labels are read, and one trial to see in which unit values are.

    Parameters
    ----------
    root : str, Path or Location
        A local copy of the dataset, or the folder of the files.
    subject : str, int or sequence, optional
        1 to 4; all that are there by default.
    image_paths : path, optional
        The list of all images of THINGS, one path a line in the order of their numbers
        (``image_paths.csv`` of the database); looked for in ``root``. Not needed where the epochs
        say themselves which image was shown (``image_path`` of their metadata).
    zero_shot : bool
        Leave out the training trials of concepts that a test image is of, as decoders of unseen
        concepts are trained.

    Returns
    -------
    Dataset or DataTree
        ``response (trial, channel, time)``, float32: in fT, or ``"1"`` where the values are
        z-scores of the baseline, which is seen by their size and kept as ``units_found_by``. Of
        several subjects a DataTree. Along ``trial``: ``image_id`` (``things:aardvark_01b``),
        ``things_concept`` (also as ``category``), ``things_number`` (from 1), ``partition``,
        ``repetition`` (from 0, in the order of the recording) and ``trial_number`` (from 0, of
        the file). Test images are
        those shown 12 times where the epochs do not say. When they were shown is not known.

    Raises
    ------
    SelectionError
        If there is no such subject.
    SourceError
        If there are no such files, nothing says which images were shown, or there are no test
        images to leave concepts out for.
    StoreError
        If a file cannot be read.
    """
    location = Location.of(root)
    if not location.is_local:
        raise StoreError(f"MNE reads files of this machine; copy {location.url} to a folder first")
    base = Path(location.url)
    places = _places(base, subject)
    paths = _image_list(base, image_paths)
    nodes = {label: _open_subject(label, place, paths) for label, place in places.items()}
    if zero_shot:
        nodes = {label: _without_tested_concepts(node) for label, node in nodes.items()}
    if len(nodes) == 1:
        return next(iter(nodes.values()))
    attrs = {**ATTRS, "modality": "meg", "subject_ids": list(nodes)}
    return parse(xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **nodes}))


def _places(base: Path, subject: Subjects | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name in _FOLDERS:
        for path in sorted((base / name).glob("preprocessed_P*-epo.fif")):
            number = path.name.removeprefix("preprocessed_P").removesuffix("-epo.fif")
            found.setdefault(subject_label(number), path)
    if not found:
        raise SourceError(
            f"{base} holds no preprocessed_P1-epo.fif, nor does its folder derivatives/preprocessed"
        )
    if subject is not None:
        listed = [subject] if isinstance(subject, str | int | np.integer) else list(subject)
        subject = [str(one).removeprefix("P") for one in listed]
    return {label: found[label] for label in chosen_subjects(subject, found, f"in {base}")}


def _image_list(base: Path, given: str | Path | None) -> list[str] | None:
    places = [base / name for name in _LISTS] if given is None else [Path(given)]
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8").split()
    if given is not None:
        raise SourceError(f"there is no file {given}")
    return None


def _open_subject(label: str, path: Path, paths: list[str] | None) -> xr.Dataset:
    peek = open_mne(path, channel_type="mag")
    zscored = float(np.abs(peek.response[0].values).max()) * 1e-15 > LARGEST_FIELD
    ds = open_mne(path, channel_type="mag", subject=label, zscored=zscored) if zscored else peek
    numbers = _numbers(ds, path)
    kinds = ds["trial_type"].values if "trial_type" in ds.coords else None
    shown = numbers != CATCH
    if kinds is not None:
        shown &= np.isin(kinds, list(_PARTITIONS))
    ds = ds.assign_coords(trial_number=("trial", np.arange(numbers.size, dtype=np.int32)))
    ds, numbers = ds.isel(trial=shown), numbers[shown]
    files = _files(ds, numbers, paths, path)
    stems = [file.rpartition("/")[2].rsplit(".", 1)[0] for file in files]
    concepts = _strings(stem.rpartition("_")[0] for stem in stems)
    labels = {
        "image_id": _strings(f"things:{stem}" for stem in stems),
        "things_concept": concepts,
        "category": concepts,
        "filename": _strings(files),
        "things_number": numbers.astype(np.int32),
        "repetition": repetition_of(numbers),
        "partition": _partition(ds, numbers),
    }
    if "session_nr" in ds.coords:
        labels["session"] = ds["session_nr"].values.astype(np.int16)
    # Onsets go, too: the events count samples of recordings that were joined at another rate.
    extra = [n for n, c in ds.coords.items() if c.dims == ("trial",) and n != "trial_number"]
    ds = ds.drop_vars(extra).assign_coords({n: ("trial", v) for n, v in labels.items()})
    ds = ds.assign_coords(sensor_labels(ds["channel"].values))
    attrs = {name: value for name, value in ds.attrs.items() if name != "stimulus_identity"}
    found = {"subject_ids": [label], "units_found_by": "size of the values"}
    return parse(ds.drop_attrs(deep=False).assign_attrs({**attrs, **ATTRS, **found}))


def _without_tested_concepts(ds: xr.Dataset) -> xr.Dataset:
    """Leave out training trials of the concepts of test images."""
    concepts, is_test = ds["things_concept"].values, ds["partition"].values == "test"
    if not is_test.any():
        raise SourceError(
            f"no image was shown {TEST_REPETITIONS} times, so that there are no test images whose "
            "concepts could be left out: type zero_shot=False, or fetch all sessions"
        )
    return ds.isel(trial=is_test | ~np.isin(concepts, concepts[is_test]))


def zero_shot_files(ds: xr.Dataset) -> dict[str, list[str]]:
    """Return the files of the training and of the test images, in the order of their numbers.

    Parameters
    ----------
    ds : Dataset
        Trials as `open_things_meg` opens them with ``zero_shot=True``.

    Raises
    ------
    SourceError
        If they are other trials.
    """
    needed = ("things_number", "filename", "partition")
    if missing := [name for name in needed if name not in ds.coords]:
        raise SourceError(
            f"these are no trials of open_things_meg: they have no coordinate {missing[0]!r}"
        )
    found = {}
    for partition in ("train", "test"):
        here = ds["partition"].values == partition
        _, first = np.unique(ds["things_number"].values[here], return_index=True)
        found[partition] = [str(name) for name in ds["filename"].values[here][first]]
    return found


def _numbers(ds: xr.Dataset, path: Path) -> np.ndarray:
    """Return the numbers of the events, which MNE keeps as their names."""
    try:
        return np.array([int(float(name)) for name in ds["category"].values], np.int64)
    except ValueError as error:
        raise SourceError(
            f"{path} has events that are no numbers of images ({error}): these are not the "
            "published epochs"
        ) from error


def _files(ds: xr.Dataset, numbers: np.ndarray, paths: list[str] | None, path: Path) -> list[str]:
    if "image_path" in ds.coords:
        return [str(file) for file in ds["image_path"].values]
    if paths is None:
        raise SourceError(
            f"{path} says which images were shown by number only; give image_paths=, the list of "
            "the images of THINGS (image_paths.csv)"
        )
    odd = numbers[(numbers < 1) | (numbers > len(paths))]
    if odd.size:
        raise SourceError(
            f"{path}: {odd.size} events have no image, the first is {odd[0]}; the list has "
            f"{len(paths)}"
        )
    return [paths[number - 1] for number in numbers]


def _partition(ds: xr.Dataset, numbers: np.ndarray) -> np.ndarray:
    if "trial_type" in ds.coords:
        return _strings(_PARTITIONS[kind] for kind in ds["trial_type"].values)
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return np.where(counts[inverse] == TEST_REPETITIONS, "test", "train").astype(object)


def _strings(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=object)


def sensor_labels(channels: np.ndarray) -> dict[str, Any]:
    """Return side and region of CTF sensors, whose names tell: MLT23 is left temporal."""
    sides = {"L": "L", "R": "R", "Z": "midline"}
    known = [len(n) > 2 and n[0] == "M" and n[1] in sides and n[2] in _REGIONS for n in channels]
    if not all(known):
        return {}
    return {
        "hemisphere": ("channel", _strings(sides[name[1]] for name in channels)),
        "region": ("channel", _strings(_REGIONS[name[2]] for name in channels)),
    }
