"""Tiny autoencoders as their checkpoints lay them out: TAESD, and TAEF2 with its pooled branch.

The names of the weights say what the network is: convolutions, residual blocks, and, by the
numbers that are left out, layers without weights (github.com/madebyollin/taesd, MIT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from nedx.errors import ModelError

_GROUPS = 4
_KEY = re.compile(r"(?P<layer>\d+)\.(?P<rest>.+)")


class _Saturate(nn.Module):
    """Holds latents within plus and minus 3, softly."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    """Three convolutions around a skip, after a branch over groups where there is one."""

    def __init__(self, before: int, after: int, *, skip: bool, pool: int):
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(before, after),
            nn.ReLU(),
            _convolution(after, after),
            nn.ReLU(),
            _convolution(after, after),
        )
        self.skip = nn.Conv2d(before, after, 1, bias=False) if skip else nn.Identity()
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(before, pool, 1, bias=False),
                nn.GroupNorm(_GROUPS, pool),
                nn.ReLU(),
                nn.Conv2d(pool, before, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


def tiny_autoencoder(state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """Build the encoder or the decoder that a checkpoint is of.

    Parameters
    ----------
    state : mapping of str to tensor
        As published. An encoder begins with a convolution, its convolutions without bias halve the
        size; a decoder begins with the saturation of latents, and each such convolution follows a
        doubling.

    Returns
    -------
    torch.nn.Sequential
        Float32, in evaluation mode: images (batch, 3, y, x) within [0, 1] from or to latents.

    Raises
    ------
    ModelError
        If the names are not those of such a network.
    """
    layers = _by_layer(state)
    encodes = 0 in layers
    built: list[nn.Module] = []
    for number in range(max(layers) + 1):
        weights = layers.get(number)
        if weights is None:
            built.append(_without_weights(number, built))
        elif "conv.0.weight" in weights:
            after, before = weights["conv.0.weight"].shape[:2]
            pool = weights["pool.0.weight"].shape[0] if "pool.0.weight" in weights else 0
            built.append(_Block(before, after, skip="skip.weight" in weights, pool=pool))
        elif "weight" in weights and weights["weight"].ndim == 4:
            after, before = weights["weight"].shape[:2]
            bias = "bias" in weights
            stride = 2 if encodes and not bias else 1
            built.append(_convolution(before, after, stride=stride, bias=bias))
        else:
            raise ModelError(
                f"layer {number} of the autoencoder has {', '.join(sorted(weights))}, which no "
                "layer of TAESD or TAEF2 has"
            )
    network = nn.Sequential(*built)
    try:
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise ModelError(f"the checkpoint is of no TAESD or TAEF2 autoencoder: {error}") from error
    return network.eval()


def scaling(network: nn.Sequential) -> int:
    """Return how many pixels a latent covers along each axis."""
    halvings = sum(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in network)
    doublings = sum(isinstance(m, nn.Upsample) for m in network)
    return int(2 ** (halvings + doublings))


def latent_channels(network: nn.Sequential, *, encodes: bool) -> int:
    """Return the channels of latents."""
    convolutions = [module for module in network if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels if encodes else convolutions[0].in_channels


def _by_layer(state: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ModelError(
                f"the checkpoint has weights {name!r}; those of TAESD and TAEF2 autoencoders begin "
                "with the number of a layer. A folder of diffusers is read too"
            )
        layers.setdefault(int(match["layer"]), {})[match["rest"]] = value
    if not layers:
        raise ModelError("the checkpoint of the autoencoder is empty")
    return layers


def _without_weights(number: int, before: list[nn.Module]) -> nn.Module:
    if number == 0:
        return _Saturate()
    if len(before) == 2 and isinstance(before[0], _Saturate):
        return nn.ReLU()
    return nn.Upsample(scale_factor=2)


def _convolution(before: int, after: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, stride=stride, bias=bias)
