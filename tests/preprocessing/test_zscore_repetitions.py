"""z-scores and means against scikit-learn and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

import nedx
from nedx.errors import SelectionError
from nedx.preprocessing.repetitions import average_repetitions, stack_repetitions
from nedx.preprocessing.whitening import whiten
from nedx.preprocessing.zscore import zscore
from tests.laziness import computes_at_most
from tests.preprocessing.trials import make_trials


def scaled(fitted, values):
    scaler = StandardScaler().fit(fitted.reshape(len(fitted), -1))
    return scaler.transform(values.reshape(len(values), -1)).reshape(values.shape)


def test_session_scope_is_a_standard_scaler_for_each_session(rng):
    values = rng.normal(3, 2, (30, 4, 5))
    session = rng.permutation(np.repeat([1, 2, 3], 10))
    found = zscore(make_trials(values, session=session, chunk=7))
    for one in (1, 2, 3):
        here = session == one
        expected = scaled(values[here], values[here])
        np.testing.assert_allclose(found.response.values[here], expected, atol=1e-5)
    attrs = found.response.attrs
    assert (attrs["units"], attrs["normalization"]) == ("1", "zscore")
    assert attrs["normalization_scope"] == "session"
    assert found.attrs["preprocessing"] == [{"step": "zscore", "scope": "session", "fit": "all"}]
    nedx.validate(found)


def test_training_scope_never_looks_at_test_data(rng):
    values = rng.normal(3, 2, (30, 4, 5))
    partition = np.where(np.arange(30) % 3, "train", "test")
    train = partition == "train"
    values[~train] += 50
    found = zscore(make_trials(values, partition=partition, chunk=4), "train")
    np.testing.assert_allclose(found.response.values, scaled(values[train], values), atol=1e-4)
    assert found.response.attrs["normalization_scope"] == "train"


def test_runs_repetitions_and_what_does_not_vary(rng):
    values = rng.normal(size=(12, 2, 3)).astype(np.float32)
    values[:, 1] = 4
    ds = make_trials(values, session=np.ones(12)).assign_coords(run=("trial", np.arange(12) // 6))
    found = zscore(ds, "run").response.values
    np.testing.assert_allclose(found[:6, 0], scaled(values[:6], values[:6])[:, 0], atol=1e-5)
    assert (found[:, 1] == 0).all()
    stacked = stack_repetitions(ds.drop_vars("session")).drop_vars("run")
    stacked = stacked.assign_coords(session=("image", [1, 1, 1, 2, 2, 2]))
    both = zscore(stacked).response
    assert both.dims == ("image", "repetition", "channel", "time")
    first = both.values[:3, :, 0].reshape(6, -1)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(first.std(0), 1, atol=1e-5)


def test_voxels_without_time(rng):
    values = rng.normal(size=(20, 6)).astype(np.float32)
    ds = nedx.parse(
        xr.Dataset(
            {"response": (("image", "voxel"), values, {"units": "percent", "source": "measured"})},
            {
                "image_id": ("image", [f"nsd:{i:05d}" for i in range(20)]),
                "session": ("image", np.repeat([1, 2], 10)),
                "voxel": np.arange(6),
            },
            {"modality": "fmri"},
        )
    )
    found = zscore(ds).response.values
    np.testing.assert_allclose(found[10:], scaled(values[10:], values[10:]), atol=1e-5)


@settings(max_examples=10)
@given(chunk=st.integers(1, 30))
def test_zscores_do_not_depend_on_chunks(chunk):
    values = np.random.default_rng(1).normal(100, 2, (30, 3, 4))
    whole = zscore(make_trials(values)).response.values
    cut = zscore(make_trials(values, chunk=chunk)).response.values
    np.testing.assert_allclose(cut, whole, atol=2e-6)


def test_repetitions_are_stacked_in_their_order(rng):
    values = rng.normal(size=(12, 2, 3)).astype(np.float32)
    images = np.array([3, 1, 3, 1, 2, 2, 3, 1, 2, 1, 2, 3])
    repetition = np.array([2, 0, 1, 1, 0, 3, 3, 2, 1, 3, 2, 0], np.int16)
    ds = make_trials(values, images=images, chunk=5)
    ds = ds.assign_coords(repetition=("trial", repetition), concept=("trial", images.astype(str)))
    with computes_at_most(0):
        stacked, mean = stack_repetitions(ds), average_repetitions(ds)
    assert stacked.response.shape == (3, 4, 2, 3)
    assert stacked.image_id.values.tolist() == ["things:im_003", "things:im_001", "things:im_002"]
    for row, image in enumerate((3, 1, 2)):
        for one in range(4):
            (trial,) = np.flatnonzero((images == image) & (repetition == one))
            np.testing.assert_array_equal(stacked.response.values[row, one], values[trial])
        expected = values[images == image].mean(0)
        np.testing.assert_allclose(mean.response.values[row], expected, atol=1e-6)
    assert stacked.concept.dims == mean.concept.dims == ("image",)
    assert stacked.session.dims == ("image", "repetition")
    assert "session" not in mean.coords
    again = average_repetitions(stacked)
    np.testing.assert_allclose(again.response.values, mean.response.values, atol=1e-6)
    assert again.n_repetitions.values.tolist() == mean.n_repetitions.values.tolist() == [4] * 3
    for made in (stacked, mean, again):
        nedx.validate(made)


@settings(max_examples=10)
@given(chunk=st.integers(1, 17), seed=st.integers(0, 100))
def test_means_of_ragged_repetitions(chunk, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 5, 17)
    values = rng.normal(size=(17, 2, 2)).astype(np.float32)
    mean = average_repetitions(make_trials(values, images=images, chunk=chunk))
    for row, name in enumerate(mean.image_id.values):
        here = images == int(name[-3:])
        np.testing.assert_allclose(mean.response.values[row], values[here].mean(0), atol=1e-6)
        assert mean.n_repetitions.values[row] == here.sum()


def test_labels_of_several_columns_are_kept(rng):
    """As motion parameters of trials, or codes of their images."""
    ds = make_trials(rng.standard_normal((6, 2, 3)))
    motion, code = rng.standard_normal((6, 4)), rng.standard_normal((3, 2))[np.arange(6) // 2]
    ds = ds.assign_coords(motion=(("trial", "axis"), motion), code=(("bit", "trial"), code.T))
    stacked = stack_repetitions(ds)
    assert stacked["motion"].dims == ("image", "repetition", "axis")
    np.testing.assert_array_equal(stacked["motion"].values, motion.reshape(3, 2, 4))
    mean = average_repetitions(ds)
    assert "motion" not in mean.coords
    for some in (stacked, mean):
        assert some["code"].dims == ("image", "bit")
        np.testing.assert_array_equal(some["code"].values, code[::2])


def test_what_cannot_be_done(rng):
    values = rng.normal(size=(6, 2, 3))
    ds = make_trials(values, images=[0, 0, 0, 1, 1, 2])
    with pytest.raises(SelectionError, match="1 to 3 repetitions.*count=1"):
        stack_repetitions(ds)
    with pytest.raises(SelectionError, match="count is 1 to 1"):
        stack_repetitions(ds, 2)
    assert stack_repetitions(ds, 1).response.shape == (3, 1, 2, 3)
    mean = average_repetitions(ds)
    with pytest.raises(SelectionError, match="dimensions are: image"):
        average_repetitions(mean)
    with pytest.raises(SelectionError, match="scope is one of"):
        zscore(ds, "baseline")
    with pytest.raises(SelectionError, match="fit is 'all' or 'train', not 'test'"):
        zscore(ds, "session", fit="test")
    with pytest.raises(SelectionError, match="no trial is of the partition 'train'"):
        zscore(ds.assign_coords(partition=("trial", ["test"] * 6)), "train")


def test_zscores_of_whitened_responses_do_not_say_what_whitening_was_fitted_to(rng):
    white = whiten(make_trials(rng.normal(size=(24, 3, 4))))
    attrs = zscore(white, "train").response.attrs
    assert attrs["normalization"] == "zscore"
    assert "normalization_fit" not in attrs


def test_the_accessor_does_the_same(rng):
    ds = make_trials(rng.normal(size=(24, 3, 4)))
    xr.testing.assert_identical(ds.ned.zscore("train").compute(), zscore(ds, "train").compute())
    xr.testing.assert_identical(ds.ned.whiten().compute(), whiten(ds).compute())
    stacked = stack_repetitions(ds, 2).compute()
    xr.testing.assert_identical(ds.ned.stack_repetitions(2).compute(), stacked)
    mean = average_repetitions(ds).compute()
    xr.testing.assert_identical(ds.ned.average_repetitions().compute(), mean)
