"""How THINGS-EEG2 was prepared for the models that were published on it, by name.

What the recipes make differs in units and must never be mixed: whitened potentials, z-scores of a
session, z-scores of the baseline. The attributes of the responses say which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.preprocessing.epochs import EpochSettings
from nedx.preprocessing.repetitions import average_repetitions
from nedx.preprocessing.whitening import whiten
from nedx.preprocessing.zscore import zscore
from nedx.selection import select

SEED = 20200220
"""Of the published choice and order of repetitions."""

_NICE_ORDER = """
Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7
C5 C3 C1 Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7
PO3 POz PO4 PO8 O1 Oz O2
"""
NICE_CHANNELS = tuple(_NICE_ORDER.split())
"""The 63 channels in the order of NICE and what followed it; Fz was the reference."""


@dataclass(frozen=True)
class Recipe:
    """One way to prepare the trials of a recording.

    Parameters
    ----------
    name : str
        What it is called.
    reference : str
        Where it was published.
    epochs : EpochSettings
        Of the recording.
    channels : tuple of str or str, optional
        Names in their order, or a regular expression that the beginnings of names match; all EEG
        channels by default.
    whitening : {"train", "train_and_test"}, optional
        Noise normalisation of each session by its training data, or by both partitions.
    per : {"time", "trial"}
        See `nedx.preprocessing.whitening.noise_covariance`.
    window : (float, float), optional
        First and last time to keep after whitening, s.
    averaged : bool
        Average the repetitions of each image.
    zscored : {"session", "train"}, optional
        Standardise each session by all of its trials; or all, as they are after averaging, by the
        training images.
    repetitions : dict of str to int
        The most that are kept of an image in a session, by partition.
    shuffled : bool
        Choose and order repetitions at random; else the first ones are kept, as they came.
    """

    name: str
    reference: str
    epochs: EpochSettings
    channels: tuple[str, ...] | str | None = None
    whitening: Literal["train", "train_and_test"] | None = None
    per: Literal["time", "trial"] = "time"
    window: tuple[float, float] | None = None
    averaged: bool = False
    zscored: Literal["session", "train"] | None = None
    repetitions: Mapping[str, int] | None = None
    shuffled: bool = False

    def pick(self, names: Sequence[str]) -> list[str]:
        """Return the channels that the recipe keeps of those there are, in its order.

        Raises
        ------
        SelectionError
            If one that it names is missing, or none matches.
        """
        if isinstance(self.channels, tuple):
            missing = [name for name in self.channels if name not in names]
            if missing:
                # What it does not take may be the same under another name.
                others = [name for name in names if name not in self.channels]
                raise SelectionError(
                    f"{self.name} needs {len(missing)} channels that are missing, the first is "
                    f"{missing[0]!r}; {close_matches(missing[0], others)}".rstrip("; ")
                )
            return list(self.channels)
        kept = [n for n in names if self.channels is None or re.match(self.channels, n)]
        if not kept:
            raise SelectionError(f"{self.name} keeps channels {self.channels!r}; none is like that")
        return kept

    def choose(self, images: np.ndarray, partition: str) -> tuple[np.ndarray, np.ndarray]:
        """Choose repetitions in one session.

        Parameters
        ----------
        images : int array (trial,)
            The image of each trial, in the order of the recording.
        partition : str
            Of the trials.

        Returns
        -------
        trials : int64 array (chosen,)
            Which are kept, in the order of the recording.
        ranks : int64 array (chosen,)
            Their place among the repetitions of their image in this session.
        """
        most = (self.repetitions or {}).get(partition, images.size)
        found, places = [], []
        for image in np.unique(images):
            trials = np.flatnonzero(images == image)
            kept = trials[:most]
            if self.shuffled:
                from sklearn.utils import shuffle

                count = min(most, trials.size)
                kept = shuffle(trials, n_samples=count, random_state=SEED)
            found.append(kept)
            places.append(np.arange(kept.size))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        trials, ranks = np.concatenate(found), np.concatenate(places)
        order = np.argsort(trials)
        return trials[order].astype(np.int64), ranks[order].astype(np.int64)

    def repetition(self, images: np.ndarray, session: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Count the repetitions of each image over sessions, int16 (trial,).

        Sessions follow each other. Shuffled recipes then permute the axis of repetitions, all
        images alike: this is how the published description, which gives the seed and not the
        call, is understood here.
        """
        order = np.lexsort((ranks, session, images))
        _, counts = np.unique(images, return_counts=True)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.empty(images.size, np.int64)
        numbers[order] = np.arange(images.size) - starts
        if self.shuffled:
            from sklearn.utils import shuffle

            of_trial = np.empty(images.size, np.int64)
            of_trial[order] = np.repeat(counts, counts)
            for count in np.unique(counts):
                permuted = np.argsort(shuffle(np.arange(count), random_state=SEED))
                here = of_trial == count
                numbers[here] = permuted[numbers[here]]
        return numbers.astype(np.int16)

    def finish(self, ds: xr.Dataset) -> xr.Dataset:
        """Apply to epochs of several sessions, lazily, what comes after cutting them."""
        if self.whitening is not None:
            ds = whiten(ds, fit=self.whitening, per=self.per)
        if self.window is not None:
            ds = select(ds, time=self.window)
        if self.averaged:
            ds = average_repetitions(ds)
        if self.zscored is not None:
            ds = zscore(ds, self.zscored, fit="all" if self.zscored == "session" else "train")
        return ds.assign_attrs(recipe=self.name, recipe_reference=self.reference)


