"""Each change against a plain loop of numpy."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nedx.decoding.augmentation import Dropout, Noise, Shift, Smoothing


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(200, 4, 30)


def test_a_shift_rolls_each_response_as_a_whole(x):
    shifted = Shift(samples=3)(x).numpy()
    found = set()
    for before, after in zip(x.numpy(), shifted, strict=True):
        by = [s for s in range(-3, 4) if np.array_equal(np.roll(before, s, axis=1), after)]
        assert len(by) == 1
        found.add(by[0])
    assert found == set(range(-3, 4))


def test_dropout_silences_whole_channels_in_their_share(x):
    changed = Dropout(probability=0.25)(x)
    gone = (changed == 0).all(2)
    assert torch.equal(changed[~gone], x[~gone])
    assert float(gone.float().mean()) == pytest.approx(0.25, abs=0.05)


def test_smoothing_is_the_moving_average_of_some_channels(x):
    smooth = Smoothing(width=5, probability=0.5)(x).numpy()
    changed = 0
    for before, after in zip(x.numpy().reshape(-1, 30), smooth.reshape(-1, 30), strict=True):
        if np.array_equal(before, after):
            continue
        changed += 1
        padded = np.pad(before, 2, mode="edge")
        np.testing.assert_allclose(after, np.convolve(padded, np.ones(5) / 5, "valid"), atol=1e-6)
    assert changed / 800 == pytest.approx(0.5, abs=0.06)


def test_noise_has_its_standard_deviation(x):
    noise = (Noise(sd=0.7)(x) - x).numpy()
    assert noise.std() == pytest.approx(0.7, rel=0.03)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.05


def test_seeds_decide(x):
    for change in (Shift(), Dropout(), Smoothing(), Noise()):
        torch.manual_seed(1)
        first = change(x)
        torch.manual_seed(1)
        assert torch.equal(first, change(x))
        assert not torch.equal(first, change(x))


@pytest.mark.parametrize("wrong", [(Shift, {"samples": 0}), (Dropout, {"probability": 1.5})])
def test_numbers_out_of_range_are_refused(wrong):
    kind, parameters = wrong
    with pytest.raises(ValidationError):
        kind(**parameters)
