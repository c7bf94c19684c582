from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nedx.backbones.registry import default_recipe
from nedx.backbones.vgg import VGG19
from nedx.errors import ModelError, NedxWarning
from nedx.reconstruction.inversion import (
    CAFFE,
    LBFGS,
    Dists,
    FeatureEncoder,
    FeatureScaling,
    GeneratorDescent,
    deepsim_generator,
    layer_weights,
    read_activation_range,
    vgg19_encoder,
)
from nedx.reconstruction.inversion.deepsim import DeepSim, published_state
from nedx.reconstruction.inversion.dists import similarities
from nedx.reconstruction.inversion.generator_descent import descended
from nedx.reconstruction.inversion.lbfgs import minimised
from nedx.reconstruction.inversion.objective import LOSSES, Objective
from nedx.reconstruction.inversion.pixels import centre, from_rgb, pixel_range, shown, to_rgb
from nedx.reconstruction.inversion.problem import Problem
from nedx.reconstruction.inversion.scaling import scale_features
from nedx.reconstruction.inversion.targets import target_rows
from nedx.stimuli.preprocessing import policy
from tests.reconstruction.inverted import (
    MEAN,
    as_dataset,
    caffe_input,
    encoder,
    features_by_hand,
    small_net,
    smooth_images,
)


