"""The Gabor pyramid against gratings, closed forms and a direct convolution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nedx.backbones import BackboneRecipe, default_recipe, feature_layout, load_backbone
from nedx.errors import ModelError

LAYERS = ("energy_0", "energy_1", "energy_2", "energy_3")


def grating(frequency, angle, phase, size=128, amplitude=0.25):
    """A grating of so many cycles an image, varying along `angle`, as (1, 3, y, x)."""
    y, x = np.mgrid[:size, :size] / size
    wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return torch.from_numpy(0.5 + amplitude * wave).float().expand(1, 3, size, size)


def energies(images, layers=LAYERS):
    backbone = load_backbone(BackboneRecipe(name="gabor", layers=layers, policy="raw01"))
    return {name: tap[0] for name, tap in backbone.network.walk(images, layers)}


def centre(energy):
    """The mean over the middle quarter of the image, where no edge is seen."""
    side = energy.shape[-1]
    kept = slice(3 * side // 8, 5 * side // 8)
    return energy[:, kept, kept].mean((1, 2)).numpy()


@pytest.mark.parametrize("scale", range(4))
@pytest.mark.parametrize("orientation", [0, 3, 4, 6])
def test_a_grating_drives_its_own_channel_most(scale, orientation):
    image = grating(2.0 * 2**scale, orientation * math.pi / 8, phase=0.7)
    table = np.stack([centre(energy) for energy in energies(image).values()])
    assert np.unravel_index(table.argmax(), table.shape) == (scale, orientation)


def test_energy_ignores_phase():
    phases = np.linspace(0, 2 * np.pi, 7)
    found = np.stack(
        [energies(grating(16, np.pi / 8, phase))["energy_3"].numpy() for phase in phases]
    )
    side = found.shape[-1]
    kept = slice(side // 4, 3 * side // 4)
    spread = np.ptp(found[:, 1, kept, kept], axis=0)
    assert spread.max() < 1e-3 * found.max()


def test_tuning_has_its_closed_form():
    """A grating (f', theta') of amplitude A gives A exp(-|u' - u0|^2 / 2 sigma_u^2)."""
    sigma = 16 / (3 * math.sqrt(2 * math.log(2)))
    for frequency, angle in [(16, 0.0), (12, 0.0), (20, 0.2), (16, np.pi / 8)]:
        found = centre(energies(grating(frequency, angle, 0.3, amplitude=0.2))["energy_3"])
        wave = frequency * np.array([np.cos(angle), np.sin(angle)])
        own = 16 * np.array([[np.cos(k * np.pi / 8), np.sin(k * np.pi / 8)] for k in range(8)])
        # A grating is two waves, u' and -u'; a filter sees the one that is nearer.
        apart = np.minimum(((wave - own) ** 2).sum(1), ((wave + own) ** 2).sum(1))
        expected = 0.2 * np.exp(-apart / (2 * sigma**2))
        assert np.abs(found - expected).max() < 0.01 * 0.2


def test_bandwidth_is_one_octave():
    peak = centre(energies(grating(16, 0, 0))["energy_3"])[0]
    for edge in (16 * 2 / 3, 16 * 4 / 3):
        half = centre(energies(grating(edge, 0, 0))["energy_3"])[0]
        assert half == pytest.approx(peak / 2, rel=0.02)


def test_same_as_convolving_with_the_wavelets_directly():
    """Even and odd Gabors written out in space, summed pixel by pixel."""
    size, frequency = 64, 8.0
    luminance = np.random.default_rng(0).random((size, size)).astype(np.float32)
    image = torch.from_numpy(luminance).expand(1, 3, size, size)
    found = energies(image)["energy_2"].numpy()
    side = found.shape[-1]
    assert side == 32
    sigma = 1 / (2 * math.pi * frequency / (3 * math.sqrt(2 * math.log(2))))
    y, x = np.mgrid[:size, :size] / size
    flat = luminance.astype(float) - luminance.mean()
    for orientation, row, column in [(0, 16, 16), (2, 5, 20), (5, 30, 2)]:
        angle = orientation * math.pi / 8
        dx, dy = column / side - x, row / side - y
        envelope = np.exp(-(dx**2 + dy**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
        along = 2 * math.pi * frequency * (dx * math.cos(angle) + dy * math.sin(angle))
        even = 2 * (envelope * np.cos(along) * flat).sum() / size**2
        odd = 2 * (envelope * np.sin(along) * flat).sum() / size**2
        assert found[orientation, row, column] == pytest.approx(
            math.hypot(even, odd), rel=0.02, abs=0.01 * float(found.max())
        )


def test_a_uniform_image_has_no_energy():
    assert all(
        energy.abs().max() < 1e-6 for energy in energies(torch.full((1, 3, 64, 64), 0.8)).values()
    )


def test_nothing_comes_back_from_the_other_side():
    image = torch.full((1, 3, 128, 128), 0.5)
    # Light and dark in balance, so that the mean beyond the edges stays that of the ground.
    image[..., :4] = 1.0
    image[..., 4:8] = 0.0
    energy = energies(image)["energy_3"][0]
    assert energy[:, -16:].max() < 1e-3 * energy[:, :16].max()


@pytest.mark.parametrize("size", [64, 67, 100, 224])
def test_layout_is_what_a_run_gives(size):
    recipe = default_recipe("gabor", image_size=size, pooling="avg4")
    got = {}
    load_backbone(recipe).run(torch.rand(3, 3, size, size), lambda n, t: got.update({n: t.shape}))
    assert {name: shape[1] for name, shape in got.items()} == feature_layout(recipe)
    assert set(feature_layout(recipe).values()) == {8 * 16}


def test_pooled_layout_needs_no_size():
    assert feature_layout(default_recipe("gabor")) == dict.fromkeys(LAYERS, 8 * 64)
    with pytest.raises(ModelError, match="image_size="):
        feature_layout(default_recipe("gabor", pooling="flatten"))


@pytest.mark.parametrize(
    ("shape", "layer"), [((1, 3, 63, 63), 0), ((1, 3, 64, 80), 0), ((1, 3, 96, 96), 4)]
)
def test_images_too_small_or_not_square(shape, layer):
    backbone = load_backbone(default_recipe("gabor", layers=(f"energy_{layer}",)))
    with pytest.raises(ModelError, match="at least"):
        backbone.run(torch.rand(shape), lambda *_: None)
