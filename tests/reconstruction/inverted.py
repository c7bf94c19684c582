"""A small random network, smooth images, and the features of one in the other."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import nn

from nedx.backbones import BackboneRecipe, register_module
from nedx.reconstruction.inversion import CAFFE, FeatureEncoder
from tests.reconstruction.simulated import ids

SIDE = 32
LAYERS = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "fc6", "fc7", "fc8")
MEAN = np.array([104.00698793, 116.66876762, 122.67891434])


class SmallNet(nn.Module):
    """Two stages of two convolutions, three linear layers; its rectifiers work in place."""

    def __init__(self, side: int = SIDE):
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1_2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2_1 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv2_2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc6 = nn.Linear(16 * (side // 4) ** 2, 64)
        self.fc7 = nn.Linear(64, 64)
        self.fc8 = nn.Linear(64, 10)
        self.relu = nn.ReLU(inplace=True)
        for layer in self.children():
            if hasattr(layer, "weight"):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        x = self.relu(self.conv1_2(self.relu(self.conv1_1(x))))
        x = nn.functional.max_pool2d(x, 2)
        x = self.relu(self.conv2_2(self.relu(self.conv2_1(x))))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.fc8(self.relu(self.fc7(self.relu(self.fc6(x)))))


def small_net(seed: int = 0, side: int = SIDE) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallNet(side).eval()


def encoder(net: nn.Module, layers=LAYERS, side: int = SIDE, pixels=CAFFE) -> FeatureEncoder:
    digest = str(hash(net))
    name = register_module(f"net{id(net)}", net, digest)
    return FeatureEncoder(BackboneRecipe(name=name, layers=layers, image_size=side), pixels=pixels)


def smooth_images(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Return float64 (image, y, x, rgb) from about 20 to 235: a few waves in each colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = np.zeros((count, side, side, 3))
    for _ in range(4):
        frequency = rng.uniform(0.3, 1.5, (count, 1, 1, 3, 2))
        phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 3))
        turn = frequency[..., 0] * y[..., None] + frequency[..., 1] * x[..., None]
        waves += np.sin(2 * np.pi * turn + phase)
    low, high = waves.min((1, 2, 3), keepdims=True), waves.max((1, 2, 3), keepdims=True)
    return 20 + 215 * (waves - low) / (high - low)


def caffe_input(images: np.ndarray) -> torch.Tensor:
    """Return BGR less the mean, float64 (image, 3, y, x), by hand."""
    return torch.from_numpy((images[..., ::-1] - MEAN).transpose(0, 3, 1, 2).copy())


def features_by_hand(net: SmallNet, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Return each layer before its rectifier, computed step by step in float64."""
    net = small_copy(net)
    pool, relu = nn.functional.max_pool2d, torch.relu
    with torch.no_grad():
        found = {"conv1_1": net.conv1_1(images)}
        found["conv1_2"] = net.conv1_2(relu(found["conv1_1"]))
        found["conv2_1"] = net.conv2_1(pool(relu(found["conv1_2"]), 2))
        found["conv2_2"] = net.conv2_2(relu(found["conv2_1"]))
        found["fc6"] = net.fc6(pool(relu(found["conv2_2"]), 2).flatten(1))
        found["fc7"] = net.fc7(relu(found["fc6"]))
        found["fc8"] = net.fc8(relu(found["fc7"]))
    return {name: values.numpy() for name, values in found.items()}


def small_copy(net: SmallNet) -> SmallNet:
    import copy

    return copy.deepcopy(net).double()


def as_dataset(features: dict[str, np.ndarray], dtype=np.float64) -> xr.Dataset:
    """Return features as decode and the readers make them."""
    axes = {2: ("unit",), 4: ("channel", "y", "x")}
    made = {
        f"feature_{layer}": (
            ("image", *(f"{layer}_{axis}" for axis in axes[values.ndim])),
            values.astype(dtype),
            {"units": "1"},
        )
        for layer, values in features.items()
    }
    count = len(next(iter(features.values())))
    return xr.Dataset(made, coords={"image_id": ("image", ids(count))})


class SmallGenerator(nn.Module):
    """Codes of 32 units to images (image, 3, side, side), BGR less the mean."""

    def __init__(self, units: int = 32, side: int = SIDE, width: int = 32):
        super().__init__()
        self.start = nn.Linear(units, width * 16)
        steps, channels, size = [], width, 4
        while size < side // 2:
            steps += [nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1), nn.LeakyReLU(0.3)]
            channels, size = channels // 2, size * 2
        self.steps = nn.Sequential(*steps)
        self.last = nn.ConvTranspose2d(channels, 3, 4, 2, 1)

    def forward(self, codes):
        maps = nn.functional.leaky_relu(self.start(codes), 0.3).unflatten(1, (-1, 4, 4))
        return self.last(self.steps(maps))


def small_generator(seed: int = 1, side: int = SIDE) -> SmallGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = SmallGenerator(side=side).eval()
        for layer in made.modules():
            if hasattr(layer, "weight"):
                nn.init.kaiming_normal_(layer.weight, a=0.3)
        with torch.no_grad():
            made.last.weight *= 30
    return made
