"""Epochs of continuous recordings, cut with MNE."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SelectionError, require
from nedx.preprocessing.steps import with_step
from nedx.schema import parse, subject_label
from nedx.sources.mne_files import UNITS, channel_labels, recorded_steps

CSD_LAMBDA2 = 1e-5
"""Regularisation of the current source density."""
CSD_STIFFNESS = 4
"""Stiffness of its splines (Perrin et al. 1989, Electroenceph. Clin. Neurophysiol. 72:184)."""
_BATCH_VALUES = 2**22
_SAME_TIME = 1e-6


@dataclass(frozen=True)
class EpochSettings:
    """How epochs are made of a continuous recording, in this order.

    Parameters
    ----------
    tmin, tmax : float
        First and last time, s from stimulus onset.
    band : (float or None, float or None), optional
        Pass band of a filter over the whole recording, Hz: MNE's FIR filter as it comes.
    baseline : (float or None, float or None), optional
        Window whose mean is subtracted, s; None is the start or end of the epoch.
    csd : bool
        Turn potentials into their current source density (spherical splines, lambda2 1e-5,
        stiffness 4), which needs positions of all channels.
    sampling_frequency : float, optional
        Resample to this, Hz, in the frequency domain.
    last_baseline : (float or None, float or None), optional
        As ``baseline``, but after all else.
    last_mode : {"mean", "zscore"}
        Of the last baseline: subtract its mean, and, for z-scores, divide by its standard
        deviation over time.
    crop : float, optional
        First time to keep in the end, s.
    """

    tmin: float
    tmax: float
    band: tuple[float | None, float | None] | None = None
    baseline: tuple[float | None, float | None] | None = None
    csd: bool = False
    sampling_frequency: float | None = None
    last_baseline: tuple[float | None, float | None] | None = None
    last_mode: Literal["mean", "zscore"] = "mean"
    crop: float | None = None

    def __post_init__(self) -> None:
        if not self.tmin < self.tmax:
            raise SelectionError(f"epochs from {self.tmin} to {self.tmax} s are empty")
        if self.last_mode not in ("mean", "zscore"):
            raise SelectionError(f"last_mode is 'mean' or 'zscore', not {self.last_mode!r}")
        if self.baseline is not None and self.last_baseline is not None:
            raise SelectionError("give baseline or last_baseline, not both")
        for window in (self.baseline, self.last_baseline):
            self._check_baseline(window)
        if self.sampling_frequency is not None and not self.sampling_frequency > 0:
            raise SelectionError(f"sampling_frequency is {self.sampling_frequency} Hz, not above 0")
        if self.crop is not None and not self.crop < self.tmax:
            raise SelectionError(f"crop {self.crop} s leaves nothing of epochs to {self.tmax} s")

    def _check_baseline(self, window: tuple[float | None, float | None] | None) -> None:
        """Raise, before a recording is filtered, where a baseline holds no time of the epoch."""
        if window is None:
            return
        start = self.tmin if window[0] is None else window[0]
        end = self.tmax if window[1] is None else window[1]
        if not max(start, self.tmin) <= min(end, self.tmax):
            raise SelectionError(
                f"the baseline {window} s holds no time of epochs from {self.tmin} to {self.tmax} s"
            )

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What is done, for the attribute ``preprocessing``."""
        found: list[dict[str, Any]] = []
        if self.band is not None:
            low, high = self.band
            found.append({"step": "filter", "scope": "recording", "low": low, "high": high})
        found.append({"step": "epochs", "scope": "trial", "tmin": self.tmin, "tmax": self.tmax})
        if self.baseline is not None:
            found.append(_baseline_step(self.baseline, "mean"))
        if self.csd:
            settings = {"lambda2": CSD_LAMBDA2, "stiffness": CSD_STIFFNESS}
            found.append({"step": "csd", "scope": "trial", **settings})
        if self.sampling_frequency is not None:
            rate = float(self.sampling_frequency)
            found.append({"step": "resample", "scope": "trial", "sampling_frequency": rate})
        if self.last_baseline is not None:
            found.append(_baseline_step(self.last_baseline, self.last_mode))
        if self.crop is not None:
            found.append({"step": "crop", "scope": "trial", "tmin": self.crop})
        return found

    def times(self, rate: float) -> np.ndarray:
        """Return the times of the epochs of a recording sampled at ``rate`` Hz, float64, s."""
        first, last = round(self.tmin * rate), round(self.tmax * rate)
        count, after = last - first + 1, rate
        if self.sampling_frequency is not None:
            after = self.sampling_frequency
            count = round(count * after / rate)
        times: np.ndarray = first / rate + np.arange(count) / after
        return times[self._kept(times)]

    def _kept(self, times: np.ndarray) -> np.ndarray:
        first = -np.inf if self.crop is None else self.crop - _SAME_TIME
        kept: np.ndarray = times >= first
        return kept


