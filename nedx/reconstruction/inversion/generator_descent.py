"""Gradient descent through a generator, with the published update (Shen et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nedx.errors import ModelError
from nedx.reconstruction.inversion.encoders import Precision
from nedx.reconstruction.inversion.problem import Problem, check_steps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GeneratorDescent:
    """Moves the codes of all images of a batch at a time, each for itself.

    With the gradient ``g`` over its mean absolute value, at iteration t of T, the momentum is
    ``d = 0.9 d + g`` and the code ``z = clip((1 - 0.01) (z - rate d))``; the rate goes linearly
    from 2 towards 1e-10.

    Parameters
    ----------
    iterations : int
        T; the image of the last but one code is returned, as published.
    rate : (float, float)
        At the beginning, and what it would be at iteration T.
    momentum, decay : float
        Constants.
    start : {"zeros", "normal"}
        Codes to begin with: zeros as published first, or standard normal numbers drawn with the
        seed of the image.
    precision : {"float32", "float64"}
        Of the networks and of the steps.
    """

    iterations: int = 200
    rate: tuple[float, float] = (2.0, 1e-10)
    momentum: float = 0.9
    decay: float = 0.01
    start: Literal["zeros", "normal"] = "zeros"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_steps(self.iterations, self.precision)
        if np.shape(self.rate) != (2,):
            raise ModelError(
                f"rate={self.rate}, expected two numbers: at the beginning, at the end"
            )
        if self.start not in ("zeros", "normal"):
            raise ModelError(f"start={self.start!r}; type 'zeros' or 'normal'")

    @property
    def needs_generator(self) -> bool:
        """Codes are what it moves."""
        return True

    @property
    def in_batches(self) -> bool:
        """All images of a batch at a time."""
        return True

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return {"name": "gradient descent", **asdict(self), "rate": list(self.rate)}

    def solve(self, problem: Problem, seeds: Sequence[int]) -> torch.Tensor:
        """Return the codes of the images that come closest at the end."""
        import torch

        def slope(codes: torch.Tensor) -> torch.Tensor:
            codes = codes.detach().requires_grad_()
            with torch.enable_grad():
                # The images share nothing, so the gradient of the sum is that of each.
                (gradient,) = torch.autograd.grad(problem.losses(codes).sum(), codes)
            return gradient

        first = problem.tensor(self._first(problem.shape, seeds))
        lower, upper = (problem.tensor(edge) for edge in problem.bounds())
        return descended(slope, first, lower, upper, self)

    def _first(self, shape: tuple[int, ...], seeds: Sequence[int]) -> np.ndarray:
        if self.start == "zeros":
            return np.zeros(shape)
        return np.stack([np.random.default_rng(seed).standard_normal(shape[1:]) for seed in seeds])


def descended(
    slope: Callable[[torch.Tensor], torch.Tensor],
    first: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    settings: GeneratorDescent,
) -> torch.Tensor:
    """Move codes down a slope.

    Parameters
    ----------
    slope : callable
        The gradient (image, *latent) at codes (image, *latent).
    first : tensor (image, *latent)
        Where to begin.
    lower, upper : tensor (*latent)
        Range of a code.
    settings : GeneratorDescent
        The update.

    Returns
    -------
    tensor (image, *latent)
        The codes before the last update, those that were looked at last.
    """
    import torch

    latent = tuple(range(1, first.ndim))
    codes, moving = first, torch.zeros_like(first)
    begin, end = settings.rate
    for step in range(settings.iterations - 1):
        gradient = slope(codes)
        size = gradient.abs().mean(latent, keepdim=True)
        moving = settings.momentum * moving + gradient / size.where(size > 0, 1)
        rate = begin + step * (end - begin) / settings.iterations
        codes = (1 - settings.decay) * (codes - rate * moving)
        codes = torch.minimum(torch.maximum(codes, lower), upper)
    return codes
