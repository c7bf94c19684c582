"""Scores of retrieval: check values, simulated draws, scipy and scikit-learn."""

from __future__ import annotations

import pickle
from math import comb

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from sklearn.metrics import label_ranking_average_precision_score

import nedx
from nedx.errors import SchemaError
from nedx.metrics.retrieval import Floor, assign_one_to_one, merged, search
from nedx.metrics.retrieval_scores import expected_top
from nedx.metrics.similarity import SIMILARITIES, pair_scores

CANDIDATES = 200


def found(ranks: np.ndarray, **variables) -> xr.Dataset:
    """Return what retrieve would, of these ranks ([subject,] image)."""
    dims = ("subject", "image")[-ranks.ndim :]
    return xr.Dataset(
        {"rank": (dims, ranks, {"metric": "cosine"}), **variables},
        {"retrieval_task": "exact_image", "n_candidates": CANDIDATES},
    )


def test_check_values_of_the_closed_form():
    assert expected_top(np.array([8]), 200, 10, 1)[0] == pytest.approx(0.71959, abs=5e-6)
    assert expected_top(np.array([8]), 200, 50, 5)[0] == pytest.approx(0.98934, abs=5e-6)


@pytest.mark.parametrize("way", [1, 2, 10, 50, 199, 200])
def test_top_1_is_a_ratio_of_binomials(way):
    others = np.array([0, 1, 7, 60, 150, 199])
    expected = [comb(199 - r, way - 1) / comb(199, way - 1) for r in others.tolist()]
    np.testing.assert_allclose(expected_top(others + 1, 200, way, 1), expected, rtol=1e-12)


def test_all_candidates_leave_nothing_to_chance():
    ranks = np.arange(1, 201)
    np.testing.assert_array_equal(expected_top(ranks, 200, 200, 1), ranks == 1)
    np.testing.assert_array_equal(expected_top(ranks, 200, 200, 5), ranks <= 5)


def test_the_closed_form_is_the_mean_of_draws():
    rng = np.random.default_rng(0)
    for rank, way, top in ((8, 10, 1), (30, 50, 5), (120, 4, 2)):
        others = rng.permuted(np.tile(np.arange(199), (20_000, 1)), axis=1)[:, : way - 1]
        drawn = ((others < rank - 1).sum(axis=1) < top).mean()
        expected = expected_top(np.array([rank]), 200, way, top)[0]
        assert abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-9


def test_random_scores_are_at_chance():
    ranks = np.random.default_rng(0).integers(1, CANDIDATES + 1, 20_000)
    scores = nedx.retrieval_scores(found(ranks), n_resamples=100)
    for name in ("top1", "top5", "mean_average_precision", "median_rank"):
        chance = scores[f"{name}_chance"]
        spread = {"median_rank": 2.0, "mean_average_precision": 0.003}.get(name, 0.015)
        assert (np.abs(scores[name] - chance) < spread).all(), name
    assert scores["top1_chance"].sel(way=10).item() == 0.1
    assert scores["top5_chance"].sel(way=50).item() == 0.1
    # All ranks once are chance itself.
    exact = nedx.retrieval_scores(found(np.arange(1, CANDIDATES + 1)), n_resamples=10)
    for name in ("top1", "top5", "mean_average_precision", "median_rank"):
        np.testing.assert_allclose(exact[name], exact[f"{name}_chance"], rtol=1e-9)


def test_scores_of_one_subject_have_intervals_over_images():
    rng = np.random.default_rng(1)
    ranks = rng.geometric(0.1, 300).clip(1, CANDIDATES)
    similarity = rng.standard_normal(300).astype(np.float32)
    ds = found(ranks, similarity_true=(("image",), similarity))
    scores = nedx.retrieval_scores(ds, ways=(2, 50), top=(1, 3), n_resamples=5000)
    assert scores["median_rank"].item() == np.median(ranks)
    assert scores["mean_similarity"].item() == pytest.approx(similarity.mean(dtype=np.float64))
    guesses = -np.ones((300, CANDIDATES)) * np.arange(CANDIDATES)
    truth = np.arange(CANDIDATES) == ranks[:, None] - 1
    expected = label_ranking_average_precision_score(truth, guesses)
    assert scores["mean_average_precision"].item() == pytest.approx(expected)
    each = expected_top(ranks, CANDIDATES, 50, 3)
    assert scores["top3"].sel(way=50).item() == pytest.approx(each.mean())
    interval = stats.bootstrap((each,), np.mean, method="percentile", n_resamples=5000, rng=0)
    low, high = interval.confidence_interval
    step = (high - low) / 10
    assert abs(scores["top3_interval"].sel(way=50, bound="lower") - low) < step
    assert abs(scores["top3_interval"].sel(way=50, bound="upper") - high) < step
    assert "median_rank_interval" not in scores
    assert scores.attrs["interval"] == "percentile bootstrap over image"


def test_scores_of_subjects_have_the_interval_of_student():
    ranks = np.random.default_rng(2).geometric(0.1, (10, 50)).clip(1, CANDIDATES)
    scores = nedx.retrieval_scores(found(ranks), ways=[10])
    each = expected_top(ranks, CANDIDATES, 10, 1).mean(axis=1)
    np.testing.assert_allclose(scores["top1"].sel(way=10), each)
    assert scores["top1_mean"].item() == pytest.approx(each.mean())
    low, high = stats.t.interval(0.95, 9, each.mean(), stats.sem(each))
    np.testing.assert_allclose(scores["top1_interval"].sel(way=10), [low, high])
    medians = np.median(ranks, axis=1)
    low, high = stats.t.interval(0.95, 9, medians.mean(), stats.sem(medians))
    np.testing.assert_allclose(scores["median_rank_interval"], [low, high])
    one = nedx.retrieval_scores(found(ranks).isel(subject=[3]), ways=[10])
    assert one["top1"].sizes == {"subject": 1, "way": 1}
    assert one.attrs["interval"] == "percentile bootstrap over image"


