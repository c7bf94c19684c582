"""CORnet-S, a recurrent network of four areas.

Kubilius et al. 2019, Brain-like object recognition with high-performing shallow recurrent ANNs
(NeurIPS 32).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from nedx.backbones.taps import Network

AREAS = ("V1", "V2", "V4", "IT")
"""The areas in the order in which they run."""
_SCALE = 4


class _Area(nn.Module):
    """One area: a bottleneck that runs several times with the same convolutions.

    Each time has batch norms of its own. The first halves the maps, so that what skips the
    bottleneck is halved by a convolution; later ones are skipped as they are.
    """

    def __init__(self, before: int, width: int, steps: int):
        super().__init__()
        inner = _SCALE * width
        self.steps = steps
        self.conv_input = nn.Conv2d(before, width, 1, bias=False)
        self.skip = nn.Conv2d(width, width, 1, stride=2, bias=False)
        self.norm_skip = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        for step in range(steps):
            for place, size in ((1, inner), (2, inner), (3, width)):
                self.add_module(f"norm{place}_{step}", nn.BatchNorm2d(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps (n, width, y / 2, x / 2), halves rounded up."""
        x = self.conv_input(x)
        for step in range(self.steps):
            skipped = x if step else self.norm_skip(self.skip(x))
            x = F.relu_(self._norm(1, step)(self.conv1(x)))
            # The stride is an argument, never a state: threads may share the network.
            x = F.conv2d(x, self.conv2.weight, stride=1 if step else 2, padding=1)
            x = F.relu_(self._norm(2, step)(x))
            x = F.relu_(self._norm(3, step)(self.conv3(x)) + skipped)
        return x

    def _norm(self, place: int, step: int) -> nn.Module:
        return self.get_submodule(f"norm{place}_{step}")


class CORnetS(Network):
    """CORnet-S; its layers are the areas ``V1``, ``V2``, ``V4``, ``IT`` and the ``decoder``.

    ``state_dict`` has the keys of the published files, ``V1.conv1.weight`` to
    ``decoder.linear.bias``: 53,416,616 parameters at the published widths.

    Parameters
    ----------
    widths : sequence of four int
        Channels of the areas.
    steps : sequence of three int
        How often V2, V4 and IT run.
    classes : int
        Logits of the decoder.
    """

    channels_last = True
    legacy: Mapping[str, str] = {"module.": ""}

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        steps: Sequence[int] = (2, 4, 2),
        classes: int = 1000,
    ):
        super().__init__()
        first = widths[0]
        self.V1 = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False),
                "norm1": nn.BatchNorm2d(first),
                "conv2": nn.Conv2d(first, first, 3, padding=1, bias=False),
                "norm2": nn.BatchNorm2d(first),
            }
        )
        for name, before, width, times in zip(AREAS[1:], widths, widths[1:], steps, strict=False):
            self.add_module(name, _Area(before, width, times))
        self.decoder = nn.ModuleDict({"linear": nn.Linear(widths[3], classes)})
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def layer_names(self) -> tuple[str, ...]:
        """Return the areas and the decoder."""
        return (*AREAS, "decoder")

    def walk(
        self, images: torch.Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield maps (n, width, y, x) of the areas, then logits (n, class)."""
        first = self.V1
        x = F.relu_(first["norm1"](first["conv1"](images)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = F.relu_(first["norm2"](first["conv2"](x)))
        yield "V1", x
        for name in AREAS[1:]:
            x = self.get_submodule(name)(x)
            yield name, x
        yield "decoder", self.decoder["linear"](x.mean((2, 3)))
