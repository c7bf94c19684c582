"""What an optimiser is given: the losses of several images that do not know each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np

from nedx.errors import ModelError
from nedx.reconstruction.inversion.encoders import FeatureEncoder, LoadedEncoder, Precision
from nedx.reconstruction.inversion.image_generators import ImageGenerator, LoadedGenerator
from nedx.reconstruction.inversion.objective import Objective
from nedx.reconstruction.inversion.pixels import centre, from_rgb, pixel_range, same_values, to_rgb

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Problem:
    """Images to find; its variables are their pixels, or codes of a generator.

    Attributes
    ----------
    encoder : FeatureEncoder
        Whose features are compared.
    network : LoadedEncoder
        The same, loaded.
    objective : Objective
        Of all images.
    generator : ImageGenerator, optional
        What makes images of codes.
    maker : LoadedGenerator, optional
        The same, loaded.
    """

    encoder: FeatureEncoder
    network: LoadedEncoder
    objective: Objective
    generator: ImageGenerator | None = None
    maker: LoadedGenerator | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all variables, ``(image, 3, y, x)`` or ``(image, *latent)``."""
        count = len(self.objective.weights)
        side = self.encoder.side
        one = (3, side, side) if self.generator is None else self.generator.shape
        return (count, *one)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the range of the variables of one image, float64, broadcast to its shape."""
        if self.generator is not None:
            return self.generator.bounds()
        low, high = (edge[:, None, None] for edge in pixel_range(self.encoder.policy))
        shape = self.shape[1:]
        return np.broadcast_to(low, shape), np.broadcast_to(high, shape)

    def images(self, variables: torch.Tensor) -> torch.Tensor:
        """Return what the encoder takes, ``(image, 3, y, x)``: of a generator the centre."""
        if self.generator is None or self.maker is None:
            return variables
        made = centre(self.maker(variables), self.encoder.side)
        if same_values(self.generator.pixels, self.encoder.policy):
            return made
        return from_rgb(to_rgb(made, self.generator.pixels), self.encoder.policy)

    def losses(self, variables: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        """Return the objective of each image, or of some of them, ``(image,)``."""
        return self.objective(self.network(self.images(variables)), part)

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        """Return values on the device and in the precision of the problem."""
        import torch

        weights = self.objective.weights
        return torch.tensor(np.asarray(values), device=weights.device, dtype=weights.dtype)


@runtime_checkable
class Optimizer(Protocol):
    """Finds the variables of a problem; a frozen dataclass, whose fields are its recipe."""

    @property
    def precision(self) -> Precision:
        """Of the networks and of the variables."""

    @property
    def needs_generator(self) -> bool:
        """Whether it works on codes only."""

    @property
    def in_batches(self) -> bool:
        """Whether the networks see several images at once, whose number decides the rounding."""

    def solve(self, problem: Problem, seeds: Sequence[int]) -> torch.Tensor:
        """Return the variables of all images, one seed each."""

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""


def check_steps(iterations: int, precision: str) -> None:
    """Raise ModelError if an optimiser would take no step, or has no such precision."""
    if iterations < 1:
        raise ModelError(f"iterations={iterations}, expected 1 or more")
    if precision not in get_args(Precision):
        raise ModelError(f"precision={precision!r}; type one of {get_args(Precision)}")
