"""The generator of images from fc7 features (Dosovitskiy & Brox 2016, arXiv:1602.02644).

Networks of this module import torch; it is imported where one is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

_LINEAR = ("defc7", "defc6", "defc5")
_MAPS = (
    *(("deconv5", 256, 2), ("conv5_1", 512, 1), ("deconv4", 256, 2), ("conv4_1", 256, 1)),
    *(("deconv3", 128, 2), ("conv3_1", 128, 1), ("deconv2", 64, 2), ("deconv1", 32, 2)),
)
"""Transposed convolutions before the last: names, channels out and strides."""
_LAST = "deconv0"
_COPIES = ("defc.", "deconv.")
"""Sequences that a published state dict holds beside the layers they are made of."""


class DeepSim(nn.Module):
    """4096 units to images (image, 3, 256, 256) in BGR less the mean.

    Layers have the names of the published networks; see `published_state`.

    Parameters
    ----------
    units : int
        Of the code; 4096.
    width : float
        Factor on all other widths, 1 as published.
    """

    def __init__(self, units: int = 4096, width: float = 1.0):
        super().__init__()
        channels = round(256 * width)
        widths = (units, *(16 * channels for _ in _LINEAR))
        for name, (before, after) in zip(_LINEAR, pairwise(widths), strict=True):
            self.add_module(name, nn.Linear(before, after))
        self._channels = before = channels
        for name, full, stride in _MAPS:
            after = round(full * width)
            # A kernel of 4 doubles the sides, one of 3 keeps them.
            self.add_module(name, nn.ConvTranspose2d(before, after, 2 + stride, stride, 1))
            before = after
        self.add_module(_LAST, nn.ConvTranspose2d(before, 3, 4, 2, 1))
        for name, weight in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(weight, a=0.3)
        self._act = nn.LeakyReLU(0.3)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return images of codes (image, unit)."""
        x = codes
        for name in _LINEAR:
            x = self._act(self.get_submodule(name)(x))
        x = x.unflatten(1, (self._channels, 4, 4))
        for name, _, _ in _MAPS:
            x = self._act(self.get_submodule(name)(x))
        image: torch.Tensor = self.get_submodule(_LAST)(x)
        return image


def published_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Map the keys of a published generator to those of `DeepSim`.

    Assumed of ``bvlc_reference_caffenet_generator_ILSVRC2012_Training`` (its fc7 or relu7 file): a
    state dict of ``<layer>.weight`` and ``<layer>.bias``, the layers named ``defc7``, ``defc6``,
    ``defc5``, ``deconv5``, ``conv5_1``, ``deconv4``, ``conv4_1``, ``deconv3``, ``conv3_1``,
    ``deconv2``, ``deconv1`` and ``deconv0``; the same tensors may occur again in the sequences
    ``defc.<i>`` and ``deconv.<i>``, which are left out, and all may stand behind ``module.``. So
    does bdpy name them (``bdpy.dl.torch.models.AlexNetGenerator``).
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return {key: tensor for key, tensor in plain.items() if not key.startswith(_COPIES)}
