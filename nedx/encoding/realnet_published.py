"""Published ReAlnets: checkpoints of PyTorch, by the names that `DataParallel` gave them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import xarray as xr

from nedx.backbones.cornet_s import AREAS
from nedx.backbones.recipe import Weights
from nedx.backbones.registry import default_recipe
from nedx.backbones.weights import read_state
from nedx.encoding.keeping import keep_model
from nedx.encoding.network_storing import State
from nedx.encoding.opening import open_model
from nedx.encoding.realnet_model import NETWORK, ReAlnetModel, placed
from nedx.encoding.realnet_network import build
from nedx.encoding.realnet_recipe import ReAlnetArchitecture, ReAlnetRecipe
from nedx.encoding.realnet_store import READOUT, with_outputs, write_realnet
from nedx.errors import ModelError
from nedx.schema import subject_label

Order = Literal["channel_time", "time_channel"]
Checkpoint = Weights | str | Path

_PUBLISHED = {
    "model_id": "eeg-things_eeg_2-realnet",
    "version": "published",
    "modality": "eeg",
    "training_source": "measured",
    "citation": "Lu, Wang & Golomb, arXiv:2401.17231",
}


def import_realnet(
    files: Checkpoint | Mapping[str | int, Checkpoint],
    *,
    channels: Sequence[str],
    times: Sequence[float] | np.ndarray,
    order: Order = "channel_time",
    outputs: Sequence[int] | np.ndarray | None = None,
    policy: str = "train",
    **about: Any,
) -> ReAlnetModel:
    """Import published checkpoints as a model that `nedx.encode` takes.

    Sizes are found from the tensors. Those of Lu et al. have 340 outputs: 17 channels times 20
    samples from 0 to 190 ms. Their files do not say in which order; compare both with the EEG.
    Those of Image2EEG have 100, of which only 20 to 39 were trained, on the mean of the channels
    at these times.

    Parameters
    ----------
    files : path, URL or Weights, or mapping of subjects to these
        State dicts; with a mapping the responses have an axis of subjects.
    channels : sequence of str
        Names of the channels, in the order of the outputs.
    times : sequence of float
        Seconds from stimulus onset.
    order : {"channel_time", "time_channel"}
        Whether the times of each channel lie together, or the channels of each time.
    outputs : sequence of int, optional
        Which outputs of the files these channels and times are, from 0 on; all by default.
    policy : str
        Of the images.
    **about
        Fields of `nedx.encoding.recipe.EncoderRecipe` to set otherwise, such as ``dataset``;
        ``normalization`` and its scope, which the files do not say.

    Returns
    -------
    ReAlnetModel
        Kept in the cache; ``to_zarr`` writes it elsewhere.

    Raises
    ------
    ModelError
        If a file is no such checkpoint, its outputs are not channels times times, or networks of
        several subjects differ in size.

    Examples
    --------
    >>> times = np.arange(20) / 100
    >>> model = nedx.import_realnet("best_model_params.pt", channels=posterior, times=times)
    >>> model = nedx.import_realnet(  # of Image2EEG
    ...     "best_model_params.pt", channels=["mean"], times=times, outputs=range(20, 40)
    ... )
    """
    if order not in ("channel_time", "time_channel"):
        raise ModelError(f"unknown order {order!r}; type 'channel_time' or 'time_channel'")
    several = isinstance(files, Mapping)
    given = dict(files) if isinstance(files, Mapping) else {1: files}
    weights = {subject_label(name): _weights(place) for name, place in given.items()}
    states: dict[str, State] = {}
    found: dict[str, ReAlnetArchitecture] = {}
    for name, each in weights.items():
        states[name], found[name] = _read(each, len(channels), len(times), order, outputs)
    (first, architecture), *others = found.items()
    for name, other in others:
        if other != architecture:
            raise ModelError(f"the network of {name} is {other}, that of {first} {architecture}")
    backbone = default_recipe("cornet_s", policy=policy, image_size=architecture.image_size)
    recipe = ReAlnetRecipe(**{**_PUBLISHED, **about}, architecture=architecture, backbone=backbone)
    names = np.array(list(states), dtype=object)
    labels = placed(_labels(names if several else names[0], channels, times))
    return _kept(recipe, labels, states)


def _kept(recipe: ReAlnetRecipe, labels: xr.Dataset, states: dict[str, State]) -> ReAlnetModel:
    """Put networks where models are read from, and open them."""
    every = {f"{n}/{k}": v for n, state in states.items() for k, v in state.items()}
    place = keep_model(
        recipe, {"": labels}, every, lambda place: write_realnet(place, recipe, labels, states)
    )
    return cast(ReAlnetModel, open_model(place))


def _weights(place: Checkpoint) -> Weights:
    return place if isinstance(place, Weights) else Weights(source=str(place))


def _read(
    weights: Weights,
    n_channels: int,
    n_times: int,
    order: Order,
    outputs: Sequence[int] | np.ndarray | None,
) -> tuple[State, ReAlnetArchitecture]:
    """Read a checkpoint, its outputs with the times of each channel together."""
    tensors = read_state(weights)
    state = {name.replace("module.", ""): tensor.numpy() for name, tensor in tensors.items()}
    if outputs is not None and state.keys() >= READOUT:
        state = with_outputs(state, _positions(outputs, state, weights.source))
    architecture = _architecture(state, n_channels, n_times, weights.source)
    if order == "time_channel":
        ours = np.arange(architecture.outputs).reshape(n_times, n_channels).T.ravel()
        state = with_outputs(state, ours)
    build(architecture, state)
    return state, architecture


def _positions(outputs: Sequence[int] | np.ndarray, state: State, source: str) -> np.ndarray:
    """Return which outputs of a network are wanted, int64."""
    positions, there = np.asarray(outputs, np.int64), len(state["fc.bias"])
    if positions.size and not 0 <= positions.min() <= positions.max() < there:
        raise ModelError(
            f"{source} has outputs 0 to {there - 1}; asked for are {positions.min()} to "
            f"{positions.max()}"
        )
    return positions


def _architecture(state: State, n_channels: int, n_times: int, source: str) -> ReAlnetArchitecture:
    """Find the sizes of a network from its tensors."""
    try:
        inputs = ["V1.conv1", *(f"{area}.conv_input" for area in AREAS[1:])]
        widths = [len(state[f"realnet.{name}.weight"]) for name in inputs]
        features, size = state["fc_v1.weight"].shape
        classes, outputs = (len(state[f"{n}.weight"]) for n in ("realnet.decoder.linear", "fc"))
    except KeyError as error:
        raise ModelError(
            f"{source} is no checkpoint of a ReAlnet: {error.args[0]!r} is missing. Weights of "
            "CORnet-S alone go into nedx.ReAlnetEncoder(weights=...)"
        ) from error
    if outputs != n_channels * n_times:
        raise ModelError(
            f"{source} has {outputs} outputs; {n_channels} channels of {n_times} times are "
            f"{n_channels * n_times}. Give the channels and times that it was trained on"
        )
    steps = [
        sum(name.startswith(f"realnet.{area}.norm1_") and name.endswith(".bias") for name in state)
        for area in AREAS[1:]
    ]
    return ReAlnetArchitecture(
        widths=tuple(widths),
        steps=tuple(steps),
        classes=classes,
        features=features,
        image_size=4 * math.isqrt(size // widths[0]),
        n_channels=n_channels,
        n_times=n_times,
    )


def _labels(
    names: np.ndarray | str, channels: Sequence[str], times: Sequence[float] | np.ndarray
) -> xr.Dataset:
    labels = xr.Dataset(
        coords={
            "channel": (
                "channel",
                np.array(list(channels), dtype=object),
                {"nedx_role": "neuroid"},
            ),
            "time": ("time", np.asarray(times, np.float64), {"units": "s"}),
        }
    )
    if isinstance(names, str):
        return labels.assign_coords({NETWORK: names})
    subjects = ("subject", names, {"nedx_role": "subject"})
    return labels.assign_coords({"subject": subjects, NETWORK: ("subject", names)})
