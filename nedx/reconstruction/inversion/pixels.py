"""The values that networks take for pixels, and the pictures that are shown of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from nedx.stimuli.preprocessing import POLICIES, ImagePolicy

if TYPE_CHECKING:
    import torch

CAFFE = POLICIES["caffe"]
"""Of the published VGG19 and of DeepSiM generators: BGR from 0 to 255, less the mean of ILSVRC 2012
in each channel."""

Display = Literal["percentiles", "range"]
_CLIPPED_PERCENT = 2


def to_rgb(values: torch.Tensor, policy: ImagePolicy) -> torch.Tensor:
    """Return red, green and blue from 0 to 255 of what a network takes.

    Parameters
    ----------
    values : tensor (image, 3, y, x)
    policy : ImagePolicy
        Its order, scale, mean and std.
    """
    mean, std = (values.new_tensor(part).view(3, 1, 1) for part in (policy.mean, policy.std))
    plain = (values * std + mean) / policy.scale
    return plain.flip(1) if policy.order == "bgr" else plain


def from_rgb(pixels: torch.Tensor, policy: ImagePolicy) -> torch.Tensor:
    """Return what a network takes of pixels (image, 3, y, x) from 0 to 255; undoes `to_rgb`."""
    mean, std = (pixels.new_tensor(part).view(3, 1, 1) for part in (policy.mean, policy.std))
    ordered = pixels.flip(1) if policy.order == "bgr" else pixels
    return (ordered * policy.scale - mean) / std


def pixel_range(policy: ImagePolicy) -> tuple[np.ndarray, np.ndarray]:
    """Return what a network takes for 0 and for 255, float64 (channel,) each."""
    mean, std = np.asarray(policy.mean), np.asarray(policy.std)
    return -mean / std, (255 * policy.scale - mean) / std


def same_values(a: ImagePolicy, b: ImagePolicy) -> bool:
    """Say whether two networks take the same values for the same pixels."""
    return all(getattr(a, name) == getattr(b, name) for name in ("order", "scale", "mean", "std"))


def centre(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return the centre (image, 3, side, side) of larger images: 224 of 256 starts at 16."""
    top, left = ((size - side) // 2 for size in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def shown(raw: np.ndarray, display: Display) -> np.ndarray:
    """Return pictures of raw values.

    Parameters
    ----------
    raw : ndarray of float (image, y, x, rgb)
        0 to 255, and beyond.
    display : {"percentiles", "range"}
        ``"percentiles"`` cuts each image at its 2nd and 98th percentile, over all channels, and
        stretches what is left to 0 to 255, as the published pictures are shown (Shen et al. 2019).
        ``"range"`` cuts at 0 and 255, and keeps colours and contrast.

    Returns
    -------
    ndarray of uint8 (image, y, x, rgb)
        Rounded. An image of one value is cut at 0 and 255.
    """
    values = raw.astype(np.float64)
    if display == "percentiles":
        percents = (_CLIPPED_PERCENT, 100 - _CLIPPED_PERCENT)
        low, high = np.percentile(values, percents, axis=(1, 2, 3), keepdims=True)
        flat = high <= low
        stretched = (values.clip(low, high) - low) * 255 / np.where(flat, 1, high - low)
        values = np.where(flat, values, stretched)
    return values.clip(0, 255).round().astype(np.uint8)
