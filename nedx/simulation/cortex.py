"""Simulated fMRI: what patches of cortex answer to images, without noise and with it.

A retinotopic patch pools contrast energy, tuned to an orientation and a scale, under a Gaussian,
and compresses the sum (`nedx.simulation.retinotopy`). A patch of a category-selective area pools
without tuning under a large field, and adds to that the parameters of the concept: the rounded and
lobed in FFA-1, the rectangular in PPA, the elongated in EBA. Which concepts those are is our
choice; nothing here is a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nedx.simulation.concepts import PARAMETERS, SEED, SHAPES
from nedx.simulation.energy import GRID, N_ORIENTATIONS, N_SCALES
from nedx.simulation.images import DEGREES
from nedx.simulation.retinotopy import AREAS, EXPONENTS, Anatomy, Patches

ANATOMIES = {
    "sub-01": Anatomy(1.0, (0.0, 0.0), 0.0),
    "sub-02": Anatomy(0.92, (3.0, -2.0), 0.10, missing=(("FFA-1", "L"),)),
    "sub-03": Anatomy(1.06, (-2.0, 3.0), -0.08),
}
"""The subjects of the simulated fMRI; FFA-1 of sub-02 is empty on the left."""
FMRI_REPETITIONS = 4
N_LATENTS = 64
"""Width of the space through which one subject's responses become another's."""

# Weight of contrast beside the concept in category-selective areas.
_CONTRAST = 0.6
_FREQUENCIES = 2.0 ** np.arange(1, 1 + N_SCALES) / DEGREES
# Concept parameters follow two cosines and sines of angles: see `Concept.vector`.
_AXES = [*("hue_cos", "hue_sin", "orientation_cos", "orientation_sin"), *PARAMETERS]
_AXES = [name for name in _AXES if name not in ("hue", "orientation")] + list(SHAPES)
_LIKES = {
    "FFA-1": {"disk": 1.0, "petal": 1.0, "lobe_depth": 0.5, "brick": -0.5},
    "PPA": {"brick": 1.0, "diamond": 0.6, "squareness": 0.5, "disk": -0.5},
    "EBA": {"elongation": 1.0, "ellipse": 0.6, "star": 0.5, "saturation": -0.4},
}


@dataclass(frozen=True)
class Tuning:
    """What patches prefer: arrays of (patch,), NaN outside the retinotopic areas.

    ``orientation`` (radians, the direction of the wave vector), ``frequency`` (cycles a degree),
    ``exponent`` (compression), ``concept`` (patch, 22) and ``reliability``, the fraction of the
    variance of a single trial that the images cause.
    """

    orientation: np.ndarray
    frequency: np.ndarray
    exponent: np.ndarray
    concept: np.ndarray
    reliability: np.ndarray

    def weights(self) -> np.ndarray:
        """Return the weights of energy, float32 (patch, scale, orientation)."""
        angles = np.arange(N_ORIENTATIONS) * np.pi / N_ORIENTATIONS
        turned = np.exp(1.5 * np.cos(2 * (angles - self.orientation[:, None])))
        octaves = np.log2(_FREQUENCIES / self.frequency[:, None])
        scaled = np.exp(-(octaves**2) / 2)
        weights = scaled[:, :, None] * turned[:, None, :]
        return (weights / weights.sum((1, 2), keepdims=True)).astype(np.float32)


def draw_tuning(patches: Patches, rng: np.random.Generator) -> Tuning:
    """Draw what each patch prefers.

    Preferred frequency falls with eccentricity and from area to area; reliability of a trial is
    between 0.08 and 0.6, higher in early areas, and 0 outside visual cortex.
    """
    count = len(patches.area)
    exponent, frequency = np.full(count, np.nan), np.full(count, np.nan)
    concept = np.zeros((count, len(_AXES)))
    reliability = rng.beta(3, 4, size=count) * 0.52 + 0.08
    jitter = rng.normal(size=count)
    for index, name in enumerate(AREAS):
        inside = patches.area == index
        if name in EXPONENTS:
            exponent[inside] = EXPONENTS[name]
            peak = 1.6 / (1 + 0.5 * patches.eccentricity[inside]) * 0.85**index
            frequency[inside] = peak * 2 ** (0.5 * jitter[inside])
        else:
            likes = np.array([_LIKES[name].get(axis, 0.0) for axis in _AXES])
            own = 0.35 * rng.normal(size=(int(inside.sum()), len(_AXES)))
            concept[inside] = likes + own
    reliability *= np.where(patches.area > 2, 0.8, 1.0)
    reliability[patches.area < 0] = 0.0
    orientation = rng.uniform(0, np.pi, size=count)
    orientation[~(patches.area >= 0) | (patches.area > 3)] = np.nan
    return Tuning(orientation, frequency, exponent, concept, reliability)


def receptive_fields(patches: Patches, exponent: np.ndarray) -> np.ndarray:
    """Return the pooling Gaussians, float32 (patch, y, x) on the grid of energies; sums are 1."""
    step = DEGREES / GRID
    across = (np.arange(GRID) + 0.5) * step - DEGREES / 2
    width = (patches.size * np.sqrt(exponent))[:, None]
    columns = np.exp(-(((across - patches.x[:, None]) / width) ** 2) / 2)
    # Rows of an image run downwards.
    rows = np.exp(-(((-across - patches.y[:, None]) / width) ** 2) / 2)
    fields = rows[:, :, None] * columns[:, None, :]
    return (fields / fields.sum((1, 2), keepdims=True)).astype(np.float32)


def noise_free(
    energy: np.ndarray, axes: np.ndarray, patches: Patches, tuning: Tuning, train: np.ndarray
) -> np.ndarray:
    """Return what patches answer before noise.

    Parameters
    ----------
    energy : float32 array (image, scale, orientation, y, x)
        Contrast energy.
    axes : array (image, 22)
        Standardised parameters of the concepts.
    patches, tuning
        The patches of one subject.
    train : bool array (image,)
        Training images: the response is z-scored over them.

    Returns
    -------
    float32 array (image, patch)
        Over the training images mean 0 and variance `Tuning.reliability`; 0 outside visual cortex.
    """
    response = np.zeros((len(energy), len(patches.area)), dtype=np.float32)
    mapped = np.flatnonzero((patches.area >= 0) & (patches.area < 4))
    selective = patches.area >= 4
    pooled = _pool(energy, patches.take(mapped), tuning.exponent[mapped], tuning.weights()[mapped])
    response[:, mapped] = pooled ** tuning.exponent[mapped]
    concept = np.tanh(axes @ tuning.concept[selective].T / 2.5)
    # One field serves all patches of these areas that have the same centre.
    contrast = _contrast(energy, patches.take(selective))
    response[:, selective] = _standard(concept, train) + _CONTRAST * _standard(contrast, train)
    visual = patches.area >= 0
    response[:, visual] -= response[train][:, visual].mean(0)
    response[:, visual] *= np.sqrt(tuning.reliability[visual]) / response[train][:, visual].std(0)
    return response


def _standard(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    return (values - values[train].mean(0)) / values[train].std(0)


def _contrast(energy: np.ndarray, patches: Patches) -> np.ndarray:
    """Pool all orientations and scales under large fields and compress, float32 (image, patch)."""
    count = len(patches.area)
    exponent = np.full(count, EXPONENTS["hV4"])
    _, first, which = np.unique(patches.x, return_index=True, return_inverse=True)
    even = np.full((len(first), N_SCALES, N_ORIENTATIONS), 1 / (N_SCALES * N_ORIENTATIONS))
    pooled = _pool(energy, patches.take(first), exponent[first], even.astype(np.float32))
    return (pooled ** EXPONENTS["hV4"])[:, which]


def _pool(
    energy: np.ndarray, patches: Patches, exponent: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weigh and pool squared energies, float32 (image, patch)."""
    fields = receptive_fields(patches, exponent).reshape(len(patches.area), -1)
    # Each scale counts alike: natural images hold ever less contrast at finer ones.
    balance = 1 / np.square(energy).mean((0, 2, 3, 4))
    pooled = np.zeros((len(energy), len(patches.area)), dtype=np.float32)
    for scale in range(N_SCALES):
        for orientation in range(N_ORIENTATIONS):
            squared = np.square(energy[:, scale, orientation]).reshape(len(energy), -1)
            pooled += (squared @ fields.T) * (weights[:, scale, orientation] * balance[scale])
    return pooled


