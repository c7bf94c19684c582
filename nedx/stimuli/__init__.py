"""Image sets to lazy pixels; named preprocessing policies."""

from nedx.stimuli.images import add_sha256, image_sha256, open_images
from nedx.stimuli.preprocessing import POLICIES, ImagePolicy, check_pixels, policy, preprocess

__all__ = [
    "POLICIES",
    "ImagePolicy",
    "add_sha256",
    "check_pixels",
    "image_sha256",
    "open_images",
    "policy",
    "preprocess",
]
