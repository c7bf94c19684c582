"""CORnet-S: the published sizes, and its formulas written out with a stride that is a state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nedx
from nedx.backbones import Weights, default_recipe, feature_layout, load_backbone
from nedx.backbones.cornet_s import CORnetS

SMALL = {"widths": (4, 5, 6, 7), "steps": (2, 4, 2), "classes": 9}


def parameters(module):
    return sum(each.numel() for each in module.parameters())


def batch_norm(x, state, name):
    """(x - mean) / sqrt(var + 1e-5) * weight + bias."""
    mean, var, weight, bias = (
        state[f"{name}.{key}"][None, :, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def written_out(x, state, steps):
    """The network of the paper as functions of its state dict, float64."""
    taps = {}
    x = F.conv2d(x, state["V1.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(batch_norm(x, state, "V1.norm1").clamp(min=0), 3, 2, 1)
    x = F.conv2d(x, state["V1.conv2.weight"], padding=1)
    taps["V1"] = x = batch_norm(x, state, "V1.norm2").clamp(min=0)
    for area, times in zip(("V2", "V4", "IT"), steps, strict=True):
        x = F.conv2d(x, state[f"{area}.conv_input.weight"])
        for t in range(times):
            skip = x
            if t == 0:
                skip = F.conv2d(x, state[f"{area}.skip.weight"], stride=2)
                skip = batch_norm(skip, state, f"{area}.norm_skip")
            for place, options in ((1, {}), (2, {"stride": 1 + (t == 0), "padding": 1}), (3, {})):
                x = F.conv2d(x, state[f"{area}.conv{place}.weight"], **options)
                x = batch_norm(x, state, f"{area}.norm{place}_{t}")
                x = x + skip if place == 3 else x
                x = x.clamp(min=0)
        taps[area] = x
    mean = x.flatten(2).mean(2)
    taps["decoder"] = mean @ state["decoder.linear.weight"].T + state["decoder.linear.bias"]
    return taps


def shaken(network):
    """Give batch norms statistics and weights that differ from 0 and 1."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for each, low in ((module.running_mean, -0.3), (module.running_var, 0.5)):
                each.uniform_(low, low + 1)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1)
                module.bias.uniform_(-0.2, 0.2)
    return network


def test_the_published_numbers_of_parameters():
    with torch.device("meta"):
        network = CORnetS()
    assert parameters(network) == 53_416_616
    assert parameters(network.V1) == 46_528
    found = {area: parameters(network.get_submodule(area)) for area in ("V2", "V4", "IT")}
    rounded = {area: round(count / 1e6, 2) for area, count in found.items()}
    assert rounded == {"V2": 2.52, "V4": 10.08, "IT": 40.26}
    assert parameters(network.decoder) == 513_000


def test_the_published_sizes_of_the_areas():
    recipe = default_recipe("cornet_s")
    expected = {"V1": 200_704, "V2": 100_352, "V4": 50_176, "IT": 25_088}
    assert feature_layout(recipe) == expected


@pytest.mark.parametrize("side", [32, 37])
def test_areas_are_those_of_the_formula(side):
    network = shaken(CORnetS(**SMALL)).double().eval()
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        expected = written_out(images, network.state_dict(), SMALL["steps"])
        found = {name: x.clone() for name, x in network.walk(images, network.layer_names())}
    assert list(found) == list(expected)
    for name, x in expected.items():
        assert float(x.std()) > 0.01
        torch.testing.assert_close(found[name], x, atol=1e-10, rtol=1e-10)


def test_each_time_has_batch_norms_of_its_own():
    network = CORnetS(**SMALL)
    keys = set(network.state_dict())
    assert {f"V4.norm2_{t}.running_var" for t in range(4)} <= keys
    assert "V2.norm1_2.weight" not in keys


def test_threads_may_share_the_network():
    """A stride that is set while the network runs would mix the passes up."""
    network = shaken(CORnetS(**SMALL)).eval()
    images = torch.randn(24, 3, 64, 64)
    with torch.inference_mode():
        expected = [network(each[None]) for each in images]

    def run(each):
        with torch.inference_mode():
            return network(each[None])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(run, images), expected, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_published_files_load_through_their_prefix(tmp_path):
    """Weight files hold ``state_dict``, its keys with what DataParallel puts before them."""
    network = shaken(CORnetS())
    path = tmp_path / "cornet_s.pth"
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 43}, path)
    recipe = default_recipe("cornet_s", weights=Weights(source=str(path)), layers=("decoder",))
    found = {}
    images = torch.randn(1, 3, 64, 64)
    load_backbone(recipe).run(images, found.__setitem__)
    with torch.inference_mode():
        expected = written_out(images, network.eval().state_dict(), (2, 4, 2))["decoder"]
    scale = float(expected.abs().max())
    torch.testing.assert_close(found["decoder"] / scale, expected / scale, atol=1e-4, rtol=0)


def test_features_are_computed_lazily():
    rng = np.random.default_rng(0)
    images = nedx.open_images(rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8))
    out = nedx.encode_features(images, "cornet_s", layers=["V2"], pooling="mean", device="cpu")
    assert out["features"].chunks is not None
    assert out["features"].values.shape == (2, 128)
