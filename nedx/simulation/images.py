"""Images with natural statistics: dead leaves, drawn from parametric concepts.

Opaque leaves whose sizes follow a power law of exponent -3 hide one another. Such images have the
scale invariance of natural ones, and an amplitude spectrum that falls about as 1/f: Ruderman
1997, Vision Res. 37:3385; Lee, Mumford & Huang 2001, Int. J. Comput. Vision 41:35.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import xarray as xr

from nedx.simulation.concepts import (
    IMAGES_PER_TEST,
    IMAGES_PER_TRAIN,
    SEED,
    Concept,
    make_concepts,
)

SIZE = 128
"""Height and width of an image, pixels."""
DEGREES = 8.0
"""Height and width of an image, degrees of visual angle."""

_SMALLEST = 2.0
_COVER = 6.0


def make_images(seed: int = SEED) -> xr.Dataset:
    """Draw all images.

    Parameters
    ----------
    seed : int
        Seed; the same seed gives the same bytes.

    Returns
    -------
    Dataset
        ``pixels (image, y, x, rgb)`` uint8; coordinates ``image_id``, ``category`` (the concept),
        ``shape_family``, ``partition``, ``stimulus_set``, ``sha256`` and ``concept_parameters
        (image, parameter)``.
    """
    pixels, owners, ids = [], [], []
    for index, concept in enumerate(make_concepts(seed)):
        count = IMAGES_PER_TRAIN if concept.partition == "train" else IMAGES_PER_TEST
        pixels.append(draw(concept, count, np.random.default_rng([seed, 1, index])))
        owners += [concept] * count
        ids += [f"sim:{concept.name}_{k}" for k in range(count)]
    stack = np.concatenate(pixels)
    return xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), stack, {"long_name": "sRGB value", "units": "1"})},
        coords={
            "image_id": ("image", np.array(ids, dtype=object)),
            "category": _labels([concept.name for concept in owners]),
            "shape_family": _labels([concept.shape for concept in owners]),
            "partition": _labels([concept.partition for concept in owners]),
            "stimulus_set": _labels(["sim"] * len(owners)),
            "sha256": _labels([_sha256(image) for image in stack]),
            "concept_parameters": (
                ("image", "parameter"),
                np.array([concept.vector for concept in owners], dtype=np.float32),
            ),
        },
    )


def draw(concept: Concept, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` images of a concept, uint8 (count, y, x, 3)."""
    leaves = _Leaves(concept, count, rng)
    top = _occlude(leaves, concept, count)
    return _paint(leaves, top, concept, rng)


class _Leaves:
    """Leaves of several images: arrays of (leaf,), sorted from behind to front.

    The density of radii is r^-3 between 2 pixels and the largest size of the concept, by
    inversion of its distribution.
    """

    def __init__(self, concept: Concept, count: int, rng: np.random.Generator):
        largest = concept["size"] * SIZE
        mean_area = np.pi * 2 * np.log(largest / _SMALLEST) / (_SMALLEST**-2 - largest**-2)
        field = (SIZE + largest) ** 2
        total = int(count * _COVER * field / mean_area)
        uniform = rng.uniform(size=total)
        self.radius = (_SMALLEST**-2 - uniform * (_SMALLEST**-2 - largest**-2)) ** -0.5
        self.image = rng.integers(count, size=total)
        self.y, self.x = rng.uniform(-largest / 2, SIZE + largest / 2, size=(2, total))
        spread = concept["orientation_spread"]
        self.angle = np.pi * (concept["orientation"] + spread * rng.normal(size=total))
        self.phase = rng.uniform(0, 2 * np.pi, size=total)
        hue = concept["hue"] + concept["hue_spread"] * rng.normal(size=total)
        value = concept["brightness"] + 0.35 * concept["contrast"] * rng.normal(size=total)
        self.colour = _rgb(hue, concept["saturation"], np.clip(value, 0.03, 0.97))


def _rgb(hue: np.ndarray, saturation: float, value: np.ndarray) -> np.ndarray:
    """Return colours (leaf, 3) of hues in turns; the mean of the channels stays near ``value``."""
    turns = 2 * np.pi * (hue[:, None] - np.array([0, 1 / 3, 2 / 3]))
    swing = np.minimum(value, 1 - value)[:, None]
    return (value[:, None] + saturation * swing * np.cos(turns)).astype(np.float32)


