"""The fwRF trunk and head against the published formulas, written out in numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from nedx.backbones import default_recipe, feature_layout, load_backbone
from nedx.backbones.gnet import MAPS
from nedx.encoding.fwrf import head_of, load_trunk, predict, read_out_fwrf
from nedx.errors import ModelError, StimulusError

STEPS = {f"enc.conv{name}": 128 for name in ("4a", "4b", "5a", "5b", "6a")} | {"enc.conv6b": 64}
CONVOLUTIONS = {
    "pre.conv1.0": (64, 3, 11, 11),
    "pre.conv2.0": (192, 64, 5, 5),
    "enc.conv3": (128, 192, 3, 3),
    **{f"{step}.conv1": (after, 128, 3, 3) for step, after in STEPS.items()},
}
NORMS = {"enc.bn1": 192, **{f"{step}.bn1": 128 for step in STEPS}}


def trunk_state(seed=0):
    """Random weights under the published keys, with batch norms that matter."""
    rng = np.random.default_rng(seed)
    state = {"mu": rng.uniform(0.3, 0.6, (1, 3, 1, 1))}
    for key, shape in CONVOLUTIONS.items():
        state[f"{key}.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        state[f"{key}.bias"] = rng.normal(0, 0.1, shape[0])
    for key, width in NORMS.items():
        state[f"{key}.weight"] = rng.uniform(0.5, 1.5, width)
        state[f"{key}.bias"] = rng.normal(0, 0.3, width)
        state[f"{key}.running_mean"] = rng.normal(0.2, 0.2, width)
        state[f"{key}.running_var"] = rng.uniform(0.05, 1.5, width)
    state = {key: values.astype(np.float32) for key, values in state.items()}
    return state | {f"{key}.num_batches_tracked": np.int64(3) for key in NORMS}


def head_state(voxels, seed=1):
    rng = np.random.default_rng(seed)
    state = {
        f"rf{k}": 3 * rng.standard_normal((voxels, side, side))
        for k, side in enumerate((27, 25, 13))
    }
    state |= {"w": rng.standard_normal((voxels, 768)), "b": rng.standard_normal(voxels)}
    return {key: values.astype(np.float32) for key, values in state.items()}


def pixels(count, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (count, 227, 227, 3), dtype=np.uint8)


def random_maps(count, seed=3, lowest=0.0):
    """Noise, as a rectifier leaves it."""
    rng = np.random.default_rng(seed)
    return [
        torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32)).clamp_min_(lowest)
        for shape in MAPS.values()
    ]


def padded(x, padding, value=0.0):
    return np.pad(x, ((0, 0), (0, 0), *[(padding, padding)] * 2), constant_values=value)


def windows(x, size, stride, padding, value=0.0):
    views = sliding_window_view(padded(x, padding, value), (size, size), axis=(2, 3))
    return views[:, :, ::stride, ::stride]


def convolved(x, state, key, stride=1, padding=0):
    """A convolution and a rectifier."""
    weight = state[f"{key}.weight"].astype(np.float64)
    views = windows(x, weight.shape[-1], stride, padding)
    out = np.tensordot(views, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    return np.maximum(out + state[f"{key}.bias"][:, None, None], 0)


def pooled(x, padding=0):
    return windows(x, 3, 2, padding, -np.inf).max((4, 5))


def normed(x, state, key):
    weight, bias, mean, var = (
        state[f"{key}.{name}"].astype(np.float64)[:, None, None]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def true_maps(images, state):
    """F1, F2, F3 of uint8 images of 227 pixels, in float64."""

    def step(x, name):
        return convolved(normed(x, state, f"{name}.bn1"), state, f"{name}.conv1", padding=1)

    x = images.transpose(0, 3, 1, 2) / 255 - state["mu"]
    c1 = pooled(convolved(x, state, "pre.conv1.0", stride=4, padding=2))
    c2 = convolved(c1, state, "pre.conv2.0", padding=2)
    c3 = convolved(normed(c2, state, "enc.bn1"), state, "enc.conv3")
    c4a = step(c3, "enc.conv4a")
    c4b = step(c4a, "enc.conv4b")
    c5a = step(pooled(c4b, padding=1), "enc.conv5a")
    c5b = step(c5a, "enc.conv5b")
    c6a = step(c5b, "enc.conv6a")
    c6b = step(c6a, "enc.conv6b")
    return [
        np.concatenate([c1, c2], 1),
        np.concatenate([c3, c4a[:, :64], c4b[:, :64]], 1),
        np.concatenate([c5a[:, :64], c5b[:, :64], c6a[:, :64], c6b], 1),
    ]


def sigma(x):
    return np.log(1 + np.abs(x)) * np.tanh(x)


def true_response(maps, state):
    """Responses (image, voxel): softmax over all positions, pool, squash, weight."""
    phi = []
    for k, each in enumerate(maps):
        fields = np.exp(state[f"rf{k}"].astype(np.float64))
        fields /= fields.sum((1, 2), keepdims=True)
        phi.append(np.einsum("nfyx,vyx->nvf", sigma(np.asarray(each, np.float64)), fields))
    weighted = sigma(np.concatenate(phi, 2)) * state["w"]
    return weighted.sum(2) + state["b"]


def assert_same(found, expected, tolerance):
    """Agree within a part of the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_the_trunk_is_the_published_one():
    state = trunk_state()
    images = pixels(2)
    trunk = load_trunk(state)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 1_365_635
    assert not trunk.training
    batch = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        found = dict(trunk.walk(batch, ()))
    for (name, values), expected in zip(found.items(), true_maps(images, state), strict=True):
        assert values.shape[1:] == MAPS[name]
        assert_same(values, expected, 1e-5)