def test_weights_are_inverse_squared_norms_that_sum_to_one():
    norms = np.random.default_rng(0).uniform(0.1, 1e6, (5, 7))
    found = layer_weights(norms)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(found * norms, (found * norms)[:, :1] * np.ones(7), rtol=1e-12)
    with pytest.raises(ModelError, match="all zero"):
        layer_weights(np.array([[1.0, 0.0]]))
    with pytest.raises(ModelError, match=r"all zero \(fc6, fc8\)"):
        layer_weights(
            np.array([[1.0, 0.0, 2.0, 3.0], [1.0, 2.0, 2.0, 0.0]]), list("a") + ["fc6", "b", "fc8"]
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss):
    net, images = small_net(), smooth_images(2)
    enc = encoder(net)
    network = enc.load("cpu", "float64")
    target = features_by_hand(net, caffe_input(images))
    term = Dists({"conv1_1": 0.3}, {"conv1_1": 0.7, "fc6": 0.2}, weight=50.0)
    objective = Objective.of(target, "cpu", torch.float64, loss, term)
    at = caffe_input(smooth_images(2, seed=9)).requires_grad_()
    (slope,) = torch.autograd.grad(objective(network(at), slice(None)).sum(), at)
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(at.shape))
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (
            objective(network(at + sign * step * direction), slice(None)).sum() for sign in (1, -1)
        )
    expected = float((slope * direction).sum())
    assert float(ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_losses_and_taps_by_hand():
    net, images = small_net(), smooth_images(2)
    at = caffe_input(smooth_images(2, seed=9))
    target, found = (features_by_hand(net, batch) for batch in (caffe_input(images), at))
    tapped = encoder(net).load("cpu", "float64")(at)
    for layer, values in found.items():
        np.testing.assert_allclose(tapped[layer].numpy(), values, rtol=1e-9, err_msg=layer)
        assert (values < 0).any()
    norms = np.stack([(v**2).reshape(2, -1).sum(1) for v in target.values()], 1)
    weights = 1 / norms / (1 / norms).sum(1, keepdims=True)
    apart = {layer: (found[layer] - target[layer]).reshape(2, -1) for layer in target}
    expected = {
        "l2": [(d**2).sum(1) for d in apart.values()],
        "l1": [abs(d).sum(1) for d in apart.values()],
        "inner": [-(found[k] * target[k]).reshape(2, -1).sum(1) for k in target],
        "gram": [gram_by_hand(found[k], target[k]) for k in target],
    }
    for loss, values in expected.items():
        objective = Objective.of(target, "cpu", torch.float64, loss)
        np.testing.assert_allclose(
            objective(tapped, slice(None)).numpy(), (weights * np.stack(values, 1)).sum(1)
        )
        second = {layer: tensor[1:] for layer, tensor in tapped.items()}
        np.testing.assert_allclose(
            objective(second, slice(1, 2)).numpy(), (weights * np.stack(values, 1)).sum(1)[1:]
        )


class InPlace(nn.Module):
    """A residual step that changes its convolutions' outputs, without a module for it."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = nn.functional.relu(self.one(x), inplace=True)
        y = self.two(x)
        y += x
        return y.relu_()


def test_taps_are_not_changed_in_place():
    net = InPlace()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    tapped = encoder(net, ("one", "two"), side=8).load("cpu", "float64")(x)
    net = net.double()
    one = net.one(x)
    two = net.two(one.relu())
    torch.testing.assert_close(tapped["one"], one)
    torch.testing.assert_close(tapped["two"], two)
    slopes = [torch.autograd.grad(f.square().sum(), x)[0] for f in (tapped["two"], two)]
    torch.testing.assert_close(*slopes)


def gram_by_hand(found, target):
    losses = []
    for f, t in zip(found, target, strict=True):
        channels, places = len(f), f[0].size
        f, t = f.reshape(channels, -1), t.reshape(channels, -1)
        losses.append(((f @ f.T - t @ t.T) ** 2).sum() / (4 * channels**2 * places**2))
    return np.array(losses)


@pytest.mark.parametrize("shape", [(3, 5, 4), (12,)])
def test_dists_by_hand(shape):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2, *shape)) + 0.5
    means, covariances = similarities(torch.from_numpy(x), torch.from_numpy(y))
    for i in range(2):
        a, b = (v[i].reshape(3, -1) if len(shape) > 1 else v[i][None] for v in (x, y))
        both = [np.cov(p, q, bias=True) for p, q in zip(a, b, strict=True)]
        pairs = [(p.mean(), q.mean()) for p, q in zip(a, b, strict=True)]
        c = 1e-6
        expected = np.mean([(2 * p * q + c) / (p**2 + q**2 + c) for p, q in pairs])
        assert float(means[i]) == pytest.approx(expected, rel=1e-9)
        expected = np.mean([(2 * k[0, 1] + c) / (k[0, 0] + k[1, 1] + c) for k in both])
        assert float(covariances[i]) == pytest.approx(expected, rel=1e-9)
    term = Dists({"a": 0.25}, {"a": 0.5}, weight=10).term("a", *map(torch.from_numpy, (x, x)))
    np.testing.assert_allclose(term.numpy(), -10 * 0.75)


def test_dists_of_features_far_from_zero():
    """In float32 the mean of squares less the squared mean would be noise, below zero at times."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 4, 14, 14)) * 0.1 + 1000
    x[:, 0] = y[:, 0] = 999.7  # a channel without contrast, here and there
    given = [torch.from_numpy(values) for values in (x, y)]
    expected = similarities(*given)
    found = similarities(*(values.float() for values in given))
    np.testing.assert_allclose(found[1].numpy(), expected[1].numpy(), atol=1e-3)
    by_channel = [np.cov(a.ravel(), b.ravel(), bias=True) for a, b in zip(x[0], y[0], strict=True)]
    ratios = [(2 * k[0, 1] + 1e-6) / (k[0, 0] + k[1, 1] + 1e-6) for k in by_channel]
    assert float(expected[1]) == pytest.approx(np.mean(ratios), abs=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 4), (40,)])
def test_scaling_by_hand(shape):
    t = np.random.default_rng(0).standard_normal((3, *shape)) * 2 + 1
    for i, one in enumerate(t):
        channels = one.reshape(6, -1) if len(shape) > 1 else one[None]
        s, s1 = channels.std(1).mean(), channels.std(1, ddof=1).mean()
        zero = scale_features(t, 7.0, about_zero=True)[i]
        np.testing.assert_allclose(zero, one / s * 7)
        centred = scale_features(t, 7.0, about_zero=False)[i]
        np.testing.assert_allclose(centred, (one - one.mean()) / s1 * 7 + one.mean())
        # What has the wanted deviation already stays as it is.
        np.testing.assert_allclose(scale_features(t, s, about_zero=True)[i], one)
        np.testing.assert_allclose(scale_features(t, s1, about_zero=False)[i], one)
    assert (scale_features(np.ones((2, *shape)), 7.0, about_zero=True) == 1).all()


