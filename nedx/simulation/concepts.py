"""Parametric concepts: what the images of one category have in common.

Every number here is simulated; a concept is a point in a space of image parameters, and stands for
the object concepts of real image sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SEED = 20261121
"""Seed of everything that is simulated."""
N_TRAIN, N_TEST = 150, 200
"""Number of training and of test concepts."""
IMAGES_PER_TRAIN, IMAGES_PER_TEST = 5, 2
"""Images of each concept."""

SHAPES = ("disk", "ellipse", "diamond", "brick", "petal", "star")
PARAMETERS = (
    "hue",
    "hue_spread",
    "saturation",
    "brightness",
    "contrast",
    "orientation",
    "orientation_spread",
    "elongation",
    "squareness",
    "lobes",
    "lobe_depth",
    "size",
    "texture",
    "texture_frequency",
)
"""Names of a concept's parameters, in the order of `Concept.vector`."""


@dataclass(frozen=True)
class Concept:
    """What the images of one category have in common.

    Parameters
    ----------
    name : str
        For example ``"petal-004"``.
    partition : {"train", "test"}
        Training and test concepts are disjoint.
    shape : str
        One of `SHAPES`.
    parameters : tuple of float
        In the order of `PARAMETERS`. Hue and orientation are in turns of 1 and pi; the rest are
        in the units of `nedx.simulation.images`.
    """

    name: str
    partition: str
    shape: str
    parameters: tuple[float, ...]

    def __getitem__(self, parameter: str) -> float:
        return self.parameters[PARAMETERS.index(parameter)]

    @property
    def vector(self) -> np.ndarray:
        """The parameters as numbers that can be added: float64 (16,), angles as cos and sin."""
        values = dict(zip(PARAMETERS, self.parameters, strict=True))
        hue, orientation = values.pop("hue"), values.pop("orientation")
        angles = (2 * np.pi * hue, 2 * np.pi * orientation)
        circular = [f(a) for a in angles for f in (np.cos, np.sin)]
        return np.array([*circular, *values.values()])


def make_concepts(seed: int = SEED) -> list[Concept]:
    """Draw the training concepts and then the test concepts.

    Parameters
    ----------
    seed : int
        Seed; the same seed gives the same concepts.

    Returns
    -------
    list of Concept
        `N_TRAIN` with partition ``"train"``, then `N_TEST` with ``"test"``; no two are alike.
    """
    rng = np.random.default_rng([seed, 0])
    total = N_TRAIN + N_TEST
    return [_draw(rng, index, "train" if index < N_TRAIN else "test") for index in range(total)]


def _draw(rng: np.random.Generator, index: int, partition: str) -> Concept:
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    round_shape = shape in ("disk", "petal", "star")
    parameters = {
        "hue": rng.uniform(0, 1),
        "hue_spread": rng.uniform(0.03, 0.3),
        "saturation": rng.uniform(0.1, 0.9),
        "brightness": rng.uniform(0.35, 0.65),
        "contrast": rng.uniform(0.3, 1.0),
        "orientation": rng.uniform(0, 1),
        "orientation_spread": rng.uniform(0.03, 0.5),
        "elongation": rng.uniform(1.0, 1.3) if round_shape else rng.uniform(1.3, 3.5),
        "squareness": {"diamond": 1.0, "brick": 8.0}.get(shape, 2.0),
        "lobes": {"petal": 5.0, "star": 9.0}.get(shape, 0.0),
        "lobe_depth": {"petal": 0.35, "star": 0.25}.get(shape, 0.0),
        "size": rng.uniform(0.2, 0.6),
        "texture": rng.uniform(0.0, 0.35),
        "texture_frequency": rng.uniform(4.0, 20.0),
    }
    values = tuple(float(parameters[name]) for name in PARAMETERS)
    return Concept(f"{shape}-{index:03d}", partition, shape, values)
