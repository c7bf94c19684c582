"""L-BFGS-B: bounded minimisation of one image after the other (Byrd et al. 1995, by scipy)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.errors import NedxWarning
from nedx.reconstruction.inversion.encoders import Precision
from nedx.reconstruction.inversion.problem import Problem, check_steps

if TYPE_CHECKING:
    import torch

_STUCK = 2
"""What scipy says where it neither converged nor came to the last iteration."""


@dataclass(frozen=True)
class LBFGS:
    """Minimises the objective of each image within the range of its pixels or code.

    Starts at zero after preprocessing, which is the mean image, as published (Shen et al. 2019).

    Parameters
    ----------
    iterations : int
        The most; 200 as published for pixels, 500 for codes. It ends earlier only where no step
        lowers the objective.
    precision : {"float64", "float32"}
        Of the networks; the steps are float64 always.
    """

    iterations: int = 200
    precision: Precision = "float64"

    def __post_init__(self) -> None:
        check_steps(self.iterations, self.precision)

    @property
    def needs_generator(self) -> bool:
        """Pixels will do."""
        return False

    @property
    def in_batches(self) -> bool:
        """One image at a time."""
        return False

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return {"name": "L-BFGS-B", **asdict(self)}

    def solve(self, problem: Problem, seeds: Sequence[int]) -> torch.Tensor:
        """Return the variables of all images; nothing is random."""
        import torch

        found = np.empty(problem.shape)
        bounds = problem.bounds()
        for index in range(len(found)):
            one = slice(index, index + 1)

            def value(flat: np.ndarray, one: slice = one) -> tuple[float, np.ndarray]:
                variables = problem.tensor(flat.reshape(1, *problem.shape[1:])).requires_grad_()
                with torch.enable_grad():
                    loss = problem.losses(variables, one).sum()
                    (slope,) = torch.autograd.grad(loss, variables)
                return loss.item(), slope.double().cpu().numpy().ravel()

            start = np.zeros(problem.shape[1:]).clip(*bounds)
            found[index] = minimised(value, start, *bounds, self.iterations)
            if np.array_equal(found[index], start):
                _warn_if_flat(*value(start.ravel()))
        return problem.tensor(found)


def _warn_if_flat(loss: float, slope: np.ndarray) -> None:
    """Warn where the start of a search is no solution, but has no slope to follow."""
    if loss > 0 and not np.nan_to_num(slope).any():
        warnings.warn(
            "a picture is what it began with, the mean image: the features of this network do not "
            "change about it, as energies of filters do not. Invert layers before the rectifier, "
            "or give a generator=",
            NedxWarning,
            stacklevel=2,
        )


def minimised(
    value: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    iterations: int,
) -> np.ndarray:
    """Minimise a function of many bounded variables.

    Parameters
    ----------
    value : callable
        The function and its gradient, of variables (n,) in float64.
    start, lower, upper : ndarray of float64, of any one shape
        Bounds may be infinite.
    iterations : int
        The most.

    Returns
    -------
    ndarray of float64, of the shape of `start`

    Warns
    -----
    NedxWarning
        If it is still the start, though the gradient is not zero.
    """
    from scipy.optimize import Bounds, minimize

    result = minimize(
        value,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(lower.ravel(), upper.ravel()),
        # How small a change is depends on the scale of features, so that only iterations count.
        options={"maxiter": iterations, "ftol": 0, "gtol": 0},
    )
    if result.status == _STUCK and not result.nit:
        warnings.warn(
            "no step lowers the objective, a picture is what it began with: the steps are lost in "
            "rounding. Type precision='float64', or look at the scale of the features",
            NedxWarning,
            stacklevel=2,
        )
    found: np.ndarray = result.x.reshape(start.shape)
    return found
