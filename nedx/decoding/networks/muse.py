"""MUSE: convolutions over channels, then in time.

Chen et al. 2024, Mind's eye: image recognition by EEG via multimodal similarity-keeping
contrastive learning (arXiv:2406.16910).
"""

from __future__ import annotations

from nedx.decoding.networks.blocks import TokenNetwork, spatial_temporal


class Muse(TokenNetwork):
    """2,571,633 parameters for 63 channels, 250 samples and 1,024 outputs."""

    convolutions = staticmethod(spatial_temporal)
