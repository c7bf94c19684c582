"""What AlexNet, VGG and SqueezeNet share: features, a pooling and a classifier, step by step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from nedx.backbones.taps import Network
from nedx.errors import ModelError


class ConvNet(Network):
    """A network of three stages, each a sequence whose steps are layers.

    Layers: ``features.<i>``, ``avgpool``, ``classifier.<i>``, as torchvision names them.

    Attributes
    ----------
    features, classifier : nn.Sequential
        The stages that hold weights; a network without its top has an empty classifier.
    avgpool : nn.Module
        What lies between them.
    """

    channels_last = True
    smallest: ClassVar[int] = 63
    """Side of the smallest image, pixels."""
    flat_classifier: ClassVar[bool] = True
    """Whether the classifier takes rows, not maps."""

    features: nn.Sequential
    avgpool: nn.Module
    classifier: nn.Sequential

    def layer_names(self) -> tuple[str, ...]:
        """Return the steps in the order in which they run."""
        return (
            *(f"features.{name}" for name, _ in self.features.named_children()),
            *(("avgpool",) if len(self.classifier) else ()),
            *(f"classifier.{name}" for name, _ in self.classifier.named_children()),
        )

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise ModelError if the images are too small for the poolings."""
        if min(shape[2:]) < self.smallest:
            message = (
                f"{type(self).__name__} takes images of at least {self.smallest} pixels, not "
                f"{shape[2]} x {shape[3]}: choose a policy that resizes"
            )
            raise ModelError(message)

    def walk(
        self, images: torch.Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield maps (n, channel, y, x), then rows (n, width)."""
        x = images
        # A layer that is tapped must not be overwritten by the rectifier after it.
        kept = True
        for stage in ("features", "avgpool", "classifier"):
            if stage == "avgpool":
                if not len(self.classifier):
                    return
                x = self.avgpool(x)
                yield stage, x
                x = torch.flatten(x, 1) if self.flat_classifier else x
                kept = True
                continue
            for index, step in getattr(self, stage).named_children():
                name = f"{stage}.{index}"
                x = F.relu_(x) if isinstance(step, nn.ReLU) and not kept else step(x)
                kept = name in wanted or isinstance(step, nn.Dropout)
                yield name, x