def _octaves(radius: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Group leaves by size: indices in depth order, and half the width of a box for each."""
    half = _SMALLEST
    while half < 2 * radius.max():
        half *= 1.6
        inside = np.flatnonzero((radius <= half) & (radius > half / 1.6))
        if inside.size:
            yield inside, int(np.ceil(half))


def _occlude(leaves: _Leaves, concept: Concept, count: int) -> np.ndarray:
    """Return the index of the leaf in front at each pixel, int64 (count, y, x)."""
    top = np.zeros(count * SIZE * SIZE, dtype=np.int64)
    for group, half in _octaves(leaves.radius):
        front = np.zeros_like(top)
        step = max(1, 4_000_000 // (2 * half + 1) ** 2)
        for start in range(0, group.size, step):
            some = group[start : start + step]
            inside, pixel = _cover(leaves, concept, some, half)
            # Of repeated positions numpy keeps the last: the leaf in front.
            front[pixel[inside]] = np.broadcast_to(some[:, None, None], inside.shape)[inside]
        np.maximum(top, front, out=top)
    return top.reshape(count, SIZE, SIZE)


def _cover(
    leaves: _Leaves, concept: Concept, some: np.ndarray, half: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of each leaf's box it covers, and their flat positions in all images."""
    offset = np.arange(-half, half + 1, dtype=np.int32)
    y0, x0 = (np.rint(centre[some]).astype(np.int32) for centre in (leaves.y, leaves.x))
    rows, columns = y0[:, None] + offset, x0[:, None] + offset
    dy = (rows - leaves.y[some, None]).astype(np.float32)[:, :, None]
    dx = (columns - leaves.x[some, None]).astype(np.float32)[:, None, :]
    radius = leaves.radius[some].astype(np.float32)[:, None, None]
    cos = np.cos(leaves.angle[some]).astype(np.float32)[:, None, None]
    sin = np.sin(leaves.angle[some]).astype(np.float32)[:, None, None]
    # The longer axis keeps the radius, so that the box holds the leaf.
    along = (cos * dx + sin * dy) / radius
    across = (cos * dy - sin * dx) * np.float32(concept["elongation"]) / radius
    inside = _norm(along, across, concept) <= 1
    inside &= ((rows >= 0) & (rows < SIZE))[:, :, None]
    inside &= ((columns >= 0) & (columns < SIZE))[:, None, :]
    base = (leaves.image[some] * SIZE * SIZE).astype(np.int32)
    return inside, base[:, None, None] + rows[:, :, None] * SIZE + columns[:, None, :]


def _norm(along: np.ndarray, across: np.ndarray, concept: Concept) -> np.ndarray:
    """Distance from the centre in units of the outline."""
    power = int(concept["squareness"])
    if power == 1:
        return np.abs(along) + np.abs(across)
    if power == 8:
        return np.maximum(np.abs(along), np.abs(across)) * np.float32(np.sqrt(2))
    distance = along**2 + across**2
    if concept["lobes"]:
        wave = np.cos(np.float32(concept["lobes"]) * np.arctan2(across, along))
        return np.sqrt(distance) + np.float32(concept["lobe_depth"]) * (1 - wave) / 2
    return distance


def _paint(
    leaves: _Leaves, top: np.ndarray, concept: Concept, rng: np.random.Generator
) -> np.ndarray:
    """Give each leaf its colour, a grating across it, and the scene a slow change of light."""
    grid = np.arange(SIZE, dtype=np.float32) / SIZE
    angle = leaves.angle.astype(np.float32)
    along = np.cos(angle)[top] * grid + np.sin(angle)[top] * grid[:, None]
    phase = 2 * np.pi * concept["texture_frequency"] * along + leaves.phase[top]
    direction = rng.uniform(0, 2 * np.pi, size=(top.shape[0], 1, 1))
    slope = np.cos(direction) * (grid - 0.5) + np.sin(direction) * (grid[:, None] - 0.5)
    light = (1 + concept["texture"] * np.sin(phase)) * (1 + 0.3 * slope)
    image = leaves.colour[top] * light[..., None]
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _labels(values: list[str]) -> tuple[str, np.ndarray]:
    return "image", np.array(values, dtype=object)


def _sha256(image: np.ndarray) -> str:
    shape = "x".join(str(n) for n in image.shape).encode()
    return hashlib.sha256(shape + image.tobytes()).hexdigest()