def _baseline_step(window: tuple[float | None, float | None], mode: str) -> dict[str, Any]:
    return {"step": "baseline", "scope": "trial", "mode": mode, "window": list(window)}


def epochs(
    raw: Any,
    events: np.ndarray,
    settings: EpochSettings,
    *,
    images: Mapping[int, str] | None = None,
    names: Mapping[int, str] | None = None,
    channel_type: str = "eeg",
    subject: str | int | None = None,
) -> xr.Dataset:
    """Cut a continuous recording into labelled trials, lazily.

    What is wrong with events or settings is said at once, but the recording is read when trials
    are computed: piece by piece, or, where it is filtered, as a whole and in memory.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        The recording; it is left as it is. One that is not loaded stays so.
    events : int array (event, 3)
        MNE's: sample, previous value, event number. All of them are cut.
    settings : EpochSettings
    images : mapping of int to str, optional
        The ``image_id`` of each event number.
    names : mapping of int to str, optional
        The ``category`` of each event number, where images are not known.
    channel_type : {"eeg", "mag", "grad", "ecog", "seeg"}
        Of the channels to keep; bad ones are left out.
    subject : str or int, optional
        Kept as the attribute ``subject_ids``.

    Returns
    -------
    Dataset
        ``response (trial, channel, time)``, float32, in uV, uV m-2 after the current source
        density, fT or fT cm-1, or ``"1"`` for z-scores of the baseline; ``image_id`` or
        ``category``, ``repetition`` and ``onset`` (s from the start of the recording) along
        ``trial``. What was done is the attribute ``preprocessing``.

    Raises
    ------
    SelectionError
        If events have no image, lie too close to an end of the recording or on each other; if
        positions that the current source density needs are missing. When computed: if values are
        not finite.
    """
    events = np.atleast_2d(np.asarray(events))
    numbers = events[:, 2].tolist()
    labels = names if images is None else images
    if labels is not None:
        unknown = sorted({n for n in numbers if n not in labels})
        if unknown:
            raise SelectionError(
                f"{len(unknown)} event numbers have no image, the first is {unknown[0]}: complete "
                "the mapping, or leave these events out"
            )
    kept = require("mne", "mne").pick_types(
        raw.info,
        meg=channel_type if channel_type in ("mag", "grad") else False,
        eeg=channel_type == "eeg",
        ecog=channel_type == "ecog",
        seeg=channel_type == "seeg",
    )
    if not kept.size:
        raise SelectionError(f"no channels are of type {channel_type!r}")
    recording = raw.copy().pick(kept)
    check_epochs(recording, events[:, 0], settings)
    times = settings.times(recording.info["sfreq"])
    rate = 1 / float(np.diff(times).mean())
    values = _lazy_values(recording, events[:, 0], settings, channel_type)
    shown = [str(n) if labels is None else labels[n] for n in numbers]
    onset = (events[:, 0] - raw.first_samp) / raw.info["sfreq"]
    ds = xr.Dataset(
        {
            "response": (
                ("trial", "channel", "time"),
                values,
                response_attrs(channel_type, settings),
            )
        },
        {
            "category" if images is None else "image_id": ("trial", np.array(shown, object)),
            "repetition": ("trial", repetition_of(np.array(shown))),
            "onset": ("trial", onset, {"units": "s"}),
            **channel_labels(recording.info, np.arange(kept.size)),
            "time": ("time", times, {"units": "s", "sampling_frequency": round(rate, 6)}),
        },
        {"modality": UNITS[channel_type][0], "species": "human", "stimulus_type": "image"},
    )
    ds.attrs["preprocessing"] = recorded_steps(raw.info, None)
    for step in settings.steps:
        ds = with_step(ds, **step)
    if images is None:
        ds.attrs["stimulus_identity"] = "none"
    if subject is not None:
        ds.attrs["subject_ids"] = [subject_label(subject)]
    return parse(ds)


