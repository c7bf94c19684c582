"""EEGDecoder: what it learns, by what it chooses, how it goes on, and what it refuses."""

from __future__ import annotations

import doctest
import inspect
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.base import clone

import nedx
from nedx.decoding.augmentation import Noise, Shift
from nedx.errors import ModelError
from tests.decoding.toy import FEATURES, features, responses, top1

FAST = {"epochs": 30, "batch_size": 32, "lr": 3e-3, "device": "cpu", "augmentation": ()}


def fitted(ds, targets=None, **changes):
    return nedx.EEGDecoder(**{**FAST, **changes}).fit(
        ds, features(400) if targets is None else targets
    )


def parts(ds, tested=50):
    kind = np.array(["train"] * (ds.sizes["image"] - tested) + ["test"] * tested, dtype=object)
    ds = ds.assign_coords(partition=("image", kind))
    return ds, ds.isel(image=ds["partition"].values == "test")


def accuracy(decoder, test):
    found = test.ned.average_repetitions().ned.decode(decoder, device="cpu")["embedding"]
    rows = [int(name.split(":")[1]) for name in test["image_id"].values]
    targets = features(400)["features"].values[rows]
    return [top1(one, targets) for one in found.values.reshape(-1, *found.shape[-2:])]


def test_it_learns_a_linear_map_and_not_a_shuffled_one():
    ds, test = parts(responses(400, subjects=("sub-01", "sub-02")))
    decoder = fitted(ds)
    assert min(accuracy(decoder, test)) > 0.8
    history = decoder.history_
    assert history["val_top1"].dims == ("network", "epoch")
    assert float(history["val_top1"].max()) > 0.8
    assert (history["loss"][:, -1] < history["loss"][:, 0] / 3).all()
    shuffled = features(400)
    order = np.random.default_rng(0).permutation(400)
    shuffled["features"].values[:] = shuffled["features"].values[order]
    assert max(accuracy(fitted(ds, shuffled), test)) < 0.12
    recipe = decoder.model_.recipe
    assert recipe.selection.startswith("highest mean reciprocal rank among 36 held-out images (18")
    assert (recipe.units, recipe.target, recipe.license) == ("uV", "toy", "CC0-1.0")
    assert recipe.training_source == "synthetic"
    known = decoder.model_.known
    assert (known["known_partition"].values == "val").sum() == 36
    assert known.sizes["known_image"] == 350


def test_the_epoch_with_the_best_held_out_rank_is_kept():
    ds, _ = parts(responses(200, noise=4.0), 40)
    decoder = fitted(ds, epochs=12, schedule="constant")
    best = int(decoder.history_["best_epoch"])
    assert best == int(decoder.history_["val_mrr"].argmax("epoch"))
    shorter = fitted(ds, epochs=best + 1, schedule="constant")
    for name, value in decoder.model_.state("sub-01").items():
        np.testing.assert_array_equal(value, shorter.model_.state("sub-01")[name])
    stopped = fitted(ds, epochs=12, schedule="constant", patience=2)
    first = next(
        i
        for i in range(12)
        if i - int(np.argmax(decoder.history_["val_mrr"].values[: i + 1])) >= 2 or i == 11
    )
    assert stopped.history_.sizes["epoch"] == first + 1


def test_held_out_metrics_are_those_of_the_embeddings():
    ds, _ = parts(responses(200, noise=2.0), 40)
    decoder = fitted(ds, epochs=3)
    known = decoder.model_.known
    held = known["known_image"].values[known["known_partition"].values == "val"]
    mine = ds.sel(image=np.isin(ds["image_id"].values, held)).ned.average_repetitions()
    found = mine.ned.decode(decoder, device="cpu")["embedding"].values[0]
    rows = [int(name.split(":")[1]) for name in mine["image_id"].values]
    t = features(400)["features"].values[rows]
    s = (found @ t.T) / np.linalg.norm(t, axis=1)
    ranks = (s >= np.diag(s)[:, None]).sum(1)
    best = decoder.history_.isel(epoch=int(decoder.history_["best_epoch"]))
    assert float(best["val_top1"]) == pytest.approx((ranks <= 1).mean())
    assert float(best["val_top5"]) == pytest.approx((ranks <= 5).mean())
    assert float(best["val_mrr"]) == pytest.approx((1 / ranks).mean())


