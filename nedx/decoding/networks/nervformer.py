"""NervFormer: convolutions in both orders, whose tokens attend to one another.

The encoders of NECOMIMI and NervformerV2 (Chen et al. 2024, NECOMIMI: neural-cognitive multimodal
EEG-informed image generation with diffusion models, arXiv:2410.00712). What these call
cross-attention is self-attention over the tokens of both branches.
"""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.blocks import (
    FILTERS,
    SMALLEST,
    Projection,
    SubjectLinear,
    TimeAttention,
    logit_scale,
    spatial_temporal,
    temporal_spatial,
    token_count,
)


class _Core(nn.Module):
    """Two branches of convolutions, attention within each and over both, a perceptron.

    9,015,568 parameters for 63 channels and 250 samples.
    """

    def __init__(self, n_channels: int, n_times: int, dropout: float):
        super().__init__()
        tokens = token_count(n_times)
        self.n_outputs = tokens * FILTERS
        self.instance_norm = nn.InstanceNorm2d(1)
        self.temporal_spatial = temporal_spatial(n_channels, dropout)
        self.spatial_temporal = spatial_temporal(n_channels, dropout)
        self.attention_ts = nn.MultiheadAttention(FILTERS, 5, batch_first=True)
        self.attention_st = nn.MultiheadAttention(FILTERS, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(FILTERS, 8, dropout=0.75, batch_first=True)
        self.norm_ts = nn.LayerNorm(FILTERS)
        self.norm_st = nn.LayerNorm(FILTERS)
        self.norm = nn.LayerNorm(FILTERS)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * self.n_outputs, 2048),
            *(nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(2048, self.n_outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, n_outputs) of (n, channel, time)."""
        plane = self.instance_norm(x[:, None])
        ts = self.temporal_spatial(plane).squeeze(2).transpose(1, 2)
        st = self.spatial_temporal(plane).squeeze(2).transpose(1, 2)
        ts = self.norm_ts(ts + _attended(self.attention_ts, ts))
        st = self.norm_st(st + _attended(self.attention_st, st))
        both = torch.cat([ts, st], 1)
        both = self.norm(both + _attended(self.attention, both))
        found: torch.Tensor = self.perceptron(both.flatten(1))
        return found


def _attended(attention: nn.MultiheadAttention, tokens: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = attention(tokens, tokens, tokens, need_weights=False)[0]
    return found


class NervFormerV1(nn.Module):
    """11,542,801 parameters for 63 channels, 250 samples and 1,024 outputs."""

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
        self.core = _Core(n_channels, n_times, dropout)
        self.projection = Projection(self.core.n_outputs, n_outputs, dropout)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time)."""
        found: torch.Tensor = self.projection(self.core(x))
        return found


class NervFormerV2(NervFormerV1):
    """NERV: attention over times first. 11,882,090 parameters for 63 channels, 250 samples."""

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
