"""Responses as MNE's Epochs and Evokeds: volts and tesla, sensors in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from nedx.errors import SchemaError, SelectionError, require
from nedx.export.pieces import need_neuroids, one_group, one_subject, pick, refuse_large
from nedx.schema import role_dim, sample_dim
from nedx.sources.mne_files import UNITS

if TYPE_CHECKING:
    import mne

SI_UNITS = {unit: 1 / factor for _, unit, factor in UNITS.values()}
"""What one of a unit is in the SI unit that MNE keeps: V, V/m2, T, T/m."""

# How far the steps of a regular time axis may differ, of a step.
_STEP_TOLERANCE = 1e-3


def to_mne(
    obj: xr.Dataset | xr.DataTree,
    kind: Literal["epochs", "evoked"] = "epochs",
    *,
    variable: str | None = None,
    by: str = "image_id",
    units: str | None = None,
    positions: bool = True,
) -> mne.EpochsArray | list[mne.EvokedArray]:
    """Return responses of one subject as Epochs or Evokeds of MNE; computes them.

    Values become V, V/m2, T or T/m. Sensors are placed by the coordinates ``x``, ``y``, ``z`` of
    ``channel`` (m, head frame); without them EEG channels are placed by their names, as MNE's
    montage ``standard_1005`` has them. Coils are points: their directions are not known here.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses ``([subject 1,] image | trial, [repetition,] channel, time)`` in ``uV``,
        ``uV m-2``, ``fT`` or ``fT cm-1``.
    kind : {"epochs", "evoked"}
        Each trial (or each repetition of each image) as an epoch, whose ``metadata`` are the
        labels; or means. Repetitions that are NaN throughout are absent and are left out.
    variable : str, optional
        What to take; ``response`` by default.
    by : str
        Of evokeds, the label whose values are averaged: ``"image_id"``, ``"category"``, ...
    units : str, optional
        Of responses without a unit (z-scored, units ``"1"``), which MNE does not know: the unit
        that a value of one is written as, for example ``"uV"``.
    positions : bool
        Whether sensors must have places.

    Returns
    -------
    mne.EpochsArray or list of mne.EvokedArray
        Float64. Each evoked says what it averages in ``comment`` and how many in ``nave``, where
        ``n_repetitions (image)`` counts for what was averaged before, where repetitions are no
        dim any more.

    Raises
    ------
    SchemaError
        If there are no channels or times, times are irregular, there is no unit, a unit is not
        that of the type of its channel, or sensors have no places.
    SelectionError
        If there are several subjects, no trials, or no such variable or label.
    MissingExtraError
        If MNE is not installed.
    """
    mne = require("mne", "mne")
    if kind not in ("epochs", "evoked"):
        raise ValueError(f"kind is 'epochs' or 'evoked', not {kind!r}")
    array = one_subject(pick(one_group(obj), variable))
    need_neuroids(array, "channel")
    rate = _sampling_frequency(array)
    info = make_info(array, rate, units=units, positions=positions)
    scale = SI_UNITS[_unit(array, units)]
    # float64, and once more while they are arranged.
    refuse_large(2 * 8 * array.size, array.sizes)
    values, metadata = _trials(array, scale)
    if not len(values):
        raise SelectionError(
            f"{array.name!r} of {dict(array.sizes)} holds no trial that has values"
        )
    start = float(array[role_dim(array, "time")].values[0])
    label = metadata.get(by)
    if kind == "evoked":
        if label is None:
            there = ", ".join(metadata)
            raise SelectionError(f"by={by!r} is no label of the trials; there are: {there}")
        # Where repetitions are still apart, the label says how many of them there are.
        averaged = role_dim(array, "repetition") is None and "n_repetitions" in metadata
        counts = metadata["n_repetitions"] if averaged else np.ones(len(values))
        return _evokeds(mne, values, info, start, label.astype(str), counts)
    return _epochs(mne, values, info, start, metadata)


def make_info(
    array: xr.DataArray,
    sampling_frequency: float,
    *,
    units: str | None = None,
    positions: bool = True,
) -> mne.Info:
    """Return what MNE keeps of the sensors of an array.

    Parameters
    ----------
    array : DataArray
        With a dim ``channel``, and along it ``channel_type`` and ``x``, ``y``, ``z`` (m).
    sampling_frequency : float
        Hz.
    units : str, optional
        Instead of those of the array.
    positions : bool
        Whether sensors must have places.

    Returns
    -------
    mne.Info

    Raises
    ------
    SchemaError
        If the unit is not that of the type of a channel, or sensors have no places.
    """
    mne = require("mne", "mne")
    if "channel" not in array.coords:
        raise SchemaError(f"{array.name!r}", ["channels have no names: no coordinate 'channel'"])
    names = [str(name) for name in array["channel"].values]
    unit = _unit(array, units)
    info = mne.create_info(names, sampling_frequency, _channel_types(array, unit))
    subject = array.coords.get("subject")
    if subject is not None and subject.ndim == 0:
        info["subject_info"] = {"his_id": str(subject.item())}
    if positions:
        _place(mne, info, names, array)
    if unit == "uV m-2":
        # Only now, and as MNE's own transform does: it places no channels of this type.
        fiff = mne.io.constants.FIFF
        for channel in info["chs"]:
            channel.update(coil_type=fiff.FIFFV_COIL_EEG_CSD, unit=fiff.FIFF_UNIT_V_M2)
    return info


def _unit(array: xr.DataArray, units: str | None) -> str:
    found = str(array.attrs.get("units", ""))
    if found in SI_UNITS:
        if units not in (None, found):
            raise SchemaError(f"{array.name!r}", [f"units are {found!r}, not {units!r}"])
        return found
    if units in SI_UNITS:
        return str(units)
    known = ", ".join(repr(unit) for unit in SI_UNITS)
    how = array.attrs.get("normalization")
    fault = f"units are {found!r}" + (f" ({how})" if how else "") + f"; MNE needs one of {known}"
    raise SchemaError(
        f"{array.name!r}", [f"{fault}. To write a value of 1 as 1 uV, type units='uV'"]
    )


def _channel_types(array: xr.DataArray, unit: str) -> list[str]:
    # Current source density is that of EEG channels.
    base = "uV" if unit == "uV m-2" else unit
    allowed = [kind for kind, (_, own, _) in UNITS.items() if own == base]
    if "channel_type" not in array.coords:
        return [allowed[0]] * array.sizes["channel"]
    types = [str(name) for name in array["channel_type"].values]
    wrong = sorted(set(types) - set(allowed))
    if wrong:
        raise SchemaError(
            f"{array.name!r} in {unit}",
            [
                f"channels of type {', '.join(wrong)}; this is a unit of {', '.join(allowed)}. "
                f"Select: ds.isel(channel=ds.channel_type == {allowed[0]!r})"
            ],
        )
    return types


def _place(mne: Any, info: Any, names: list[str], array: xr.DataArray) -> None:
    """Put the sensors where they are."""
    places = positions_of(array)
    if info.get_channel_types(unique=True)[0] not in ("mag", "grad"):
        if places is None:
            montage = _standard_montage(mne, names)
        else:
            by_name = dict(zip(names, places, strict=True))
            montage = mne.channels.make_dig_montage(by_name, coord_frame="head")
        info.set_montage(montage)
        return
    if places is None:
        fault = "sensors have no coordinates x, y, z (m); to go without, type positions=False"
        raise SchemaError(f"{array.name!r}", [fault])
    if array["x"].attrs.get("coordinate_frame") != "device":
        # MNE keeps coils in the frame of the device: here it is that of the head.
        info["dev_head_t"] = mne.transforms.Transform("meg", "head")
    for channel, place in zip(info["chs"], places, strict=True):
        channel["loc"][:3] = place


def positions_of(array: xr.DataArray) -> np.ndarray | None:
    """Return the places of the channels, float64 (channel, 3), m; None where there are none.

    Raises
    ------
    SchemaError
        If a place is not finite, or too far from the head to be in m.
    """
    if not all(axis in array.coords and array[axis].dims == ("channel",) for axis in "xyz"):
        return None
    places = np.stack([array[axis].values.astype(np.float64) for axis in "xyz"], axis=1)
    faults = []
    wrong = array["channel"].values[~np.isfinite(places).all(axis=1)]
    if wrong.size:
        faults.append(f"x, y, z of {', '.join(map(str, wrong))} are not finite; drop them")
    elif places.size and np.linalg.norm(places, axis=1).max() > 1:
        faults.append("x, y, z reach further than 1 m; expected m, in the frame of the head")
    if faults:
        raise SchemaError(f"the sensors of {array.name!r}", faults)
    return places


def _standard_montage(mne: Any, names: list[str]) -> Any:
    """Return MNE's montage ``standard_1005``, its channels spelled as they are here."""
    # MNE 1.13 gave it a new name, of the head that it was measured on.
    there = mne.channels.get_builtin_montages()
    name = "colin27_1005" if "colin27_1005" in there else "standard_1005"
    montage = mne.channels.make_standard_montage(name)
    spelled = {name.lower(): name for name in montage.ch_names}
    unknown = [name for name in names if name.lower() not in spelled]
    if unknown:
        fault = (
            f"no coordinates x, y, z, and {', '.join(unknown[:8])} are no channels of "
            "standard_1005; add x, y, z (m), or to go without, type positions=False"
        )
        raise SchemaError("the sensors", [fault])
    montage.rename_channels({spelled[n.lower()]: n for n in names if spelled[n.lower()] != n})
    return montage


