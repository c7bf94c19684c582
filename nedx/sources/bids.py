"""fMRI in BIDS: volumes of ``func/*_bold.nii.gz``, labelled by the events beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SourceError
from nedx.schema import subject_label
from nedx.sources.bids_events import Events, read_events
from nedx.sources.nifti import VolumeFile, open_volumes
from nedx.sources.sections import Missing, Normalize
from nedx.sources.timecourses import Run, open_runs
from nedx.store.location import Location

_BOLD = re.compile(
    r"(?P<subject>sub-[A-Za-z0-9]+)(?:_ses-(?P<session>[A-Za-z0-9]+))?_task-(?P<task>[A-Za-z0-9]+)"
    r"(?P<middle>(?:_[a-z]+-[A-Za-z0-9]+)*)_bold\.nii(?:\.gz)?"
)


def open_bids(
    root: str | Path | Location,
    *,
    subject: str | int,
    task: str | None = None,
    session: str | None = None,
    space: str | None = None,
    derivatives: str | None = None,
    mask: str | None = None,
    image_set: str | None = None,
    stimulus: str | None = None,
    category: str | None = None,
    sampling_rate: float | None = None,
    delay: float = 0.0,
    normalize: Normalize = "percent",
    missing: Missing = "error",
) -> xr.Dataset:
    """Open the volumes of one subject lazily, with what was shown at each.

    Parameters
    ----------
    root : str, Path or Location
        A BIDS dataset: a folder or a bucket.
    subject : str or int
        Such as ``1`` or ``"sub-CSI1"``.
    task, session, space : str, optional
        Which files, by the labels in their names; all by default, of no space.
    derivatives : str, optional
        The folder in the dataset that holds the volumes, such as ``"derivatives/fmriprep"``; the
        events are those of the raw data.
    mask : str, optional
        A NIfTI file in the dataset; voxels above 0 are taken. All voxels by default.
    image_set : str, optional
        Names the images: ``image_id`` is ``<image_set>:<name>``; the name in
        ``dataset_description.json`` by default.
    stimulus, category, sampling_rate
        As `read_events` takes them.
    delay : float
        Seconds by which responses follow what was shown.
    normalize : {"percent", "zscore"}
        Percent of each voxel's mean in the run, or a z-score within the run.
    missing : {"error", "zero"}
        What becomes of values that are not finite.

    Returns
    -------
    Dataset
        ``response (trial, voxel)``, float32, one trial a volume, with ``session``, ``run``,
        ``onset`` (seconds from the beginning of the run), ``event`` (row of ``events.tsv`` from
        0; -1 between events, and at those that name no image where others do), ``category``
        (``"rest"`` between) and ``stimulus_id``, the ``image_id`` of the image, empty where none
        was shown. ``block_averages(ds, label="event", rest="-1")`` makes one trial of each event,
        with its ``image_id``.

    Raises
    ------
    SourceError
        If there are no volumes, two files are of one run, events are missing or longer than their
        run, or the runs and the mask are not of the same voxels.
    StoreError, CorruptStoreError
        If a file cannot be read, is cut short or damaged.
    """
    where = Location.of(root)
    name = subject_label(subject)
    described = _description(where)
    images = image_set or _slug(str(described.get("Name", "bids")))
    runs = []
    for key, match in _found(where, name, task, session, space, derivatives):
        file = open_volumes(where, key)
        events_key = _events_key(where, match)
        events = read_events(
            where,
            events_key,
            stimulus=stimulus,
            category=category,
            sampling_rate=sampling_rate,
        )
        interval = _interval(where, key, file)
        labels = _volume_labels(file, interval, events, delay, images, f"{where.url}/{events_key}")
        count = file.shape[3]
        runs.append(
            Run(
                file,
                np.arange(count),
                interval * np.arange(count),
                labels,
                session=match["session"] or "",
                run=_run_number(match),
            )
        )
    attrs = {
        "title": str(described.get("Name", "BIDS dataset")),
        "dataset": images,
        "subject_ids": [name],
        "delay": delay,
        **({"license": str(described["License"])} if "License" in described else {}),
        **({"references": str(described["DatasetDOI"])} if "DatasetDOI" in described else {}),
    }
    inside = open_volumes(where, mask) if mask is not None else None
    return open_runs(
        runs, inside, space=space or "bold", attrs=attrs, normalize=normalize, missing=missing
    )


def _found(
    root: Location,
    subject: str,
    task: str | None,
    session: str | None,
    space: str | None,
    derivatives: str | None,
) -> list[tuple[str, re.Match[str]]]:
    folder = f"{derivatives.strip('/')}/{subject}" if derivatives else subject
    keys = root.list(folder)
    matches = [(key, _BOLD.fullmatch(key.rpartition("/")[2])) for key in keys]
    found = [
        (key, match)
        for key, match in matches
        if match is not None
        and task in (None, match["task"])
        and session in (None, match["session"])
        and _entity(match, "space") == space
    ]
    if not found:
        named = [match[0] for _, match in matches if match is not None]
        there = f"there are {', '.join(named[:3])}" if named else f"it has {len(keys)} files"
        raise SourceError(
            f"{root.url}/{folder} has no volumes of task {task or 'any'}, session "
            f"{session or 'any'}, space {space or 'none'}: {there}"
        )
    _check_runs([match for _, match in found])
    return found


def _check_runs(found: list[re.Match[str]]) -> None:
    """Raise where two files are called the same run: of two tasks, echoes or descriptions."""
    files: dict[tuple[str | None, int], str] = {}
    for match in found:
        first = files.setdefault((match["session"], _run_number(match)), match[0])
        if first != match[0]:
            raise SourceError(
                f"{first} and {match[0]} are both run {_run_number(match)} of session "
                f"{match['session'] or 'none'}: choose by task= or session=, or keep one of the "
                "two in the folder"
            )


def _run_number(match: re.Match[str]) -> int:
    number = re.search(r"_run-(\d+)", match["middle"] or "")
    return int(number[1]) if number else 1


def _entity(match: re.Match[str], name: str) -> str | None:
    found = re.search(rf"_{name}-([A-Za-z0-9]+)", match["middle"] or "")
    return found[1] if found else None


def _events_key(root: Location, match: re.Match[str]) -> str:
    """Return the events of a run: of the raw data, whose names lack what derivatives add."""
    folder = match["subject"] + (f"/ses-{match['session']}" if match["session"] else "")
    name = match["subject"] + (f"_ses-{match['session']}" if match["session"] else "")
    name += f"_task-{match['task']}"
    kept = [part for part in ("acq", "ce", "rec", "dir", "run") if _entity(match, part)]
    name += "".join(f"_{part}-{_entity(match, part)}" for part in kept)
    key = f"{folder}/func/{name}_events.tsv"
    return key if root.exists(key) or not root.exists(f"{key}.gz") else f"{key}.gz"


def _interval(root: Location, key: str, file: VolumeFile) -> float:
    """Return the seconds from volume to volume: of the sidecar, or of the header."""
    sidecar = re.sub(r"\.nii(\.gz)?$", ".json", key)
    if root.exists(sidecar):
        told = json.loads(root.read(sidecar)).get("RepetitionTime")
        if told:
            return float(told)
    if file.interval <= 0:
        raise SourceError(
            f"neither {sidecar} nor the header of {file.url} says how long a volume takes: write "
            '{"RepetitionTime": seconds} into the former'
        )
    return file.interval


def _volume_labels(
    file: VolumeFile, interval: float, events: Events, delay: float, images: str, url: str
) -> dict[str, np.ndarray]:
    """Return what was shown at each volume; of events that overlap, the later one."""
    count = file.shape[3]
    if events.onset.max() > count * interval:
        raise SourceError(
            f"the last event in {url} begins at {events.onset.max():g} s, the run in {file.url} "
            f"ends at {count * interval:g} s: they are not of the same run"
        )
    times = interval * np.arange(count) - delay
    row = np.full(count, -1, np.int16)
    lasts = np.maximum(events.duration, interval)
    # Times are written with few digits: what begins within a thousandth is there.
    for number in np.argsort(events.onset, kind="stable").tolist():
        begins, ends = events.onset[number] - 1e-3, events.onset[number] + lasts[number] - 1e-3
        row[(times >= begins) & (times < ends)] = number
    shown = row >= 0
    # Where images are named, what has none is a pause.
    pause = (events.stimulus == "") & bool((events.stimulus != "").any())
    event = np.where(shown & ~pause[row], row, -1).astype(np.int16)
    names = np.where(events.category == "", events.stimulus, events.category)
    names = np.where(names == "", "rest", names)
    ids = np.array([f"{images}:{name}" if name else "" for name in events.stimulus], dtype=object)
    category, stimulus = np.full((2, count), "", dtype=object)
    category[:] = "rest"
    category[shown], stimulus[shown] = names[row[shown]], ids[row[shown]]
    return {"event": event, "category": category, "stimulus_id": stimulus}


def _description(root: Location) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(root.read("dataset_description.json"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise SourceError(f"{root.url}/dataset_description.json is no JSON ({error})") from error
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "bids"
