"""More images of the simulated EEG: its store has 450 to train on, its law has any number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx.errors import SelectionError, close_matches
from nedx.schema import parse, subject_label
from nedx.simulation import eeg, montage
from nedx.simulation.datasets import dataset_attrs, eeg_coords
from nedx.simulation.energy import N_FEATURES

_BLOCK = 100
"""Images that are drawn together: the numbers of a block depend on the seed and its place."""


def simulate_eeg(
    n_images: int,
    *,
    subject: str | int | Sequence[str | int] = "sub-01",
    repetitions: int = eeg.EEG_REPETITIONS,
    images_per_category: int = 10,
    seed: int = 0,
) -> xr.Dataset:
    """Draw new images from the law of the simulated EEG, and trials to them; lazily.

    The features are normal, with the mean and covariance of those of the training images of
    ``sim-eeg``; responses are the simulation's own map of these, under its own noise.

    Parameters
    ----------
    n_images : int
        How many. The first of many are the same as of few.
    subject : str, int or sequence of these
        ``"sub-01"`` or 1, to ``"sub-03"``; all see the same images.
    repetitions : int
        Trials of each image.
    images_per_category : int
        Images that share a ``category``; it has no other meaning.
    seed : int
        Of features and noise.

    Returns
    -------
    Dataset
        ``response (subject, image, repetition, channel, time)`` float32, uV, and ``features
        (image, feature)`` float32, with the channels, times and attributes of ``sim-eeg``;
        ``image_id`` is ``"drawn:000000"`` and so on, ``partition`` ``"train"``.

    Raises
    ------
    SelectionError
        If a number is below 1, a seed below 0, or there is no such subject.

    Examples
    --------
    >>> drawn = nedx.simulate_eeg(4000).ned.sel(channel=["O1", "Oz", "O2"])
    """
    names = _subjects(subject)
    if min(n_images, repetitions, images_per_category) < 1:
        raise SelectionError("n_images, repetitions and images_per_category are 1 or more")
    if seed < 0:
        raise SelectionError(f"seed is a whole number from 0, not {seed}")
    repeated = {"repetition": ("repetition", np.arange(repetitions, dtype=np.int16))}
    about = {"source": "synthetic", "long_name": "simulated response"}
    target = {"units": "1", "source": "synthetic", "long_name": "target of decoding"}
    attrs = dataset_attrs("Simulated EEG responses to drawn images", "eeg")
    dims = ("subject", "image", "repetition", "channel", "time")
    responses = [_responses(n_images, name, repetitions, seed) for name in names]
    ds = xr.Dataset(
        {
            "response": (dims, da.stack(responses), {"units": "uV", **about}),
            "features": (("image", "feature"), _features(n_images, seed), target),
        },
        {**_labels(n_images, names, images_per_category), **repeated},
        {**attrs, "subject_ids": names, "seed": seed},
    )
    return parse(ds)


def _labels(count: int, subjects: list[str], each: int) -> dict[str, Any]:
    """Return the coordinates of subjects, images, channels and times."""
    number = np.arange(count)
    fixed = {name: value for name, value in eeg_coords().items() if name != "subject"}
    texts = {
        "image_id": [f"drawn:{i:06d}" for i in number],
        "category": [f"drawn-{i:04d}" for i in number // each],
        "partition": ["train"] * count,
        "stimulus_set": ["drawn"] * count,
    }
    return {
        **fixed,
        "subject": ("subject", np.array(subjects, dtype=object), {"nedx_role": "subject"}),
        **{name: ("image", np.array(values, dtype=object)) for name, values in texts.items()},
    }


def _subjects(subject: str | int | Sequence[str | int]) -> list[str]:
    asked = [subject] if isinstance(subject, str | int | np.integer) else list(subject)
    names = list(dict.fromkeys(subject_label(one) for one in asked))
    if not names:
        raise SelectionError(f"subject= is empty; there are: {', '.join(eeg.SUBJECTS)}")
    for name in names:
        if name not in eeg.SUBJECTS:
            raise SelectionError(
                f"nobody simulated is called {name!r}; {close_matches(name, eeg.SUBJECTS)}"
            )
    return names


def _features(count: int, seed: int) -> da.Array:
    blocks = _blocks(count)
    return da.map_blocks(
        _block_features,
        da.arange(len(blocks), chunks=1)[:, None],
        seed,
        _lengths(count),
        chunks=(blocks, (N_FEATURES,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        name=f"drawn-features-{tokenize(count, seed)}",
    )


def _responses(count: int, subject: str, repetitions: int, seed: int) -> da.Array:
    blocks = _blocks(count)
    return da.map_blocks(
        _block_responses,
        da.arange(len(blocks), chunks=1)[:, None, None, None],
        subject,
        repetitions,
        seed,
        _lengths(count),
        chunks=(blocks, (repetitions,), (len(montage.CHANNELS),), (eeg.TIMES.size,)),
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
        name=f"drawn-eeg-{tokenize(count, subject, repetitions, seed)}",
    )


def _blocks(count: int) -> tuple[int, ...]:
    return tuple(min(_BLOCK, count - start) for start in range(0, count, _BLOCK))


def _lengths(count: int) -> np.ndarray:
    return np.array(_blocks(count))


def _block_features(block: np.ndarray, seed: int, lengths: np.ndarray) -> np.ndarray:
    """Return features (image, feature) of a block, float32; ``block`` holds its number."""
    number = int(block.flat[0])
    return _drawn(number, seed)[: lengths[number]].astype(np.float32)


def _block_responses(
    block: np.ndarray, subject: str, repetitions: int, seed: int, lengths: np.ndarray
) -> np.ndarray:
    """Return trials (image, repetition, channel, time) of a block, float32, uV."""
    number = int(block.flat[0])
    rng = np.random.default_rng([seed, number, 1 + eeg.SUBJECTS.index(subject)])
    signal = eeg.noise_free(_drawn(number, seed), subject)
    trials = eeg.add_noise(signal, eeg.noise_sd(subject), repetitions, rng)
    return np.ascontiguousarray(trials[: lengths[number]])


def _drawn(block: int, seed: int) -> np.ndarray:
    """Return the features (100, feature) of a whole block, float64."""
    mean, root = _law()
    rng = np.random.default_rng([seed, block, 0])
    return mean + rng.standard_normal((_BLOCK, len(mean))) @ root.T


@cache
def _law() -> tuple[np.ndarray, np.ndarray]:
    """Return mean (feature,) and a root (feature, feature) of the covariance of the features."""
    from nedx.simulation.stores import open_group

    truth = open_group("sim-eeg", "truth")
    known = truth["features"].values[truth["partition"].values == "train"].astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(known.T))
    return known.mean(0), (vectors * np.sqrt(values.clip(0))) @ vectors.T
