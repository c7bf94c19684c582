"""Batches of images and responses, read while the batch before is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import xarray as xr

from nedx.compute.batches import batches
from nedx.encoding.fwrf_samples import Samples, Split
from nedx.encoding.kernels import preprocessed
from nedx.stimuli.preprocessing import policy

if TYPE_CHECKING:
    import torch

Made = TypeVar("Made")
_AT_A_TIME = 32


def training_batches(
    split: Split, policy_name: str, batch_size: int, seed: tuple[int, ...]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield each training sample once, in random order, each batch of one subject.

    Responses are read in whole chunks, some at a time, and shuffled within these; so one epoch
    reads each chunk once, and memory does not grow with the number of samples.

    Parameters
    ----------
    split : Split
        What to train on.
    policy_name : str
        Of the images.
    batch_size : int
        Samples in a batch; the last of a subject may have fewer.
    seed : tuple of int
        Decides the order.

    Yields
    ------
    tuple of str, tensor (sample, 3, y, x) and tensor (sample, voxel)
        Subject, preprocessed images and responses, float32 on the CPU.
    """
    return _ahead(_drawn(split, policy_name, batch_size, np.random.default_rng(seed)))


def mean_colours(pixels: xr.DataArray, images: np.ndarray, policy_name: str) -> np.ndarray:
    """Return the mean of each colour over some images as a policy makes them.

    Parameters
    ----------
    pixels : DataArray (image, y, x, rgb)
        uint8.
    images : ndarray of int64
        Positions.
    policy_name : str
        The policy.

    Returns
    -------
    ndarray of float64, (3,)
    """
    sums = np.zeros(3)
    for batch in image_batches(pixels, images, policy_name):
        sums += batch.double().mean((2, 3)).sum(0).numpy()
    return sums / len(images)


def image_batches(
    pixels: xr.DataArray, images: np.ndarray, policy_name: str
) -> Iterator[torch.Tensor]:
    """Yield preprocessed images (n, 3, y, x) in the order of their positions."""

    def read(part: slice) -> np.ndarray:
        return pixels.isel(image=images[part]).values

    return preprocessed(read, len(images), policy(policy_name), _AT_A_TIME, "cpu")


def _drawn(
    split: Split, policy_name: str, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    import torch

    streams = {
        name: _of_subject(samples, batch_size, generator)
        for (name, samples), generator in zip(
            split.training.items(), rng.spawn(len(split.training)), strict=True
        )
    }
    for name in _turns(split.training, batch_size, rng):
        chosen, values = next(streams[name])
        images, which = np.unique(split.training[name].image[chosen], return_inverse=True)
        seen = torch.cat(list(image_batches(split.pixels, images, policy_name)))
        yield name, seen[torch.from_numpy(which)], torch.from_numpy(values)


def _turns(training: Mapping[str, Samples], batch_size: int, rng: np.random.Generator) -> list[str]:
    """Return whose batch comes when."""
    names = [name for name, samples in training.items() for _ in batches(len(samples), batch_size)]
    return [names[i] for i in rng.permutation(len(names))]


def _of_subject(
    samples: Samples, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield which samples, and their responses; what is left of a window joins the next."""
    chosen = np.empty(0, np.int64)
    values = np.empty((0, samples.voxels), np.float32)
    for window in samples.windows(rng):
        chosen = np.concatenate([chosen, window])
        values = np.concatenate([values, samples.read(window)])
        order = rng.permutation(len(chosen))
        whole = len(chosen) // batch_size * batch_size
        for part in batches(whole, batch_size):
            yield chosen[order[part]], values[order[part]]
        chosen, values = chosen[order[whole:]], values[order[whole:]]
    if len(chosen):
        yield chosen, values


def _ahead(items: Iterator[Made]) -> Iterator[Made]:
    """Make each item in a thread while the caller works on the one before."""
    with ThreadPoolExecutor(1, "nedx-batches") as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item
