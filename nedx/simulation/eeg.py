"""Simulated EEG: evoked responses of sources in posterior cortex, under correlated noise.

A source has a topography, a time course and an amplitude that depends on the image. The time
courses peak where the components of the visual evoked potential do (C1 about 75 ms, P1 105, N1
165, P2 230, P3 about 380; Luck 2014, An Introduction to the Event-Related Potential Technique),
the early ones over occipital cortex, the late one over parietal cortex. Amplitudes are linear in
the 64 features, so the noise-free response is too, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nedx.simulation.concepts import SEED
from nedx.simulation.cortex import subject_seed
from nedx.simulation.energy import N_COMPONENTS, N_FEATURES, rotation
from nedx.simulation.montage import RADIUS, positions

SUBJECTS = ("sub-01", "sub-02", "sub-03")
EEG_REPETITIONS = 4
SAMPLING_FREQUENCY = 200.0
"""Hz."""
TIMES = np.round(np.arange(-20, 120) / SAMPLING_FREQUENCY, 3)
"""140 times from -0.1 to 0.595 s."""

NOISE_UV = 5.0
_SOURCES_EACH = 4


@dataclass(frozen=True)
class Component:
    """One component of the evoked potential.

    Parameters
    ----------
    name : str
        For example ``"N1"``.
    latency, width : float
        Peak and standard deviation of the time course, s.
    mean : float
        Amplitude common to all images, uV at the strongest channel.
    spread : float
        Standard deviation over images of each of its sources, uV.
    height : float
        Inclination of its sources from the vertex towards the back, degrees.
    """

    name: str
    latency: float
    width: float
    mean: float
    spread: float
    height: float


COMPONENTS = (
    Component("C1", 0.075, 0.012, -1.5, 2.0, 85.0),
    Component("P1", 0.105, 0.015, 4.0, 3.0, 95.0),
    Component("N1", 0.165, 0.022, -5.0, 3.0, 90.0),
    Component("P2", 0.230, 0.030, 3.0, 2.0, 70.0),
    Component("P3", 0.380, 0.070, 3.5, 2.0, 45.0),
)
N_SOURCES = _SOURCES_EACH * len(COMPONENTS)


def time_courses() -> np.ndarray:
    """Return the time course of each source, float64 (source, time), peaks about 1.

    The sources of a component peak up to one width before and after it. All are 0 before
    stimulus onset.
    """
    shifts = np.linspace(-1, 1, _SOURCES_EACH)
    rows = [
        np.exp(-(((TIMES - c.latency - s * c.width) / c.width) ** 2) / 2)
        for c in COMPONENTS
        for s in shifts
    ]
    onset = 1 / (1 + np.exp(-(TIMES - 0.045) / 0.004))
    return np.array(rows) * np.where(TIMES > 0, onset, 0.0)


def topographies(subject: str, seed: int = SEED) -> np.ndarray:
    """Return the topography of each source in one subject, float64 (channel, source).

    The potential of a source below the scalp falls off as a Gaussian of the distance, less its
    mean over channels (average reference). Where the sources lie differs by a few mm and their
    strength by a tenth from subject to subject.
    """
    common = np.random.default_rng([seed, 4])
    own = np.random.default_rng(subject_seed(subject, 4, seed))
    columns = []
    for component in COMPONENTS:
        azimuths = np.linspace(-55, 55, _SOURCES_EACH) + common.normal(size=_SOURCES_EACH) * 6
        heights = component.height + common.normal(size=_SOURCES_EACH) * 12
        azimuths = azimuths + own.normal(size=_SOURCES_EACH) * 5
        heights = heights + own.normal(size=_SOURCES_EACH) * 5
        theta, phi = np.deg2rad(heights), np.deg2rad(azimuths)
        towards = [np.sin(theta) * np.sin(phi), -np.sin(theta) * np.cos(phi), np.cos(theta)]
        source = RADIUS * np.stack(towards, axis=1)
        distance = np.linalg.norm(positions()[:, None] - source, axis=-1)
        width = common.uniform(0.03, 0.05, size=_SOURCES_EACH)
        potential = np.exp(-((distance / width) ** 2) / 2)
        gain = 1 + 0.1 * own.normal(size=_SOURCES_EACH)
        columns.append((potential - potential.mean(0)) * gain)
    return np.concatenate(columns, axis=1)


def amplitudes(seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Return how amplitudes depend on the features.

    Returns
    -------
    weights : float64 array (source, feature)
        uV for each unit of a feature.
    mean : float64 array (source,)
        uV.
    """
    rng = np.random.default_rng([seed, 5])
    weights = rng.normal(size=(N_SOURCES, N_FEATURES))
    late = np.repeat([c.latency > 0.2 for c in COMPONENTS], _SOURCES_EACH)
    # Early responses follow energy, most of all its first components; late ones the concept too.
    weights[:, :N_COMPONENTS] /= np.sqrt(np.arange(1, N_COMPONENTS + 1))
    weights[:, N_COMPONENTS:] *= np.where(late, 0.45, 0.0)[:, None]
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    weights = weights @ rotation(seed)
    spread = np.repeat([c.spread for c in COMPONENTS], _SOURCES_EACH)
    mean = np.repeat([c.mean for c in COMPONENTS], _SOURCES_EACH) / 2
    return weights * spread[:, None], mean


