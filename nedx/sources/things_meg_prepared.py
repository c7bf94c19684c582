"""THINGS-MEG as ATM and NeuroBridge prepared it for decoding: pickles of concepts by images.

Training concepts are those of which no image is a test image (zero-shot). Neither layout says
which images were shown: they are in the order of concepts and files. How the repetitions of a test
image are ordered was left to a sort that is not stable, so that ``repetition`` is a place in the
file, not a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SelectionError, SourceError, StoreError
from nedx.preprocessing.steps import with_step
from nedx.schema import parse
from nedx.selection import Subjects
from nedx.sources.mapped_pickles import lazy_array
from nedx.sources.prepared_files import PreparedFile, named_values, partition_files, subject_folders
from nedx.sources.things_images import FOLDERS, files_of
from nedx.sources.things_meg import ATTRS, LARGEST_FIELD, sensor_labels, zero_shot_files
from nedx.store.location import Location

Normalization = Literal["baseline", "zscore", "whitened"]
Files = str | Path | Mapping[str, Sequence[str]] | xr.Dataset

_NAMES = {
    "train": ("preprocessed_meg_training.pkl", "train.npy"),
    "test": ("preprocessed_meg_zs_test.pkl", "test.npy"),
}
_KEYS = {"meg_data": "atm", "data": "neurobridge"}
_PARAMETERS = "zscore_params.npz"
_CHUNK_BYTES = 2**24
_FEMTO = 1e15


def open_things_meg_prepared(
    root: str | Path | Location,
    *,
    images: Files,
    subject: Subjects | None = None,
    channels: Sequence[str] | None = None,
    normalization: Normalization | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open prepared recordings as single trials, lazily, where they lie in their files.

    Parameters
    ----------
    root : str, Path or Location
        A local folder with ``sub-01`` and so on, or that of one subject, which hold
        ``preprocessed_meg_training.pkl`` and ``preprocessed_meg_zs_test.pkl`` (ATM), or
        ``train.npy`` and ``test.npy`` (NeuroBridge).
    images : path, mapping or Dataset
        Which images were shown: a folder with ``training_images/<concept>/<file>`` and
        ``test_images/<concept>/<file>``, taken in the order of their names; the files of
        ``"train"`` and of ``"test"`` in their order; or the epochs as their authors publish them,
        ``open_things_meg(folder, subject=1, zero_shot=True)``.
    subject : str, int or sequence, optional
        All that are there by default.
    channels : sequence of str, optional
        Names of the sensors, where the files have none (NeuroBridge).
    normalization : {"baseline", "zscore", "whitened"}, optional
        What was done to the values where they are no fields: z-scores of the baseline (as
        published), or z-scores or whitening by training data. Known of ATM, whose z-scored files
        lie with ``zscore_params.npz``.

    Returns
    -------
    Dataset or DataTree
        ``response (trial, channel, time)``, float32, in fT where the values are fields, else
        ``"1"``; of several subjects a DataTree. Along ``trial``: ``image_id``
        (``things:aardvark_01b``), ``things_concept`` (also as ``category``), ``filename``,
        ``partition`` and ``repetition`` (as in the file).

    Raises
    ------
    SelectionError
        If there is no such subject, or the normalization is not known.
    SourceError
        If files are missing, of another layout, or do not fit each other or the images.
    StoreError, ModelError, CorruptStoreError
        If the folder is not on this machine, or a file names what could run, or is damaged.
    """
    location = Location.of(root)
    if not location.is_local:
        raise StoreError(
            f"these files are mapped into memory, so they must lie on this machine, not at "
            f"{location.url}. Copy them to a folder first"
        )
    places = subject_folders(Path(location.url), _NAMES, subject)
    shown = _shown(images)
    nodes = {
        label: _open_subject(label, place, shown, channels, normalization)
        for label, place in places.items()
    }
    if len(nodes) == 1:
        return parse(next(iter(nodes.values())))
    top = xr.Dataset(attrs={**ATTRS, "modality": "meg", "subject_ids": list(nodes)})
    return parse(xr.DataTree.from_dict({"/": top, **nodes}))


def _shown(images: Files) -> Mapping[str, Sequence[str]]:
    """Return the files of the images of each partition, in their order."""
    if isinstance(images, str | Path):
        return _shown_in_folder(Path(images))
    if isinstance(images, xr.Dataset):
        return zero_shot_files(images)
    if missing := [name for name in FOLDERS if name not in images]:
        raise SelectionError(f"images= has no {missing[0]!r}; give 'train' and 'test'")
    return dict(images)


def _shown_in_folder(folder: Path) -> dict[str, list[str]]:
    found = {name: files_of(folder, places) for name, places in FOLDERS.items()}
    if empty := [FOLDERS[name][0] for name, files in found.items() if not files]:
        raise SourceError(
            f"{folder} holds no images in {empty[0]}/<concept>; give the folder of the images, or "
            "images={'train': [...], 'test': [...]}"
        )
    return found


