"""FID against scipy's root and closed forms; KID against sums over pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import ModelError, NedxWarning, SchemaError
from nedx.metrics.images import fid, kid
from tests.laziness import computes_at_most
from tests.metrics.images.pictures import features

RNG = np.random.default_rng(1)
MIX = RNG.normal(size=(6, 6))
TRUE = RNG.normal(size=(40, 6)) @ MIX
RECONSTRUCTED = RNG.normal(size=(2, 40, 6)) @ MIX.T * 1.3 + 0.4


def by_root(x, y):
    """Compute FID as it is written, with the root of a product of covariances."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    apart = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return apart + np.trace(first) + np.trace(second) - 2 * np.trace(root).real


def by_eigenvalues(x, y):
    """Take the root of the symmetric C1^(1/2) C2 C1^(1/2), which has the same trace."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ second @ half).clip(0)).sum()
    apart = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return apart + np.trace(first) + np.trace(second) - 2 * root


def test_fid_is_that_of_scipy():
    found = fid(features(TRUE), features(RECONSTRUCTED, lead=("subject",)))
    assert found.dims == ("subject",)
    expected = [by_root(TRUE, rows) for rows in RECONSTRUCTED]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(found, [by_eigenvalues(TRUE, r) for r in RECONSTRUCTED], rtol=1e-10)
    assert found.attrs["n_true"] == found.attrs["n_reconstructed"] == 40
    assert found.attrs["n_features"] == 6


def test_fid_of_scaled_axes_has_a_closed_form():
    # Of commuting covariances it is the sum of (difference of standard deviations)^2.
    scale, shift = np.array([0.5, 2.0, 1.0]), np.array([1.0, -2.0, 0.0])
    rows = RNG.normal(size=(500, 3))
    rows = (rows - rows.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    found = fid(features(rows), features(rows * scale + shift))
    np.testing.assert_allclose(found, ((1 - scale) ** 2 + shift**2).sum(), rtol=1e-12)


def test_fid_of_fewer_images_than_features_is_exact():
    # In a rotated frame both sets span the first axes only, so that FID is that of those.
    narrow = RNG.normal(size=(2, 12, 5))
    rotation = np.linalg.qr(RNG.normal(size=(300, 300)))[0][:5]
    with pytest.warns(NedxWarning, match=r"12 images for 300 features: .*kid too"):
        found = fid(*(features(rows @ rotation) for rows in narrow))
    np.testing.assert_allclose(found, by_root(*narrow), rtol=1e-9)


def test_fid_of_equal_sets_is_zero_in_any_order():
    found = fid(features(TRUE), features(TRUE[::-1]))
    np.testing.assert_allclose(found, 0, atol=1e-10)


def test_fid_is_biased_and_kid_is_not():
    def of_one_distribution(count):
        x, y = (features(rows) for rows in RNG.normal(size=(2, count, 8)))
        return float(fid(x, y)), float(kid(x, y, n_subsets=5)["kid"])

    few, many = (np.mean([of_one_distribution(n) for _ in range(40)], axis=0) for n in (20, 200))
    assert few[0] > 3 * many[0]
    # The variance of an estimate from few is larger; 40 of them are averaged.
    assert abs(few[1]) < 0.15
    assert abs(many[1]) < 0.02


def test_models_by_name_become_a_dim():
    named = {"nerv": features(RECONSTRUCTED[0]), "atm": features(RECONSTRUCTED[1])}
    found = fid(features(TRUE), named)
    assert found.dims == ("model",)
    np.testing.assert_allclose(found.sel(model="atm"), by_root(TRUE, RECONSTRUCTED[1]))


@pytest.mark.parametrize(
    ("true", "reconstructed"),
    [
        (TRUE, features(RECONSTRUCTED[0, :30])),
        (TRUE, {"a": features(RECONSTRUCTED[0]), "b": features(RECONSTRUCTED[1, :30])}),
    ],
)
def test_unequal_counts_are_refused(true, reconstructed):
    with pytest.raises(SchemaError, match=r"unequal counts .* kid"):
        fid(features(true), reconstructed)


@settings(max_examples=8)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
def test_chunks_make_no_difference(true, reconstructed, feature):
    pair = (
        features(TRUE).chunk(image=true, feature=feature),
        features(RECONSTRUCTED, lead=("subject",)).chunk(image=reconstructed, subject=1),
    )
    np.testing.assert_allclose(fid(*pair), [by_root(TRUE, r) for r in RECONSTRUCTED], rtol=1e-9)
    whole = kid(features(TRUE), features(RECONSTRUCTED, lead=("subject",)), n_subsets=3)
    np.testing.assert_allclose(kid(*pair, n_subsets=3)["kid"], whole["kid"], rtol=1e-12)


def test_nothing_is_computed_before_it_is_asked_for():
    pair = features(TRUE).chunk(image=7), features(RECONSTRUCTED[0]).chunk(image=9)
    with computes_at_most(0):
        found = kid(*pair).assign(fid=fid(*pair))
    with computes_at_most(1):
        found.compute()


def by_pairs(x, y):
    """Sum the kernel over all pairs, an image and itself left out."""

    def kernel(a, b):
        return (a @ b / a.size + 1) ** 3

    within = [
        np.mean([kernel(rows[i], rows[j]) for i, j in itertools.permutations(range(len(rows)), 2)])
        for rows in (x, y)
    ]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kid_of_whole_sets_is_the_sum_over_pairs():
    found = kid(features(TRUE[:15]), features(RECONSTRUCTED[0, :15]), subset_size=15)
    expected = by_pairs(TRUE[:15], RECONSTRUCTED[0, :15])
    np.testing.assert_allclose(found["kid"], expected, rtol=1e-10)
    # All subsets are the same, so that nothing lies between the bounds.
    np.testing.assert_allclose(found["kid_interval"], expected, rtol=1e-10)


def test_the_mean_over_subsets_approaches_that_of_whole_sets():
    found = kid(
        features(TRUE), features(RECONSTRUCTED[0]), n_subsets=4000, subset_size=10, level=0.9
    )
    expected = by_pairs(TRUE, RECONSTRUCTED[0])
    lower, upper = found["kid_interval"].values
    # The spread of subsets gives the error of their mean.
    assert abs(found["kid"] - expected) < 4 * (upper - lower) / 3.3 / np.sqrt(4000)
    assert lower < expected < upper
    assert found["kid"].attrs["subset_size"] == 10


def test_kid_takes_unequal_counts_and_one_seed_gives_one_result():
    named = {"few": features(RECONSTRUCTED[0, :11]), "many": features(RECONSTRUCTED[1])}
    first, again, other = (kid(features(TRUE), named, seed=seed) for seed in (0, 0, 1))
    assert first["kid"].attrs["n_reconstructed"] == [11, 40]
    assert first["kid"].attrs["subset_size"] == 5
    xr.testing.assert_identical(first.compute(), again.compute())
    assert (first["kid"] != other["kid"]).all()


BY_SUBJECT = features(RECONSTRUCTED[:2], lead=("subject",)).assign_coords(subject=["s1", "s2"])


@pytest.mark.parametrize("verb", [fid, kid])
@pytest.mark.parametrize(
    ("true", "reconstructed", "message"),
    [
        (features(TRUE), features(TRUE[:, :4]), "has 4 features, the true images 6"),
        (features(TRUE[:1]), features(TRUE[:1]), "takes two images or more"),
        (features(TRUE[None], lead=("subject",)), features(TRUE), "expected image and feature"),
        (features(TRUE), {"a": features(TRUE), "b": features(TRUE[None], lead=("kind",))}, "kind"),
        (features(TRUE), TRUE, "found a ndarray"),
        (features(TRUE), {"a": BY_SUBJECT, "b": BY_SUBJECT[::-1]}, "b has other labels than a"),
    ],
)
def test_what_cannot_be_compared_is_refused(verb, true, reconstructed, message):
    with pytest.raises(SchemaError, match=message):
        verb(true, reconstructed)


@pytest.mark.parametrize("verb", [fid, kid])
def test_features_that_are_not_finite_are_refused(verb):
    broken = TRUE.copy()
    broken[4, 2] = np.inf
    with pytest.raises(ModelError, match="features of images has NaN or infinite"):
        verb(features(TRUE), features(broken)).compute()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n_subsets": 0}, ValueError),
        ({"subset_size": 1}, ValueError),
        ({"level": 95}, ValueError),
        ({"subset_size": 41}, SchemaError),
    ],
)
def test_settings_out_of_range_are_refused(options, error):
    with pytest.raises(error, match="subset_size"):
        kid(features(TRUE), features(TRUE), **options)
