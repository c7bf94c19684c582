"""A U-Net along time that turns one subject's EEG into another's, and how it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nedx.compute.batches import batches
from nedx.conversion.training import check_loss

if TYPE_CHECKING:
    import torch

WIDTHS = (64, 128, 256, 512)
_KERNEL = 3
_LEAK = 0.1


@dataclass(frozen=True)
class UNetTraining:
    """How the network learns: as published by default, but for the choice of the epoch."""

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 2e-3
    cosine: float = 1.0
    squared: float = 1.0
    seed: int = 0
    device: str = "cpu"


def unet(arrays: Mapping[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network of some weights.

    Convolutions of 3 times: 64, 128, 256, 512 channels at full, half, a quarter and an eighth of
    the sampling rate, and back, each level joined by what the way down had there.

    Returns
    -------
    callable
        Tensor (row, channel, time) to tensor (row, channel, time).
    """
    from torch import cat
    from torch.nn.functional import conv1d, interpolate, leaky_relu

    def convolved(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight, bias = arrays[f"{name}_weight"], arrays[f"{name}_bias"]
        return leaky_relu(conv1d(x, weight, bias, stride, _KERNEL // 2), _LEAK)

    def network(x: torch.Tensor) -> torch.Tensor:
        levels = [convolved("down_0", x)]
        for level in range(1, len(WIDTHS)):
            levels.append(convolved(f"down_{level}", levels[-1], 2))
        x = levels.pop()
        for level in range(len(WIDTHS) - 2, -1, -1):
            skipped = levels.pop()
            wider = interpolate(x, skipped.shape[-1], mode="linear")
            x = convolved(f"up_{level}", cat([wider, skipped], 1))
        return conv1d(x, arrays["out_weight"], arrays["out_bias"])

    return network


def initial(sources: int, targets: int, seed: int) -> dict[str, torch.Tensor]:
    """Draw weights, scaled so that variances are kept (He et al. 2015, ICCV)."""
    import torch

    shapes = {"down_0": (WIDTHS[0], sources, _KERNEL)}
    for level in range(1, len(WIDTHS)):
        shapes[f"down_{level}"] = (WIDTHS[level], WIDTHS[level - 1], _KERNEL)
        joined = WIDTHS[level] + WIDTHS[level - 1]
        shapes[f"up_{level - 1}"] = (WIDTHS[level - 1], joined, _KERNEL)
    shapes["out"] = (targets, WIDTHS[0], 1)
    draw = torch.Generator().manual_seed(seed)
    arrays = {}
    for name, shape in shapes.items():
        scale = (2 / (shape[1] * shape[2])) ** 0.5
        arrays[f"{name}_weight"] = torch.randn(shape, generator=draw) * scale
        arrays[f"{name}_bias"] = torch.zeros(shape[0])
    return arrays


def train_unet(
    x: np.ndarray, y: np.ndarray, held: np.ndarray, training: UNetTraining
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Find weights that turn x into y.

    The loss is ``1 - cos`` of whole responses plus the mean squared error. The epoch is chosen by
    the loss of samples held out; without any it is the last.

    Parameters
    ----------
    x : ndarray of float32, (row, channel, time)
    y : ndarray of float32, (row, channel, time)
    held : ndarray of bool, (row,)
        What is not trained on; not all.
    training : UNetTraining

    Returns
    -------
    state : dict of str to ndarray of float32
    history : dict of str to ndarray of float64, (epoch,)
        ``loss`` and ``validation_loss``.

    Raises
    ------
    ModelError
        If the loss is NaN or infinite.
    """
    import torch

    arrays = {
        name: values.to(training.device).requires_grad_()
        for name, values in initial(x.shape[1], y.shape[1], training.seed).items()
    }
    network = unet(arrays)
    optimizer = torch.optim.Adam(list(arrays.values()), lr=training.learning_rate)
    one, other = (torch.from_numpy(np.ascontiguousarray(v)).to(training.device) for v in (x, y))
    fitted, chosen_by = np.flatnonzero(~held), np.flatnonzero(held)
    order = np.random.default_rng(training.seed)
    history = {name: np.full(training.epochs, np.nan) for name in ("loss", "validation_loss")}
    best, lowest = {}, np.inf
    for epoch in range(training.epochs):
        shuffled = order.permutation(fitted)
        total = 0.0
        for part in batches(len(shuffled), training.batch_size):
            rows = torch.from_numpy(shuffled[part]).to(training.device)
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(network(one[rows]), other[rows], training)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        history["loss"][epoch] = reached = total / len(fitted)
        if len(chosen_by):
            reached = _validated(network, one, other, chosen_by, training)
            history["validation_loss"][epoch] = reached
        check_loss("U-Net", reached, training.learning_rate)
        if reached < lowest or not len(chosen_by):
            lowest = reached
            best = {name: tensor.detach().cpu().numpy().copy() for name, tensor in arrays.items()}
    return best, history


def _validated(
    network: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    rows: np.ndarray,
    training: UNetTraining,
) -> float:
    """Return the mean loss of some rows."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for part in batches(len(rows), training.batch_size):
            some = torch.from_numpy(rows[part]).to(x.device)
            total += float(_loss(network(x[some]), y[some], training)) * len(some)
    return total / len(rows)


def _loss(found: torch.Tensor, wanted: torch.Tensor, training: UNetTraining) -> torch.Tensor:
    from torch.nn.functional import cosine_similarity, mse_loss

    cosine = 1 - cosine_similarity(found.flatten(1), wanted.flatten(1)).mean()
    return training.cosine * cosine + training.squared * mse_loss(found, wanted)
