"""MUSE: convolutions over channels, then in time.

Chen et al. 2024, Mind's eye: image recognition by EEG via multimodal similarity-keeping
contrastive learning (arXiv:2406.16910).
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
    spatial_temporal,
    token_count,
)


class Muse(nn.Module):
    """2,571,633 parameters for 63 channels, 250 samples and 1,024 outputs."""

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
        self.tokens = Tokens(spatial_temporal(n_channels, dropout))
        self.projection = Projection(FILTERS * token_count(n_times), n_outputs, dropout)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time)."""
        found: torch.Tensor = self.projection(self.tokens(x))
        return found
