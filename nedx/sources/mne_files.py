"""Epochs and evoked responses of MNE: objects, ``.fif`` files and EEGLAB's ``.set`` files.

MNE works in V, T and T/m; here EEG is in uV (current source density in uV m-2), magnetometers in
fT and gradiometers in fT cm-1. Positions are in m in the head frame (x right, y front, z up).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx.errors import SchemaError, SelectionError, StoreError, close_matches, require
from nedx.schema import parse, subject_label
from nedx.store.location import Location

UNITS: Mapping[str, tuple[str, str, float]] = {
    "eeg": ("eeg", "uV", 1e6),
    "csd": ("eeg", "uV m-2", 1e6),
    "mag": ("meg", "fT", 1e15),
    "grad": ("meg", "fT cm-1", 1e13),
    "ecog": ("ieeg", "uV", 1e6),
    "seeg": ("ieeg", "uV", 1e6),
}
"""Of each of MNE's channel types the modality, the unit here, and how many make one of SI."""

_BLOCK_BYTES = 2**23
_FIF, _GZIP = b"\x00\x00\x00\x64", b"\x1f\x8b"


def open_mne(
    path: str | Path | Location,
    *,
    channel_type: str | None = None,
    image_id: str | Mapping[Any, str] | Sequence[str] | None = None,
    subject: str | int | None = None,
    zscored: bool = False,
) -> xr.Dataset:
    """Open a file of epochs or evoked responses, lazily where MNE can.

    Parameters
    ----------
    path : str, Path or Location
        On this machine: ``*-epo.fif`` or ``*-ave.fif`` (also ``.fif.gz``), or an EEGLAB ``.set``
        of epochs. Of epochs in ``.fif`` files only labels are read; the others are read whole.
    channel_type, image_id, subject, zscored
        As `from_mne` takes them.

    Returns
    -------
    Dataset
        See `from_mne`.

    Raises
    ------
    StoreError
        If it is none of these, or not there. Continuous recordings need
        `nedx.preprocessing.epochs.epochs`.
    SelectionError, SchemaError
        As of `from_mne`.
    """
    location = Location.of(path)
    place = Path(location.url)
    if not location.is_local or not place.is_file():
        raise StoreError(f"there is no file {location.url} on this machine. Check the path")
    instance = _read(str(place), place.stat().st_mtime_ns)
    return from_mne(
        instance,
        channel_type=channel_type,
        image_id=image_id,
        subject=subject,
        zscored=zscored,
    )


@lru_cache(maxsize=4)
def _read(path: str, changed: int) -> Any:
    mne = require("mne", "mne")
    quiet = {"verbose": "error"}
    if path.endswith(".set"):
        try:
            return mne.io.read_epochs_eeglab(path, **quiet)
        except (ValueError, RuntimeError) as error:
            raise StoreError(
                f"{path} holds no epochs ({error}). Where it is a continuous recording, type: "
                "nedx.preprocessing.epochs.epochs(mne.io.read_raw_eeglab(path), events, ...)"
            ) from error
    with open(path, "rb") as file:
        start = file.read(4)
    if start != _FIF and start[:2] != _GZIP:
        raise StoreError(f"{path} is no .fif file, it begins with {start!r}. Fetch it again")
    try:
        return mne.read_epochs(path, preload=False, **quiet)
    except ValueError:
        pass
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}). Fetch it again") from error
    try:
        return mne.read_evokeds(path, **quiet)
    except (ValueError, OSError) as error:
        raise StoreError(
            f"{path} holds neither epochs nor evoked responses ({error}). Expected *-epo.fif, "
            "*-ave.fif or an EEGLAB .set"
        ) from error


