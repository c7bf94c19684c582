"""Regions and windows, kept alone, left out or perturbed: plans over them, and the experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from nedx import scalp
from nedx.errors import SelectionError, close_matches
from nedx.insilico.chain import (
    Chain,
    Change,
    Outcome,
    Retrain,
    checked_seeds,
    checked_test,
    measured,
    outcome_of,
    scores_of,
)
from nedx.insilico.contrasts import check_resamples, contrast
from nedx.insilico.perturb import perturb
from nedx.schema import neuroid_dim, role_dim
from nedx.selection import resolve, select

How = Literal["perturb", "keep", "remove"]

WINDOW_ENDS = tuple(np.round([*np.arange(1, 11) * 0.05, 0.6, 0.7, 0.8, 0.9, 1.0], 3).tolist())
"""Where the published windows end, s: 0.05 to 0.5 by 0.05, then to 1 by 0.1."""


@dataclass(frozen=True)
class Piece:
    """Some of the channels, some of the time, or both.

    Parameters
    ----------
    name : str
    channels : tuple of str, optional
        Channels or groups of them; all by default.
    time : (start, stop), optional
        s, both ends included; all of the time by default.
    """

    name: str
    channels: tuple[str, ...] | None = None
    time: tuple[float, float] | None = None


def region_pieces(ds: xr.Dataset) -> tuple[Piece, ...]:
    """Return the regions of the scalp, as the published ablations have them.

    Parameters
    ----------
    ds : Dataset
        Responses with channels of the 10-10 system, or a coordinate ``region (channel)``.

    Returns
    -------
    tuple of Piece
        Of 63 channels: frontal 15, central 14, parietal 16, temporal 10, occipital 8.

    Raises
    ------
    SelectionError
        If a channel is of no region.
    """
    labels = _channels(ds)
    dim = neuroid_dim(ds)
    if "region" in ds.coords and ds["region"].dims == (dim,):
        regions: list[str | None] = [str(value) for value in ds["region"].values]
    else:
        regions = [scalp.region(label) for label in labels]
    if None in regions:
        stray = labels[regions.index(None)]
        raise SelectionError(
            f"channel {stray!r} is not of the 10-10 system; say where channels are: "
            f"ds.assign_coords(region=('{dim}', names))"
        )
    members: dict[str, list[str]] = {}
    for label, region in zip(labels, regions, strict=True):
        members.setdefault(str(region), []).append(label)
    return tuple(Piece(name, tuple(found)) for name, found in members.items())


def growing_windows(ds: xr.Dataset, ends: Sequence[float] = WINDOW_ENDS) -> tuple[Piece, ...]:
    """Return the windows from stimulus onset to each end, s, that the responses reach."""
    return tuple(Piece(f"0-{end:g} s", time=(0.0, end)) for end in _reached(ds, ends))


def sliding_windows(
    ds: xr.Dataset, ends: Sequence[float] = WINDOW_ENDS, width: float = 0.1
) -> tuple[Piece, ...]:
    """Return the windows of one width up to each end, s, that begin at onset or later."""
    starts = {end: round(end - width, 9) for end in _reached(ds, ends)}
    return tuple(
        Piece(f"{start:g}-{end:g} s", time=(start, end))
        for end, start in starts.items()
        if start >= 0
    )


def ablate(
    ds: xr.Dataset,
    piece: Piece,
    how: How = "perturb",
    *,
    seed: int = 0,
    **perturbation: Any,
) -> xr.Dataset:
    """Take a piece out of responses, or all but it, lazily.

    Parameters
    ----------
    ds : Dataset
        Responses.
    piece : Piece
    how : {"perturb", "keep", "remove"}
        ``"perturb"``: noise takes its place, and the shape stays, see `nedx.perturb`. ``"keep"``:
        nothing else is left, as in the published ablations. ``"remove"``: its channels are gone.
    seed : int
        Of ``"perturb"``.
    **perturbation
        ``noise`` and ``sd`` of `nedx.perturb`; matched noise by default.

    Returns
    -------
    Dataset

    Raises
    ------
    SelectionError
        If the channels or times are not there, or are all there is, or a window should be removed,
        or noise is asked for where none is made.
    """
    if how not in get_args(How):
        raise SelectionError(f"unknown how={how!r}: {close_matches(how, get_args(How))}")
    if how == "perturb":
        return perturb(ds, channels=piece.channels, time=piece.time, seed=seed, **perturbation)
    if perturbation:
        raise SelectionError(
            f"{next(iter(perturbation))}= is of how='perturb', and how={how!r} makes no noise; "
            "leave it out"
        )
    if how == "keep":
        return select(ds, channel=piece.channels, time=piece.time)
    if piece.channels is None or piece.time is not None:
        raise SelectionError(
            f"{piece.name!r} is a window, and time without it would have a gap; type "
            "how='perturb' or how='keep'"
        )
    dim = str(neuroid_dim(ds))
    left = np.ones(ds.sizes[dim], bool)
    left[resolve(ds, channel=piece.channels)[dim]] = False
    if not left.any():
        raise SelectionError(f"nothing is left without {piece.name!r}")
    return ds.isel({dim: np.flatnonzero(left)})


def ablation_experiment(
    responses_train: xr.Dataset | xr.DataTree | None,
    responses_test: xr.Dataset | xr.DataTree,
    decoder: Any,
    gallery: xr.Dataset | None = None,
    *,
    pieces: Sequence[Piece],
    how: How = "perturb",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    retrain: Retrain | None = None,
    targets: xr.Dataset | None = None,
    prior: Any = None,
    outcome: str | Outcome = "retrieval",
    n_resamples: int = 1000,
    **perturbation: Any,
) -> xr.Dataset:
    """Score what can be decoded with or without each of several pieces; computes now.

    Parameters
    ----------
    responses_train, responses_test, decoder, gallery, seeds, retrain, targets, prior, outcome, \
