"""Generators: what makes pictures of embeddings or latents. Anything of the protocol is one."""

from __future__ import annotations

from nedx.reconstruction.generators.autoencoder import LatentDecoder
from nedx.reconstruction.generators.image_to_image import SdxlTurboImageToImage
from nedx.reconstruction.generators.ip_adapter import SdxlTurboIpAdapter
from nedx.reconstruction.generators.nearest import NearestImage
from nedx.reconstruction.generators.protocol import Generator
from nedx.reconstruction.generators.unclip import Unclip

__all__ = [
    "Generator",
    "LatentDecoder",
    "NearestImage",
    "SdxlTurboImageToImage",
    "SdxlTurboIpAdapter",
    "Unclip",
]