def add_noise(
    signal: np.ndarray, reliability: np.ndarray, repetitions: int, rng: np.random.Generator
) -> np.ndarray:
    """Return single trials, float32 (image, repetition, patch), of variance 1.

    The noise is normal and independent, of variance ``1 - reliability``.
    """
    shape = (signal.shape[0], repetitions, signal.shape[1])
    trials = rng.standard_normal(shape, dtype=np.float32)
    trials *= np.sqrt(1 - reliability).astype(np.float32)
    trials += signal[:, None]
    return trials


def ceiling(
    signal: np.ndarray, noise_sd: np.ndarray, repetitions: int, axis: int = 0
) -> np.ndarray:
    """Return the true noise ceiling of the mean of repetitions: the variance that images cause.

    ``signal`` varies along ``axis``; the variance is that over the images given.
    """
    variance = signal.astype(np.float64).var(axis)
    return (variance / (variance + noise_sd**2 / repetitions)).astype(np.float32)


def linear_map(
    features: np.ndarray, signal: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares from the features to the noise-free response.

    Returns
    -------
    map : float32 array (patch, feature)
    intercept : float32 array (patch,)
    r2 : float32 array (patch,)
        Fraction of the noise-free variance that the map explains on the other images.
    """
    design = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    weights = np.linalg.lstsq(design[train], signal[train].astype(np.float64), rcond=None)[0]
    left = signal[~train] - design[~train] @ weights
    variance = np.maximum(signal[~train].var(0), 1e-12)
    r2 = np.where(signal[~train].var(0) > 0, 1 - left.var(0) / variance, 0)
    return (
        weights[:-1].T.astype(np.float32),
        weights[-1].astype(np.float32),
        r2.astype(np.float32),
    )


def shared_space(
    signals: list[np.ndarray], train: np.ndarray, count: int = N_LATENTS
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Find maps from one subject's noise-free response to another's, through a common space.

    The common space holds the first principal components of all subjects together. Each subject
    has a map into it (ridge) and one out of it (least squares); the map of a pair is their product.

    Parameters
    ----------
    signals : list of arrays (image, patch)
        One a subject, the same images.
    train : bool array (image,)
        Images that the maps are found on.
    count : int
        Dimensions of the common space.

    Returns
    -------
    into : list of float32 arrays (patch, latent)
    out_of : list of float32 arrays (latent, patch)
    """
    grams = [s[train].astype(np.float64) @ s[train].T.astype(np.float64) for s in signals]
    _, vectors = np.linalg.eigh(np.sum(grams, axis=0))
    latents = vectors[:, : -count - 1 : -1] * np.sqrt(len(vectors))
    into, out_of = [], []
    for signal, gram in zip(signals, grams, strict=True):
        x = signal[train].astype(np.float64)
        ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        into.append((x.T @ np.linalg.solve(gram + ridge, latents)).astype(np.float32))
        out_of.append((latents.T @ x / len(x)).astype(np.float32))
    return into, out_of


def subject_seed(subject: str, purpose: int, seed: int = SEED) -> list[int]:
    """Seed of one subject's random numbers; ``purpose`` keeps streams apart."""
    return [seed, purpose, int(subject.removeprefix("sub-"))]
