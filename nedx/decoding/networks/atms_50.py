"""ATMS_50: attention over times before the convolutions of NICE.

The encoder called ATM-S in NECOMIMI (Chen et al. 2024, arXiv:2410.00712). It differs from that of
Li et al. 2024, whose tokens are channels: see `nedx.decoding.networks.atm_s`.
"""

from __future__ import annotations

import torch

from nedx.decoding.networks.blocks import (
    SubjectLinear,
    TimeAttention,
    TokenNetwork,
    temporal_spatial,
)


class Atms50(TokenNetwork):
    """2,970,202 parameters for 63 channels, 250 samples and 1,024 outputs."""

    convolutions = staticmethod(temporal_spatial)

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int = 1024,
        n_subjects: int = 1,
        *,
        dropout: float = 0.5,
    ):
        super().__init__(n_channels, n_times, n_outputs, n_subjects, dropout=dropout)
        self.attention = TimeAttention(n_channels, n_times)
        self.subject_linear = SubjectLinear(n_times, n_times, n_subjects)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time) and subjects (n,)."""
        return super().forward(self.subject_linear(self.attention(x), subject))
