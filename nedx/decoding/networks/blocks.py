"""What several networks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from nedx.errors import ModelError

FILTERS = 40
_KERNEL, _POOL, _STRIDE = 25, 51, 5
SMALLEST = _KERNEL + _POOL - 1
"""Samples that the convolutions in time need for one token."""


def token_count(n_times: int) -> int:
    """Return how many tokens the convolutions in time leave of a window."""
    return (n_times - SMALLEST) // _STRIDE + 1


def logit_scale() -> nn.Parameter:
    """Return what the contrastive loss multiplies similarities by, at its start, ln(1 / 0.07).

    It is of no use to the embedding, but published checkpoints and counts of parameters hold it
    with the network.
    """
    return nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def temporal_spatial(n_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """Return convolutions in time, then over channels: (n, 1, channel, time) to (n, 40, 1, token).

    Song et al. 2024, Decoding natural images from EEG for object recognition (NICE; ICLR).
    """
    return nn.Sequential(
        nn.Conv2d(1, FILTERS, (1, _KERNEL)),
        nn.AvgPool2d((1, _POOL), (1, _STRIDE)),
        *(nn.BatchNorm2d(FILTERS), nn.ELU()),
        nn.Conv2d(FILTERS, FILTERS, (n_channels, 1)),
        *(nn.BatchNorm2d(FILTERS), nn.ELU(), nn.Dropout(dropout)),
    )


def spatial_temporal(n_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """Return convolutions over channels, then in time: (n, 1, channel, time) to (n, 40, 1, token).

    Chen et al. 2024, Mind's eye: image recognition by EEG via multimodal similarity-keeping
    contrastive learning (MUSE; arXiv:2406.16910).
    """
    return nn.Sequential(
        nn.Conv2d(1, FILTERS, (n_channels, 1)),
        *(nn.BatchNorm2d(FILTERS), nn.ELU()),
        nn.Conv2d(FILTERS, FILTERS, (1, _KERNEL)),
        nn.AvgPool2d((1, _POOL), (1, _STRIDE)),
        *(nn.BatchNorm2d(FILTERS), nn.ELU(), nn.Dropout(dropout)),
    )


class Tokens(nn.Module):
    """Convolutions whose maps become tokens, mixed one by one and laid out token after token.

    Parameters
    ----------
    convolutions : nn.Sequential
        `temporal_spatial` or `spatial_temporal`.
    """

    def __init__(self, convolutions: nn.Sequential):
        super().__init__()
        self.convolutions = convolutions
        self.mixing = nn.Conv2d(FILTERS, FILTERS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, token * 40) of (n, channel, time)."""
        maps = self.mixing(self.convolutions(x[:, None]))
        return maps.squeeze(2).transpose(1, 2).flatten(1)


class Projection(nn.Module):
    """A linear layer, a residual one and a normalisation: the head of all these networks."""

    def __init__(self, n_inputs: int, n_outputs: int, dropout: float = 0.5):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs)
        self.residual = nn.Linear(n_outputs, n_outputs)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return embeddings (n, n_outputs)."""
        x = self.linear(x)
        x = x + self.dropout(self.residual(nn.functional.gelu(x)))
        return self.norm(x)


class TokenNetwork(nn.Module):
    """Convolutions, their tokens, and the projection: NICE, and MUSE in the other order.

    Parameters
    ----------
    n_channels, n_times, n_outputs, n_subjects : int
        As in `nedx.decoding.networks.NetworkRecipe`.
    dropout : float
        After the convolutions and in the projection.
    """

    smallest = SMALLEST
    convolutions: Callable[[int, float], nn.Sequential]

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int = 1024,
        n_subjects: int = 1,
        *,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.logit_scale = logit_scale()
        self.tokens = Tokens(self.convolutions(n_channels, dropout))
        self.projection = Projection(FILTERS * token_count(n_times), n_outputs, dropout)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time)."""
        found: torch.Tensor = self.projection(self.tokens(x))
        return found


class TimeAttention(nn.Module):
    """A Transformer layer in which the tokens are times and their features the channels."""

    positions: torch.Tensor

    def __init__(self, n_channels: int, n_times: int):
        super().__init__()
        if n_channels < 2:
            # Normalised over a single channel, every response would be the same.
            raise ModelError("attention over times needs at least 2 channels, the responses have 1")
        self.layer = nn.TransformerEncoderLayer(n_channels, 1, 2048, 0.1, batch_first=True)
        positions = sinusoids(n_times, n_channels)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape, (n, channel, time)."""
        return self.layer(x.transpose(1, 2) + self.positions).transpose(1, 2)


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return positions (length, width): sines in even columns, cosines in odd ones.

    Vaswani et al. 2017, Attention is all you need, section 3.5. Where the width is odd there is
    one cosine less.
    """
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length)[:, None] * frequencies
    found = torch.zeros(length, width)
    found[:, 0::2] = angles.sin()
    found[:, 1::2] = angles.cos()[:, : width // 2]
    return found


class SubjectLinear(nn.Module):
    """A linear layer over the last axis for each subject.

    Of subjects without one the mean of all is taken.
    """

    def __init__(self, n_inputs: int, n_outputs: int, n_subjects: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_inputs, n_outputs) for _ in range(n_subjects))

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None) -> torch.Tensor:
        """Return (n, channel, n_outputs) of (n, channel, n_inputs) and subjects (n,)."""
        if len(self.layers) == 1:
            one: torch.Tensor = self.layers[0](x)
            return one
        weight, bias = (
            torch.stack([self.get_parameter(f"layers.{i}.{kind}") for i in range(len(self.layers))])
            for kind in ("weight", "bias")
        )
        share = memberships(subject, len(x), weight)
        weight, bias = torch.tensordot(share, weight, 1), share @ bias
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def memberships(subject: torch.Tensor | None, count: int, like: torch.Tensor) -> torch.Tensor:
    """Return how much of each subject's layer each sample takes, (n, subject); rows sum to 1."""
    n_subjects = len(like)
    even = like.new_full((count, n_subjects), 1 / n_subjects)
    if subject is None:
        return even
    own = nn.functional.one_hot(subject.clamp(min=0), n_subjects).to(like)
    return torch.where((subject >= 0)[:, None], own, even)
