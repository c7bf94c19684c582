"""The trunk of the feature-weighted receptive-field models of NSD.

St-Yves, Allen, Wu, Kay & Naselaris 2023, Brain-optimized deep neural network models of human
visual areas learn non-hierarchical representations (Nature Communications 14:3329).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from nedx.backbones.taps import Network
from nedx.errors import ModelError

IMAGE_SIZE = 227
"""Side of the images, pixels."""
MAPS: dict[str, tuple[int, int, int]] = {
    "F1": (256, 27, 27),
    "F2": (256, 25, 25),
    "F3": (256, 13, 13),
}
"""The maps that voxels read out, and their (channel, y, x)."""
_PART = 64


class _Step(nn.Module):
    """Batch norm, a 3 x 3 convolution and a rectifier, with the published parameter names.

    The dropout between norm and convolution does nothing in a trained network.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(before, momentum=0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps (n, after, y, x)."""
        return self.conv1(self.bn1(x)).relu_()


class _Prefilter(nn.Module):
    """The first two layers of AlexNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)
        )
        self.conv2 = nn.Sequential(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU())


class _Encoder(nn.Module):
    """The layers after the prefilter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(192, 128, 3)
        self.bn1 = nn.BatchNorm2d(192, momentum=0.25)
        self.conv4a, self.conv4b = _Step(128, 128), _Step(128, 128)
        self.conv5a, self.conv5b = _Step(128, 128), _Step(128, 128)
        self.conv6a, self.conv6b = _Step(128, 128), _Step(128, _PART)


class GNet(Network):
    """The trunk: its layers are the maps `MAPS`, each several stages side by side.

    ``state_dict`` has the keys of the published files: ``mu``, ``pre.conv1.0.weight``,
    ``enc.conv4a.conv1.weight`` and so on, 1,365,635 parameters. The images are those of the
    policy ``"fwrf"``, from 0 to 1; the mean ``mu`` of the training images is taken off here.
    """

    channels_last = True

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.pre = _Prefilter()
        self.enc = _Encoder()

    def layer_names(self) -> tuple[str, ...]:
        """Return the names of the maps."""
        return tuple(MAPS)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise ModelError unless the images are of the size of the receptive fields."""
        if shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            message = (
                f"gnet takes images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, not {shape[2]} x "
                f"{shape[3]}: choose the policy 'fwrf', which resizes to that"
            )
            raise ModelError(message)

    def walk(
        self, images: torch.Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield maps (n, 256, y, x)."""
        enc = self.enc
        first = self.pre.conv1(images - self.mu)
        second = self.pre.conv2(first)
        yield "F1", torch.cat([first, second], 1)
        third = enc.conv3(enc.bn1(second)).relu_()
        early = enc.conv4a(third)
        late = enc.conv4b(early)
        yield "F2", torch.cat([third, early[:, :_PART], late[:, :_PART]], 1)
        fifth = enc.conv5a(F.max_pool2d(late, 3, 2, padding=1))
        sixth = enc.conv5b(fifth)
        seventh = enc.conv6a(sixth)
        eighth = enc.conv6b(seventh)
        parts = [stage[:, :_PART] for stage in (fifth, sixth, seventh, eighth)]
        yield "F3", torch.cat(parts, 1)