def test_the_backbone_has_the_published_layers():
    layout = feature_layout(default_recipe("gnet"))
    assert layout == {"F1": 256 * 27**2, "F2": 256 * 25**2, "F3": 256 * 13**2}
    with pytest.raises(ModelError, match=r"227 x 227 pixels, not 224 x 224.*'fwrf'"):
        load_backbone(default_recipe("gnet")).run(torch.zeros(1, 3, 224, 224), print)


def test_predictions_follow_the_formulas():
    state, voxels = trunk_state(), head_state(9)
    images = pixels(3)
    found = predict(images, load_trunk(state), head_of(voxels), batch_size=2)
    assert found.dtype == np.float32
    assert_same(found, true_response(true_maps(images, state), voxels), 1e-4)


def test_the_head_keeps_signs():
    """The trunk's maps are never negative; the formula is not bound to that."""
    maps, state = random_maps(4, lowest=-9), head_state(6)
    expected = true_response([each.numpy() for each in maps], state)
    assert_same(read_out_fwrf(maps, head_of(state)), expected, 1e-5)


def test_maps_are_left_as_they_are():
    """Also those that lie channels last, which are read without a copy."""
    maps, head = random_maps(2), head_of(head_state(3))
    expected = read_out_fwrf(maps, head)
    last = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    assert_same(read_out_fwrf(last, head), expected, 1e-6)
    assert all(torch.equal(found, given) for found, given in zip(last, maps, strict=True))


@settings(deadline=None, max_examples=20)
@given(
    block=st.integers(1, 40),
    voxels=st.integers(0, 30),
    count=st.integers(0, 5),
    seed=st.integers(0),
)
def test_blocks_do_not_change_results(block, voxels, count, seed):
    maps, head = random_maps(count, seed), head_of(head_state(voxels, seed))
    whole = read_out_fwrf(maps, head, voxels_per_block=1000)
    found = read_out_fwrf(maps, head, voxels_per_block=block)
    assert found.shape == (count, voxels)
    if found.numel():
        assert_same(found, whole, 1e-6)


def test_one_image_equals_its_row_of_a_batch():
    trunk, head = load_trunk(trunk_state()), head_of(head_state(20))
    images = pixels(5)
    together = predict(images, trunk, head, batch_size=5)
    alone = np.concatenate([predict(image[None], trunk, head) for image in images])
    assert_same(alone, together, 1e-6)
    assert np.ptp(together, axis=0).min() > 0


