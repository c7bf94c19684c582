"""THINGS-EEG2 as others prepared it: four layouts of files under the same few names.

The first bytes say how a file is packed, its keys whose it is: the release of Gifford et al.
(``.npy``), NICE and what followed it (a pickle that is called ``.npy``), UBP (``.pt``) and
NeuroBridge (a pickle whose array has the concepts as an axis of their own).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx import scalp
from nedx.errors import SelectionError, SourceError, StoreError
from nedx.preprocessing.steps import with_step
from nedx.schema import parse
from nedx.selection import Subjects
from nedx.sources.mapped_pickles import lazy_array
from nedx.sources.prepared_files import PreparedFile, named_values, partition_files, subject_folders
from nedx.sources.things_eeg2.labels import ATTRS, Images, read_images
from nedx.store.location import Location

Normalization = Literal["whitened", "zscore"]
Units = Literal["uV", "V"]

_NAMES = {
    "train": ("preprocessed_eeg_training.npy", "train.pt", "train.npy"),
    "test": ("preprocessed_eeg_test.npy", "test.pt", "test.npy"),
}
_KEYS = {"preprocessed_eeg_data": "nice", "eeg": "ubp", "data": "neurobridge"}
_CHUNK_BYTES = 2**24
_EARLY = 50
"""Times before stimulus onset that files name but do not hold."""


def open_preprocessed(
    root: str | Path | Location,
    *,
    subject: Subjects | None = None,
    image_metadata: str | Path | None = None,
    normalization: Normalization | None = None,
    units: Units | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open prepared recordings as single trials, lazily, where they lie in their files.

    Parameters
    ----------
    root : str, Path or Location
        A local folder with ``sub-01`` and so on, or the folder of one subject. In it lie
        ``preprocessed_eeg_training.npy``, ``train.pt`` or ``train.npy``, and the same for test.
    subject : str, int or sequence, optional
        All that are there by default.
    image_metadata : path, optional
        ``image_metadata.npy``; looked for in ``root`` and beside it. UBP's files need none.
    normalization : {"whitened", "zscore"}, optional
        What was done to the values, which files do not say. Known of the official release
        (whitened by training and test data of a session) and of NICE (by training data); of UBP
        where ``whiten`` is in the name of a folder. NeuroBridge's files hold either.
    units : {"uV", "V"}, optional
        Of values that are baseline-corrected voltages and no more, such as those of UBP's
        ``no_whiten`` folder, whose files do not say so.

    Returns
    -------
    Dataset or DataTree
        ``response (trial, channel, time)``, float32, uV where `units` are given, else "1"; of
        several subjects a DataTree with a child for each. Along ``trial``: ``image_id``,
        ``category`` (the concept of THINGS), ``repetition`` (as in the file), ``partition``, and
        ``session`` (from 1) where the file tells it. To make
        ``(image, repetition, channel, time)`` of one partition, use
        `nedx.preprocessing.repetitions.stack_repetitions`.

    Raises
    ------
    SelectionError
        If there is no such subject, or the normalization is not known.
    SourceError
        If files are missing, of another layout, or do not fit each other.
    ModelError, CorruptStoreError
        If a file names what could run, or is damaged.
    """
    location = Location.of(root)
    if not location.is_local:
        raise StoreError(
            f"these files are mapped into memory, so they must lie on this machine, not at "
            f"{location.url}. Copy them to a folder first"
        )
    folder = Path(location.url)
    places = subject_folders(folder, _NAMES, subject)
    metadata = folder if image_metadata is None else Path(image_metadata)
    nodes = {
        label: _open_subject(label, place, metadata, normalization, units)
        for label, place in places.items()
    }
    if len(nodes) == 1:
        return parse(next(iter(nodes.values())))
    top = xr.Dataset(attrs={**ATTRS, "subject_ids": list(nodes)})
    return parse(xr.DataTree.from_dict({"/": top, **nodes}))


def _open_subject(
    label: str,
    folder: Path,
    metadata: Path,
    normalization: Normalization | None,
    units: Units | None,
) -> xr.Dataset:
    """Return the trials of both partitions of one subject."""
    files = partition_files(folder, _NAMES, _opened)
    done = _done(files[0], normalization, units)
    images = {} if files[0].flavour == "ubp" else read_images(metadata)
    parts = [_trials(file, images) for file in files]
    first = files[0].held
    channels = [str(name) for name in first["ch_names"]]
    data = da.concatenate([values for values, _ in parts])
    if units == "V":
        data = data * np.float32(1e6)
    times = files[0].times
    rate = round(1 / float(np.diff(times).mean()), 6)
    names = [name for name in parts[0][1] if all(name in labels for _, labels in parts)]
    attrs = {"units": "1", "long_name": "response", "source": "measured", **done}
    if units is not None:
        attrs["units"] = "uV"
    places = scalp.places(channels)
    montage = {"montage": scalp.MONTAGE} if places else {}
    ds = xr.Dataset(
        {"response": (("trial", "channel", "time"), data, attrs)},
        {
            **{n: ("trial", np.concatenate([labels[n] for _, labels in parts])) for n in names},
            "channel": ("channel", np.array(channels, object), montage),
            "channel_type": ("channel", np.full(len(channels), "eeg", object)),
            **scalp.labels(channels),
            **places,
            "time": ("time", times, {"units": "s", "sampling_frequency": rate}),
        },
        {**ATTRS, "subject_ids": [label], "layout": files[0].flavour},
    )
    if units is not None:
        return ds
    settings = {k.removeprefix("normalization_"): v for k, v in done.items() if "_" in k}
    return with_step(ds, {"whitened": "whiten"}.get(done["normalization"], "zscore"), **settings)