def test_test_images_are_never_read():
    ds, _ = parts(responses(120), 40)
    ds = ds.load()
    ds["response"][:, 80:] = np.nan
    decoder = fitted(ds, features(80), epochs=2)
    assert decoder.history_.sizes["epoch"] == 2


def test_one_for_all_and_one_for_those_left_out():
    subjects = ("sub-01", "sub-02", "sub-03")
    ds, test = parts(responses(160, subjects=subjects), 40)
    joint = fitted(ds, mode="joint", network_options={})
    assert joint.model_.recipe.networks == ("all",)
    assert [m.subject for m in joint.model_.recipe.members.values()] == [0, 1, 2]
    assert joint.history_["loss"].dims == ("epoch",)
    own = fitted(ds, epochs=10)
    assert own.model_.recipe.networks == subjects
    without = fitted(ds, mode="leave_one_subject_out", epochs=3)
    assert without.model_.recipe.members["sub-02"].network == "without-sub-02"
    assert without.model_.recipe.members["sub-02"].subject == -1
    # The network for sub-02 knows nothing of sub-02.
    spoilt = ds.load().copy(deep=True)
    spoilt["response"][1] += np.random.default_rng(0).normal(size=spoilt["response"][1].shape)
    again = fitted(spoilt, mode="leave_one_subject_out", epochs=3)
    for name, same in (("without-sub-02", True), ("without-sub-01", False)):
        a, b = (e.model_.state(name)["network.projection.linear.weight"] for e in (without, again))
        assert np.array_equal(a, b) is same
    with pytest.raises(ModelError, match="needs several subjects"):
        fitted(ds.isel(subject=[0]), mode="leave_one_subject_out")


def test_subjects_differ_in_networks_with_layers_of_their_own():
    ds, _ = parts(responses(40, subjects=("sub-01", "sub-02")), 8)
    long = xr.concat([ds] * 8, "time").assign_coords(time=np.arange(80) / 100)
    decoder = fitted(long, mode="joint", network="atm_s", epochs=1, validation=0.2)
    assert decoder.model_.recipe.network.n_subjects == 2
    same = xr.concat([long.isel(subject=0)] * 2, "subject").assign_coords(subject=ds["subject"])
    first, second = same.ned.decode(decoder, device="cpu")["embedding"].values
    assert not np.allclose(first, second)


def test_trials_trees_and_one_dataset_are_the_same_thing():
    ds, _ = parts(responses(80, subjects=("sub-01",)), 20)
    plain = fitted(ds, epochs=2)
    both = ds.assign(features=features(80)["features"].variable)
    tree = xr.DataTree.from_dict({"/sub-01": ds.isel(subject=0, drop=True)})
    flat = ds.isel(subject=0).stack(sample=("image", "repetition"), create_index=False)
    order = np.random.default_rng(0).permutation(flat.sizes["sample"])
    trials = flat.drop_vars("repetition", errors="ignore").rename(sample="trial").isel(trial=order)
    trials = trials.transpose("trial", ...).chunk(trial=32)
    for given, targets in ((both, None), (tree, features(80))):
        other = nedx.EEGDecoder(**{**FAST, "epochs": 2}).fit(given, targets)
        for name, value in plain.model_.state("sub-01").items():
            np.testing.assert_array_equal(value, other.model_.state("sub-01")[name])
    # Images come in another order, so that only what they are learnt from is the same.
    shuffled = fitted(trials, epochs=2).model_.state("sub-01")
    np.testing.assert_allclose(shuffled["mean"], plain.model_.state("sub-01")["mean"], rtol=1e-5)
    single = fitted(trials, epochs=1, average_trials=False)
    assert single.model_.state("sub-01")["scale"].mean() > shuffled["scale"].mean()


