"""Simulated images: natural statistics, disjoint concepts, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from nedx.simulation import open_simulation
from nedx.simulation.concepts import make_concepts
from nedx.simulation.energy import contrast_energy, pool
from nedx.simulation.images import SIZE, _Leaves, draw


@pytest.fixture(scope="module")
def stimuli():
    return open_simulation("sim-images")


def test_concepts_of_training_and_test_are_disjoint(stimuli):
    partition, category = stimuli["partition"].values, stimuli["category"].values
    train, test = (set(category[partition == name]) for name in ("train", "test"))
    assert (len(train), len(test)) == (150, 200)
    assert not train & test
    counts = Counter(category.tolist())
    assert min(counts.values()) >= 2
    vectors = {concept.parameters for concept in make_concepts()}
    assert len(vectors) == 350


def test_ids_hashes_and_source(stimuli):
    ids = stimuli["image_id"].values
    assert len(set(ids)) == len(ids)
    assert all(str(i).startswith("sim:") for i in ids)
    first = stimuli["pixels"].isel(image=0).values
    expected = hashlib.sha256(b"128x128x3" + first.tobytes()).hexdigest()
    assert stimuli["sha256"].values[0] == expected
    assert stimuli.attrs["source"] == "synthetic"
    assert "imulated" in stimuli.attrs["title"]


def test_amplitude_spectrum_falls_as_one_over_f(stimuli):
    """Natural images: amplitude as f^-1.0 +- 0.2 (Field 1987; Tolhurst et al. 1992)."""
    gray = stimuli["pixels"].isel(image=slice(0, None, 6)).values.mean(-1)
    window = np.hanning(SIZE)
    gray = (gray - gray.mean((1, 2), keepdims=True)) * window * window[:, None]
    power = np.square(np.abs(np.fft.fft2(gray)))
    index = np.fft.fftfreq(SIZE, 1 / SIZE)
    ring = np.hypot(index, index[:, None]).round().astype(int)
    frequency = np.arange(3, 40)
    amplitude = np.sqrt([power[:, ring == f].mean() for f in frequency])
    slope = np.polyfit(np.log(frequency), np.log(amplitude), 1)[0]
    assert -1.25 < slope < -0.85


def test_sizes_of_leaves_follow_a_power_law():
    concept = make_concepts()[0]
    radius = np.sort(_Leaves(concept, 5, np.random.default_rng(0)).radius)
    low, high = 2.0, concept["size"] * SIZE
    # The integral of r^-3 from the smallest to r, over the whole.
    expected = (low**-2 - radius**-2) / (low**-2 - high**-2)
    measured = (np.arange(radius.size) + 0.5) / radius.size
    assert np.abs(expected - measured).max() < 2 / np.sqrt(radius.size)


def test_the_same_seed_draws_the_same_bytes():
    first, again = make_concepts(), make_concepts()
    assert first == again
    assert make_concepts(seed=1) != first
    a, b, c = (draw(first[3], 2, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert a.tobytes() == b.tobytes()
    assert a.tobytes() != c.tobytes()


def test_stored_images_are_those_drawn_now(stimuli):
    index = 7
    concept = make_concepts()[index]
    again = draw(concept, 5, np.random.default_rng([stimuli.attrs["seed"], 1, index]))
    stored = stimuli["pixels"].isel(image=stimuli["category"].values == concept.name)
    assert np.array_equal(stored.values, again)


def test_energy_peaks_at_the_orientation_and_frequency_of_a_grating():
    x = np.arange(SIZE) / SIZE
    rows = []
    for turn in (0, 2, 4):
        angle = turn * np.pi / 8
        wave = np.cos(2 * np.pi * 8 * (np.cos(angle) * x + np.sin(angle) * x[:, None]))
        rows.append(np.repeat(np.uint8(np.rint(127.5 + 100 * wave))[..., None], 3, axis=2))
    energy = contrast_energy(np.stack(rows)).mean((3, 4))
    for turn, found in zip((0, 2, 4), energy, strict=True):
        assert np.unravel_index(found.argmax(), found.shape) == (2, turn)


def test_pooled_energy_is_what_the_default_backbone_gives(stimuli):
    from nedx.encoding.features import encode_features

    some = stimuli.isel(image=slice(0, 4))
    expected = encode_features(some, "gabor")["features"].values
    found = pool(contrast_energy(some["pixels"].values), 8)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_features_are_standard_and_tell_concepts_apart(stimuli):
    truth = open_simulation("sim-images", group="truth")
    features = truth["features"].values
    train = truth["partition"].values == "train"
    assert features.shape[1] == 64
    assert np.abs(features[train].mean(0)).max() < 1e-2
    assert features[train].var(0).mean() == pytest.approx(1, abs=0.05)
    test = features[~train].reshape(200, 2, 64)
    similarity = np.corrcoef(test[:, 0], test[:, 1])[:200, 200:]
    # One image of a concept finds the other among 200; chance is 0.005.
    assert np.mean(similarity.argmax(1) == np.arange(200)) > 0.5
