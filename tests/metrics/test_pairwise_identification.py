"""Identification against distances of scipy and counting, pair by pair."""

import itertools

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from nedx.errors import SchemaError
from nedx.metrics.identification import (
    image_identification,
    pairwise_identification,
    pattern_cross_correlation,
)
from tests.laziness import computes_at_most
from tests.metrics.decoded import SHAPES, layer, layers, named


def flat(array, dims=1):
    return array.values.reshape(*array.shape[:dims], -1)


def similarity(predicted, true, metric):
    """Of finite units; NaN where one is constant."""
    kept = np.isfinite(predicted).all(0) & np.isfinite(true).all(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - cdist(predicted[:, kept], true[:, kept], metric)


def fractions(similar, own):
    """Count as published, a prediction at a time."""
    found = []
    for row, true in zip(similar, own, strict=True):
        others = row[~np.isnan(row)]
        wrong = np.isnan(row[true])
        found.append(np.nan if wrong else np.sum(others < row[true]) / (others.size - 1))
    return np.array(found)


@pytest.mark.parametrize("metric", ["correlation", "euclidean"])
def test_it_is_the_published_count(metric):
    true, decoded = layer(noise=2.0)
    true[2, 0, 0, 0] = np.nan
    decoded[1, 3, 1, 1, 1] = np.nan
    order = np.random.default_rng(0).permutation(12)
    found = pairwise_identification(true, decoded.isel(image=order), metric=metric)
    assert found.dims == ("subject", "image")
    assert found.attrs["n_candidates"] == 12
    for s in range(2):
        wanted = fractions(similarity(flat(decoded[s]), flat(true), metric), np.arange(12))
        np.testing.assert_allclose(found[s], wanted[order])
    # Neither all nor nothing was identified, so that the counts are told apart.
    assert 0.5 < float(found.mean()) < 1


@pytest.mark.parametrize("metric", ["correlation", "euclidean"])
def test_ties_are_failures_even_where_products_round(metric):
    rng = np.random.default_rng(0)
    values = np.repeat(rng.standard_normal((6, 501)), 2, axis=0).astype("f4") + np.float32(50)
    true = named(values, ["image", "unit"])
    noisy = values + rng.standard_normal(values.shape).astype("f4")
    for predicted in (values, noisy):
        found = pairwise_identification(true, named(predicted, ["image", "unit"]), metric=metric)
        np.testing.assert_allclose(found, 10 / 11)


def test_constant_candidates_are_no_candidates_and_constant_predictions_nan():
    true, decoded = layer(noise=2.0)
    true[5] = 0.1
    decoded[0, 7] = 0.1
    found = pairwise_identification(true, decoded).values
    similar = similarity(flat(decoded[1]), flat(true), "correlation")
    similar[:, 5] = np.nan
    np.testing.assert_allclose(found[1], fractions(similar, np.arange(12)))
    assert np.flatnonzero(np.isnan(found[0])).tolist() == [5, 7]


def test_trials_are_identified_one_by_one_or_as_the_mean_of_their_image():
    true, decoded = layer(noise=3.0)
    rng = np.random.default_rng(1)
    shown = np.concatenate([np.arange(12), rng.integers(0, 12, 10)])
    trials = decoded[0].isel(image=shown).rename(image="trial")
    trials = trials + 0.5 * rng.standard_normal(trials.shape)
    found = pairwise_identification(true, trials, form="trial")
    similar = similarity(flat(trials), flat(true), "correlation")
    assert found.dims == ("trial",)
    np.testing.assert_allclose(found, fractions(similar, shown))
    means = np.stack([flat(trials)[shown == i].mean(axis=0) for i in range(12)])
    mean = pairwise_identification(true, trials)
    assert list(mean.image_id.values) == list(true.image_id.values)
    wanted = fractions(similarity(means, flat(true), "correlation"), np.arange(12))
    np.testing.assert_allclose(mean, wanted)
    # Candidates that nobody predicted count in this form only.
    few = trials.isel(trial=[3, 8])
    np.testing.assert_allclose(pairwise_identification(true, few, form="trial"), found[[3, 8]])
    with pytest.raises(SchemaError, match="2 images are predicted, but there are 12 candidates"):
        pairwise_identification(true, few)


def test_repetitions_are_kept_or_averaged():
    true, decoded = layer(noise=3.0, subjects=4)
    repeated = decoded.drop_vars("subject").rename(subject="repetition")
    by_trial = pairwise_identification(true, repeated, form="trial")
    assert by_trial.sizes == {"repetition": 4, "image": 12}
    similar = similarity(flat(decoded.mean("subject")), flat(true), "correlation")
    mean = pairwise_identification(true, repeated)
    np.testing.assert_allclose(mean, fractions(similar, np.arange(12)))


def test_more_images_than_a_block_holds():
    rng = np.random.default_rng(0)
    true = rng.standard_normal((600, 4))
    predicted = true + rng.standard_normal(true.shape)
    for metric in ("correlation", "euclidean"):
        found = pairwise_identification(
            *(named(a, ["image", "unit"]) for a in (true, predicted)), metric=metric
        )
        wanted = fractions(similarity(predicted, true, metric), np.arange(600))
        np.testing.assert_allclose(found, wanted)


def test_of_so_many_ways_it_is_the_mean_over_all_draws():
    true, decoded = layer(images=8, noise=2.5)
    ways = (2, 3, 5)
    similar = similarity(flat(decoded[0]), flat(true), "correlation")
    for top in (1, 2):
        found = image_identification(true, decoded[0], ways=ways, top=top)
        assert found.dims == ("way", "image")
        np.testing.assert_allclose(found.chance, [min(top / way, 1) for way in ways])
        for way, image in itertools.product(ways, range(8)):
            others = [i for i in range(8) if i != image]
            hits = [
                np.sum(similar[image, list(drawn)] >= similar[image, image]) < top
                for drawn in itertools.combinations(others, way - 1)
            ]
            assert float(found.sel(way=way)[image]) == pytest.approx(np.mean(hits))
    pairwise = pairwise_identification(true, decoded[0])
    two = image_identification(true, decoded[0], ways=(2,))
    np.testing.assert_allclose(two.sel(way=2), pairwise, atol=1e-12)


def test_layers_are_labelled():
    true, decoded = layers()
    found = pairwise_identification(true, decoded)
    assert found.dims == ("layer", "subject", "image")
    ways = image_identification(true, decoded, ways=(2, 4))
    assert ways.dims == ("layer", "way", "subject", "image")
    for name in SHAPES:
        one = true[f"feature_{name}"], decoded[f"feature_{name}"]
        np.testing.assert_array_equal(found.sel(layer=name), pairwise_identification(*one))


def test_every_pattern_with_every_other():
    true, decoded = layer()
    found = pattern_cross_correlation(true, decoded.isel(image=[3, 1]))
    assert found.dims == ("subject", "image", "candidate")
    assert list(found.candidate_id.values) == list(true.image_id.values)
    for s in range(2):
        wanted = np.corrcoef(flat(decoded[s])[[3, 1]], flat(true))[:2, 2:]
        np.testing.assert_allclose(found[s], wanted, atol=1e-12)


@given(
    images=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    units=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    metric=st.sampled_from(["correlation", "euclidean"]),
)
@settings(max_examples=15, deadline=None)
def test_any_chunking_gives_the_same(images, units, metric):
    true, decoded = layer(images=sum(images), shape=(sum(units) + 2,))
    decoded[1, 0, 0] = np.nan
    lazy = true.chunk(image=tuple(images)), decoded.chunk(image=2, unit_0=4)
    with computes_at_most(0):
        found = pairwise_identification(*lazy, metric=metric)
    assert dask.is_dask_collection(found)
    whole = pairwise_identification(true, decoded, metric=metric)
    np.testing.assert_array_equal(found.compute(scheduler="sync"), whole.compute(scheduler="sync"))


def test_what_does_not_fit_is_named():
    true, decoded = layer()
    with pytest.raises(SchemaError, match="one candidate only"):
        pairwise_identification(true[:1], decoded[:, :1])
    with pytest.raises(SchemaError, match="3 predicted images are not true"):
        pairwise_identification(true[3:], decoded, form="trial")
    with pytest.raises(ValueError, match="metric is 'correlation' or 'euclidean'"):
        pairwise_identification(true, decoded, metric="cosine")
    with pytest.raises(ValueError, match="form is 'label' or 'trial'"):
        pairwise_identification(true, decoded, form="image")
    with pytest.raises(ValueError, match="12 candidates are no 50 ways"):
        image_identification(true, decoded, ways=(2, 50))
    with pytest.raises(ValueError, match="ways are at least 2"):
        image_identification(true, decoded, ways=(1,))


@pytest.mark.parametrize("metric", ["correlation", "euclidean"])
def test_identical_wide_sets_are_never_identified_more_than_always(metric):
    # Of so many products two ways to add them up differ by more than of a few.
    for seed in range(4):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((5, 190_000)).astype(np.float32)
        labels = {"image_id": ("image", [f"set:{i}" for i in range(5)])}
        wide = xr.DataArray(values, dims=("image", "unit"), coords=labels)
        np.testing.assert_array_equal(pairwise_identification(wide, wide, metric=metric), 1.0)