n_resamples
        As `nedx.insilico.experiment.channel_experiment` takes them. There is one seed where
        nothing is perturbed. A decoder has its channels and times: for ``how="keep"`` and
        ``"remove"`` it is trained anew, ``retrain="decoder"``, or a function that can do with
        less.
    pieces : sequence of Piece
        Each with a name of its own. For example ``region_pieces(ds)``, ``growing_windows(ds)``,
        ``sliding_windows(ds)``.
    how : {"perturb", "keep", "remove"}
        See `ablate`, also for ``**perturbation``.

    Returns
    -------
    Dataset
        The measures ``(condition, seed, subject)`` of ``"clean"``, which has all, and of each
        piece; and ``_difference``, ``_interval`` and ``_p`` from ``"clean"`` ``(condition,
        subject)``, see `nedx.insilico.contrasts.contrast`.

    Raises
    ------
    SelectionError, ModelError
        As `channel_experiment`; or if a decoder would have to do with less than it was trained on.
    """
    responses_test = checked_test(responses_test)
    _check_pieces(pieces)
    check_resamples(n_resamples)
    if how != "perturb" and retrain != "decoder" and not callable(decoder):
        raise SelectionError(
            f"how={how!r} leaves other channels or times than the decoder was trained on; type "
            "retrain='decoder' with an estimator, or how='perturb'"
        )
    seeds = checked_seeds(seeds) if how == "perturb" else [0]
    chain = Chain(
        decoder,
        outcome_of(outcome, gallery, responses_test),
        retrain,
        responses_train,
        targets,
        prior,
    )
    changes: dict[str, Change | None] = {"clean": None}
    for piece in pieces:
        change: Change = partial(ablate, piece=piece, how=how, **perturbation)
        # Every fault in what is asked for is told before the first decoding.
        change(responses_test, seed=seeds[0])
        changes[piece.name] = change
    scores = scores_of(chain, responses_test, changes, seeds)
    compared = [
        contrast(scores, position, [0], n_resamples=n_resamples)
        for position in range(1, len(changes))
    ]
    label = xr.Variable("condition", np.array(list(changes)[1:], dtype=object))
    found = measured(scores)
    differences = xr.concat(compared, label).reindex(condition=found["condition"])
    return found.assign(differences).assign_attrs(title=f"What is lost: how={how}")


def _check_pieces(pieces: Sequence[Piece]) -> None:
    """Raise where pieces could not be told apart in the result, or there are none."""
    names = [piece.name for piece in pieces]
    if not names:
        raise SelectionError("pieces= is empty; type pieces=region_pieces(ds)")
    if twice := [name for n, name in enumerate(names) if name in ("clean", *names[:n])]:
        raise SelectionError(
            f"conditions are told apart by the names of pieces, and {twice[0]!r} is there twice; "
            "'clean' is what has all"
        )


def _channels(ds: xr.Dataset) -> list[str]:
    dim = neuroid_dim(ds)
    if dim is None or dim not in ds.coords:
        raise SelectionError("there are no named channels here")
    return [str(label) for label in ds[dim].values]


def _reached(ds: xr.Dataset, ends: Sequence[float]) -> list[float]:
    """Return the ends that the samples reach: a window up to 1 s ends with the sample before."""
    dim = role_dim(ds, "time")
    if dim is None or dim not in ds.coords:
        raise SelectionError("windows are cut along a time axis, and there is none here")
    times = ds[dim].values.astype(np.float64)
    step = float(np.diff(times).max()) if times.size > 1 else 0.0
    found = [float(end) for end in ends if end <= times[-1] + step * 1.001]
    if not found:
        raise SelectionError(f"no window ends by {times[-1]:g} s, the last sample")
    return found