def test_texts_are_learnt_instead_of_images_if_asked_for():
    ds, test = parts(responses(400), 50)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(FEATURES, FEATURES)))[0]
    text = features(400)
    text["features"].values[:] = text["features"].values @ turn.astype("f4")
    order = np.random.default_rng(0).permutation(400)
    words = {**FAST, "image": 0.0, "text": 1.0}
    decoder = nedx.EEGDecoder(**words).fit(ds, features(400), text.isel(image=order))
    found = test.ned.average_repetitions().ned.decode(decoder, device="cpu")["embedding"].values[0]
    assert top1(found, text["features"].values[350:]) > 0.8
    assert top1(found, features(400)["features"].values[350:]) < 0.2
    with pytest.raises(ModelError, match="texts have 3 features, images 8"):
        nedx.EEGDecoder(**FAST).fit(ds, features(400), text.isel(feature=slice(3)))


def test_manners_of_scikit_learn():
    decoder = nedx.EEGDecoder("nice", augmentation=(Noise(), Shift(samples=2)), seed=4)
    copy = clone(decoder)
    assert copy.get_params() == decoder.get_params()
    assert copy.set_params(lr=0.5).lr == 0.5
    with pytest.raises(ModelError, match="no parameter 'learning_rate'"):
        copy.set_params(learning_rate=1)
    with pytest.raises(ModelError, match="not fitted"):
        copy.predict(responses(3))
    assert list(inspect.signature(decoder.fit).parameters)[:3] == ["responses", "targets", "text"]


def test_seeds_decide_and_the_callers_randomness_is_left_alone():
    ds, _ = parts(responses(60), 10)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, same, other = (
        fitted(ds, epochs=2, seed=s, augmentation=(Noise(),)).model_.weights_sha256
        for s in (0, 0, 1)
    )
    assert first == same != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_held_and_what_is_streamed_learn_alike(monkeypatch):
    from nedx.decoding import batches

    ds, test = parts(responses(300), 50)
    monkeypatch.setattr(batches, "HELD_BYTES", 1)
    monkeypatch.setattr(batches, "WINDOW_BYTES", 40 * 4 * 60)
    assert accuracy(fitted(ds), test)[0] > 0.6


def test_a_fitted_decoder_is_written_and_opened(tmp_path):
    ds, test = parts(responses(60), 10)
    decoder = fitted(ds, epochs=2, ema=0.9)
    decoder.to_zarr(tmp_path / "decoder.zarr")
    again = nedx.load_model(tmp_path / "decoder.zarr")
    assert again.recipe == decoder.model_.recipe
    assert "epochs=2" in again.recipe.fitted_by
    first = decoder.predict(test)["embedding"].values
    np.testing.assert_array_equal(first, test.ned.decode(again, device="cpu")["embedding"].values)


def test_half_precision_trains():
    ds, test = parts(responses(400), 50)
    assert accuracy(fitted(ds, precision="bfloat16"), test)[0] > 0.8


def test_twenty_way_on_the_simulated_eeg():
    drawn = nedx.simulate_eeg(1500).ned.sel(time=(0.05, 0.45))
    decoder = nedx.EEGDecoder(epochs=8, device="cpu").fit(drawn)
    test = nedx.open("sim-eeg", subject=1)
    truth = nedx.open("sim-eeg", group="truth")
    kept = np.flatnonzero(test["partition"].values == "test")
    e = test.isel(image=kept).ned.average_repetitions().ned.decode(decoder, device="cpu")
    e, t = e["embedding"].values[0], truth["features"].values[kept].astype("f4")
    found = np.mean([top1(e[i : i + 20], t[i : i + 20]) for i in range(0, 200, 20)])
    assert found > 0.5