def test_scaling_about_the_training_mean():
    rng = np.random.default_rng(0)
    t = {"a": rng.standard_normal((3, 4, 5, 6)), "b": rng.standard_normal((3, 8))}
    mu = {"a": rng.standard_normal((1, 4, 5, 6)), "b": rng.standard_normal((1, 8))}
    means = as_dataset(mu).isel(image=0).drop_vars("image_id")
    channelwise = {"a": np.array([1.0, 3.0]), "b": 0.5}
    scaling = FeatureScaling("feature_std_train_mean_center", channelwise, means)
    shapes = {"a": (4, 5, 6), "b": (8,)}
    rows = target_rows(as_dataset(t), shapes, scaling, 2)
    assert rows.chunks[0] == (2, 1)
    d = {name: t[name] - mu[name] for name in t}
    expected = []
    for i in range(3):
        a, b = d["a"][i], d["b"][i]
        a = (a - a.mean()) / a.std((1, 2), ddof=1).mean() * 2 + a.mean() + mu["a"][0]
        b = (b - b.mean()) / b.std(ddof=1) * 0.5 + b.mean() + mu["b"][0]
        expected.append(np.concatenate([a.ravel(), b]))
    np.testing.assert_allclose(rows.values, expected)
    turned = FeatureScaling(
        scaling.kind, channelwise, means.transpose("a_channel", "a_x", "a_y", ...)
    )
    np.testing.assert_array_equal(target_rows(as_dataset(t), shapes, turned, 2), rows)
    half = target_rows(as_dataset(t, np.float16), shapes, scaling, 2)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half.values, expected, atol=0.02)
    with pytest.raises(ModelError, match="no std= of the layers b"):
        target_rows(as_dataset(t), shapes, FeatureScaling("feature_std", {"a": 1}), 2)
    with pytest.raises(ModelError, match="train_mean="):
        FeatureScaling("feature_std_train_mean_center", channelwise)
    with pytest.raises(ModelError, match="no scaling is called"):
        FeatureScaling("std", channelwise)
    with pytest.raises(ModelError, match="layers b is not a positive"):
        FeatureScaling("feature_std", {"a": 1, "b": 0})


def test_half_precision_loses_nothing_but_its_digits():
    """What is stored in half precision may be scaled beyond its range."""
    t = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float16)
    rows = target_rows(
        as_dataset({"a": t}, np.float16),
        {"a": (8,)},
        FeatureScaling("std_about_zero", {"a": 1e5}),
        2,
    )
    exact = t.astype(np.float64)
    np.testing.assert_allclose(rows, exact / exact.std(1, keepdims=True) * 1e5, rtol=1e-6)


def test_the_precision_of_a_recipe_does_not_round_the_weights():
    net = small_net()
    images = caffe_input(smooth_images(1))
    plain = encoder(net)
    half = FeatureEncoder(plain.recipe.model_copy(update={"precision": "bf16"}), pixels=CAFFE)
    expected, found = (one.load("cpu", "float64")(images) for one in (plain, half))
    for layer in expected:
        np.testing.assert_array_equal(found[layer].numpy(), expected[layer].numpy())


