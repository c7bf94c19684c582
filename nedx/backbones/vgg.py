"""VGG19 as in torchvision (Simonyan & Zisserman 2015, arXiv:1409.1556, configuration E)."""

from __future__ import annotations

from torch import nn

from nedx.backbones.convnet import ConvNet

_WIDTHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and number of the convolutions before each pooling."""


def _short_names() -> dict[str, str]:
    """Return what stands for ``conv1_1`` ... ``conv5_4``, before the rectifiers, and ``fc6``..8."""
    names, step = {}, 0
    for block, (_, count) in enumerate(_WIDTHS, 1):
        for number in range(1, count + 1):
            names[f"conv{block}_{number}"] = f"features.{step}"
            step += 2
        step += 1
    return names | {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}


class VGG19(ConvNet):
    """VGG19 without batch norm; its poolings are features 4, 9, 18, 27 and 36.

    ``conv1_1`` to ``conv5_4`` and ``fc6`` to ``fc8`` are its layers before the rectifiers.
    """

    smallest = 32
    aliases = _short_names()

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential()
        before = 3
        for width, count in _WIDTHS:
            for _ in range(count):
                self.features.extend([nn.Conv2d(before, width, 3, padding=1), nn.ReLU()])
                before = width
            self.features.append(nn.MaxPool2d(2, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
            nn.Linear(4096, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Without this random weights fade to nothing over nineteen layers.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