def linear_map(subject: str, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Return the map from features to the noise-free response of one subject.

    Returns
    -------
    map : float32 array (channel, time, feature)
    intercept : float32 array (channel, time)
        The mean evoked response, uV.
    """
    weights, mean = amplitudes(seed)
    topography, course = topographies(subject, seed), time_courses()
    evoked = np.einsum("cs,st,sf->ctf", topography, course, weights, optimize=True)
    return evoked.astype(np.float32), ((topography * mean) @ course).astype(np.float32)


def noise_free(features: np.ndarray, subject: str, seed: int = SEED) -> np.ndarray:
    """Return the noise-free response, float32 (image, channel, time), uV."""
    weights, mean = amplitudes(seed)
    drive = features.astype(np.float64) @ weights.T + mean
    course = time_courses()
    at_sources = (drive[:, :, None] * course).astype(np.float32)
    return np.matmul(topographies(subject, seed).astype(np.float32), at_sources)


def noise_sd(subject: str, seed: int = SEED) -> np.ndarray:
    """Return the standard deviation of the noise of a trial at each channel, float32, uV."""
    rng = np.random.default_rng(subject_seed(subject, 6, seed))
    return (NOISE_UV * rng.uniform(0.8, 1.25, size=len(positions()))).astype(np.float32)


def add_noise(
    signal: np.ndarray, sd: np.ndarray, repetitions: int, rng: np.random.Generator
) -> np.ndarray:
    """Return single trials, float32 (image, repetition, channel, time).

    The noise is normal, a first-order autoregression in time (0.9 from sample to sample), and
    correlated between channels as ``exp(-distance / 6 cm)``.
    """
    places = positions()
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    mixing = (sd[:, None] * np.linalg.cholesky(np.exp(-distance / 0.06))).astype(np.float32)
    images, channels, times = signal.shape
    noise = rng.standard_normal((times, images * repetitions, channels), dtype=np.float32)
    memory = np.float32(0.9)
    noise[1:] *= np.sqrt(1 - memory**2)
    for before, now in zip(noise[:-1], noise[1:], strict=True):
        now += memory * before
    trials = (noise @ mixing.T).reshape(times, images, repetitions, channels)
    return np.moveaxis(trials, 0, -1) + signal[:, None]


def pair_maps(subjects: tuple[str, ...] = SUBJECTS) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return each subject's map into the space of the sources, and out of it.

    All subjects share sources, amplitudes and time courses, so that the product of one subject's
    map in and another's out takes noise-free responses over exactly, at each time.

    Returns
    -------
    into : list of float64 arrays (channel, source)
    out_of : list of float64 arrays (source, channel)
    """
    mixing = [topographies(subject) for subject in subjects]
    return [np.linalg.pinv(m).T for m in mixing], [m.T for m in mixing]
