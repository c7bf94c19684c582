"""The channel experiment on responses whose signal lies in channels that we chose."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import nedx
from nedx.errors import ModelError, SchemaError, SelectionError
from nedx.insilico.chain import Chain, scores_of
from nedx.insilico.contrasts import contrast
from nedx.insilico.experiment import channel_experiment, control_sets
from tests.insilico.ideal import CARRIERS, CHANNELS, LeastSquares, Linear


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear(noise_sd=8.0)


@pytest.fixture(scope="module")
def data(linear) -> tuple[xr.Dataset, xr.Dataset]:
    return linear.draw(80, seed=1)


@pytest.fixture(scope="module")
def found(linear, data) -> xr.Dataset:
    options = {"channels": CARRIERS, "controls": 9, "seeds": range(2), "n_resamples": 400}
    return channel_experiment(None, data[0], linear.decode, data[1], **options)


def test_the_channels_of_the_signal_are_told_from_others(found):
    clean, hurt = (found.sel(condition=name).mean("seed") for name in ("clean", "perturbed"))
    assert (clean.top1 > 0.4).all()
    assert (hurt.top1 < 0.06).all()
    assert (abs(hurt.median_rank - 40) < 12).all()
    controls = found.isel(condition=slice(2, None))
    # No other channel enters the decoder at all.
    assert not set(" ".join(controls.channels.values).split()) & set(CARRIERS)
    np.testing.assert_array_equal(controls.top1, clean.top1.broadcast_like(controls.top1))
    for contrasted in ("clean", "controls"):
        against = found.sel(contrast=contrasted)
        np.testing.assert_allclose(against.top1_difference, hurt.top1 - clean.top1)
        assert (against.top1_interval.sel(bound="upper") < -0.2).all()
        assert (against.top1_interval[:, 0] <= against.top1_difference).all()
    assert (found.top1_p.sel(contrast="clean") < 0.01).all()
    np.testing.assert_allclose(found.top1_p.sel(contrast="controls"), 1 / 10)


def test_what_the_result_says_of_itself(found):
    assert found.condition.values[:3].tolist() == ["clean", "perturbed", "control-00"]
    assert found.channels.values[:2].tolist() == ["", "O1 Oz O2"]
    assert found.top1.dims == ("condition", "seed", "subject")
    assert found.top5.attrs["units"] == "1"
    said = json.loads(found.attrs["nedx_perturbation"])[0]
    assert (said["noise"], said["channels"]) == ("matched", CARRIERS)
    assert found.top1_group_p.sel(contrast="clean") == 0.5


def test_channels_without_signal_do_no_harm(linear, data):
    frontal = ["Fp1", "F3", "Fz"]
    options = {"channels": frontal, "controls": 3, "seeds": [5], "n_resamples": 100}
    found = channel_experiment(None, data[0], linear.decode, data[1], **options)
    assert not found.top1_difference.sel(contrast="clean").values.any()
    assert (found.median_rank_p.sel(contrast="clean") == 1).all()


def test_a_decoder_trained_anew_uses_what_is_left():
    linear = Linear(noise_sd=2.0, subjects=("sub-01",))
    train, targets = linear.draw(1000, seed=2, prefix="train")
    test, gallery = linear.draw(60, seed=3)
    common = {"channels": ["O1", "Oz"], "controls": 0, "seeds": [0], "n_resamples": 50}
    common |= {"noise": "gaussian", "sd": 50.0}
    fixed = LeastSquares().fit(train, targets)
    frozen = channel_experiment(None, test, fixed, gallery, **common)
    estimator = LeastSquares()
    anew = channel_experiment(
        train, test, estimator, gallery, retrain="decoder", targets=targets, **common
    )
    assert estimator.fits == 0
    top1 = [r.top1.sel(condition="perturbed").item() for r in (frozen, anew)]
    assert top1[0] < 0.1
    assert top1[1] > 0.3
    # Without controls there is nothing to compare with but the clean responses.
    assert anew.contrast.values.tolist() == ["clean"]
    np.testing.assert_array_equal(frozen.top1[0], anew.top1[0])


class Shrinking:
    """A prior that scales embeddings to the size of their targets, feature by feature."""

    def fit(self, embeddings: xr.Dataset, targets: xr.Dataset):
        x = embeddings["embedding"].values[0]
        assert embeddings["image_id"].values.tolist() == targets["image_id"].values.tolist()
        gain = (x * targets["features"].values).mean(0) / (x**2).mean(0)
        return lambda ds: ds.assign(embedding=ds["embedding"] * gain)


def test_a_prior_is_trained_on_what_is_perturbed(data):
    linear = Linear(noise_sd=8.0, subjects=("sub-01",))
    train, targets = linear.draw(500, seed=2, prefix="train")
    test, gallery = linear.draw(200, seed=4)

    def error(decoded):
        wrong = decoded["embedding"] - gallery["features"].drop_vars("image_id")
        return (wrong**2).mean("feature").to_dataset(name="error")

    options = {"channels": CARRIERS, "controls": 0, "seeds": [0], "n_resamples": 50}
    options |= {"outcome": error, "targets": targets, "prior": Shrinking()}
    anew = channel_experiment(train, test, linear.decode, retrain="prior", **options)
    frozen = channel_experiment(None, test, linear.decode, **options)
    hurt = [r.error.sel(condition="perturbed").item() for r in (frozen, anew)]
    # What carries no signal is best left at the mean: the error is the variance of the targets.
    assert hurt[0] > 1.05
    assert hurt[1] == pytest.approx(float((gallery.features**2).mean()), rel=0.02)
    assert anew.error.sel(condition="clean").item() < 0.8


def test_an_outcome_without_images_has_no_interval_over_them(linear, data):
    def width(decoded):
        return decoded["embedding"].std(("image", "feature")).to_dataset(name="width")

    options = {"channels": CARRIERS, "controls": 3, "seeds": [0], "n_resamples": 50}
    found = channel_experiment(None, data[0], linear.decode, outcome=width, **options)
    assert found.width.dims == ("condition", "seed", "subject")
    assert np.isnan(found.width_interval).all()
    assert np.isnan(found.width_p.sel(contrast="clean")).all()
    assert (found.width_p.sel(contrast="controls") == 0.25).all()


def scores(seed=0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    ranks = rng.integers(1, 40, (2, 3, 2, 50))
    ranks[1] = np.maximum(1, ranks[1] - rng.integers(0, 8, ranks[1].shape))
    return xr.Dataset({"rank": (("condition", "seed", "subject", "image"), ranks)})


def test_intervals_and_p_values_are_those_of_scipy():
    given = scores()
    found = contrast(given, 1, [0], n_resamples=4000)
    first = (given["rank"].values <= 5).mean(1)
    for subject in range(2):
        difference = first[1, subject] - first[0, subject]
        assert found.top5_difference[subject] == pytest.approx(difference.mean())
        interval = stats.bootstrap(
            (difference,), np.mean, method="percentile", n_resamples=4000, rng=1
        ).confidence_interval
        np.testing.assert_allclose(found.top5_interval[subject], interval, atol=0.012)
        tested = stats.permutation_test(
            (first[1, subject], first[0, subject]),
            lambda x, y: x.mean() - y.mean(),
            permutation_type="samples",
            n_resamples=4000,
            rng=1,
        )
        assert found.top5_p[subject] == pytest.approx(tested.pvalue, abs=0.03)
    medians = np.median(given["rank"].values, axis=-1).mean(1)
    np.testing.assert_allclose(found.median_rank_difference, medians[1] - medians[0])


def test_subjects_of_a_tree_are_those_of_a_dataset(linear, data):
    options = {"channels": CARRIERS, "controls": 2, "seeds": [0], "n_resamples": 50}
    whole = channel_experiment(None, data[0], linear.decode, data[1], **options)
    one, two = (data[0].isel(subject=s, drop=True) for s in (0, 1))
    # Real subjects saw the images in orders of their own, and some more often than others.
    one = one.assign_coords(n_repetitions=("image", np.full(80, 4)))
    two = two.isel(image=slice(None, None, -1)).assign_coords(
        n_repetitions=("image", np.arange(80))
    )
    tree = xr.DataTree.from_dict({"/sub-01": one, "/sub-02": two})
    found = channel_experiment(None, tree, linear.decode, data[1], **options)
    assert found.subject.values.tolist() == ["sub-01", "sub-02"]
    xr.testing.assert_allclose(found.top1, whole.top1)
    xr.testing.assert_allclose(found.similarity_true, whole.similarity_true)
    fewer = xr.DataTree.from_dict({"/sub-01": one, "/sub-02": two.isel(image=slice(50))})
    with pytest.raises(SelectionError, match="sub-02 saw other images than sub-01"):
        channel_experiment(None, fewer, refuse, data[1], **options)
    repeated = xr.DataTree.from_dict({"/sub-01": one.expand_dims(repetition=2)})
    with pytest.raises(SelectionError, match=r"tree\.ned\.average_repetitions"):
        channel_experiment(None, repeated, refuse, data[1], **options)
    averaged = repeated.ned.average_repetitions()
    assert (
        channel_experiment(None, averaged, linear_of(0), data[1], **options).sizes["subject"] == 1
    )


def linear_of(subject):
    return Linear(noise_sd=8.0, subjects=(f"sub-0{subject + 1}",)).decode


def test_a_decoder_trained_anew_on_a_tree():
    linear = Linear(noise_sd=2.0, subjects=("sub-01",))
    train, targets = linear.draw(300, seed=2, prefix="train")
    test, gallery = linear.draw(30, seed=3)
    seen = []

    class Fits:
        def fit(self, responses, targets):
            seen.append(responses["sub-01"].to_dataset())
            return linear.decode

    tree = xr.DataTree.from_dict({"/sub-01": train.isel(subject=0, drop=True)})
    options = {"channels": CARRIERS, "controls": 0, "seeds": [0], "n_resamples": 20}
    channel_experiment(tree, test, Fits(), gallery, retrain="decoder", targets=targets, **options)
    clean, hurt = (ds.response.sel(channel=CARRIERS).values for ds in seen)
    assert (clean != hurt).any(-1).all()


def test_images_that_the_gallery_lacks_are_not_counted_as_missed(linear, data):
    def outcome(decoded):
        part = data[1].isel(image=slice(40))
        return nedx.retrieve(decoded, part, k=1, true_match="ignore")[["rank"]]

    options = {"channels": CARRIERS, "controls": 0, "seeds": [0], "n_resamples": 20}
    found = channel_experiment(None, data[0], linear.decode, outcome=outcome, **options)
    few = data[0].isel(image=slice(40))
    same = channel_experiment(None, few, linear.decode, data[1].isel(image=slice(40)), **options)
    for name in ("top1", "median_rank", "median_rank_p"):
        xr.testing.assert_allclose(found[name], same[name])


def test_scores_that_are_nan_have_no_p_value():
    values = np.random.default_rng(0).normal(size=(4, 2, 2, 20))
    values[1, 0, 0, 3] = np.nan
    given = xr.Dataset({"score": (("condition", "seed", "subject", "image"), values)})
    for others in ([0], [0, 2, 3]):
        p = contrast(given, 1, others, n_resamples=99).score_p
        np.testing.assert_array_equal(np.isnan(p), [True, False])


def test_p_values_are_uniform_where_conditions_are_alike():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2, 1, 300, 30))
    dims = ("condition", "seed", "subject", "image")
    p = contrast(xr.Dataset({"score": (dims, values)}), 1, [0], n_resamples=199).score_p
    assert stats.kstest(p, "uniform").pvalue > 0.01
    sets = xr.Dataset({"score": (dims, rng.normal(size=(20, 1, 400, 5)))})
    p = contrast(sets, 0, range(1, 20), n_resamples=2).score_p.values
    counts = np.bincount(np.round(p * 20).astype(int), minlength=21)[1:]
    assert stats.chisquare(counts).pvalue > 0.001


def test_control_sets_are_drawn_once_each():
    others = list("abcdef")
    sets = control_sets(others, 2, math.comb(6, 2))
    assert len({tuple(s) for s in sets.values()}) == 15
    assert all(len(set(s)) == 2 and set(s) <= set(others) for s in sets.values())
    assert control_sets(others, 3, 4, seed=1) == control_sets(others, 3, 4, seed=1)
    assert control_sets(others, 3, 4, seed=1) != control_sets(others, 3, 4, seed=2)
    assert control_sets(others, 3, 0) == {}


def test_clean_responses_are_scored_once(data):
    calls = []

    def decode(ds):
        calls.append(1)
        return ds.assign(embedding=ds["response"].mean("time").rename(channel="feature"))

    def outcome(ds):
        return ds["embedding"].std("feature").to_dataset(name="sd")

    found = scores_of(Chain(decode, outcome), data[0], {"clean": None}, range(4))
    assert len(calls) == 1
    assert found.sizes == {"condition": 1, "seed": 4, "subject": 2, "image": 80}


def refuse(ds):
    raise AssertionError("nothing is decoded before what is asked for was checked")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"channels": "Ozz"}, SelectionError, "did you mean 'Oz'"),
        ({"controls": -1}, SelectionError, "-1 control sets"),
        ({"channels": CHANNELS[:7]}, SelectionError, "7 of the 6 other.*there are 0"),
        ({"controls": 400}, SelectionError, "there are 120"),
        ({"seeds": []}, SelectionError, "seeds= is empty"),
        ({"seeds": [0, -1]}, SelectionError, "whole numbers from 0, not -1"),
        ({"controls": 1.5}, SelectionError, r"1\.5 control sets"),
        ({"n_resamples": 0}, SelectionError, "n_resamples is a whole number above 0"),
        ({"noise": "pink"}, SelectionError, "unknown noise"),
        ({"time": 0.1}, SelectionError, "one sample"),
        ({"outcome": "fid"}, SelectionError, "outcome is 'retrieval'"),
        ({"gallery": None}, SelectionError, "needs a gallery"),
        ({"retrain": "encoder"}, ModelError, "None, 'prior' or 'decoder'"),
        ({"retrain": "decoder"}, ModelError, "needs responses_train= and targets="),
        ({"retrain": "prior"}, ModelError, "targets= and prior="),
        (
            {"retrain": "decoder", "responses_train": xr.Dataset(), "targets": xr.Dataset()},
            ModelError,
            r"no fit\(\)",
        ),
        (
            {
                "retrain": "prior",
                "responses_train": xr.DataTree(),
                "targets": xr.Dataset(),
                "prior": Shrinking(),
            },
            ModelError,
            "trained on one Dataset.*to_dataset",
        ),
    ],
)
def test_bad_requests_are_told_before_anything_is_decoded(data, options, error, says):
    given = {"responses_train": None, "gallery": data[1], "channels": CARRIERS, **options}
    with pytest.raises(error, match=says):
        channel_experiment(responses_test=data[0], decoder=refuse, **given)


def test_a_gallery_without_the_images_is_told_before_anything_is_trained(data):
    class Refuse:
        fit = refuse

    options = {"responses_train": data[0], "targets": data[1], "channels": CARRIERS}
    for gallery, says in ((data[1].isel(image=slice(70)), "t:0070"), (xr.Dataset(), "features")):
        with pytest.raises((SchemaError, SelectionError), match=says):
            channel_experiment(
                responses_test=data[0],
                decoder=Refuse(),
                gallery=gallery,
                retrain="decoder",
                **options,
            )


def test_bad_responses_and_scores(linear, data):
    test, gallery = data
    repeated = test.expand_dims(repetition=2)
    with pytest.raises(SelectionError, match=r"average_repetitions"):
        channel_experiment(None, repeated, refuse, gallery, channels=CARRIERS)
    options = {"channels": CARRIERS, "controls": 0, "seeds": [0]}
    with pytest.raises(
        SchemaError, match=r"dims channel, feature, time; expected \(\[subject,\] image\)"
    ):
        channel_experiment(None, test, linear.decode, outcome=lambda ds: ds, **options)
    with pytest.raises(SchemaError, match="no Dataset of scores"):
        channel_experiment(None, test, linear.decode, outcome=lambda ds: 3.0, **options)