def _lazy_values(
    recording: Any, samples: np.ndarray, settings: EpochSettings, channel_type: str
) -> da.Array:
    """Return float32 (trial, channel, time); of a filtered recording one block."""
    shape = len(recording.ch_names), settings.times(recording.info["sfreq"]).size
    step = _batch_length(recording, settings) if settings.band is None else samples.size
    # The graph holds the recording, of which copies would be as large, once; it has no name of its
    # own, since what makes two recordings alike would have to be read.
    held = dask.delayed(recording, name=f"recording-{uuid.uuid4().hex}", traverse=False)
    cut = dask.delayed(_cut_values, pure=False)
    blocks = []
    for start in range(0, samples.size, step):
        rows = samples[start : start + step]
        values = cut(held, rows, settings, channel_type)
        blocks.append(da.from_delayed(values, (rows.size, *shape), np.float32))
    return da.concatenate(blocks)


def _cut_values(
    recording: Any, samples: np.ndarray, settings: EpochSettings, channel_type: str
) -> np.ndarray:
    # Only filtering changes a recording, and others may compute other trials of it.
    own = recording if settings.band is None else recording.copy()
    return scaled(cut_epochs(own, samples, settings)[0], channel_type, settings)[0]


def repetition_of(images: np.ndarray) -> np.ndarray:
    """Count the earlier trials of the same image, int16 (trial,)."""
    order = np.argsort(images, kind="stable")
    _, counts = np.unique(images, return_counts=True)
    earlier = np.arange(images.size) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.empty(images.size, np.int16)
    found[order] = earlier
    return found