def _opened(path: Path, partition: str) -> PreparedFile:
    held, key = named_values(path, _KEYS)
    flavour = _KEYS[key]
    shape, axes = held[key].shape, 5 if flavour == "neurobridge" else 4
    if len(shape) != axes or len(held["ch_names"]) != shape[-2] or 0 in shape:
        raise SourceError(
            f"{path} has values of the shape {shape} and {len(held['ch_names'])} channel names, "
            f"expected {axes} axes, none of length 0, the last but one the channels"
        )
    with path.open("rb") as file:
        if flavour == "nice" and file.read(6) == b"\x93NUMPY":
            flavour = "official"
    return PreparedFile(path, partition, flavour, key, held, _times(path, held, shape[-1]))


def _done(file: PreparedFile, given: Normalization | None, units: Units | None) -> dict[str, Any]:
    """Return what was done to the values, as attributes."""
    if units is not None:
        if units not in ("uV", "V") or given is not None or file.flavour in ("official", "nice"):
            raise SelectionError(
                f"units={units!r} are of voltages, 'uV' or 'V'; values of {file.path} that are "
                "whitened or z-scored have none"
            )
        return {"normalization": "none"}
    known: str | None = given
    folders = "/".join(file.path.parts[-3:-1])
    if given is None and file.flavour in ("official", "nice"):
        known = "whitened"
    elif given is None and file.flavour == "ubp" and "whiten" in folders:
        if "no_whiten" in folders:
            raise SelectionError(
                f"{file.path} is not whitened, and nothing says what unit it is in: give "
                "units='uV' or 'V', or open the folder whose name ends in _whiten"
            )
        known = "whitened"
    if known not in ("whitened", "zscore"):
        raise SelectionError(
            f"{file.path} does not say what was done to its values; give normalization='whitened' "
            "(made with --mvnn) or 'zscore'"
        )
    fit = "train_and_test" if file.flavour == "official" else "train"
    return {
        "normalization": known,
        "normalization_scope": "session",
        "normalization_fit": fit,
    }


def _times(path: Path, held: Mapping[str, Any], count: int) -> np.ndarray:
    """Return the times of the ``count`` samples that a file holds, s."""
    times = np.asarray(held["times"], np.float64).ravel()
    if times.size == count + _EARLY:
        return times[_EARLY:]
    if times.size != count:
        raise SourceError(
            f"{path} names {times.size} times and holds {count}; expected as many, or "
            f"{_EARLY} more (those before onset)"
        )
    return times


def _trials(
    file: PreparedFile, images: Mapping[str, Images]
) -> tuple[da.Array, dict[str, np.ndarray]]:
    """Return the values ``(trial, channel, time)`` of one file, lazily, and their labels."""
    shape = file.values.shape
    size = file.values[0].nbytes
    data = lazy_array(file.path, file.key, max(1, _CHUNK_BYTES // max(1, size)))
    count, repetitions = int(np.prod(shape[: len(shape) - 3])), shape[-3]
    flat = data.reshape((count * repetitions, *shape[-2:]), merge_chunks=False)
    if file.flavour == "ubp":
        labels = _labels_of_paths(file, count, repetitions)
    else:
        labels = _labels_of_rows(file, count, images[file.partition])
    spread = {name: np.repeat(values, repetitions) for name, values in labels.items()}
    spread["repetition"] = np.tile(np.arange(repetitions, dtype=np.int16), count)
    if isinstance(file.held.get("session"), np.ndarray):
        spread["session"] = file.held["session"].astype(np.int16).ravel() + np.int16(1)
    return flat.astype(np.float32), spread


def _labels_of_rows(file: PreparedFile, count: int, images: Images) -> dict[str, np.ndarray]:
    """Return the labels of images that are in the order of the image set."""
    if count != len(images.files):
        raise SourceError(
            f"{file.path} holds {count} images, image_metadata.npy names {len(images.files)} of "
            f"{file.partition}: they do not belong together"
        )
    return {name: values for name, (_, values) in images.labels(np.arange(count), "image").items()}


def _labels_of_paths(file: PreparedFile, count: int, repetitions: int) -> dict[str, np.ndarray]:
    """Return the labels of images that are named by their paths."""
    paths = file.held.get("img")
    if not isinstance(paths, np.ndarray) or paths.shape != (count, repetitions):
        raise SourceError(f"{file.path} has no 'img' of the shape {(count, repetitions)}")
    if (paths != paths[:, :1]).any():
        raise SourceError(f"{file.path}: the repetitions of an image have different paths in 'img'")
    folders, names = [], []
    for path in paths[:, 0].tolist():
        folder, _, name = str(path).rpartition("/")
        folders.append(folder.rpartition("/")[2])
        names.append(name)
    images = Images(file.partition, tuple(names), tuple(folders))
    return {name: values for name, (_, values) in images.labels(np.arange(count), "image").items()}