def test_the_example_runs():
    found = doctest.testmod(sys.modules[nedx.EEGDecoder.__module__], extraglobs={"nedx": nedx})
    assert found.attempted >= 5
    assert found.failed == 0


def test_one_time_is_enough():
    ds, test = parts(responses(60).isel(time=[3]), 10)
    decoder = fitted(ds, epochs=1)
    assert decoder.model_.recipe.sampling_frequency is None
    assert "E0" in decoder.model_.recipe.channels
    assert test.ned.decode(decoder, device="cpu")["embedding"].shape == (1, 10, 2, FEATURES)


def test_subjects_with_other_numbers_of_repetitions_are_trained_on_together():
    four, two = (
        responses(60, repetitions=count, subjects=("sub-01",)).isel(subject=0, drop=True)
        for count in (4, 2)
    )
    tree = xr.DataTree.from_dict({"/sub-01": four, "/sub-02": two})
    decoder = fitted(tree, features(60), mode="joint", average_trials=False, epochs=2)
    # 54 images are trained on, 324 trials in 10 batches; the rate falls to its end.
    assert float(decoder.history_["lr"][-1]) == FAST["lr"]
    assert decoder.model_.recipe.training_data == "54 images, 2 subjects"
    spoilt = two.load().copy(deep=True)
    spoilt["response"][7, 1] = np.nan
    tree = xr.DataTree.from_dict({"/sub-01": four, "/sub-02": spoilt})
    with pytest.raises(ModelError, match="first one to 'toy:007'"):
        fitted(tree, features(60), mode="joint", average_trials=False, validation=0.0)


def test_a_decoder_says_what_it_was_made_for():
    ds, targets = responses(40), features(40).assign_attrs(id="toy@1")
    recipe = fitted(ds, targets, epochs=1).model_.recipe
    assert recipe.target == "toy (toy@1)"
    assert recipe.training_data == "36 images, 1 subject"
    targets["features"].attrs["model"] = "clip"
    assert fitted(ds, targets, epochs=1).model_.recipe.target == "clip"


def test_a_count_of_numpy_is_no_flag():
    ds = responses(40, repetitions=3)
    one, also = (fitted(ds, epochs=1, average_trials=n).model_ for n in (1, np.int64(1)))
    for name, value in one.state("sub-01").items():
        np.testing.assert_array_equal(value, also.state("sub-01")[name])


def faulty(what):
    ds, targets = responses(40, subjects=("sub-01", "sub-02")), features(40)
    if what == "ids":
        return ds.drop_indexes("image_id").drop_vars("image_id"), targets
    if what == "nan":
        ds = ds.load()
        ds["response"][1, 7, 0, 2, 3] = np.nan
        return ds, targets
    if what == "targets":
        return ds, features(35)
    if what == "twice":
        return ds, xr.concat([targets, targets], "image")
    if what == "zero":
        targets["features"].values[3] = 0
        return ds, targets
    if what == "units":
        children = {f"/sub-0{i + 1}": ds.isel(subject=i, drop=True) for i in range(2)}
        two = children["/sub-02"]
        children["/sub-02"] = two.assign(response=two["response"].assign_attrs(units="V"))
        return xr.DataTree.from_dict(children), targets
    if what == "channels":
        children = {f"/sub-0{i + 1}": ds.isel(subject=i, drop=True) for i in range(2)}
        children["/sub-02"] = children["/sub-02"].isel(channel=[1, 0, 2, 3, 4, 5])
        return xr.DataTree.from_dict(children), targets
    if what == "source":
        return ds.assign(response=ds["response"].assign_attrs(source="raw.fif")), targets
    if what == "names":
        return ds.assign_coords(channel=np.array(["E0", "E0", *"abcd"], dtype=object)), targets
    if what in ("val", "train"):
        kinds = np.full(40, {"val": "train", "train": "test"}[what], dtype=object)
        kinds[0] = what
        return ds.assign_coords(partition=("image", kinds)), targets
    if what == "trials":
        one = ds.isel(subject=0).stack(sample=("image", "repetition"), create_index=False)
        one = one.drop_vars("repetition", errors="ignore").rename(sample="trial")
        return one.transpose("trial", ...).isel(trial=slice(0, -1)), targets
    if what == "repetitions":
        one, two = (ds.isel(subject=i, drop=True) for i in range(2))
        return xr.DataTree.from_dict({"/a": one, "/b": two.isel(repetition=[0])}), targets
    return ds, {"none": None, "array": np.ones(3)}.get(what, targets)