def _sampling_frequency(array: xr.DataArray) -> float:
    """Return the sampling frequency in Hz, of times that are regular."""
    dim = role_dim(array, "time")
    if dim is None or dim not in array.coords or array.sizes[dim] < 2:
        raise SchemaError(
            f"{array.name!r} of dims {array.dims}", ["expected a time axis of two samples or more"]
        )
    steps = np.diff(array[dim].values.astype(np.float64))
    step = float(steps.mean())
    if step <= 0 or np.abs(steps - step).max() > _STEP_TOLERANCE * step:
        fault = f"steps from {steps.min():g} to {steps.max():g} s; MNE needs regular times"
        raise SchemaError(f"the times of {array.name!r}", [fault])
    # The stated rate where it fits: steps of a third of a millisecond are not exact.
    stated = float(array[dim].attrs.get("sampling_frequency", 0))
    return stated if abs(stated * step - 1) <= _STEP_TOLERANCE else 1 / step


def _trials(array: xr.DataArray, scale: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return float64 (trial, channel, time) in SI units, and the labels of the trials."""
    sample, repetition = sample_dim(array), role_dim(array, "repetition")
    time = str(role_dim(array, "time"))
    kept = [sample] + ([repetition] if repetition else [])
    extra = [str(dim) for dim in array.dims if dim not in (*kept, "channel", time)]
    if extra:
        raise SelectionError(
            f"{array.name!r} has the dims {', '.join(extra)} besides; select, for example "
            f"ds.isel({extra[0]}=0)"
        )
    values = array.transpose(*kept, "channel", time).values.astype(np.float64) * scale
    shape = values.shape[: len(kept)]
    labels = {}
    for name, coord in array.coords.items():
        if coord.dims and set(coord.dims) <= set(kept):
            wide = coord.broadcast_like(array.isel({"channel": 0, time: 0}, drop=True))
            labels[str(name)] = wide.transpose(*kept).values.reshape(-1)
    values = values.reshape(int(np.prod(shape)), *values.shape[len(kept) :])
    there = ~np.isnan(values).all(axis=(1, 2))
    return values[there], {name: label[there] for name, label in labels.items()}


def _epochs(
    mne: Any, values: np.ndarray, info: Any, start: float, metadata: dict[str, np.ndarray]
) -> Any:
    """Return epochs whose events are the images."""
    shown = metadata.get("image_id", np.full(len(values), "image", dtype=object)).astype(str)
    names, codes = np.unique(shown, return_inverse=True)
    # Events of a recording come one after another; these were cut out of it.
    events = np.stack([np.arange(len(values)), np.zeros(len(values), int), codes + 1], axis=1)
    event_id = {name: code for code, name in enumerate(names.tolist(), start=1)}
    table = pd.DataFrame(metadata) if metadata else None
    return mne.EpochsArray(
        values, info, events=events, tmin=start, event_id=event_id, metadata=table, verbose="ERROR"
    )


def _evokeds(
    mne: Any,
    values: np.ndarray,
    info: Any,
    start: float,
    labels: np.ndarray,
    counts: np.ndarray,
) -> list[Any]:
    """Return a mean for each label, in the order in which the labels appear first."""
    found = []
    for label in dict.fromkeys(labels.tolist()):
        rows = np.flatnonzero(labels == label)
        mean = values[rows].mean(axis=0)
        # The trials of which an average is as noisy: means of n_i each make k^2 / sum(1 / n_i).
        nave = max(1, round(len(rows) ** 2 / float(np.sum(1 / counts[rows]))))
        found.append(mne.EvokedArray(mean, info.copy(), start, label, nave=nave, verbose="ERROR"))
    return found
