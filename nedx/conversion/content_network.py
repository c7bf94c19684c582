"""The network of the content-loss converter, and how it learns from a decoder alone.

Wang, Ho, Cheng, Aoki, Muraki, Tanaka, Park & Kamitani 2025, Nature Computational Science 5:534.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from nedx.conversion.training import check_loss

if TYPE_CHECKING:
    import torch

_LEAK = 0.2


@dataclass(frozen=True, eq=False)
class LayerTarget:
    """What one layer of features asks of converted responses.

    Attributes
    ----------
    index, weight : ndarray or dask array (unit, selected)
        The decoder's voxels of each unit, and their weights between z-scores.
    bias, mean, deviation : ndarray (unit,)
        Of units; features are standardised by mean and deviation.
    features : ndarray or dask array (image, unit)
        The true ones.
    channels : int
        Units come in so many blocks of equal length.
    weight_of_layer : float
        In the loss.
    """

    index: Any = field(repr=False)
    weight: Any = field(repr=False)
    bias: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    deviation: np.ndarray = field(repr=False)
    features: Any = field(repr=False)
    channels: int
    weight_of_layer: float


@dataclass(frozen=True)
class ContentTraining:
    """How the network learns: as published by default."""

    iterations: int = 1024
    learning_rate: float = 5e-5
    seed: int = 42
    device: str = "cpu"


def content_network(arrays: Mapping[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network of some weights.

    Three linear layers; behind the first two each sample is normalised over its units, then
    rectified (leak 0.2).

    Returns
    -------
    callable
        Tensor (row, source) to tensor (row, target), both z-scores.
    """
    from torch.nn.functional import layer_norm, leaky_relu, linear

    def network(z: torch.Tensor) -> torch.Tensor:
        for number in (1, 2):
            hidden = linear(z, arrays[f"weight_{number}"], arrays[f"bias_{number}"])
            z = leaky_relu(layer_norm(hidden, hidden.shape[-1:]), _LEAK)
        return linear(z, arrays["weight_3"], arrays["bias_3"])

    return network


def train_content_network(
    z: np.ndarray,
    image: np.ndarray,
    targets: int,
    layers: Sequence[LayerTarget],
    training: ContentTraining,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Find weights whose outputs a decoder turns into the true features.

    The loss is ``sum_l w_l |decoder_l(network(z)) - zscore(features_l)|^2``, of one channel of
    each layer drawn at each step; Adam (0.5, 0.999) on all samples at once, whose learning rate
    falls to 0 over the second half.

    Parameters
    ----------
    z : ndarray of float32, (row, source)
        z-scores of the source.
    image : ndarray of int64, (row,)
        The row of each among the features.
    targets : int
        Neuroids of the target.
    layers : sequence of LayerTarget
    training : ContentTraining

    Returns
    -------
    state : dict of str to ndarray of float32
    loss : ndarray of float64, (iteration,)

    Raises
    ------
    ModelError
        If the loss is NaN or infinite.
    """
    import torch

    device, steps = training.device, training.iterations
    arrays = _initial(z.shape[1], targets, training)
    network = content_network(arrays)
    optimizer = torch.optim.Adam(
        list(arrays.values()), lr=training.learning_rate, betas=(0.5, 0.999)
    )
    rows = torch.from_numpy(np.ascontiguousarray(z)).to(device)
    where = torch.from_numpy(image).to(device)
    draw = np.random.default_rng(training.seed)
    losses = np.empty(steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad(set_to_none=True)
        found = network(rows)
        loss = found.new_zeros(())
        for layer in layers:
            loss = loss + _content(layer, found, where, int(draw.integers(layer.channels)))
        loss.backward()
        optimizer.step()
        losses[step] = float(loss.detach())
        check_loss("content network", losses[step], training.learning_rate)
    return {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}, losses


def _initial(sources: int, targets: int, training: ContentTraining) -> dict[str, torch.Tensor]:
    import torch

    widths = [sources, max(1, sources // 2), max(1, sources // 2), targets]
    draw = torch.Generator().manual_seed(training.seed)
    arrays = {}
    for number, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1):
        bound = inputs**-0.5
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            values = (2 * torch.rand(shape, generator=draw) - 1) * bound
            arrays[f"{name}_{number}"] = values.to(training.device).requires_grad_()
    return arrays


def _content(
    layer: LayerTarget, found: torch.Tensor, image: torch.Tensor, channel: int
) -> torch.Tensor:
    """Return the weighed squared distance of one channel's features, summed."""
    import torch

    size = len(layer.bias) // layer.channels
    part = slice(channel * size, (channel + 1) * size)
    dense = np.zeros((found.shape[1], size), np.float32)
    read = dask.compute(layer.index[part], layer.weight[part], layer.features[:, part])
    index, weight, truth = (np.asarray(values) for values in read)
    np.put_along_axis(dense, index.astype(np.int64).T, weight.astype(np.float32).T, axis=0)
    truth = truth.astype(np.float32, copy=False)
    deviation = np.where(layer.deviation[part] > 0, layer.deviation[part], 1)
    z = ((truth - layer.mean[part]) / deviation).astype(np.float32)
    wanted = torch.from_numpy(z).to(found.device)[image]
    bias = torch.from_numpy(np.array(layer.bias[part], np.float32)).to(found.device)
    decoded = found @ torch.from_numpy(dense).to(found.device) + bias
    return layer.weight_of_layer * (decoded - wanted).square().sum()