def test_default_ways_are_those_published_and_all():
    ds = found(np.array([1, 2, 3]))
    assert nedx.retrieval_scores(ds)["way"].values.tolist() == [2, 4, 10, 50, 100, 200]
    small = nedx.retrieval_scores(ds.assign_coords(n_candidates=20))
    assert small["way"].values.tolist() == [2, 4, 10, 20]


def test_bad_input_is_told():
    ds = found(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="ways are 1 to 200, the size of the gallery"):
        nedx.retrieval_scores(ds, ways=(2, 500))
    with pytest.raises(SchemaError, match=r"type ds\.ned\.retrieve\(gallery\)"):
        nedx.retrieval_scores(ds.drop_vars("rank"))
    with pytest.raises(SchemaError, match="no coordinate 'n_candidates'"):
        nedx.retrieval_scores(ds.drop_vars("n_candidates"))
    with pytest.raises(ValueError, match="top are numbers from 1"):
        nedx.retrieval_scores(ds, top=(0, 5))
    with pytest.raises(SchemaError, match="none of these images has a true match"):
        nedx.retrieval_scores(ds.assign_coords(in_gallery=("image", [False] * 3)))
    other = ds.assign_coords(n_candidates=1000)
    with pytest.raises(SchemaError, match=r"n_candidates is \[200, 1000\]"):
        nedx.retrieval_scores(xr.concat([ds, other], "model"))


def test_parts_of_a_gallery_merge_into_what_the_whole_gives():
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((9, 12)).astype(np.float32)
    rows = rng.standard_normal((5000, 12)).astype(np.float32)
    true = np.arange(0, 4500, 500)
    truth = pair_scores(queries, rows, np.arange(9), true, "cosine"), true
    options = {"k": 4, "similarity": "cosine"}
    whole = search(queries, truth, [rows], start=0, **options)
    starts = [0, 3, 2100, 2101, 5000]
    parts = [
        search(queries, truth, [rows[a:b]], start=a, **options)
        for a, b in zip(starts[:-1], starts[1:], strict=True)
    ]
    together = merged([merged(parts[:2]), merged(parts[2:])])
    for name in ("scores", "positions", "above", "tied"):
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_rough_products_change_nothing(similarity, offset):
    rng = np.random.default_rng(4)
    rows = (offset + rng.standard_normal((6000, 64))).astype(np.float16)
    rows[3000:3200] = rows[:200]
    true = np.arange(0, 6000, 150)
    noise = rng.standard_normal((40, 64)) * rng.uniform(0.1, 9, (40, 1))
    queries = (rows[true] + noise).astype(np.float32)
    truth = pair_scores(queries, rows, np.arange(40), true, similarity), true
    options = {"start": 0, "k": 6, "similarity": similarity}
    rough, fine = (search(queries, truth, [rows], rough=r, **options) for r in (True, False))
    query, row = (index.ravel() for index in np.indices((40, 6000)))
    scores = pair_scores(queries, rows, query, row, similarity).reshape(40, 6000)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :6]
    level = truth[0][:, np.newaxis]
    for found in (rough, fine):
        np.testing.assert_array_equal(found.positions, order)
        np.testing.assert_array_equal(found.above, (scores > level).sum(axis=1))
        np.testing.assert_array_equal(found.tied, (scores == level).sum(axis=1) - 1)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("rough", [False, True])
def test_tasks_that_share_a_floor_find_the_same_in_any_order(similarity, rough):
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((3000, 32)).astype(np.float16)
    rows[2000:2300] = rows[:300]
    queries = rng.standard_normal((20, 32)).astype(np.float32)
    true = np.arange(0, 3000, 150)
    truth = pair_scores(queries, rows, np.arange(20), true, similarity), true
    query, row = (index.ravel() for index in np.indices((20, 3000)))
    scores = pair_scores(queries, rows, query, row, similarity).reshape(20, 3000)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    floor, options = Floor(20), {"k": 5, "similarity": similarity, "rough": rough}
    starts = rng.permutation(np.arange(0, 3000, 250))
    parts = [search(queries, truth, [rows[a : a + 250]], floor, start=a, **options) for a in starts]
    together = merged(parts)
    np.testing.assert_array_equal(together.positions, order)
    np.testing.assert_array_equal(together.scores, np.take_along_axis(scores, order, axis=1))
    np.testing.assert_array_equal(together.above, (scores > truth[0][:, None]).sum(axis=1))
    assert (floor.scores() <= together.scores[:, -1]).all()
    # It spared work: parts that cannot hold the best gave fewer than were asked for.
    assert np.isneginf([part.scores for part in parts]).any()
    assert np.isneginf(pickle.loads(pickle.dumps(floor)).scores()).all()


def test_assignment_is_best_among_all():
    scores = np.array([[0.9, 0.8, 0.0], [0.9, 0.1, 0.0]])
    # Each alone takes the first; together the sum is largest so.
    assert assign_one_to_one(scores).tolist() == [1, 0]
