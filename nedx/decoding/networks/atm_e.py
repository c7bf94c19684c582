"""ATM-E: attention over times before EEGNet.

Li et al. 2024, Visual decoding and reconstruction via EEG embeddings with guided diffusion
(NeurIPS); EEGNet: Lawhern et al. 2018, J. Neural Eng. 15:056013, with the widths of the former.
"""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.blocks import Projection, SubjectLinear, TimeAttention, logit_scale

_FILTERS, _DEPTH, _SEPARABLE = 8, 20, 160
_KERNEL, _SEPARABLE_KERNEL, _POOLS = 4, 16, (4, 8)
_FEATURES = 1440


class AtmE(nn.Module):
    """The embedding of EEGNet's 1,440 features.

    The first kernel has 4 samples, 8 filters in time and 20 over channels each. EEGNet's limits on
    the norms of its weights are not imposed.
    """

    smallest = 31

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int = 1024,
        n_subjects: int = 1,
        *,
        dropout: float = 0.25,
    ):
        super().__init__()
        self.logit_scale = logit_scale()
        self.attention = TimeAttention(n_channels, n_times)
        self.subject_linear = SubjectLinear(n_times, n_times, n_subjects)
        self.convolutions = _eegnet(n_channels, n_times, dropout)
        self.projection = Projection(_FEATURES, n_outputs)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time) and subjects (n,)."""
        x = self.subject_linear(self.attention(x), subject)
        found: torch.Tensor = self.projection(self.convolutions(x[:, None]).flatten(1))
        return found


def _eegnet(n_channels: int, n_times: int, dropout: float) -> nn.Sequential:
    """Return EEGNet up to its classifier: (n, 1, channel, time) to (n, 1440, 1, 1)."""
    width = _FILTERS * _DEPTH
    left = (n_times + 1) // _POOLS[0]
    left = (left + 1) // _POOLS[1]
    return nn.Sequential(
        nn.Conv2d(1, _FILTERS, (1, _KERNEL), padding=(0, _KERNEL // 2), bias=False),
        nn.BatchNorm2d(_FILTERS, eps=1e-3, momentum=0.01),
        nn.Conv2d(_FILTERS, width, (n_channels, 1), groups=_FILTERS, bias=False),
        *(nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ELU()),
        *(nn.AvgPool2d((1, _POOLS[0])), nn.Dropout(dropout)),
        nn.Conv2d(
            *(width, width, (1, _SEPARABLE_KERNEL)),
            padding=(0, _SEPARABLE_KERNEL // 2),
            groups=width,
            bias=False,
        ),
        nn.Conv2d(width, _SEPARABLE, 1, bias=False),
        *(nn.BatchNorm2d(_SEPARABLE, eps=1e-3, momentum=0.01), nn.ELU()),
        *(nn.AvgPool2d((1, _POOLS[1])), nn.Dropout(dropout)),
        nn.Conv2d(_SEPARABLE, _FEATURES, (1, left)),
    )
