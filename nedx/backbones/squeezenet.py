"""SqueezeNet 1.1 as in torchvision, and with the weights of keras-squeezenet.

Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters
(arXiv:1602.07360).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nedx.backbones.convnet import ConvNet

FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}
"""The number of each fire module in the paper, and its place in ``features``."""


class _Fire(nn.Module):
    """Squeeze by 1 x 1, then expand by 1 x 1 and 3 x 3 side by side."""

    def __init__(self, before: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps (n, 2 * expand, y, x)."""
        x = self.squeeze(x).relu_()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu_()


class SqueezeNet(ConvNet):
    """SqueezeNet 1.1; ``fire2`` to ``fire9``, ``conv1`` and ``pool<i>`` are short layer names.

    Parameters
    ----------
    ceil_mode : bool
        Whether poolings keep a last partial window, as torchvision does. Keras does not; at
        227 pixels the maps differ (28 and 14 against 27 and 13 a side), at 224 they do not.
    top : bool
        Whether there is a classifier.
    """

    smallest = 32
    flat_classifier = False
    aliases: Mapping[str, str] = {
        **{"conv1": "features.0", "relu1": "features.1", "pool1": "features.2"},
        **{"pool3": "features.5", "pool5": "features.8"},
        **{f"fire{number}": f"features.{place}" for number, place in FIRES.items()},
    }

    def __init__(self, *, ceil_mode: bool = True, top: bool = True):
        super().__init__()

        def pooling() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, ceil_mode=ceil_mode)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pooling()),
            *(_Fire(64, 16, 64), _Fire(128, 16, 64), pooling()),
            *(_Fire(128, 32, 128), _Fire(256, 32, 128), pooling()),
            *(_Fire(256, 48, 192), _Fire(384, 48, 192)),
            *(_Fire(384, 64, 256), _Fire(512, 64, 256)),
        )
        self.avgpool = nn.Identity()
        self.classifier = nn.Sequential()
        if top:
            self.classifier.extend(
                [nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
            )

    def layer_names(self) -> tuple[str, ...]:
        """Return the steps; there is no pooling before the classifier."""
        return tuple(name for name in super().layer_names() if name != "avgpool")