_PUBLISHED_MOST = {"train": 2, "test": 20}
_NED_EPOCHS = EpochSettings(
    -0.1,
    0.6,
    band=(0.03, 100.0),
    csd=True,
    sampling_frequency=200.0,
    last_baseline=(None, 0.0),
    last_mode="zscore",
)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "eeg_encoding_2022",
            "Gifford et al. 2022, NeuroImage 264:119754",
            EpochSettings(-0.2, 0.8, baseline=(None, 0.0), sampling_frequency=100.0),
            channels="^O *|^P *",
            whitening="train_and_test",
            per="time",
            repetitions=_PUBLISHED_MOST,
            shuffled=True,
        ),
        Recipe(
            "nice_2024",
            "Song et al. 2024, ICLR (NICE); also ATM and NECOMIMI",
            EpochSettings(-0.2, 1.0, baseline=(None, 0.0), sampling_frequency=250.0, crop=0.0),
            channels=NICE_CHANNELS,
            whitening="train",
            per="trial",
            repetitions=_PUBLISHED_MOST,
            shuffled=True,
        ),
        Recipe(
            "ned_2024",
            "Gifford et al., the Neural Encoding Dataset, 2024",
            _NED_EPOCHS,
            zscored="session",
            repetitions=_PUBLISHED_MOST,
            shuffled=True,
        ),
        Recipe(
            "berg_2025",
            "Gifford et al., the Brain Encoding Response Generator, 2025",
            _NED_EPOCHS,
            repetitions=_PUBLISHED_MOST,
        ),
        # Published with statistics of test data, too: these tell what is to be predicted.
        Recipe(
            "realnet_2024",
            "after Lu, Wang & Golomb 2024, arXiv:2401.17231; statistics of training data alone",
            EpochSettings(-0.2, 0.8, baseline=(None, 0.0), sampling_frequency=100.0),
            channels="^O *|^P *",
            whitening="train",
            per="time",
            window=(0.0, 0.19),
            averaged=True,
            zscored="train",
            repetitions=_PUBLISHED_MOST,
            shuffled=True,
        ),
    )
}
"""The published recipes by name."""


def find_recipe(recipe: str | Recipe) -> Recipe:
    """Return a recipe by its name, or one that was given.

    Raises
    ------
    SelectionError
        If there is none of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise SelectionError(f"no recipe is called {recipe!r}: {close_matches(recipe, RECIPES)}")
    return RECIPES[recipe]
