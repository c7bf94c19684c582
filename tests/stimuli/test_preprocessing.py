"""Policies against torchvision's own transforms and Pillow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nedx.errors import StimulusError
from nedx.stimuli.preprocessing import (
    POLICIES,
    ImagePolicy,
    check_pixels,
    policy,
    preprocess,
    resize_pixels,
)
from tests import tvshim  # noqa: F401 - must come before torchvision

MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def preset():
    weights = pytest.importorskip("torchvision").models.ViT_B_32_Weights.IMAGENET1K_V1
    return weights.transforms()


def by_pillow(image: np.ndarray, side: int, box: tuple[int, ...] | None = None) -> np.ndarray:
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1).astype(int)


def assert_like_pillow(found: np.ndarray, expected: np.ndarray, *, enlarged: bool = False) -> None:
    """Within one grey level; of enlarged white noise a few values in a million are two off."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= (2 if enlarged else 1)
    assert np.sum(difference > 1) <= 2 + 1e-5 * difference.size


@pytest.mark.parametrize("side", [64, 223, 224, 256, 257, 425])
def test_berg_equals_torchvision_bit_by_bit(side):
    pixels = noise(2, side, side)
    expected = preset()(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = preprocess(pixels, "berg")
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@settings(max_examples=15)
@given(y=st.integers(20, 400), x=st.integers(20, 400), seed=st.integers(0, 9))
def test_imagenet_equals_torchvision_for_any_size(y, x, seed):
    pixels = noise(1, y, x, seed=seed)
    expected = preset()(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = preprocess(pixels, "imagenet")
    assert found.shape[-2:] == POLICIES["imagenet"].output_shape(y, x) == (224, 224)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("y", "x"), [(425, 425), (300, 401), (180, 120)])
def test_train_is_the_whole_square_as_pillow_resizes_it(y, x):
    pixels = noise(2, y, x)
    side = min(y, x)
    top, left = round((y - side) / 2), round((x - side) / 2)
    found = preprocess(pixels, "train").numpy()
    levels = (found * STD + MEAN) * 255
    expected = np.stack([by_pillow(i[top : top + side, left : left + side], 224) for i in pixels])
    assert_like_pillow(levels.round(), expected, enlarged=side < 224)
    # White noise is the worst case; of images with natural spectra 0.1 % of values differ.
    assert (levels.round() != expected).mean() < 0.03
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)


def test_fwrf_is_227_pixels_from_zero_to_one():
    pixels = noise(2, 425, 425)
    found = preprocess(pixels, "fwrf").numpy()
    expected = np.stack([by_pillow(image, 227) for image in pixels])
    assert found.shape == (2, 3, 227, 227)
    assert found.min() >= 0
    assert found.max() <= 1
    assert_like_pillow((found * 255).round(), expected)
    assert ((found * 255).round() != expected).mean() < 0.01


