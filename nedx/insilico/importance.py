"""Which channels and which times matter: what is lost when each is perturbed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.insilico.chain import (
    Chain,
    Change,
    Outcome,
    checked_seeds,
    checked_test,
    measured,
    outcome_of,
    scores_of,
)
from nedx.insilico.perturb import PERTURBATION, perturb
from nedx.schema import neuroid_dim, role_dim

Window = tuple[float, float]

SMALLER_IS_BETTER = ("median_rank",)
"""Measures that grow when something is lost."""


def importance_map(
    ds: xr.Dataset | xr.DataTree,
    decoder: Any,
    gallery: xr.Dataset | None = None,
    *,
    over: Literal["channel", "time"] | Sequence[Literal["channel", "time"]] = ("channel",),
    width: float = 0.1,
    step: float = 0.05,
    measure: str = "similarity_true",
    seeds: Sequence[int] = (0, 1, 2),
    outcome: str | Outcome = "retrieval",
    **perturbation: Any,
) -> xr.Dataset:
    """Perturb one piece of the responses at a time, and see what is lost; computes now.

    Decodes as often as there are channels, or windows, or both multiplied, times seeds.

    Parameters
    ----------
    ds : Dataset or DataTree
        Responses ``([subject,] image, channel, time)``, their repetitions averaged. They are read
        once for each piece and seed: ``load`` them. Of a tree the subjects share channels, times
        and images.
    decoder, gallery, outcome
        As `nedx.insilico.experiment.channel_experiment` takes them. The decoder stays as it is.
    over : {"channel", "time"} or sequence of them
        ``"channel"``: one channel at all times. ``"time"``: all channels in a window that slides.
        Both: one channel in one window.
    width, step : float
        Of the windows, s. Each holds the samples from its start up to its end, without it.
    measure : str
        What importance is a loss of: ``"similarity_true"``, which a single channel moves, or
        ``"top1"``, ``"top5"``, ``"median_rank"``; or a score of ``outcome``.
    seeds : sequence of int
        Of the noise; importance is a mean over them.
    **perturbation
        ``noise`` and ``sd`` of `nedx.perturb`, and ``time`` if it is not mapped; matched noise by
        default.

    Returns
    -------
    Dataset
        ``importance (subject, [channel,] [time])`` float64, how much of the measure is lost:
        positive where a piece matters, 0 where the decoder does not look, negative where noise
        helps. With the coordinates of channels, so that ``found.ned.plot.importance()`` draws it;
        ``time`` is the middle of each window, ``time_bounds (time, bnds)`` are its ends. Also
        every measure under noise, ``([channel,] [time,] seed, subject)``, and without,
        ``<measure>_clean (subject)``.

    Raises
    ------
    SelectionError
        If the measure is unknown, repetitions are not averaged, there are no named channels, or
        a window does not fit or holds fewer than two samples.
    """
    ds = checked_test(ds)
    asked = {over} if isinstance(over, str) else set(over)
    axes = [axis for axis in ("channel", "time") if axis in asked]
    if not axes or asked - set(axes):
        raise SelectionError(f"over names 'channel', 'time' or both, not {over!r}")
    channels = _channels(ds) if "channel" in axes else None
    windows = _windows(ds, width, step) if "time" in axes else None
    seeds = checked_seeds(seeds)
    changes = _changes(ds, channels, windows, perturbation)
    # A fault in what is asked for is told before the first decoding.
    hurt = next(iter(changes.values()))(ds, seed=seeds[0])
    chain = Chain(decoder, outcome_of(outcome, gallery, ds))
    clean = measured(scores_of(chain, ds, {"clean": None}, seeds[:1])).isel(condition=0, seed=0)
    if measure not in clean:
        known = close_matches(measure, clean.data_vars)
        raise SelectionError(f"unknown measure {measure!r}: {known}")
    found = _mapped(measured(scores_of(chain, ds, changes, seeds)), ds, channels, windows)
    noise = json.loads(hurt.attrs[PERTURBATION])[-1]["noise"]
    lost = _lost(found[measure], clean[measure]).assign_attrs(noise=noise)
    clean = clean.drop_vars(["condition", "seed"])
    return found.assign(importance=lost).assign(
        clean.rename({name: f"{name}_clean" for name in clean.data_vars})
    )


def channel_importance(
    ds: xr.Dataset | xr.DataTree,
    decoder: Any,
    gallery: xr.Dataset | None = None,
    **options: Any,
) -> xr.Dataset:
    """Perturb one channel at a time; `importance_map` over channels, which takes the options."""
    return importance_map(ds, decoder, gallery, over=("channel",), **options)


def time_importance(
    ds: xr.Dataset | xr.DataTree,
    decoder: Any,
    gallery: xr.Dataset | None = None,
    **options: Any,
) -> xr.Dataset:
    """Perturb one window at a time; `importance_map` over time, which takes the options."""
    return importance_map(ds, decoder, gallery, over=("time",), **options)


def _channels(ds: xr.Dataset) -> list[str]:
    dim = neuroid_dim(ds)
    if dim is None or dim not in ds.coords:
        raise SelectionError("importance is told by channel, and there are no named channels here")
    return [str(label) for label in ds[dim].values]


def _windows(ds: xr.Dataset, width: float, step: float) -> list[Window]:
    """Return windows of one width from the first sample on, start and end in s."""
    dim = role_dim(ds, "time")
    if dim is None or dim not in ds.coords:
        raise SelectionError("windows slide along a time axis, and there is none here")
    times = ds[dim].values.astype(np.float64)
    sample = float(np.diff(times).min()) if times.size > 1 else np.inf
    if step <= 0 or width < 2 * sample - 1e-9:
        raise SelectionError(
            f"windows of {width:g} s every {step:g} s: a window holds two samples or more, which "
            f"are {sample:g} s apart, and the step is above 0"
        )
    count = int(np.floor((times[-1] + sample - width - times[0]) / step + 1e-6)) + 1
    if count < 1:
        raise SelectionError(
            f"no window of {width:g} s fits in {times[0]:g} to {times[-1]:g} s; type a smaller "
            "width="
        )
    starts = times[0] + step * np.arange(count)
    return [(float(start), float(start + width)) for start in np.round(starts, 9)]


def _changes(
    ds: xr.Dataset,
    channels: list[str] | None,
    windows: list[Window] | None,
    perturbation: dict[str, Any],
) -> dict[str, Change]:
    """Return what is done to responses, piece by piece: channels, and windows in each."""
    pieces: list[dict[str, Any]] = [{}]
    if channels is not None:
        pieces = [{"channels": channel} for channel in channels]
    if windows is not None:
        # Half a sample less leaves out the sample at the end, and no other.
        half = float(np.diff(ds[str(role_dim(ds, "time"))].values).min()) / 2
        times = [(start, stop - half) for start, stop in windows]
        pieces = [{**piece, "time": time} for piece in pieces for time in times]
    return {str(piece): partial(perturb, **piece, **perturbation) for piece in pieces}


def _mapped(
    found: xr.Dataset, ds: xr.Dataset, channels: list[str] | None, windows: list[Window] | None
) -> xr.Dataset:
    """Give measures (condition, seed, subject) the axes of the map in the place of conditions."""
    sizes: dict[str, int] = {}
    coords = {name: found[name].variable for name in ("seed", "subject") if name in found.coords}
    if channels is not None:
        dim = str(neuroid_dim(ds))
        sizes[dim] = len(channels)
        coords |= {str(n): c.variable for n, c in ds.coords.items() if c.dims == (dim,)}
    if windows is not None:
        sizes["time"] = len(windows)
        seconds = {"units": "s", "long_name": "middle of the window"}
        coords["time"] = xr.Variable("time", np.mean(windows, axis=1), seconds)
        coords["time_bounds"] = xr.Variable(("time", "bnds"), np.array(windows), {"units": "s"})
    made = {}
    for name, array in found.data_vars.items():
        values = array.transpose("condition", "seed", "subject").values
        shape = (*sizes.values(), *values.shape[1:])
        made[name] = xr.Variable((*sizes, "seed", "subject"), values.reshape(shape), array.attrs)
    return xr.Dataset(made, coords)


def _lost(found: xr.DataArray, clean: xr.DataArray) -> xr.DataArray:
    """Return how much of a measure is lost, averaged over seeds, (subject, ...)."""
    lost = clean.variable - found.variable.mean("seed")
    if found.name in SMALLER_IS_BETTER:
        lost = -lost
    long_name = f"what is lost: {found.attrs['long_name']}"
    attrs = {"units": "1", "long_name": long_name, "measure": found.name}
    return xr.DataArray(lost.transpose("subject", ...), attrs=attrs)
