"""Variance partitioning against himalaya, sets and simulated responses."""

from __future__ import annotations

import numpy as np
import pytest
from himalaya.scoring import r2_score_split

from nedx.errors import ModelError
from nedx.linear.banded import fit_banded_ridge
from nedx.linear.variance_partitioning import nested_r2, partition_variance, product_measure


def test_product_measure_is_that_of_himalaya():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(50, 6)) + 3
    predictions = rng.normal(size=(3, 50, 6)) * 0.4 + 0.2 * (y - y.mean(0))
    expected = r2_score_split(y - y.mean(0), predictions)
    ours = product_measure(y, predictions)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    joint = 1 - ((y - y.mean(0) - predictions.sum(0)) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(ours.sum(0), joint, atol=1e-12)


def test_product_measure_of_a_constant_target_is_missing():
    assert np.isnan(product_measure(np.ones((5, 1)), np.ones((2, 5, 1)))).all()


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_parts_are_the_sizes_of_disjoint_sets(names):
    # Where R2 is the size of a union, parts are the regions of a Venn diagram.
    rng = np.random.default_rng(1)
    members = {name: rng.random((len(names) * 40, 3)) < 0.4 for name in names}
    r2, combos = {}, []
    for code in range(1, 2 ** len(names)):
        some = tuple(name for i, name in enumerate(names) if code >> i & 1)
        combos.append(some)
        r2[some] = np.any([members[name] for name in some], 0).sum(0)
    parts = partition_variance(r2)
    assert set(parts) == set(combos)
    for some in combos:
        inside = np.all([members[n] for n in some], 0)
        outside = np.any([0 * inside, *(members[n] for n in names if n not in some)], 0)
        np.testing.assert_allclose(parts[some], (inside & ~outside).sum(0))


def test_unique_and_shared_variance_of_simulated_responses():
    rng = np.random.default_rng(2)
    alone, common, other = rng.normal(size=(3, 6000, 4))
    train, test = slice(0, 4000), slice(4000, None)
    a, b = np.concatenate([alone, common], 1), np.concatenate([common, other], 1)
    share = np.array([[0.5, 0.2, 0.1], [0.0, 0.6, 0.0], [0.3, 0.0, 0.3]])
    y = np.stack(
        [
            sum(
                np.sqrt(part / 4) * x.sum(1)
                for part, x in zip(s, (alone, common, other), strict=True)
            )
            for s in share
        ],
        1,
    )
    y += rng.normal(size=y.shape) * np.sqrt(1 - share.sum(1))
    spaces = {"a": a, "b": b}
    r2 = nested_r2(
        lambda bands: fit_banded_ridge(bands, y[train], [0.01, 1.0, 100.0], 5),
        {name: x[train] for name, x in spaces.items()},
        {name: x[test] for name, x in spaces.items()},
        y[test],
    )
    parts = partition_variance(r2)
    np.testing.assert_allclose(parts["a",], share[:, 0], atol=0.04)
    np.testing.assert_allclose(parts["a", "b"], share[:, 1], atol=0.04)
    np.testing.assert_allclose(parts["b",], share[:, 2], atol=0.04)
    np.testing.assert_allclose(sum(parts.values()), r2["a", "b"], atol=1e-12)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: product_measure(x, x), r"expected \(band"),
        (lambda x: nested_r2(None, {"a": x}, {"a": x}, x), "from 2 to 4"),
        (lambda x: nested_r2(None, {"a": x, "b": x}, {"a": x, "c": x}, x), "in test"),
        (lambda x: partition_variance({("a", "b"): x[0], ("a",): x[0]}), "is missing"),
        (lambda x: partition_variance({}), "is missing"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ModelError, match=message):
        bad(np.ones((5, 2)))
