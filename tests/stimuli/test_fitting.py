"""Bringing images of several sizes to one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nedx.errors import StimulusError
from nedx.stimuli.fitting import Fit, choose_fit


def noise(y: int, x: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (y, x, 3), dtype=np.uint8)


def test_crop_keeps_the_centre():
    image = noise(40, 60)
    np.testing.assert_array_equal(Fit("crop", 40, 40)(image), image[:, 10:50])


def test_crop_of_other_proportions_keeps_as_much_as_it_can():
    image = noise(40, 60)
    np.testing.assert_array_equal(Fit("crop", 20, 60)(image), image[10:30])


@pytest.mark.parametrize("mode", ["crop", "resize"])
def test_resizing_is_pillow_s_within_one_grey_level(mode):
    image = noise(90, 120)
    part = image[:, 15:105] if mode == "crop" else image
    expected = Image.fromarray(part).resize((48, 48), Image.Resampling.BILINEAR)
    found = Fit(mode, 48, 48)(image).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_pad_shows_the_whole_image_on_grey():
    image = noise(40, 60)
    found = Fit("pad", 60, 60)(image)
    np.testing.assert_array_equal(found[10:50], image)
    assert (found[:10] == 128).all()
    assert (found[50:] == 128).all()


@given(
    st.sampled_from(["crop", "resize", "pad"]),
    *(st.integers(1, 70) for _ in range(4)),
)
def test_every_image_gets_the_size(mode, y, x, height, width):
    found = Fit(mode, height, width)(noise(y, x))
    assert found.shape == (height, width, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("mode", ["crop", "resize", "pad"])
def test_a_strip_of_one_pixel_is_not_lost(mode):
    assert (Fit(mode, 1, 2)(np.full((9, 1, 3), 7, np.uint8)) == 7).any()


def test_a_constant_image_stays_constant():
    image = np.full((33, 50, 3), (10, 100, 200), np.uint8)
    for mode in ("crop", "resize"):
        assert (Fit(mode, 21, 34)(image) == (10, 100, 200)).all()


def test_a_file_that_changed_its_size_is_an_error():
    with pytest.raises(StimulusError, match=r"40 x 60 pixels, where 10 x 10 were found"):
        Fit("error", 10, 10)(noise(40, 60))


def test_equal_sizes_need_no_choice():
    assert choose_fit([(30, 40)] * 3, "error", None) == Fit("error", 30, 40)
    assert choose_fit([(30, 40)] * 3, "error", (30, 40)) == Fit("error", 30, 40)
    assert choose_fit([(30, 40)] * 3, "crop", None) == Fit("crop", 30, 30)
    assert choose_fit([(30, 40)] * 3, "pad", None) == Fit("pad", 40, 40)
    assert choose_fit([(30, 40), (50, 50)], "resize", 64) == Fit("resize", 64, 64)


def test_sizes_that_differ_are_listed_with_what_to_type():
    sizes = [(30, 40)] * 5 + [(20, 20)]
    with pytest.raises(StimulusError) as caught:
        choose_fit(sizes, "error", None)
    message = str(caught.value)
    assert "30 x 40 (5 images), 20 x 20 (1 image)" in message
    for mode in ("crop", "resize", "pad"):
        assert f'fit="{mode}", size=20' in message


def test_a_fit_of_sizes_that_differ_needs_a_size():
    with pytest.raises(StimulusError, match="Type: size=20"):
        choose_fit([(30, 40), (20, 20)], "crop", None)


def test_another_size_than_asked_for_is_an_error():
    with pytest.raises(StimulusError, match="expected 64 x 64 pixels"):
        choose_fit([(30, 40)], "error", 64)


def test_nonsense_is_named():
    with pytest.raises(StimulusError, match="unknown fit 'stretch'.*resize"):
        choose_fit([(3, 3)], "stretch", None)
    with pytest.raises(StimulusError, match="positive"):
        choose_fit([(3, 3)], "crop", 0)
