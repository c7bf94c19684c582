"""The arithmetic of denoising diffusion: how noise is added, and how one step takes it away.

Ho, Jain and Abbeel 2020, Denoising diffusion probabilistic models (NeurIPS), with the linear
schedule of their section 4. All scalars are float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

BETA = (1e-4, 0.02)
"""The first and the last variance of the linear schedule."""


def kept_signal(train_steps: int) -> np.ndarray:
    """Return how much of the variance of the signal is left at each time.

    Parameters
    ----------
    train_steps : int
        Times of the diffusion, 1,000 as published.

    Returns
    -------
    ndarray of float64 (train_steps,)
        The cumulative product of ``1 - beta``.
    """
    return np.cumprod(1 - np.linspace(*BETA, train_steps))


def leading_times(train_steps: int, steps: int) -> np.ndarray:
    """Return the times visited in sampling: equal steps that end at 0.

    Parameters
    ----------
    train_steps : int
        Times of the diffusion.
    steps : int
        How many to visit, at most `train_steps`.

    Returns
    -------
    ndarray of int64 (steps,)
        Falling: 980, 960, ..., 0 for 50 of 1,000.
    """
    return (np.arange(steps) * (train_steps // steps))[::-1].copy()


def add_noise(start: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return what `start` has become at a time (Ho et al. 2020, equation 4).

    Parameters
    ----------
    start, noise : tensor (sample, feature)
        The signal, and a standard normal draw.
    kept : tensor (sample, 1)
        Of `kept_signal`, at the time of each.
    """
    return kept.sqrt() * start + (1 - kept).sqrt() * noise


def predicted_start(noisy: torch.Tensor, noise: torch.Tensor, kept: float) -> torch.Tensor:
    """Return the signal that, with this noise, is `noisy`: the inverse of `add_noise`.

    Parameters
    ----------
    noisy, noise : tensor (sample, feature)
        The state, and its noise.
    kept : float
        Of `kept_signal`, at the time of the state.
    """
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


def step_back(
    noisy: torch.Tensor, start: torch.Tensor, kept: float, kept_next: float
) -> tuple[torch.Tensor, float]:
    """Return mean and standard deviation of the state at the next, earlier time.

    The posterior of Ho et al. 2020, equations 6 and 7, whose smaller variance is kept fixed.

    Parameters
    ----------
    noisy, start : tensor (sample, feature)
        The state, and the signal predicted from it.
    kept, kept_next : float
        Of `kept_signal`, at the time of the state and at the next; 1 after the last.
    """
    one_step = kept / kept_next
    of_start = kept_next**0.5 * (1 - one_step) / (1 - kept)
    of_noisy = one_step**0.5 * (1 - kept_next) / (1 - kept)
    variance = (1 - kept_next) / (1 - kept) * (1 - one_step)
    return of_start * start + of_noisy * noisy, variance**0.5
