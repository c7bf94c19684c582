"""Sampling from the diffusion prior: from noise, step by step, to embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from nedx.compute.batches import batches
from nedx.errors import ModelError, close_matches, require
from nedx.reconstruction.schedule import (
    BETA,
    kept_signal,
    leading_times,
    predicted_start,
    step_back,
)

if TYPE_CHECKING:
    from nedx.reconstruction.prior_network import PriorNetwork
    from nedx.reconstruction.prior_store import PriorRecipe

SAMPLERS = ("ddpm", "ddim")
"""Ancestral sampling as published, and a faster one, of diffusers."""

Denoise = Callable[[torch.Tensor, int], torch.Tensor]


def check_sampling(recipe: PriorRecipe, steps: int, sampler: str, batch_size: int) -> None:
    """Refuse what cannot be sampled.

    Raises
    ------
    ModelError
        If a number is out of range or no sampler has this name.
    MissingExtraError
        If the sampler is one of diffusers and that is not installed.
    """
    if not 1 <= steps <= recipe.train_steps:
        raise ModelError(f"steps is {steps}; it is from 1 to {recipe.train_steps}")
    if batch_size < 1:
        raise ModelError(f"batch_size is {batch_size}; it is at least 1")
    if sampler not in SAMPLERS:
        raise ModelError(f"no sampler is called {sampler!r}: {close_matches(sampler, SAMPLERS)}")
    if sampler != "ddpm":
        require("diffusers", "generate")


def sample(
    network: PriorNetwork,
    recipe: PriorRecipe,
    conditions: np.ndarray,
    names: Sequence[object],
    *,
    guidance: float = 5.0,
    steps: int = 50,
    sampler: str = "ddpm",
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
) -> np.ndarray:
    """Return embeddings of the target space.

    Every batch is filled up to the same size: the result for one image is the same to the bit
    whatever lies beside it.

    Parameters
    ----------
    network : PriorNetwork
        In evaluation mode, on `device`.
    recipe : PriorRecipe
        Scale and range of the embeddings, and times of the diffusion.
    conditions : ndarray of float32 (image, condition_width)
        What to be guided by.
    names : sequence (image,)
        Their ids; with `seed` they decide the noise of each.
    guidance : float
        Of classifier-free guidance: 1 follows the condition, 0 ignores it.
    steps : int
        Times visited.
    sampler : str
        One of `SAMPLERS`.
    seed : int
        Of the noise.
    batch_size : int
        Images at a time.
    device : str
        Where to compute.

    Returns
    -------
    ndarray of float32 (image, width)
    """
    draws = steps if sampler == "ddpm" else 1
    out = np.empty((len(conditions), recipe.width), np.float32)
    for part in batches(len(conditions), batch_size):
        count = part.stop - part.start
        given = np.zeros((batch_size, recipe.condition_width), np.float32)
        given[:count] = conditions[part]
        noise = np.zeros((draws, batch_size, recipe.width), np.float32)
        for row, name in enumerate(names[part]):
            noise[:, row] = image_noise(seed, name, (draws, recipe.width))
        denoise = guided(network, torch.from_numpy(given).to(device), guidance)
        noises = torch.from_numpy(noise).to(device)
        with torch.inference_mode():
            if sampler == "ddpm":
                found = _ancestral(denoise, noises, recipe)
            else:
                found = _ddim(denoise, noises[0], recipe, steps)
        out[part] = (found[:count] / recipe.scale).cpu().numpy()
    return out


def image_noise(seed: int, name: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return the standard normal draws of one image, float32: of its id and a seed alone."""
    digest = hashlib.sha256(f"nedx prior {seed} {name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, dtype=np.float32)


def guided(network: PriorNetwork, conditions: torch.Tensor, guidance: float) -> Denoise:
    """Return what predicts the noise at a time, guided without a classifier.

    ``e = e_without + guidance (e_with - e_without)``; Ho and Salimans 2022, equation 6, have
    ``w = guidance - 1``.
    """

    def denoise(noisy: torch.Tensor, time: int) -> torch.Tensor:
        times = torch.full((len(noisy),), time, device=noisy.device)
        if guidance == 0:
            return network(noisy, times)
        given = network(noisy, times, conditions)
        if guidance == 1:
            return given
        free = network(noisy, times)
        return free + guidance * (given - free)

    return denoise


def _ancestral(denoise: Denoise, noises: torch.Tensor, recipe: PriorRecipe) -> torch.Tensor:
    """Sample as published; ``noises (step, sample, feature)``, the first is the start."""
    kept = kept_signal(recipe.train_steps)
    stride = recipe.train_steps // len(noises)
    x = noises[0]
    for i, time in enumerate(leading_times(recipe.train_steps, len(noises)).tolist()):
        start = predicted_start(x, denoise(x, time), kept[time]).clamp(-recipe.clip, recipe.clip)
        last = time < stride
        x, deviation = step_back(x, start, kept[time], 1.0 if last else kept[time - stride])
        if not last:
            x = x + deviation * noises[i + 1]
    return x


def _ddim(denoise: Denoise, start: torch.Tensor, recipe: PriorRecipe, steps: int) -> torch.Tensor:
    """Sample with diffusers' scheduler of Song et al. 2021, which draws no noise on the way."""
    scheduler = require("diffusers", "generate").DDIMScheduler(
        num_train_timesteps=recipe.train_steps,
        beta_start=BETA[0],
        beta_end=BETA[1],
        clip_sample_range=recipe.clip,
    )
    scheduler.set_timesteps(steps)
    x = start
    for time in scheduler.timesteps.tolist():
        x = scheduler.step(denoise(x, time), time, x).prev_sample
    return x