def test_the_update_by_hand():
    """Ten steps on a bowl, one image and one number at a time."""
    rng = np.random.default_rng(0)
    aim, first = rng.uniform(0, 4, (2, 3, 5))
    upper = rng.uniform(2, 3, 5)
    expected = first.copy()
    for i in range(3):
        z, moving = first[i].copy(), np.zeros(5)
        for t in range(10):
            expected[i] = z
            g = 2 * (z - aim[i])
            g = g / np.abs(g).mean()
            moving = 0.9 * moving + g
            rate = 2 + t * (1e-10 - 2) / 10
            z = z - rate * moving
            z = (1 - 0.01) * z
            z = np.clip(z, 0, upper)
    aims, start, top = (torch.from_numpy(v) for v in (aim, first, upper))
    found = descended(
        lambda z: 2 * (z - aims), start, torch.zeros(5), top, GeneratorDescent(iterations=10)
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    still = descended(torch.zeros_like, start, torch.zeros(5), top + 9, GeneratorDescent(3))
    np.testing.assert_allclose(still.numpy(), first * 0.99**2)


def test_minimised_stops_at_the_bounds():
    aim = np.array([[-1.0, 0.5], [3.0, 0.2]])
    found = minimised(
        lambda v: (((v - aim.ravel()) ** 2).sum(), 2 * (v - aim.ravel())),
        np.full((2, 2), 0.1),
        np.zeros((2, 2)),
        np.full((2, 2), 1.0),
        50,
    )
    np.testing.assert_allclose(found, [[0, 0.5], [1, 0.2]], atol=1e-9)


def test_a_start_that_no_step_leaves_is_told():
    flat = np.full(3, 0.5)

    def rounded(v):
        return 1e8 + 8 * (v != 0.5).any(), np.full(3, 1e-3)

    with pytest.warns(NedxWarning, match="no step lowers the objective"):
        found = minimised(rounded, flat, flat - 1, flat + 1, 5)
    np.testing.assert_array_equal(found, flat)
    # At a minimum there is nothing to tell.
    minimised(lambda v: (1e8, np.zeros(3)), flat, flat - 1, flat + 1, 5)
    at_edge = minimised(lambda v: (-v.sum(), -np.ones(3)), flat, flat - 1, flat, 5)
    np.testing.assert_array_equal(at_edge, flat)


def test_features_that_are_flat_about_the_start_are_told():
    recipe = default_recipe("gabor", layers=("energy_0",), pooling="flatten", image_size=64)
    filters = FeatureEncoder(recipe)
    rows = {"energy_0": np.ones((1, *filters.shapes()["energy_0"]))}
    objective = Objective.of(rows, "cpu", torch.float64)
    problem = Problem(filters, filters.load("cpu", "float64"), objective)
    with pytest.warns(NedxWarning, match="began with, the mean image"):
        found = LBFGS(iterations=3).solve(problem, [0])
    assert not found.any()


def test_pixels_are_blue_first_less_the_mean():
    red = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    red[:, 0] = 200
    taken = from_rgb(red, CAFFE)
    np.testing.assert_allclose(taken[0, :, 0, 0], [-MEAN[0], -MEAN[1], 200 - MEAN[2]])
    np.testing.assert_allclose(to_rgb(taken, CAFFE), red, atol=1e-12)
    low, high = pixel_range(CAFFE)
    np.testing.assert_allclose(low, -MEAN)
    np.testing.assert_allclose(high, 255 - MEAN)
    imagenet = policy("imagenet")
    values = from_rgb(red, imagenet)
    np.testing.assert_allclose(values[0, 0, 0, 0], (200 / 255 - 0.485) / 0.229)
    np.testing.assert_allclose(to_rgb(values, imagenet), red, atol=1e-12)


def test_the_centre_starts_at_16_from_either_side():
    image = torch.arange(256.0).expand(1, 3, 256, 256)
    cut = centre(image, 224)
    assert cut.shape == (1, 3, 224, 224)
    assert (cut[0, 0, 0, 0], cut[0, 0, 0, -1]) == (16, 239)
    assert torch.equal(centre(image.flip(-1), 224), cut.flip(-1))


def test_pictures_are_cut_at_percentiles_and_stretched():
    raw = np.random.default_rng(0).normal(100, 30, (2, 9, 8, 3)).astype(np.float32)
    for i, one in enumerate(shown(raw, "percentiles")):
        values = raw[i].astype(np.float64)
        cut = np.clip(values, *(np.percentile(values, p) for p in (2, 98)))
        expected = np.round((cut - cut.min()) / (cut.max() - cut.min()) * 255)
        np.testing.assert_array_equal(one, expected)
        assert (one.min(), one.max()) == (0, 255)
    plain = np.array([-5.0, 0.4, 99.6, 300.0], np.float32).reshape(1, 2, 2, 1).repeat(3, -1)
    assert shown(plain, "range")[0, ..., 0].ravel().tolist() == [0, 0, 100, 255]
    assert (shown(np.full((1, 4, 4, 3), 77.0), "percentiles") == 77).all()


def test_vgg19_is_tapped_before_the_rectifiers():
    shapes = vgg19_encoder("nowhere.pt").shapes()
    maps = {1: (64, 224), 2: (128, 112), 3: (256, 56), 4: (512, 28), 5: (512, 14)}
    for layer, shape in shapes.items():
        if layer.startswith("conv"):
            channels, side = maps[int(layer[4])]
            assert shape == (channels, side, side)
    assert [shapes[layer] for layer in ("fc6", "fc7", "fc8")] == [(4096,), (4096,), (1000,)]
    assert len(shapes) == 19
    assert sum(map(np.prod, shapes.values())) == 14_861_288
    with torch.device("meta"):
        network = VGG19()
    assert tuple(shapes) == tuple(VGG19.aliases)
    places = [int(tap.split(".")[1]) for tap in VGG19.aliases.values()]
    assert places == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34, 0, 3, 6]
    for tap in VGG19.aliases.values():
        assert isinstance(network.get_submodule(tap), nn.Conv2d | nn.Linear)
    with pytest.raises(ModelError, match="no layers"):
        vgg19_encoder("nowhere.pt", layers=["conv6_1"])
    assert vgg19_encoder("nowhere.pt", pixels="imagenet").policy == policy("imagenet")
    assert vgg19_encoder("nowhere.pt").policy == policy("caffe") == CAFFE


