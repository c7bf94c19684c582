"""Two-way identification and distances of features, against the definition written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from nedx.errors import ModelError, SchemaError, SelectionError
from nedx.metrics.images import clip_similarity, correlation_distance, two_way_identification
from tests.laziness import computes_at_most
from tests.metrics.images.pictures import features

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(23, 9))
RECONSTRUCTED = TRUE + RNG.normal(scale=[[[1.0]], [[3.0]]], size=(2, 23, 9))
METRICS = ["correlation", "euclidean"]


def identified(true, reconstructed, metric):
    """Return the score of each reconstruction, column by column."""
    similarity = 1 - cdist(true, reconstructed, metric)
    scores = []
    for j in range(len(reconstructed)):
        own = similarity[j, j]
        scores.append(sum(similarity[i, j] < own for i in range(len(true))) / (len(true) - 1))
    return scores


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_the_definition(metric):
    found = two_way_identification(
        features(TRUE), features(RECONSTRUCTED, lead=("subject",)), metric=metric
    )
    expected = [identified(TRUE, rows, metric) for rows in RECONSTRUCTED]
    np.testing.assert_allclose(found, expected)
    assert found.dims == ("subject", "image")
    assert found.attrs["n_images"] == 23


def test_rows_and_columns_are_not_the_same():
    one_way = two_way_identification(features(TRUE), features(RECONSTRUCTED[1])).mean()
    other_way = two_way_identification(features(RECONSTRUCTED[1]), features(TRUE)).mean()
    assert abs(one_way - other_way) > 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_equal_sets_score_one(metric):
    found = two_way_identification(features(TRUE), features(TRUE), metric=metric)
    np.testing.assert_array_equal(found, 1)


def test_random_features_score_a_half():
    true, other = RNG.normal(size=(2, 300, 40))
    found = two_way_identification(features(true), features(other))
    # The standard error of the mean is about 0.29 / sqrt(300).
    assert abs(found.mean() - 0.5) < 4 * 0.29 / np.sqrt(300)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_are_failures(metric):
    true = np.repeat(RNG.normal(size=(4, 7)) * 1e3 + 0.1, 2, axis=0)
    found = two_way_identification(features(true), features(true), metric=metric)
    np.testing.assert_allclose(found, 6 / 7)


def test_a_constant_is_never_identified_and_never_beaten():
    true, reconstructed = TRUE.copy(), TRUE.copy()
    reconstructed[3] = 0.1
    true[5] = 0.3
    found = two_way_identification(features(true), features(reconstructed)).values
    # 3 has no similarity with any image, 5 none with its own.
    assert found[3] == found[5] == 0
    np.testing.assert_allclose(np.delete(found, [3, 5]), 21 / 22)


@pytest.mark.parametrize("metric", METRICS)
def test_wide_features_are_no_less_certain(metric):
    rng = np.random.default_rng(5)
    wide = np.maximum(rng.normal(size=(5, 190_000)), 0).astype(np.float32) + 0.3
    wide[4] = wide[3]
    found = two_way_identification(features(wide), features(wide), metric=metric)
    np.testing.assert_array_equal(found, [1, 1, 1, 0.75, 0.75])


def test_several_trials_of_an_image_do_not_count_as_others():
    ids = [f"set:{i}" for i in (4, 4, 0, 11, 4)]
    rows = TRUE[[4, 4, 0, 11, 4]]
    found = two_way_identification(features(TRUE), features(rows, ids=ids, sample="trial"))
    assert found.dims == ("trial",)
    np.testing.assert_array_equal(found, 1)
    assert found.attrs["n_images"] == 3


def test_images_are_joined_by_name_and_others_left_out():
    order = RNG.permutation(23)[:11]
    ids = [f"set:{i}" for i in order]
    found = two_way_identification(features(TRUE), features(RECONSTRUCTED[1, order], ids=ids))
    expected = identified(TRUE[order], RECONSTRUCTED[1, order], "correlation")
    np.testing.assert_allclose(found, expected)


def test_maps_are_flattened():
    maps = features(TRUE).expand_dims(y=1).transpose("image", "feature", "y")
    found = two_way_identification(maps, maps)
    np.testing.assert_array_equal(found, 1)


@settings(max_examples=10)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 9), st.sampled_from(METRICS))
def test_chunks_make_no_difference(image, other, feature, metric):
    true = features(TRUE).chunk(image=image, feature=feature)
    reconstructed = features(RECONSTRUCTED, lead=("subject",)).chunk(image=other, subject=1)
    found = two_way_identification(true, reconstructed, metric=metric)
    expected = [identified(TRUE, rows, metric) for rows in RECONSTRUCTED]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(
        correlation_distance(true, reconstructed), distances("correlation"), atol=1e-12
    )


def distances(metric):
    return [np.diag(cdist(TRUE, rows, metric)) for rows in RECONSTRUCTED]


def test_distances_are_those_of_scipy():
    pair = features(TRUE), features(RECONSTRUCTED, lead=("subject",))
    np.testing.assert_allclose(correlation_distance(*pair), distances("correlation"), atol=1e-12)
    np.testing.assert_allclose(clip_similarity(*pair), 1 - np.array(distances("cosine")))
    np.testing.assert_allclose(clip_similarity(pair[0], pair[0]), 1)


def test_nothing_is_computed_before_it_is_asked_for():
    pair = features(TRUE).chunk(image=5), features(RECONSTRUCTED, lead=("subject",)).chunk(image=4)
    with computes_at_most(0):
        verbs = [two_way_identification, correlation_distance, clip_similarity]
        found = [verb(*pair) for verb in verbs]
    with computes_at_most(1):
        found[0].compute()


def test_features_that_are_not_finite_are_refused():
    broken = TRUE.copy()
    broken[4, 2] = np.nan
    with pytest.raises(ModelError, match="features of images has NaN or infinite values for 1"):
        two_way_identification(features(TRUE), features(broken)).compute()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((features(TRUE), features(TRUE[:, :5])), "same network and layer"),
        ((features(TRUE).drop_vars("image_id"), features(TRUE)), "nothing is joined by position"),
        ((features(TRUE[:1]), features(TRUE[:1])), "one image only"),
        ((features(TRUE).to_dataset(name="embedding"), features(TRUE)), "expected a DataArray"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair, message):
    with pytest.raises(SchemaError, match=message):
        two_way_identification(*pair)


def test_images_that_are_not_there_are_named():
    with pytest.raises(SelectionError, match="1 reconstructions are not there: set:22"):
        two_way_identification(features(TRUE[:22]), features(TRUE))


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric is 'correlation' or 'euclidean'"):
        two_way_identification(features(TRUE), features(TRUE), metric="dot")