def test_some_voxels_equal_their_columns():
    maps, state = random_maps(3), head_state(11)
    head = head_of(state)
    whole = read_out_fwrf(maps, head)
    half = -(-len(head) // 2)
    halves = [
        head_of({key: values[part] for key, values in state.items()})
        for part in (slice(half), slice(half, None))
    ]
    joined = torch.cat([read_out_fwrf(maps, each) for each in halves], 1)
    assert_same(joined, whole, 1e-6)
    chosen = [7, 0, 7]
    assert_same(read_out_fwrf(maps, head.select(chosen)), whole[:, chosen], 1e-6)
    mask = np.arange(11) % 3 == 0
    assert_same(read_out_fwrf(maps, head.select(mask)), whole[:, mask], 1e-6)


def test_read_only_arrays_and_tensors_load_alike():
    state, voxels = trunk_state(), head_state(4)
    for values in voxels.values():
        values.setflags(write=False)
    tensors = {key: torch.nn.Parameter(torch.tensor(values)) for key, values in voxels.items()}
    maps = random_maps(2)
    found = read_out_fwrf(maps, head_of(tensors))
    assert not found.requires_grad
    assert torch.equal(found, read_out_fwrf(maps, head_of(voxels)))
    doubles = {key: torch.tensor(np.asarray(values, np.float64)) for key, values in state.items()}
    trunk = load_trunk(doubles)
    assert all(parameter.dtype == torch.float32 for parameter in trunk.parameters())


def test_every_fault_of_a_trunk_is_named():
    state = trunk_state()
    del state["enc.bn1.running_var"]
    state["enc.conv6b.conv1.weight"] = np.zeros((128, 128, 3, 3), np.float32)
    state["enc.conv7.weight"] = np.zeros(1)
    with pytest.raises(ModelError) as caught:
        load_trunk(state)
    message = str(caught.value)
    assert "enc.bn1.running_var is missing, expected (192,)" in message
    assert "enc.conv6b.conv1.weight is (128, 128, 3, 3), expected (64, 128, 3, 3)" in message
    assert "enc.conv7.weight is not part of it" in message
    assert len(message.splitlines()) == 4


def test_every_fault_of_a_head_is_named():
    state = head_state(5)
    del state["rf1"]
    state["rf2"] = state["rf2"][:4]
    state["w"] = state["w"][:, :512]
    with pytest.raises(ModelError) as caught:
        head_of(state)
    message = str(caught.value)
    assert "rf1 is missing, expected (5, 25, 25)" in message
    assert "rf2 is (4, 13, 13), expected (5, 13, 13)" in message
    assert "w is (5, 512), expected (5, 768)" in message
    assert len(message.splitlines()) == 4
    with pytest.raises(ModelError, match="b is missing"):
        head_of({})


def test_maps_of_another_size_are_refused():
    head = head_of(head_state(2))
    maps = random_maps(1)
    with pytest.raises(ModelError, match=r"256, 27, 27.*\(1, 256, 25, 25\).*gnet"):
        read_out_fwrf([maps[1], maps[0], maps[2]], head)
    with pytest.raises(ModelError, match="gnet"):
        read_out_fwrf(maps[:2], head)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(1).astype(np.int64), "int64"),
        (pixels(1).transpose(0, 3, 1, 2), "colour comes second"),
        (pixels(1)[:, :200], "square"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(StimulusError, match=message):
        predict(images, load_trunk(trunk_state()), head_of(head_state(1)))


def test_weights_that_overflow_are_an_error():
    state = head_state(2)
    state["w"][1] = np.inf
    with pytest.raises(ModelError, match="NaN or infinite"):
        predict(pixels(1), load_trunk(trunk_state()), head_of(state))


SCRIPT = """
import re, torch
from nedx.backbones.gnet import MAPS
from nedx.encoding.fwrf import FwrfHead, read_out_fwrf
voxels, count = 5_917, 100
maps = [torch.rand(count, *shape) for shape in MAPS.values()]
fields = tuple(torch.rand(voxels, *shape[1:]) for shape in MAPS.values())
out = read_out_fwrf(maps, FwrfHead(fields, torch.rand(voxels, 768), torch.rand(voxels)))
assert out.shape == (count, voxels)
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_below_two_gigabytes():
    """The pooled features alone would take 1.8 GB."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) * 1024 < 2e9
