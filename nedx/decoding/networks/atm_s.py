"""ATM-S: tokens that are channels, one of the subject, and the convolutions of NICE.

Li et al. 2024, Visual decoding and reconstruction via EEG embeddings with guided diffusion
(NeurIPS). The encoder layer is that of iTransformer (Liu et al. 2024, ICLR). In the released code
the subject's token stays and the last channel is dropped; here the token is dropped. There unknown
subjects share a token, which is only trained where ids are out of range; here they take the mean
of all.
"""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.blocks import (
    FILTERS,
    SMALLEST,
    Projection,
    SubjectLinear,
    Tokens,
    logit_scale,
    memberships,
    temporal_spatial,
    token_count,
)

_HEADS, _HIDDEN = 4, 256


class _ChannelAttention(nn.Module):
    """One encoder layer over tokens of as many features as there are samples, normalised after."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        # Where heads do not divide the width, as in the paper, a few features are left out.
        inner = width // _HEADS * _HEADS
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.norm_attention, self.norm_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, _HIDDEN), nn.Linear(_HIDDEN, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the same shape, (n, token, width)."""
        query, key, value = (
            layer(tokens).unflatten(2, (_HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        share = self.dropout.p if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=share)
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        tokens = self.norm_attention(tokens + self.dropout(mixed))
        hidden = self.dropout(nn.functional.gelu(self.widen(tokens)))
        found: torch.Tensor = self.norm_hidden(tokens + self.dropout(self.narrow(hidden)))
        found = self.norm(found)
        return found


class AtmS(nn.Module):
    """A linear layer in time and a token for each subject; of those unknown the mean of all."""

    smallest = SMALLEST

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int = 1024,
        n_subjects: int = 1,
        *,
        attention_dropout: float = 0.25,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.logit_scale = logit_scale()
        self.subject_linear = SubjectLinear(n_times, n_times, n_subjects)
        self.subject_token = nn.Embedding(n_subjects, n_times)
        self.input_dropout = nn.Dropout(attention_dropout)
        self.attention = _ChannelAttention(n_times, attention_dropout)
        self.tokens = Tokens(temporal_spatial(n_channels, dropout))
        self.projection = Projection(FILTERS * token_count(n_times), n_outputs, dropout)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time) and subjects (n,)."""
        tokens = self.subject_token.weight
        token = memberships(subject, len(x), tokens) @ tokens
        channels = self.input_dropout(self.subject_linear(x, subject))
        mixed = self.attention(torch.cat([token[:, None], channels], 1))[:, 1:]
        found: torch.Tensor = self.projection(self.tokens(mixed))
        return found