def scaled(
    values: np.ndarray, channel_type: str, settings: EpochSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return values of SI in the units of the schema, and the attributes that say so."""
    attrs = response_attrs(channel_type, settings)
    if attrs["units"] != "1":
        values *= np.float32(UNITS["csd" if settings.csd else channel_type][2])
    return values, attrs


def response_attrs(channel_type: str, settings: EpochSettings) -> dict[str, Any]:
    """Return the attributes of responses that were cut as ``settings`` say."""
    attrs: dict[str, Any] = {"long_name": "response", "source": "measured"}
    attrs["units"] = UNITS["csd" if settings.csd else channel_type][1]
    if settings.csd:
        attrs["transform"] = "csd"
    if settings.last_baseline is not None and settings.last_mode == "zscore":
        attrs |= {"units": "1", "normalization": "zscore", "normalization_scope": "baseline"}
    return attrs


def cut_epochs(
    recording: Any, samples: np.ndarray, settings: EpochSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Cut epochs out of a recording, a few at a time.

    Parameters
    ----------
    recording : mne.io.BaseRaw
        The channels to keep. It is filtered in place.
    samples : int array (trial,)
        Where stimuli begin, counted as MNE does.
    settings : EpochSettings

    Returns
    -------
    values : float32 array (trial, channel, time)
        In MNE's units, or z-scores of the baseline.
    times : float64 array (time,)
        s.

    Raises
    ------
    SelectionError
        If there is nothing to cut, or what comes out is not finite.
    """
    mne = require("mne", "mne")
    check_epochs(recording, samples, settings)
    if settings.band is not None:
        recording.load_data(verbose="error")
        _check_finite(recording)
        recording.filter(*settings.band, verbose="error")
    step = _batch_length(recording, settings)
    found: np.ndarray | None = None
    for start in range(0, samples.size, step):
        rows = samples[start : start + step]
        events = np.column_stack([rows, np.zeros_like(rows), np.ones_like(rows)]).astype(int)
        values, times = _cut_batch(mne, recording, events, settings)
        if found is None:
            found = np.empty((samples.size, *values.shape[1:]), np.float32)
        found[start : start + rows.size] = values
    assert found is not None
    if not np.isfinite(found).all():
        _check_finite(recording)
        bad = np.flatnonzero(~np.isfinite(found).all((1, 2)))
        raise SelectionError(
            f"{bad.size} trials have no finite values (the first is trial {bad[0]}): a channel is "
            "constant in the baseline. Leave it out, or give last_mode='mean'"
        )
    return found, times


def _batch_length(recording: Any, settings: EpochSettings) -> int:
    """Return how many epochs are cut at a time."""
    width = int((settings.tmax - settings.tmin) * recording.info["sfreq"]) + 1
    return max(1, _BATCH_VALUES // (width * len(recording.ch_names)))


def check_epochs(recording: Any, samples: np.ndarray, settings: EpochSettings) -> None:
    """Refuse what cannot be cut, before the recording is read.

    Raises
    ------
    SelectionError
        If there are no events, or two on one sample, or epochs reach beyond the recording, or the
        band beyond half its sampling rate, or positions are missing that the current source density
        needs.
    """
    if not samples.size:
        raise SelectionError("there are no events to cut epochs at")
    if np.unique(samples).size < samples.size:
        raise SelectionError("two events lie on the same sample; leave one of them out")
    _check_window(recording, samples, settings)
    highest = recording.info["sfreq"] / 2
    if settings.band is not None and max(edge or 0 for edge in settings.band) >= highest:
        raise SelectionError(
            f"the band {settings.band} Hz reaches beyond {highest:g} Hz, half the sampling rate of "
            "this recording; lower it"
        )
    if settings.csd:
        _check_positions(recording)


def _cut_batch(
    mne: Any, recording: Any, events: np.ndarray, settings: EpochSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 (trial, channel, time), in MNE's units or z-scores, and the times."""
    cut = mne.Epochs(
        recording,
        events,
        tmin=settings.tmin,
        tmax=settings.tmax,
        baseline=settings.baseline,
        picks="all",
        preload=True,
        reject_by_annotation=False,
        proj=False,
        verbose="error",
    )
    if settings.csd:
        cut = mne.preprocessing.compute_current_source_density(
            cut, lambda2=CSD_LAMBDA2, stiffness=CSD_STIFFNESS, copy=False, verbose="error"
        )
    if settings.sampling_frequency is not None:
        cut.resample(settings.sampling_frequency, verbose="error")
    values = cut.get_data(copy=False, verbose="error")
    if settings.last_baseline is not None:
        # A constant baseline makes what is not finite, which the caller explains.
        with np.errstate(divide="ignore", invalid="ignore"):
            values = mne.baseline.rescale(
                values, cut.times, settings.last_baseline, settings.last_mode, verbose="error"
            )
    kept = settings._kept(cut.times)
    return values[..., kept], cut.times[kept]


def fits_inside(
    samples: np.ndarray, first: int, count: int, rate: float, settings: EpochSettings
) -> np.ndarray:
    """Say of each onset whether its epoch lies within ``count`` samples from ``first``, bool."""
    begin = samples + round(settings.tmin * rate) - first
    end = samples + round(settings.tmax * rate) - first
    inside: np.ndarray = (begin >= 0) & (end < count)
    return inside


def _check_window(recording: Any, samples: np.ndarray, settings: EpochSettings) -> None:
    rate = recording.info["sfreq"]
    inside = fits_inside(samples, recording.first_samp, recording.n_times, rate, settings)
    if not inside.all():
        first = (samples[~inside][0] - recording.first_samp) / rate
        raise SelectionError(
            f"{int((~inside).sum())} epochs reach beyond the recording, the first begins at "
            f"{first:g} s: leave these events out, or cut shorter epochs"
        )


def _check_positions(recording: Any) -> None:
    places = np.array([channel["loc"][:3] for channel in recording.info["chs"]])
    lacking = ~np.isfinite(places).all(1) | (places == 0).all(1)
    if lacking.any():
        name = recording.ch_names[int(np.flatnonzero(lacking)[0])]
        raise SelectionError(
            f"the current source density needs the positions of all channels; {lacking.sum()} have "
            f"none, the first is {name}. Type: raw.set_montage('easycap-M1')"
        )


def _check_finite(recording: Any) -> None:
    for name in recording.ch_names:
        values = recording.get_data(picks=[name])[0]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            when = bad[0] / recording.info["sfreq"]
            raise SelectionError(
                f"channel {name} holds {bad.size} values that are not finite, the first at "
                f"{when:g} s: mark it as bad, or cut the recording there"
            )
