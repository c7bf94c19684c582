"""The channel experiment: what is lost with some channels, beside what others would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SelectionError
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
from nedx.insilico.perturb import PERTURBATION, perturb
from nedx.metrics.repeats import labels_of
from nedx.schema import neuroid_dim
from nedx.selection import Names, resolve

TARGET = "perturbed"
"""The condition in which the channels in question are perturbed."""


def channel_experiment(
    responses_train: xr.Dataset | xr.DataTree | None,
    responses_test: xr.Dataset | xr.DataTree,
    decoder: Any,
    gallery: xr.Dataset | None = None,
    *,
    channels: Names = "visual",
    controls: int = 10,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    retrain: Retrain | None = None,
    targets: xr.Dataset | None = None,
    prior: Any = None,
    outcome: str | Outcome = "retrieval",
    control_seed: int = 0,
    n_resamples: int = 1000,
    **perturbation: Any,
) -> xr.Dataset:
    """Perturb some channels, score what can still be decoded, and compare; computes now.

    The published experiment on visual cortex (NECOMIMI: Chen 2024, arXiv:2410.00712) is
    ``retrain="prior"``, trained on the first subject alone and applied to all, with an ``outcome``
    that generates images. It had neither controls nor repeats. Here as many other channels are
    perturbed in the same way, several times, and noise is drawn anew with each seed.

    Parameters
    ----------
    responses_train : Dataset or DataTree, optional
        Responses to train on; needed with ``retrain``.
    responses_test : Dataset or DataTree
        Responses ``([subject,] image, channel, time)``, their repetitions averaged, which is done
        before noise is made. They are read once for each condition and seed: ``load`` them. Of a
        tree the subjects share channels, times and images.
    decoder : decoder or callable
        What `nedx.decode` takes, or a function of a Dataset with ``response`` that adds
        ``embedding``; with ``retrain="decoder"`` an estimator.
    gallery : Dataset, optional
        ``features (image, feature)`` to retrieve from, see `nedx.decoding.retrieval.retrieve`.
    channels : str or sequence of str
        Channels or groups of them.
    controls : int
        Sets of as many other channels, drawn at random, no two the same.
    seeds : sequence of int
        Of the noise.
    retrain : {"prior", "decoder"}, optional
        What is trained anew on training responses that are perturbed in the same way, with the
        same seed: ``"prior"`` behind a decoder that stays as it is, or the decoder, which then
        shows what the other channels hold. By default nothing is, and the decoder meets noise it
        was not trained with.
    targets : Dataset, optional
        ``features`` to train on.
    prior : estimator, optional
        For example ``nedx.DiffusionPrior()``.
    outcome : "retrieval" or callable
        A function of the decoded Dataset that returns scores ``([subject,] image)``, whose means
        are compared, or ``([subject])``; for example of the images reconstructed from it.
    control_seed : int
        Of the control sets.
    n_resamples : int
        Of bootstrap and permutations.
    **perturbation
        ``noise``, ``sd`` and ``time`` of `nedx.perturb`; matched noise at all times by default.

    Returns
    -------
    Dataset
        ``top1``, ``top5``, ``median_rank`` and ``similarity_true`` (or those of ``outcome``)
        float64 ``(condition, seed, subject)``: conditions ``"clean"``, ``"perturbed"``,
        ``"control-00"`` ...; their channels are the coordinate ``channels (condition)``. Of each
        measure ``_difference``, ``_interval`` and ``_p`` ``(contrast, subject)`` as
        `nedx.insilico.contrasts.contrast` has them: what is perturbed less ``"clean"``, and less
        the mean of ``"controls"``, where p says how rarely a random set does as much.

    Raises
    ------
    SelectionError
        If channels are not there, there are too few others for the controls, test responses have
        repetitions, or there is no gallery.
    ModelError
        If what is to be trained anew is no estimator, or has nothing to be trained on.

    Examples
    --------
    >>> test = eeg_test.ned.average_repetitions().load()
    >>> found = channel_experiment(None, test, decoder, gallery, controls=20)
    >>> found[["top1_difference", "top1_interval", "top1_p"]].sel(contrast="controls")
    """
    responses_test = checked_test(responses_test)
    check_resamples(n_resamples)
    asked, others = _split(responses_test, channels)
    sets = {TARGET: asked, **control_sets(others, len(asked), controls, control_seed)}
    seeds = checked_seeds(seeds)
    chain = Chain(
        decoder,
        outcome_of(outcome, gallery, responses_test),
        retrain,
        responses_train,
        targets,
        prior,
    )
    # A fault in what is asked for is told before the first decoding.
    hurt = perturb(responses_test, channels=asked, seed=seeds[0], **perturbation)
    changes: dict[str, Change | None] = {"clean": None}
    for name, members in sets.items():
        changes[name] = partial(perturb, channels=members, **perturbation)
    scores = scores_of(chain, responses_test, changes, seeds)
    found = measured(scores).assign(_contrasts(scores, n_resamples))
    labels = np.array(["", *(" ".join(members) for members in sets.values())], dtype=object)
    attrs: dict[str, Any] = {"title": "What is lost with channels", "retrain": retrain or "nothing"}
    attrs |= {"control_seed": control_seed, PERTURBATION: hurt.attrs[PERTURBATION]}
    return found.assign_coords(channels=("condition", labels)).assign_attrs(attrs)


def control_sets(
    others: Sequence[str], size: int, count: int, seed: int = 0
) -> dict[str, list[str]]:
    """Draw sets of channels of one size at random, no two the same.

    Parameters
    ----------
    others : sequence of str
        To draw from.
    size, count : int
        Of each set, and how many.
    seed : int

    Returns
    -------
    dict of str to list of str
        ``"control-00"`` and so on; the channels in the order of ``others``.

    Raises
    ------
    SelectionError
        If there are not so many sets.
    """
    possible = math.comb(len(others), size)
    if not 0 <= count <= possible or int(count) != count:
        raise SelectionError(
            f"{count} control sets of {size} of the {len(others)} other channels; there are "
            f"{possible}: type controls={min(possible, 10)}, or perturb fewer channels"
        )
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn[tuple(np.sort(rng.choice(len(others), size, replace=False)).tolist())] = None
    return {
        f"control-{n:02d}": [others[position] for position in positions]
        for n, positions in enumerate(drawn)
    }


def _split(ds: xr.Dataset, channels: Names) -> tuple[list[str], list[str]]:
    """Return the names of the channels asked for, and of all others."""
    dim = neuroid_dim(ds)
    if dim is None:
        raise SelectionError("the test responses have no channels")
    positions = resolve(ds, channel=channels)[dim]
    labels = labels_of(ds, dim)
    asked = labels[positions]
    return asked.tolist(), [str(label) for label in labels if label not in asked]


def _contrasts(scores: xr.Dataset, n_resamples: int) -> xr.Dataset:
    """Compare the second condition with the first, and with all that follow."""
    sides = {"clean": [0], "controls": list(range(2, scores.sizes["condition"]))}
    found = {
        name: contrast(scores, 1, others, n_resamples=n_resamples)
        for name, others in sides.items()
        if others
    }
    label = xr.Variable("contrast", np.array(list(found), dtype=object))
    return xr.concat(list(found.values()), label)