def from_mne(
    instance: Any,
    *,
    channel_type: str | None = None,
    image_id: str | Mapping[Any, str] | Sequence[str] | None = None,
    subject: str | int | None = None,
    zscored: bool = False,
) -> xr.Dataset:
    """Make responses of MNE's epochs or evoked responses.

    Parameters
    ----------
    instance : mne.BaseEpochs, mne.Evoked or list of mne.Evoked
        Epochs that are not loaded stay so.
    channel_type : {"eeg", "csd", "mag", "grad", "ecog", "seeg"}, optional
        Needed where there is more than one: they have different units.
    image_id : str, mapping or sequence of str, optional
        Which images were shown: a column of the metadata of epochs; an image for each event name,
        event number or comment; or one for each sample. Where it is not known, events and
        comments are the coordinate ``category``.
    subject : str or int, optional
        Kept as the attribute ``subject_ids``.
    zscored : bool
        Whether the values are z-scores of the baseline, as MNE can make them, not SI.

    Returns
    -------
    Dataset
        ``response``, float32: of epochs ``(trial, channel, time)`` with ``onset (trial)`` in s
        from the start of the recording; of evoked responses ``(image, channel, time)`` with
        ``n_repetitions (image)``. Channels marked as bad are left out; they are named in the
        attribute ``bad_channels``.

    Raises
    ------
    SelectionError
        If there are several types of channels and none is chosen, or an image is missing.
    SchemaError
        If evoked responses differ in channels or times.
    """
    several = instance if isinstance(instance, list | tuple) else None
    if several is not None or hasattr(instance, "nave"):
        ds = _evokeds(list(several or [instance]), channel_type, image_id, zscored=zscored)
    else:
        ds = _epochs(instance, channel_type, image_id, zscored=zscored)
    if subject is not None:
        ds.attrs["subject_ids"] = [subject_label(subject)]
    return parse(ds)


def _epochs(epochs: Any, channel_type: str | None, image_id: Any, *, zscored: bool) -> xr.Dataset:
    epochs.drop_bad(verbose="error")
    info = epochs.info
    kind, rows = _chosen(info, channel_type)
    scale = 1.0 if zscored else UNITS[kind][2]
    numbers = epochs.events[:, 2]
    names = {number: name for name, number in epochs.event_id.items()}
    category = np.array([str(names.get(n, n)) for n in numbers], object)
    # Events keep counting the samples of the recording when MNE resamples epochs.
    rate = getattr(epochs, "_raw_sfreq", None) or info["sfreq"]
    onset = (epochs.events[:, 0] / rate).astype(np.float64)
    coords: dict[str, Any] = {
        "onset": ("trial", onset, {"units": "s", "long_name": "from the start of the recording"}),
        **_images("trial", image_id, category, numbers, epochs.metadata),
    }
    data = _epochs_data(epochs, rows, scale)
    return _labelled(
        ("trial", "channel", "time"), data, coords, info, kind, rows, epochs, zscored=zscored
    )


