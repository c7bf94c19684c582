"""EEGProject: a linear layer over all channels and times, and a residual one.

The encoder of UBP (Wu et al. 2025, Bridging the vision-brain gap with an uncertainty-aware blur
prior, CVPR) and of many that followed.
"""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.blocks import Projection


class EEGProject(nn.Module):
    """5,404,672 parameters for 17 channels, 250 samples and 1,024 outputs."""

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int = 1024,
        n_subjects: int = 1,
        *,
        dropout: float = 0.3,
    ):
        super().__init__()
        self.projection = Projection(n_channels * n_times, n_outputs, dropout)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time)."""
        found: torch.Tensor = self.projection(x.flatten(1))
        return found