def test_deepsim_has_the_published_form(tmp_path):
    with torch.device("meta"):
        network = DeepSim()
        assert network(torch.zeros(2, 4096)).shape == (2, 3, 256, 256)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["defc7.weight"] == shapes["defc5.weight"] == (4096, 4096)
    assert shapes["deconv5.weight"] == (256, 256, 4, 4)
    assert shapes["conv5_1.weight"] == (256, 512, 3, 3)
    assert shapes["deconv4.weight"] == (512, 256, 4, 4)
    assert shapes["deconv1.weight"] == (64, 32, 4, 4)
    assert shapes["deconv0.weight"] == (32, 3, 4, 4)
    assert len(shapes) == 24
    assert deepsim_generator("nowhere.pt").size() == (256, 256)
    path = tmp_path / "wrong.pt"
    torch.save({"defc7.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ModelError, match=r"(?s)missing \(23\).*defc7.weight is \(3, 3\)"):
        deepsim_generator(path).load("cpu", "float32")


def test_published_keys_are_mapped_and_small_networks_by_hand():
    torch.manual_seed(0)
    network = DeepSim(units=20, width=1 / 32).double()
    state = network.state_dict()
    given = {f"module.{name}": tensor for name, tensor in state.items()}
    given |= {"module.defc.0.weight": state["defc7.weight"], "deconv.0.bias": state["deconv5.bias"]}
    assert published_state(given).keys() == state.keys()
    codes = torch.randn(2, 20, dtype=torch.float64)
    x = codes
    with torch.no_grad():
        for name in ("defc7", "defc6", "defc5"):
            x = nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
            x = torch.where(x > 0, x, 0.3 * x)
        x = x.reshape(2, 8, 4, 4)
        strides = {"deconv5": 2, "conv5_1": 1, "deconv4": 2, "conv4_1": 1, "deconv3": 2}
        strides |= {"conv3_1": 1, "deconv2": 2, "deconv1": 2, "deconv0": 2}
        for name, stride in strides.items():
            kernel, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            x = nn.functional.conv_transpose2d(x, kernel, bias, stride, 1)
            x = x if name == "deconv0" else torch.where(x > 0, x, 0.3 * x)
        np.testing.assert_allclose(network(codes).numpy(), x.numpy(), rtol=1e-9)


def test_activation_ranges_are_read(tmp_path):
    path = tmp_path / "fc7.txt"
    path.write_text("3 2 6\n")
    assert read_activation_range(path) == (3.0, 2.0, 6.0)
    path.write_text("3 0 x")
    with pytest.raises(ModelError, match="holds no limits"):
        read_activation_range(path)