def _open_subject(
    label: str,
    folder: Path,
    shown: Mapping[str, Sequence[str]],
    channels: Sequence[str] | None,
    normalization: Normalization | None,
) -> xr.Dataset:
    """Return the trials of both partitions of one subject."""
    files = partition_files(folder, _NAMES, _opened)
    labels = [_labels(file, shown[file.partition]) for file in files]
    scale, attrs, steps = _units(files[0], normalization)
    times = files[0].times
    rate = round(1 / float(np.diff(times).mean()), 6)
    data = da.concatenate([_trials(file, scale) for file in files])
    ds = xr.Dataset(
        {"response": (("trial", "channel", "time"), data, attrs)},
        {
            **{n: ("trial", np.concatenate([one[n] for one in labels])) for n in labels[0]},
            **_channels(files[0], channels),
            "time": ("time", times, {"units": "s", "sampling_frequency": rate}),
        },
        {
            **ATTRS,
            "modality": "meg",
            "source": "measured",
            "species": "human",
            "stimulus_type": "image",
            "subject_ids": [label],
            "layout": files[0].flavour,
        },
    )
    for step in steps:
        ds = with_step(ds, **step)
    return ds


def _opened(path: Path, partition: str) -> PreparedFile:
    held, key = named_values(path, _KEYS)
    times = np.asarray(held["times"], np.float64).ravel()
    file = PreparedFile(path, partition, _KEYS[key], key, held, times)
    shape, names = file.values.shape, len(held["ch_names"])
    fits = len(shape) == 5 and 0 not in shape
    if not fits or names not in (0, shape[3]) or times.size != shape[4]:
        raise SourceError(
            f"{path} has values of the shape {shape}, {names} channel names and {times.size} "
            "times; expected (concept, image, repetition, channel, time), none of length 0"
        )
    return file


def _labels(file: PreparedFile, shown: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the labels of the trials of one file."""
    concepts, each, repetitions = file.values.shape[:3]
    paths = [PurePosixPath(str(path)) for path in shown]
    if len(paths) != concepts * each:
        raise SourceError(
            f"{file.path} holds {concepts} concepts with {each} images, images= has {len(paths)} "
            f"of {file.partition}: they do not belong together"
        )
    of = np.array([path.stem.rpartition("_")[0] for path in paths], object)
    rows = of.reshape(concepts, each)
    if mixed := np.flatnonzero((rows != rows[:, :1]).any(1)).tolist():
        raise SourceError(
            f"{file.path}: the {each} images of concept {mixed[0]} (from 0) would be of "
            f"{rows[mixed[0], 0]!r} and others: images= is not in the order of concepts and files"
        )
    values = {
        "image_id": np.array([f"things:{path.stem}" for path in paths], object),
        "things_concept": of,
        "category": of,
        "filename": np.array([path.as_posix() for path in paths], object),
        "partition": np.full(len(paths), file.partition, object),
    }
    spread = {name: np.repeat(value, repetitions) for name, value in values.items()}
    spread["repetition"] = np.tile(np.arange(repetitions, dtype=np.int16), len(paths))
    return spread


def _units(
    file: PreparedFile, given: Normalization | None
) -> tuple[float, dict[str, Any], list[dict[str, Any]]]:
    """Return what makes values those of the schema, their attributes, and what was done to them."""
    about: dict[str, Any] = {"long_name": "response", "source": "measured"}
    if float(np.abs(file.values[0, 0, 0]).max()) < LARGEST_FIELD:
        return _FEMTO, {**about, "units": "fT"}, []
    zscored = any((file.path.parent / up / _PARAMETERS).is_file() for up in ("", ".."))
    known = given
    if given is None and file.flavour == "atm":
        known = "zscore" if zscored else "baseline"
    if known == "baseline":
        step = {"step": "baseline", "scope": "trial", "mode": "zscore"}
        done = {"normalization": "zscore", "normalization_scope": "baseline"}
    elif known == "zscore":
        step = {"step": "zscore", "scope": "train", "fit": "train"}
        done = {"normalization": "zscore", "normalization_scope": "train"}
    elif known == "whitened":
        step = {"step": "whiten", "scope": "train", "fit": "train"}
        done = {
            "normalization": "whitened",
            "normalization_scope": "train",
            "normalization_fit": "train",
        }
    else:
        raise SelectionError(
            f"{file.path} does not say what was done to its values, which are no fields; give "
            "normalization='baseline' (as published), 'zscore' or 'whitened'"
        )
    return 1.0, {**about, "units": "1", **done}, [step]


def _channels(file: PreparedFile, given: Sequence[str] | None) -> dict[str, Any]:
    names = [str(name) for name in file.held["ch_names"]]
    about: dict[str, str] = {}
    if not names and given is not None:
        names = [str(name) for name in given]
    if not names:
        names = [f"sensor-{number:03d}" for number in range(1, file.values.shape[3] + 1)]
        about["long_name"] = "places in the file, which names no sensors"
    if len(names) != file.values.shape[3]:
        raise SourceError(
            f"channels= names {len(names)} sensors, {file.path} has {file.values.shape[3]}"
        )
    channels = np.array(names, object)
    return {
        "channel": ("channel", channels, about),
        "channel_type": ("channel", np.full(len(names), "mag", object)),
        **sensor_labels(channels),
    }


def _trials(file: PreparedFile, scale: float) -> da.Array:
    """Return the values (trial, channel, time) of one file, lazily."""
    size = max(1, file.values[0].nbytes)
    data = lazy_array(file.path, file.key, max(1, _CHUNK_BYTES // size))
    count = int(np.prod(file.values.shape[:3]))
    flat = data.reshape((count, *file.values.shape[3:]), merge_chunks=False)
    return (flat if scale == 1 else flat * scale).astype(np.float32)
