"""NICE: convolutions in time, then over channels.

Song et al. 2024, Decoding natural images from EEG for object recognition (ICLR).
"""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.blocks import (
    FILTERS,
    SMALLEST,
    Projection,
    Tokens,
    logit_scale,
    temporal_spatial,
    token_count,
)


class Nice(nn.Module):
    """2,630,913 parameters for 63 channels, 250 samples and 1,024 outputs.

    Convolutions and linear layers start from a normal distribution of standard deviation 0.02,
    as in the paper.
    """

    smallest = SMALLEST

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
        self.tokens = Tokens(temporal_spatial(n_channels, dropout))
        self.projection = Projection(FILTERS * token_count(n_times), n_outputs, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time)."""
        found: torch.Tensor = self.projection(self.tokens(x))
        return found