@pytest.mark.parametrize(
    ("what", "changes", "message"),
    [
        ("ids", {}, "no 'image_id'"),
        ("nan", {}, "NaN or infinite.*'toy:007'"),
        ("targets", {}, "5 of 40 images have no targets, first 'toy:035'"),
        ("twice", {}, "several targets are called 'toy:000'"),
        ("zero", {}, "NaN, infinite or all zero, first those of 'toy:003'"),
        ("units", {}, "units of sub-02 is 'V', of sub-01 'uV'"),
        ("channels", {}, "sub-02 has other channels than sub-01"),
        ("none", {}, "targets are a Dataset with 'features"),
        ("array", {}, "there are no targets"),
        ("", {"network": "nice"}, "nice needs at least 75 samples, the responses have 10"),
        ("", {"network": "nise"}, "no network is called 'nise'.*nice"),
        ("", {"network_options": {"heads": 3}}, "no option 'heads'"),
        ("source", {}, "attributes of the resp.*training_source: .*'synthetic', not 'raw.fif'"),
        ("names", {}, "sub-01: several channels are called 'E0'"),
        ("val", {}, "'sub-01' has 1 image held out to choose the epoch by, and needs 2"),
        ("train", {"validation": 0.0}, "'sub-01' has 1 image to train on, and needs 2"),
        (
            "repetitions",
            {"mode": "joint", "average_trials": 1},
            r"subjects have 1 to 2 of them.*isel\(repetition=slice\(1\)\)",
        ),
        ("trials", {"average_trials": 1}, "average_trials=1 draws.*'sub-01' differ in number"),
        ("", {"image": 0.0, "text": 1.0}, "only texts are to be learnt.*there are none"),
        ("", {"augmentation": Noise()}, r"type augmentation=\(Noise\(kind='noise', sd=2.0\),\)"),
        ("", {"augmentation": ({"kind": "smoothing", "width": 4},)}, "type an odd number"),
        ("", {"average_trials": np.int64(0)}, "average_trials is True, False or how many"),
        ("", {"epochs": 0, "lr": -1, "precision": "f8"}, "epochs: .*lr: .*precision: "),
        ("", {"average_trials": 0}, "average_trials is True, False or how many"),
        ("", {"image": 0.0, "text": 0.0}, "nothing would be learnt"),
        ("", {"validation": 0.001}, "of 20 concepts is 0"),
        ("", {"device": "gpu"}, "unknown device"),
    ],
)
def test_what_cannot_be_trained_is_told_before_training(what, changes, message, monkeypatch):
    from nedx.decoding.training import Training

    monkeypatch.setattr(Training, "step", None)
    ds, targets = faulty(what)
    with pytest.raises(ModelError, match=message):
        nedx.EEGDecoder(**{**FAST, **changes}).fit(ds, targets)


def test_a_loss_that_is_not_finite_is_an_error():
    ds, _ = parts(responses(60), 10)
    with pytest.raises(ModelError, match="not finite: type a smaller lr"):
        fitted(ds, lr=1e30, schedule="constant", warmup=0)


def test_the_width_of_the_embedding_is_that_of_the_targets():
    ds, _ = parts(responses(60), 10)
    assert fitted(ds, epochs=1).model_.recipe.network.n_outputs == FEATURES