def _epochs_data(epochs: Any, rows: np.ndarray, scale: float) -> Any:
    if epochs.preload:
        values = epochs.get_data(picks=rows, copy=False, verbose="error")
        return (values * scale).astype(np.float32)
    shape = (len(epochs.events), rows.size, epochs.times.size)
    path = str(epochs.filename)
    changed = Path(path).stat().st_mtime_ns
    step = max(1, _BLOCK_BYTES // (4 * shape[1] * shape[2]))
    reader = _LazyEpochs(path, changed, tuple(rows.tolist()), scale, shape)
    token = tokenize(path, changed, rows, scale)
    return da.from_array(
        reader, chunks=(step, *shape[1:]), name=f"mne-{token}", asarray=False, lock=True
    )


@dataclass(frozen=True)
class _LazyEpochs:
    """Epochs in a file: what graphs carry of them."""

    path: str
    changed: int
    channels: tuple[int, ...]
    scale: float
    shape: tuple[int, int, int]
    dtype: np.dtype = np.dtype(np.float32)
    ndim: int = 3

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        """Read some epochs; MNE reads no single channels."""
        epochs = _opened_epochs(self.path, self.changed)
        values = epochs[key[0]].get_data(picks=list(self.channels), verbose="error")
        scaled: np.ndarray = (values * self.scale).astype(np.float32)[:, key[1], key[2]]
        return scaled


@lru_cache(maxsize=4)
def _opened_epochs(path: str, changed: int) -> Any:
    epochs = _read(path, changed)
    epochs.drop_bad(verbose="error")
    return epochs


def _evokeds(
    evokeds: list[Any], channel_type: str | None, image_id: Any, *, zscored: bool
) -> xr.Dataset:
    if not evokeds:
        raise SelectionError("there are no evoked responses in the list")
    first = evokeds[0]
    for other in evokeds[1:]:
        if other.ch_names != first.ch_names or not np.array_equal(other.times, first.times):
            fault = f"{other.comment!r} has other channels or times than {first.comment!r}"
            raise SchemaError("The list of evoked responses", [f"{fault}; give them one by one"])
    kind, rows = _chosen(first.info, channel_type)
    scale = 1.0 if zscored else UNITS[kind][2]
    data = np.stack([e.data[rows] * scale for e in evokeds]).astype(np.float32)
    category = np.array([e.comment or f"evoked {i}" for i, e in enumerate(evokeds)], object)
    coords = {
        "n_repetitions": ("image", np.array([e.nave for e in evokeds], np.int32)),
        **_images("image", image_id, category, np.arange(len(evokeds)), None),
    }
    return _labelled(
        ("image", "channel", "time"), data, coords, first.info, kind, rows, first, zscored=zscored
    )


def _chosen(info: Any, channel_type: str | None) -> tuple[str, np.ndarray]:
    """Return the type of the channels, and which they are; bad ones are left out."""
    types = np.array(info.get_channel_types())
    there = [kind for kind in UNITS if kind in types]
    if channel_type is None and len(there) == 1:
        channel_type = there[0]
    if channel_type not in there:
        named = ", ".join(repr(kind) for kind in there) or "none that is known here"
        if channel_type is None:
            raise SelectionError(
                f"the channels are of several types ({named}), which have different units; give "
                f"channel_type={there[0]!r}"
                if there
                else f"no channels of EEG or MEG: the types are {', '.join(sorted(set(types)))}"
            )
        raise SelectionError(f"no channels are of type {channel_type!r}; there are: {named}")
    good = np.array([name not in info["bads"] for name in info["ch_names"]])
    rows = np.flatnonzero((types == channel_type) & good)
    if not rows.size:
        raise SelectionError(f"all channels of type {channel_type!r} are marked as bad")
    return channel_type, rows


def _images(
    dim: str, image_id: Any, category: np.ndarray, numbers: np.ndarray, metadata: Any
) -> dict[str, Any]:
    """Return the coordinates that say what was shown."""
    coords: dict[str, Any] = {"category": (dim, category)}
    if metadata is not None:
        columns = [name for name in metadata.columns if name not in (dim, "category", "image_id")]
        for name in columns:
            values = metadata[name].to_numpy()
            values = values if values.dtype.kind in "biuf" else values.astype(str).astype(object)
            coords[str(name)] = (dim, values)
    if image_id is None:
        return coords
    if isinstance(image_id, str):
        if metadata is None or image_id not in metadata:
            there = [] if metadata is None else list(metadata.columns)
            hint = close_matches(image_id, there) or "there is no metadata"
            raise SelectionError(f"the metadata have no column {image_id!r}: {hint}")
        ids = [str(value) for value in metadata[image_id]]
    elif isinstance(image_id, Mapping):
        known = [image_id.get(c, image_id.get(n)) for c, n in zip(category, numbers, strict=True)]
        lacking = sorted({str(c) for c, i in zip(category, known, strict=True) if i is None})
        if lacking:
            raise SelectionError(
                f"no image is given for {len(lacking)} events, the first is {lacking[0]!r}: "
                "complete the mapping, or leave these events out"
            )
        ids = [str(one) for one in known]
    else:
        ids = [str(one) for one in image_id]
        if len(ids) != category.size:
            raise SelectionError(f"{len(ids)} images are given for {category.size} samples")
    coords["image_id"] = (dim, np.array(ids, object))
    return coords


def _labelled(
    dims: tuple[str, str, str],
    data: Any,
    coords: dict[str, Any],
    info: Any,
    kind: str,
    rows: np.ndarray,
    instance: Any,
    *,
    zscored: bool,
) -> xr.Dataset:
    modality, units, _ = UNITS[kind]
    attrs: dict[str, Any] = {
        "modality": modality,
        "source": "measured",
        "species": "human",
        "stimulus_type": "image",
    }
    if "image_id" not in coords:
        attrs["stimulus_identity"] = "none"
    if info["bads"]:
        attrs["bad_channels"] = list(info["bads"])
    steps = recorded_steps(info, getattr(instance, "baseline", None))
    response = {"units": units, "long_name": "response", "source": "measured"}
    if zscored:
        response |= {"units": "1", "normalization": "zscore", "normalization_scope": "baseline"}
        steps.append({"step": "baseline", "scope": "trial", "mode": "zscore"})
    if steps:
        attrs["preprocessing"] = steps
    if kind == "csd":
        response["transform"] = "csd"
    time = {"units": "s", "sampling_frequency": float(info["sfreq"])}
    return xr.Dataset(
        {"response": (dims, data, response)},
        {**coords, **channel_labels(info, rows), "time": ("time", instance.times, time)},
        attrs,
    )


def channel_labels(info: Any, rows: np.ndarray, montage: str | None = None) -> dict[str, Any]:
    """Return the coordinates of some channels of MNE's ``Info``.

    Parameters
    ----------
    info : mne.Info
    rows : int array (channel,)
        Positions of the channels.
    montage : str, optional
        Where positions come from; by default ``"digitised"``, where there are any.

    Returns
    -------
    dict
        ``channel`` with the attributes ``reference`` and, where positions are known, ``montage``;
        ``channel_type``; ``x``, ``y``, ``z`` in m, NaN where a position is not known.
    """
    apply_trans = require("mne", "mne").transforms.apply_trans
    channels = [info["chs"][row] for row in rows]
    types = info.get_channel_types()
    places = np.array([channel["loc"][:3] for channel in channels], np.float64)
    places[(places == 0).all(1)] = np.nan
    about: dict[str, str] = {"reference": "custom" if info["custom_ref_applied"] else "original"}
    in_device = types[rows[0]] in ("mag", "grad")
    if in_device and info["dev_head_t"] is not None:
        places = apply_trans(info["dev_head_t"], places)
    frame = "device" if in_device and info["dev_head_t"] is None else "head"
    coords: dict[str, Any] = {}
    if np.isfinite(places).any():
        about["montage"] = montage or "digitised"
        metres = {"units": "m", "coordinate_frame": frame}
        coords = {name: ("channel", places[:, i], metres) for i, name in enumerate("xyz")}
    names = np.array([channel["ch_name"] for channel in channels], object)
    kinds = np.array(["eeg" if types[row] == "csd" else types[row] for row in rows], object)
    return {"channel": ("channel", names, about), "channel_type": ("channel", kinds), **coords}


def recorded_steps(info: Any, baseline: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Return what MNE knows of the filters and the baseline of its object, as steps."""
    steps: list[dict[str, Any]] = []
    low, high = float(info["highpass"] or 0), float(info["lowpass"] or 0)
    if low > 0 or 0 < high < info["sfreq"] / 2:
        steps.append({"step": "filter", "scope": "recording", "low": low, "high": high})
    if baseline is not None:
        window = [float(end) for end in baseline]
        steps.append({"step": "baseline", "scope": "trial", "mode": "mean", "window": window})
    return steps
