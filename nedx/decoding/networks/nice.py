"""NICE: convolutions in time, then over channels.

Song et al. 2024, Decoding natural images from EEG for object recognition (ICLR).
"""

from __future__ import annotations

from torch import nn

from nedx.decoding.networks.blocks import TokenNetwork, temporal_spatial


class Nice(TokenNetwork):
    """2,630,913 parameters for 63 channels, 250 samples and 1,024 outputs.

    Convolutions and linear layers start from a normal distribution of standard deviation 0.02,
    as in the paper.
    """

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
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
