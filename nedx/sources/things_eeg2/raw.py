"""The raw recordings of THINGS-EEG2, cut and prepared as a recipe says, session by session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx import scalp
from nedx.errors import SelectionError, SourceError, StoreError, require
from nedx.preprocessing.epochs import (
    EpochSettings,
    cut_epochs,
    fits_inside,
    response_attrs,
    scaled,
)
from nedx.preprocessing.recipes import Recipe, find_recipe
from nedx.preprocessing.steps import with_step
from nedx.schema import parse
from nedx.selection import Subjects, chosen_subjects
from nedx.sources.mapped_pickles import open_pickled
from nedx.sources.mne_files import channel_labels
from nedx.sources.things_eeg2.labels import ATTRS, Images, read_images
from nedx.store.location import Location

SESSIONS = (1, 2, 3, 4)
RATE = 1000.0
"""Hz, of the recordings."""
TARGET = 99999
"""The event of a trial in which the participant had to respond; no image of the set was shown."""
MONTAGE = scalp.MONTAGE
"""Positions where the recordings' own are not known."""

_FILES = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
_FOLDERS = ("", "Raw_data", "raw_data")


@dataclass(frozen=True)
class _Recording:
    """One file, and the trials in it that are kept."""

    path: str
    partition: str
    session: int
    channels: tuple[str, ...]
    samples: np.ndarray
    rows: np.ndarray
    ranks: np.ndarray
    cut_off: int


