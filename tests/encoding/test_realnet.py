"""`ReAlnetEncoder`: what is learnt, held out, stored and predicted, and going on."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

import nedx
from nedx.backbones.cornet_s import CORnetS
from nedx.compute import cache
from nedx.encoding.network_storing import read_state
from nedx.encoding.realnet import ReAlnetEncoder
from nedx.encoding.realnet_training import ReAlnetTraining
from nedx.errors import ModelError, NedxError, StimulusError
from tests.laziness import computes_at_most

SMALL = {"widths": (4, 4, 4, 4), "steps": (1, 1, 1), "classes": 5}
OPTIONS = {
    "trunk": SMALL,
    "features": 8,
    "policy": "raw01",
    "device": "cpu",
    "max_epochs": 2,
    "batch_size": 4,
    "learning_rate": 1e-3,
}
ONE = {**OPTIONS, "max_epochs": 1}
WHOLE = {**ONE, "validation": 0}
CHANNELS = np.array(["O1", "Oz", "O2"], dtype=object)
TIMES = np.arange(4) * 0.01
ATTRS = {"units": "1", "normalization": "zscore", "normalization_scope": "train"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


def toy(count=24, per_concept=2, seed=0, **noise):
    """Images of one colour each, and responses that a linear map of these gives."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(0, 255, (count, 1, 1, 3))
    pixels = (colour + rng.normal(0, 8, (count, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    images = nedx.open_images(pixels, image_set="toy")
    images = images.assign_coords(
        category=("image", np.array([f"c{i // per_concept}" for i in range(count)], dtype=object))
    )
    map_ = np.random.default_rng(9).standard_normal((3, 3, 4))
    values = np.tensordot((colour[:, 0, 0] - 127.5) / 73.6, map_, 1) / np.sqrt(3)
    values = values + noise.get("noise", 0) * rng.standard_normal(values.shape)
    return images, responses(images["image_id"].values, values)


def lazy(ds):
    return ds.assign(response=ds["response"].chunk(image=4))


def opposite(ds):
    return responses(ds["image_id"].values, -ds["response"].values)


def trunk_file(path, seed=5):
    """Write weights as CORnet-S was published; return them."""
    torch.manual_seed(seed)
    state = CORnetS(**SMALL).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return state


def unseen(count):
    """Other images of other names."""
    names = np.array([f"toy:new{i}" for i in range(count)], dtype=object)
    return toy(count, seed=5)[0].assign_coords(image_id=("image", names))


def responses(ids, values, **coords):
    return xr.Dataset(
        {"response": (("image", "channel", "time"), np.asarray(values, np.float32), ATTRS)},
        {
            "image_id": ("image", np.asarray(ids, dtype=object)),
            "channel": ("channel", CHANNELS, {"nedx_role": "neuroid"}),
            "time": ("time", TIMES, {"units": "s"}),
            **coords,
        },
        {"modality": "eeg", "dataset": "toy", "source": "synthetic"},
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEDX_CACHE", str(tmp_path_factory.mktemp("learnt")))
        images, ds = toy(96)
        parts = np.array(["train"] * 64 + ["test"] * 32, dtype=object)
        ds = ds.assign_coords(partition=("image", parts))
        options = {"max_epochs": 6, "batch_size": 8, "learning_rate": 3e-3}
        encoder = ReAlnetEncoder(**{**OPTIONS, **options}).fit(images, ds)
        yield images, ds, encoder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Images, responses, and networks of these turned round and of themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEDX_CACHE", str(tmp_path_factory.mktemp("two")))
        images, ds = toy(12)
        tree = xr.DataTree.from_dict({"sub-01": opposite(ds), "sub-02": ds})
        yield images, ds, ReAlnetEncoder(**WHOLE).fit(images, tree)


def test_responses_of_a_known_map_are_learnt(learnt):
    images, ds, encoder = learnt
    history = encoder.history_.isel(network=0)
    assert float(history["val_loss"][-1]) < 0.6 * float(history["val_loss"][0])
    assert int(history["best_epoch"]) == np.argmin(history["val_loss"].values)
    test = slice(64, None)
    out = images.isel(image=test).ned.encode(encoder)
    predicted, truth = out["response"].values, ds["response"].values[test]
    assert out["response"].dims == ("image", "channel", "time")
    r = [np.corrcoef(predicted[:, c, t], truth[:, c, t])[0, 1] for c in range(3) for t in range(4)]
    assert np.median(r) > 0.8


def test_held_out_concepts_are_whole_and_no_test_images(learnt):
    images, ds, encoder = learnt
    out = images.ned.encode(encoder)
    partition = out["partition"].values
    np.testing.assert_array_equal(partition[64:], "test")
    kinds = {}
    for name, kind in zip(images["category"].values[:64], partition[:64], strict=True):
        kinds.setdefault(name, set()).add(kind)
    assert all(len(found) == 1 for found in kinds.values())
    assert sum(found == {"val"} for found in kinds.values()) == round(0.1 * len(kinds))
    held = partition == "val"
    predicted, truth = out["response"].values[held], ds["response"].values[held]
    r = [
        [np.corrcoef(predicted[:, c, t], truth[:, c, t])[0, 1] for t in range(4)] for c in range(3)
    ]
    np.testing.assert_allclose(out["encoding_accuracy"], r, atol=1e-4)


def test_test_images_are_not_looked_at():
    """Other responses to them give the same weights."""
    images, ds = toy(16)
    ds = ds.assign_coords(partition=("image", ["train"] * 12 + ["test"] * 4))
    other = ds.copy(deep=True)
    other["response"][12:] = 1e3
    digests = {
        ReAlnetEncoder(**ONE).fit(images, each).model_.weights_sha256 for each in (ds, other)
    }
    assert len(digests) == 1


def test_the_model_says_what_it_is_and_is_stored(learnt, tmp_path):
    images, ds, encoder = learnt
    encoder.to_zarr(tmp_path / "model.zarr")
    assert nedx.verify(tmp_path / "model.zarr").ok
    model = nedx.load_model(tmp_path / "model.zarr")
    out = images.ned.encode(model)
    nedx.validate(out)
    np.testing.assert_array_equal(
        out["response"].values, images.ned.encode(encoder)["response"].values
    )
    response = out["response"].attrs
    assert response["units"] == "1"
    assert response["normalization"] == "zscore"
    assert response["source"] == "synthetic"
    assert model.recipe.model_id == "eeg-toy-realnet"
    assert "concepts, drawn with seed 0" in model.recipe.split
    assert "eeg-toy-realnet" in repr(model)
    images.isel(image=slice(62, 66)).ned.synthesize(model, tmp_path / "made.zarr")
    made = nedx.open(tmp_path / "made.zarr")["response"]
    np.testing.assert_allclose(made, out["response"].values[62:66], rtol=1e-2, atol=1e-3)
    part = model.sel(channel="Oz", time=(0.01, 0.02))
    part.to_zarr(tmp_path / "part.zarr")
    small = nedx.load_model(tmp_path / "part.zarr")
    expected = out["response"].sel(channel=["Oz"], time=[0.01, 0.02]).values
    np.testing.assert_allclose(images.ned.encode(small)["response"], expected, atol=1e-6)


def test_encoding_computes_nothing_when_called_and_selects_first(learnt):
    images, ds, encoder = learnt
    with computes_at_most(0):
        out = images.ned.encode(encoder)
        chosen = out.isel(image=slice(0, 10), channel=[2, 0], time=1)
    whole = out["response"].values
    np.testing.assert_allclose(chosen["response"], whole[:10][:, [2, 0], 1], atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(
    rows=st.lists(st.integers(0, 29), min_size=1, max_size=8),
    channels=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
    start=st.integers(0, 3),
    chunk=st.integers(1, 31),
)
def test_what_is_selected_is_what_it_was(learnt, rows, channels, start, chunk):
    images, _, encoder = learnt
    some = images.isel(image=slice(50, 80))
    whole = some.ned.encode(encoder)["response"].values
    chosen = some.chunk(image=chunk).ned.encode(encoder)["response"]
    found = chosen.isel(image=rows, channel=channels, time=slice(start, None)).values
    expected = whole[rows][:, channels, start:]
    assert np.abs(found - expected).max() < 1e-6 * np.abs(whole).max()


@pytest.mark.parametrize("size", [1, 7, 50])
def test_chunks_do_not_show_in_results(learnt, size):
    images, _, encoder = learnt
    expected = images.isel(image=slice(50)).ned.encode(encoder)["response"].values
    chunked = images.isel(image=slice(50)).chunk(image=size)
    found = chunked.ned.encode(encoder)["response"].values
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_scores_ceilings_profiles_and_rdms_take_what_is_predicted(learnt):
    images, ds, encoder = learnt
    test = slice(64, None)
    rng = np.random.default_rng(3)
    means = ds["response"].values[test]
    noisy = means[:, None] + rng.standard_normal((32, 8, 3, 4)).astype(np.float32)
    measured = ds.isel(image=test).drop_vars("response")
    dims = ("image", "repetition", "channel", "time")
    measured = measured.assign(response=(dims, noisy, ATTRS))
    with computes_at_most(0):
        out = encoder.evaluate(images, measured)
    predicted = out["response_predicted"].values
    averaged = noisy.mean(1)
    r = [
        [np.corrcoef(predicted[:, c, t], averaged[:, c, t])[0, 1] for t in range(4)]
        for c in range(3)
    ]
    np.testing.assert_allclose(out["accuracy"], r, atol=1e-5)
    assert out["accuracy"].dims == ("channel", "time")
    # Means of 8 repeats: var / (var + 1 / 8).
    variance = means.var(0)
    np.testing.assert_allclose(out["noise_ceiling"], variance / (variance + 1 / 8), atol=0.15)
    assert np.median(out["accuracy_normalized"].values) > 0.8
    assert len(out.ned.plot.waveforms(0, channel="Oz").get_lines()) == 3
    true, predicted = ds.isel(image=test), images.isel(image=test).ned.encode(encoder)
    patterns = nedx.pattern_correlation(true["response"], predicted["response"])
    assert float(patterns.mean()) > 0.6
    rdms = [each.ned.rdm("euclidean") for each in (true, predicted)]
    over_time = nedx.compare_rdms(*rdms)
    assert over_time.dims == ("time",)
    assert over_time.values.min() > 0.5


def test_a_killed_training_goes_on_as_if_it_was_not(tmp_path, monkeypatch):
    """Killed within an epoch of the second subject, when fewer epochs were asked for."""
    images, ds = toy(12)
    tree = xr.DataTree.from_dict({"sub-01": ds, "sub-02": opposite(ds)})
    options = {**OPTIONS, "max_epochs": 3, "validation": 0.2}
    straight = ReAlnetEncoder(**options).fit(images, tree)
    folder = tmp_path / "checkpoint"
    done, step = [], ReAlnetTraining.step

    def killed(self, *batch):
        # Two steps an epoch: the eighth is the second of the second subject's second epoch.
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(batch)
        return step(self, *batch)

    monkeypatch.setattr(ReAlnetTraining, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        ReAlnetEncoder(**{**options, "max_epochs": 2, "checkpoint": folder}).fit(images, tree)
    monkeypatch.setattr(ReAlnetTraining, "step", step)
    resumed = ReAlnetEncoder(**{**options, "checkpoint": folder}).fit(images, tree)
    xr.testing.assert_identical(resumed.history_, straight.history_)
    assert resumed.model_.weights_sha256 == straight.model_.weights_sha256
    with pytest.raises(ModelError, match="another training"):
        ReAlnetEncoder(**{**options, "checkpoint": folder, "beta": 1.0}).fit(images, tree)


def test_monitor_trains_as_without_and_differs_in_the_loss():
    images, ds = toy(12)
    found = {
        kind: ReAlnetEncoder(**{**WHOLE, "contrastive": kind}).fit(images, ds)
        for kind in ("monitor", None, "pearson")
    }
    digests = {kind: each.model_.weights_sha256 for kind, each in found.items()}
    assert digests["monitor"] == digests[None] != digests["pearson"]
    means = {kind: float(each.history_["generation"][0, 0]) for kind, each in found.items()}
    assert means["monitor"] > means[None] + 0.1


@pytest.mark.parametrize("given", [False, True])
def test_each_subject_begins_with_the_same_trunk(two, tmp_path, given):
    """Two subjects with the same responses get the same network, whoever comes first."""
    images, ds, encoder = two
    options = WHOLE
    if given:
        trunk_file(tmp_path / "trunk.pth")
        options = {**WHOLE, "weights": tmp_path / "trunk.pth"}
        tree = xr.DataTree.from_dict({"sub-01": opposite(ds), "sub-02": ds})
        encoder = ReAlnetEncoder(**options).fit(images, tree)
    alone = ReAlnetEncoder(**options).fit(images, ds)
    new = unseen(4)
    out = new.ned.encode(encoder)
    assert out["response"].dims == ("subject", "image", "channel", "time")
    expected = new.ned.encode(alone)["response"].values
    found = out.ned.sel(subject=2)["response"].values[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    nedx.validate(out)
    second = encoder.model_.sel(subject="sub-02")
    assert second.subjects == ("sub-02",)
    again = new.ned.encode(second)["response"].values
    np.testing.assert_allclose(again[0], expected, atol=1e-6)


def test_subjects_on_one_dimension_are_those_of_a_tree(two, tmp_path):
    images, ds, of_tree = two
    names = np.array(["sub-01", "sub-02"], dtype=object)
    both = xr.concat([opposite(ds), ds], dim="subject").assign_coords(subject=names)
    encoder = ReAlnetEncoder(**WHOLE).fit(images, both)
    assert encoder.model_.weights_sha256 == of_tree.model_.weights_sha256
    new = unseen(6)
    values = np.random.default_rng(0).standard_normal((2, 6, 3, 4))
    dims = ("subject", "image", "channel", "time")
    test = responses(new["image_id"].values, values[0]).drop_vars("response")
    test = test.assign_coords(subject=names).assign(response=(dims, values.astype("f4"), ATTRS))
    out = encoder.evaluate(new, test)
    assert out["accuracy"].dims == ("subject", "channel", "time")
    children = xr.DataTree.from_dict(
        {name: test.isel(subject=i, drop=True) for i, name in enumerate(names)}
    )
    for i, name in enumerate(names):
        ds = encoder.evaluate(new, children)[name]
        assert ds["accuracy"].dims == ("channel", "time")
        np.testing.assert_allclose(ds["accuracy"], out["accuracy"][i], atol=1e-6)
    of_tree.to_zarr(tmp_path / "model.zarr")
    model = nedx.load_model(tmp_path / "model.zarr")
    shutil.rmtree(tmp_path / "model.zarr" / "networks" / "sub-01")
    cache.models.clear()
    alone = new.ned.encode(model).ned.sel(subject=2)["response"].values
    np.testing.assert_allclose(alone[0], out["response_predicted"].values[1], atol=1e-6)


def test_a_subject_that_came_further_keeps_its_epochs(tmp_path):
    images, ds = toy(8)
    tree = xr.DataTree.from_dict({"sub-01": ds, "sub-02": ds})
    options = {**OPTIONS, "checkpoint": tmp_path, "validation": 0}
    ReAlnetEncoder(**options).fit(images, tree)
    shutil.rmtree(tmp_path / "sub-02")
    history = ReAlnetEncoder(**{**options, "max_epochs": 1}).fit(images, tree).history_
    assert np.isfinite(history["loss"].values).tolist() == [[True, True], [True, False]]
    assert history["best_epoch"].values.tolist() == [1, 0]


def test_trunk_weights_are_read_and_another_file_is_another_training(tmp_path):
    path = tmp_path / "trunk.pth"
    trunk = trunk_file(path)
    images, ds = toy(8)
    given = {"learning_rate": 1e-12, "weights": path}
    options = {**WHOLE, **given, "checkpoint": tmp_path / "checkpoint"}
    encoder = ReAlnetEncoder(**options).fit(images, ds)
    state = read_state(encoder.model_.ref, encoder.model_.subjects[0])
    for name, expected in CORnetS(**SMALL).named_parameters():
        np.testing.assert_allclose(state[f"realnet.{name}"], trunk[name], atol=1e-9)
        assert expected.shape == trunk[name].shape
    assert encoder.model_.recipe.backbone.weights.source == str(path)
    trunk_file(path, seed=6)
    with pytest.raises(ModelError, match="another training"):
        ReAlnetEncoder(**options).fit(images, ds)


def test_repetitions_and_trials_are_averaged():
    images, ds = toy(8)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((8, 2, 3, 4)).astype(np.float32)
    noise -= noise.mean(1, keepdims=True)
    values = ds["response"].values[:, None] + noise
    repeated = ds.drop_vars("response").assign(
        response=(("image", "repetition", "channel", "time"), values, ATTRS)
    )
    trials = ds.isel(image=np.repeat(np.arange(8), 2)).rename(image="trial")
    trials["response"] = ("trial", "channel", "time"), values.reshape(16, 3, 4), ATTRS
    new = unseen(6)
    outs = [
        new.ned.encode(ReAlnetEncoder(**WHOLE).fit(images, each))["response"].values
        for each in (ds, repeated, trials)
    ]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], atol=1e-3)


def test_labels_are_strings_of_any_kind():
    """As xarray reads them from Zarr, numpy casts them to no other strings."""

    def read(ds):
        names = [n for n in ("image_id", "category", "channel", "partition") if n in ds.coords]
        held = {n: ds[n].copy(data=ds[n].values.astype(np.dtypes.StringDType())) for n in names}
        return ds.drop_indexes(set(names) & set(ds.indexes)).assign_coords(held)

    images, ds = toy(12)
    parts = np.array(["train"] * 10 + ["test"] * 2, dtype=object)
    images = images.assign_coords(partition=("image", parts))
    options = {**ONE, "validation": 0.2}
    expected = ReAlnetEncoder(**options).fit(images, ds)
    encoder = ReAlnetEncoder(**options).fit(read(images), read(ds))
    assert encoder.model_.weights_sha256 == expected.model_.weights_sha256
    assert encoder.model_.recipe.split == expected.model_.recipe.split
    test = {"image": slice(10, None)}
    out = encoder.evaluate(read(images).isel(test), read(ds).isel(test))
    shown = images.isel(test).drop_vars("partition").ned.encode(expected)
    np.testing.assert_array_equal(out["response_predicted"], shown["response"])
    fresh = read(images).drop_vars("partition").ned.encode(encoder)["partition"].values
    assert sorted(set(fresh)) == ["test", "train", "val"]


def test_it_has_the_manners_of_scikit_learn():
    encoder = ReAlnetEncoder(**OPTIONS)
    assert clone(encoder).get_params() == encoder.get_params()
    with pytest.raises(ModelError, match=r"not fitted: type .fit"):
        encoder.predict(toy(4)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": "spearman"}, "type 'pearson', 'monitor' or None"),
        ({"batch_size": 1}, "batch_size is 1; it is at least 2"),
        ({"validation": 0.01}, "give another share"),
        ({"validation": -0.1}, "from 0 to below 1"),
        ({"learning_rate": 0}, "learning_rate is 0; it is above 0"),
        ({"learning_rate": np.nan}, "learning_rate is nan"),
        ({"beta": -1}, "beta is -1; it is at least 0"),
        ({"seed": -1}, "seed is -1; it is at least 0"),
        ({"trunk": {"width": 4}}, "trunk takes widths, steps, classes, not width"),
        ({"trunk": {"widths": (4, 4, 4)}}, "is no CORnet-S"),
        ({"trunk": {"steps": (1, 0, 1)}}, "is no CORnet-S"),
        ({"weights": "absent.pth"}, "there is no weight file at absent.pth"),
        ({"policy": "square"}, "unknown preprocessing policy"),
    ],
)
def test_wrong_parameters_are_told_before_any_work(options, message):
    images, ds = toy()
    with computes_at_most(0), pytest.raises(NedxError, match=message):
        ReAlnetEncoder(**{**OPTIONS, **options}).fit(images, lazy(ds))


def test_attributes_that_no_recipe_takes_are_told_before_any_work():
    images, ds = toy()
    odd = lazy(ds).assign_attrs(modality="EEG", source="recorded")
    with computes_at_most(0), pytest.raises(ModelError) as told:
        ReAlnetEncoder(**OPTIONS).fit(images, odd)
    assert "modality: " in str(told.value)
    assert "not 'recorded'" in str(told.value)


def test_weights_of_another_network_are_told_before_any_work(tmp_path):
    images, ds = toy()
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    encoder = ReAlnetEncoder(**{**OPTIONS, "weights": tmp_path / "other.pth"})
    with computes_at_most(0), pytest.raises(ModelError, match="does not hold the weights"):
        encoder.fit(images, lazy(ds))


def test_wrong_data_are_told_before_any_work():
    images, ds = toy()
    encoder = ReAlnetEncoder(**OPTIONS)
    nan = ds.copy(deep=True)
    nan["response"][3, 0, 0] = np.nan
    still = ds.copy(deep=True)
    still["response"][:, 1] = 2.0
    odd = nedx.open_images(np.zeros((4, 32, 24, 3), np.uint8))
    tested = images.assign_coords(partition=("image", ["test"] * 2 + ["train"] * 22))
    for stimuli, measured, error, message in (
        (images, nan, ModelError, "NaN or infinite"),
        (images, still, ModelError, "never change"),
        (images.isel(image=slice(5)), ds, ModelError, "among the stimuli, first 'toy:00005'"),
        (images, ds.rename(channel="voxel").drop_vars("voxel"), ModelError, "channels by times"),
        (images.drop_vars("image_id"), ds, StimulusError, "no 'image_id'"),
        (images.drop_vars("pixels"), ds, StimulusError, "'pixels'"),
        (images, None, ModelError, "no 'response' to train on, only pixels"),
        (odd, ds, StimulusError, "square"),
        (tested, ds.assign_coords(partition=("image", ["train"] * 24)), ModelError, "'test' by"),
    ):
        with pytest.raises(error, match=message):
            encoder.fit(stimuli, measured)


def test_models_of_networks_take_pixels(learnt):
    _, ds, encoder = learnt
    with pytest.raises(StimulusError, match="ReAlnetModel takes 'pixels'"):
        ds.drop_vars("response").ned.encode(encoder)
    with pytest.raises(ModelError, match="float32"):
        unseen(2).ned.encode(encoder, precision="bf16")