def test_fwrf_leaves_227_pixels_as_they_are():
    pixels = noise(1, 227, 227)
    found = preprocess(pixels, "fwrf").numpy()
    np.testing.assert_array_equal(found, pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def test_squeezenet_keras_is_bgr_minus_means():
    pixels = noise(1, 227, 227)
    found = preprocess(pixels, "squeezenet_keras").numpy()[0]
    means = np.array([104, 117, 123]).reshape(3, 1, 1)
    np.testing.assert_array_equal(found, pixels[0, ..., ::-1].transpose(2, 0, 1) - means)


def test_raw01_only_scales():
    pixels = noise(2, 7, 9)
    found = preprocess(pixels, "raw01").numpy()
    np.testing.assert_array_equal(found, pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)


@pytest.mark.parametrize("name", ["train", "fwrf", "squeezenet_keras"])
def test_both_arithmetics_agree_within_one_grey_level(name):
    """Devices without a kernel for uint8 resize in float32."""
    exact = policy(name)
    other = exact.model_copy(update={"arithmetic": "float32"})
    pixels = noise(2, 300, 300)
    step = exact.scale / min(exact.std)
    difference = (preprocess(pixels, exact) - preprocess(pixels, other)).abs().max()
    assert difference <= step * 1.001


def test_the_path_of_other_devices_keeps_shape_and_dtype():
    found = preprocess(noise(2, 300, 300), "train", device="meta")
    assert found.shape == (2, 3, 224, 224)
    assert found.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_cuda_agrees_within_one_grey_level(name):
    pixels = noise(2, 300, 300)
    chosen = policy(name)
    found = preprocess(pixels, chosen, device="cuda").cpu()
    difference = (found - preprocess(pixels, chosen)).abs().max()
    assert difference <= chosen.scale / min(chosen.std) * 1.001


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_result_does_not_depend_on_the_batch_or_on_strides(name):
    pixels = noise(3, 230, 230)
    whole = preprocess(pixels, name)
    single = torch.cat([preprocess(pixels[i : i + 1], name) for i in range(3)])
    frozen = pixels.copy()
    frozen.flags.writeable = False
    assert torch.equal(whole, single)
    assert torch.equal(whole, preprocess(frozen, name))
    mirrored = preprocess(pixels[:, :, ::-1], name)
    assert torch.equal(mirrored, preprocess(pixels[:, :, ::-1].copy(), name))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_images_give_an_empty_batch(name):
    assert preprocess(noise(0, 300, 300), name).shape[:2] == (0, 3)


@pytest.mark.parametrize("name", ["berg", "fwrf", "squeezenet_keras"])
def test_square_policies_refuse_other_shapes_without_work(name):
    with pytest.raises(StimulusError, match=r'300 x 200 pixels.*fit="crop", size=200'):
        check_pixels(np.uint8, (10**9, 300, 200, 3), name)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (np.int64, "images.astype"),
        (np.float32, r"\(255 \* images\)"),
        (bool, r"\* 255"),
        (np.uint16, "0 to 255"),
    ],
)
def test_wrong_dtype_is_refused_without_work(dtype, advice):
    with pytest.raises(StimulusError, match=f"must be uint8.*{advice}"):
        check_pixels(dtype, (10**9, 224, 224, 3), "train")


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((5, 3, 32, 32), r"transpose\(0, 2, 3, 1\)"),
        ((32, 32, 3), r"images\[None\]"),
        ((5, 32, 32), r"np.repeat\(images\[\.\.\., None\]"),
        ((5, 32, 32, 4), r"images\[\.\.\., :3\]"),
        ((5, 32, 32, 1), r"np.repeat\(images, 3"),
        ((5,), "axes"),
    ],
)
def test_wrong_axes_say_how_to_mend_them(shape, advice):
    with pytest.raises(StimulusError, match=advice):
        check_pixels(np.uint8, shape, "train")


def test_unknown_policy_names_the_close_ones():
    with pytest.raises(StimulusError, match="did you mean 'imagenet'"):
        policy("imagnet")


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_descriptions_are_json(name):
    described = POLICIES[name].describe()
    assert json.loads(json.dumps(described)) == described
    assert described["policy"] == name


def test_policies_are_frozen_and_checked():
    with pytest.raises(ValueError, match="frozen"):
        POLICIES["berg"].crop = 3
    with pytest.raises(ValueError, match="crop=300"):
        ImagePolicy(name="mine", resize=256, crop=300)
    with pytest.raises(ValueError, match="nonsense"):
        ImagePolicy(name="mine", nonsense=1)


def test_a_policy_of_ones_own():
    mine = ImagePolicy(name="mine", resize=64, resize_to="shorter", crop=60)
    assert preprocess(noise(1, 100, 150), mine).shape == (1, 3, 60, 60)
    assert mine.resized_shape(100, 150) == (64, 96)
    assert mine.resized_shape(150, 100) == (96, 64)


@settings(max_examples=20)
@given(st.integers(5, 90), st.integers(5, 90), st.integers(5, 90), st.integers(5, 90))
def test_resize_is_within_one_grey_level_of_pillow(y, x, height, width):
    image = noise(y, x)
    expected = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    enlarged = height > y or width > x
    found = resize_pixels(image, height, width)
    assert_like_pillow(found, np.asarray(expected), enlarged=enlarged)