def open_raw(
    root: str | Path | Location,
    *,
    subject: Subjects | None = None,
    recipe: str | Recipe = "berg_2025",
    sessions: Sequence[int | str] | None = None,
    image_metadata: str | Path | None = None,
    montage: str | Path | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open raw recordings as single trials, prepared when they are computed.

    Labels and events are read at once, of each file some 2 %. A session is one chunk: computing
    any of its trials reads both of its files and prepares them, in memory for the larger file once
    and the prepared session twice.

    Parameters
    ----------
    root : str, Path or Location
        A local folder with ``sub-01/ses-01/raw_eeg_training.npy`` and ``raw_eeg_test.npy``, or
        with such folders in ``Raw_data``.
    subject : str, int or sequence, optional
        All that are there by default.
    recipe : str or Recipe
        ``"eeg_encoding_2022"``, ``"nice_2024"``, ``"ned_2024"``, ``"berg_2025"``,
        ``"realnet_2024"`` (means of each image), or one of your own; see
        `nedx.preprocessing.recipes`. Values of different recipes must not be mixed.
    sessions : sequence of int, optional
        Numbers of the sessions; all four by default.
    image_metadata : path, optional
        ``image_metadata.npy`` of the image set; looked for in ``root`` and beside it.
    montage : str or Path, optional
        Positions of the channels: a montage of MNE by name, or the BrainVision header (``.vhdr``)
        of a recording. By default a header that lies with the session, else ``"easycap-M1"``.

    Returns
    -------
    Dataset or DataTree
        ``response (trial, channel, time)``, float32; of several subjects a DataTree with a child
        for each. Along ``trial``: ``image_id`` (``things:aardvark_01b``), ``category`` (the
        concept of THINGS), ``repetition`` (from 0, over sessions), ``session``, ``partition``,
        ``onset`` (s in its recording). The attribute
        ``preprocessing`` lists what was done, ``trials_cut_off`` counts the trials that are left
        out because their epochs reach beyond the recording. To make
        ``(image, repetition, channel, time)`` of one partition, use
        `nedx.preprocessing.repetitions.stack_repetitions`.

    Raises
    ------
    SelectionError
        If there is no such subject or recipe, or a channel is missing. When computed: if values
        are not finite.
    SourceError
        If files are missing, or not as published; all faults of a file in one message.
    StoreError, CorruptStoreError
        If the folder is not on this machine, or a file is cut short.
    """
    chosen = find_recipe(recipe)
    folder = _local_folder(root)
    wanted = _subjects(folder, subject)
    numbers = SESSIONS if sessions is None else tuple(sorted({int(one) for one in sessions}))
    images = read_images(folder if image_metadata is None else image_metadata)
    nodes = {}
    for label in wanted:
        found = _find_files(folder / label, numbers)
        recordings = [_read_labels(*file, images, chosen) for file in found]
        nodes[label] = _open_subject(label, recordings, images, chosen, montage)
    if len(nodes) == 1:
        return parse(next(iter(nodes.values())))
    top = xr.Dataset(attrs={**ATTRS, "subject_ids": list(nodes), "recipe": chosen.name})
    return parse(xr.DataTree.from_dict({"/": top, **nodes}))


def _local_folder(root: str | Path | Location) -> Path:
    location = Location.of(root)
    if not location.is_local:
        raise StoreError(
            f"raw recordings are mapped into memory, so they must lie on this machine, not at "
            f"{location.url}. Copy them to a folder first"
        )
    base = Path(location.url)
    for name in _FOLDERS:
        if any((base / name).glob("sub-*/ses-*")):
            return base / name
    raise SourceError(
        f"{base} holds no folders sub-01/ses-01 with {_FILES['train']}. To fetch them, type: "
        "nedx.sources.things_eeg2.pull(folder, what='raw')"
    )


def _subjects(folder: Path, subject: Subjects | None) -> list[str]:
    there = sorted(path.name for path in folder.glob("sub-*") if path.is_dir())
    return chosen_subjects(subject, there, f"in {folder}")


def _find_files(folder: Path, sessions: Sequence[int]) -> list[tuple[Path, str, int]]:
    """Return the files of some sessions, or say at once which are missing."""
    places = [
        (folder / f"ses-{session:02d}" / name, partition, session)
        for session in sessions
        for partition, name in _FILES.items()
    ]
    missing = [str(path.relative_to(folder)) for path, *_ in places if not path.is_file()]
    if missing:
        whole = [s for s in sessions if not any(m.startswith(f"ses-{s:02d}") for m in missing)]
        instead = f", or give sessions={whole} to go without" if whole else ""
        raise SourceError(f"{folder} has no {', '.join(missing)}. Fetch what is missing{instead}")
    return places


def _read_labels(
    path: Path, partition: str, session: int, images: Mapping[str, Images], recipe: Recipe
) -> _Recording:
    """Read the labels and events of one file, and find every fault of it."""
    held = open_pickled(path)
    faults = _faults(held)
    if faults:
        raise _not_as_published(path, faults)
    names = [str(name) for name in held["ch_names"]]
    data, stim = held["raw_eeg_data"], names.index("stim")
    samples, numbers = _events(data[stim])
    shown = numbers != TARGET
    samples, numbers = samples[shown], numbers[shown]
    known = len(images[partition].files)
    odd = numbers[(numbers < 1) | (numbers > known)]
    if odd.size:
        faults.append(
            f"{odd.size} events have no image, the first is {odd[0]}: numbers of {partition} "
            f"images run from 1 to {known}"
        )
    inside = fits_inside(samples, 0, data.shape[1], RATE, recipe.epochs)
    samples, numbers = samples[inside], numbers[inside]
    if not samples.size:
        faults.append("no event has an epoch that lies within the recording")
    if faults:
        raise _not_as_published(path, faults)
    channels = recipe.pick([n for n, t in zip(names, held["ch_types"], strict=True) if t == "eeg"])
    trials, ranks = recipe.choose(numbers, partition)
    return _Recording(
        str(path),
        partition,
        session,
        tuple(channels),
        samples[trials],
        numbers[trials] - 1,
        ranks,
        int((~inside).sum()),
    )


def _faults(held: Mapping[str, Any]) -> list[str]:
    wanted = ("raw_eeg_data", "ch_names", "ch_types", "sfreq")
    missing = [name for name in wanted if name not in held]
    if missing:
        return [f"it has no {', '.join(missing)}; it holds {', '.join(map(str, held))}"]
    found = []
    names, shape = list(held["ch_names"]), np.shape(held["raw_eeg_data"])
    if "stim" not in names:
        found.append("it has no channel 'stim', which says when images were shown")
    if len(shape) != 2 or shape[0] != len(names) or len(names) != len(held["ch_types"]):
        found.append(
            f"its values have the shape {shape}, its names are of {len(names)} channels, its types "
            f"of {len(held['ch_types'])}"
        )
    if float(held["sfreq"]) != RATE:
        found.append(f"it is sampled at {float(held['sfreq']):g} Hz, expected {RATE:g} Hz")
    return found


def _not_as_published(path: Path, faults: list[str]) -> SourceError:
    lines = "\n".join(f"  - {fault}" for fault in faults)
    return SourceError(f"{path} is not as THINGS-EEG2 was published; fetch it again:\n{lines}")


def _events(stim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and numbers of the events, as MNE finds them."""
    mne = require("mne", "mne")
    info = mne.create_info(["stim"], RATE, ["stim"])
    trace = mne.io.RawArray(np.array(stim, np.float64)[None], info, verbose="error")
    events = mne.find_events(trace, stim_channel="stim", shortest_event=1, verbose="error")
    return events[:, 0], events[:, 2]


def _open_subject(
    label: str,
    recordings: list[_Recording],
    images: Mapping[str, Images],
    recipe: Recipe,
    montage: str | Path | None,
) -> xr.Dataset:
    """Return the trials of one subject: a chunk for each session."""
    channels = recordings[0].channels
    for one in recordings:
        if one.channels != channels:
            raise SelectionError(f"{one.path} has other channels than {recordings[0].path}")
    times = recipe.epochs.times(RATE)
    sessions = sorted({one.session for one in recordings})
    chunks, placed = [], None
    for session in sessions:
        mine = [one for one in recordings if one.session == session]
        positions = _montage_of(mine[0].path, montage)
        placed = positions if placed is None else placed
        count = sum(one.samples.size for one in mine)
        shape = (count, len(channels), times.size)
        chunks.append(_session_array(mine, recipe.epochs, positions, shape))
    assert placed is not None
    info = _info(channels, placed)
    attrs = response_attrs("eeg", recipe.epochs)
    rate = recipe.epochs.sampling_frequency or RATE
    ds = xr.Dataset(
        {"response": (("trial", "channel", "time"), da.concatenate(chunks), attrs)},
        {
            **_trial_labels(recordings, images, recipe),
            **channel_labels(info, np.arange(len(channels)), _montage_name(placed)),
            **scalp.labels(channels),
            "time": ("time", times, {"units": "s", "sampling_frequency": rate}),
        },
        {**ATTRS, "subject_ids": [label], "trials_cut_off": sum(r.cut_off for r in recordings)},
    )
    for step in recipe.epochs.steps:
        ds = with_step(ds, **step)
    return recipe.finish(ds)


def _trial_labels(
    recordings: list[_Recording], images: Mapping[str, Images], recipe: Recipe
) -> dict[str, Any]:
    parts = [images[one.partition].labels(one.rows, "trial") for one in recordings]
    labels = {
        name: ("trial", np.concatenate([part[name][1] for part in parts])) for name in parts[0]
    }
    session = np.concatenate([np.full(one.samples.size, one.session) for one in recordings])
    ranks = np.concatenate([one.ranks for one in recordings])
    onset = np.concatenate([one.samples for one in recordings]) / RATE
    _, image = np.unique(labels["image_id"][1].astype(str), return_inverse=True)
    return {
        **labels,
        "repetition": ("trial", recipe.repetition(image, session, ranks)),
        "session": ("trial", session.astype(np.int16)),
        "onset": ("trial", onset, {"units": "s", "long_name": "from the start of the recording"}),
    }


def _montage_of(path: str, montage: str | Path | None) -> str:
    """Return what gives the positions of one session: a path or a name."""
    if montage is not None:
        return str(montage)
    headers = sorted(Path(path).parent.glob("*.vhdr"))
    return str(headers[0]) if headers else MONTAGE


def _montage_name(montage: str) -> str:
    return "session" if montage.endswith(".vhdr") else montage


def _info(channels: Sequence[str], montage: str) -> Any:
    """Return MNE's ``Info`` of some channels with their positions."""
    mne = require("mne", "mne")
    info = mne.create_info(list(channels), RATE, "eeg")
    try:
        if montage.endswith(".vhdr"):
            positions = mne.io.read_raw_brainvision(montage, verbose="error").get_montage()
        else:
            positions = mne.channels.make_standard_montage(montage)
        info.set_montage(positions, verbose="error")
    except (ValueError, OSError) as error:
        raise SelectionError(
            f"montage {montage!r} does not give the positions of these channels ({error}). Give "
            f"montage={MONTAGE!r}, or the .vhdr of the recording"
        ) from error
    return info


def _session_array(
    recordings: list[_Recording], settings: EpochSettings, montage: str, shape: tuple[int, ...]
) -> da.Array:
    changed = [Path(one.path).stat().st_mtime_ns for one in recordings]
    plain = [(one.path, one.channels, one.samples) for one in recordings]
    name = f"things-eeg2-{tokenize(plain, changed, settings, montage)}"
    values = dask.delayed(_session_values)(recordings, settings, montage, dask_key_name=name)
    return da.from_delayed(values, shape, np.float32, name=f"array-{name}")


def _session_values(
    recordings: list[_Recording], settings: EpochSettings, montage: str
) -> np.ndarray:
    """Cut the trials of one session, float32 (trial, channel, time), one file at a time."""
    parts = [_recording_values(one, settings, montage) for one in recordings]
    return np.concatenate(parts)


def _recording_values(one: _Recording, settings: EpochSettings, montage: str) -> np.ndarray:
    mne = require("mne", "mne")
    held = open_pickled(one.path)
    names = [str(name) for name in held["ch_names"]]
    rows = [names.index(channel) for channel in one.channels]
    data = np.asarray(held["raw_eeg_data"][rows], np.float64)
    recording = mne.io.RawArray(data, _info(one.channels, montage), verbose="error")
    try:
        values, _ = cut_epochs(recording, one.samples, settings)
    except SelectionError as error:
        raise SelectionError(f"{one.path}: {error}") from error
    return scaled(values, "eeg", settings)[0]
