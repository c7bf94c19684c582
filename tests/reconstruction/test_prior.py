from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.errors import ModelError
from tests.decoding.test_resuming import run
from tests.laziness import computes_at_most
from tests.reconstruction.simulated import (
    CONDITION,
    FAST,
    WIDTH,
    cosine,
    decoded,
    features,
    truth,
)

TRAINED, HELD = slice(0, 800), slice(800, 900)


@pytest.fixture(scope="module")
def trained():
    embedding, target = truth()
    prior = nedx.DiffusionPrior(epochs=60, lr=2e-3, scale="unit", **FAST)
    return prior.fit(decoded(embedding[TRAINED]), features(target[TRAINED]))


def test_learns_the_map_from_embeddings_to_targets(trained):
    embedding, target = truth()
    unseen = decoded(embedding[HELD])
    found = nedx.apply_prior(unseen, trained, guidance=2.0)["embedding"].values
    at_random = cosine(found, np.roll(target[HELD], 1, axis=0))
    assert cosine(found, target[HELD]) > 0.75
    assert abs(at_random) < 0.1
    # The input itself is of another space: cut to the same width, it points nowhere near.
    assert cosine(embedding[HELD][:, :WIDTH], target[HELD]) < 0.5
    assert trained.history_[trained.best_epoch_]["validation_loss"] < 0.5
    ignored = nedx.apply_prior(unseen, trained, guidance=0.0)["embedding"].values
    assert abs(cosine(ignored, target[HELD])) < 0.1


def test_strings_as_zarr_gives_them_make_no_difference():
    embedding, target = truth(60)
    given, wanted = decoded(embedding), features(target)
    concepts = {"category": ("image", [name[:5] for name in wanted["image_id"].values])}
    wanted = wanted.assign_coords(concepts)
    settings = {**FAST, "epochs": 1, "groups": "category"}
    plain = nedx.DiffusionPrior(**settings).fit(given, wanted)
    kind = np.dtypes.StringDType()
    strings = [
        ds.assign_coords({n: ("image", c.values.astype(kind)) for n, c in ds.coords.items()})
        for ds in (given, wanted)
    ]
    assert nedx.DiffusionPrior(**settings).fit(*strings).history_ == plain.history_


def test_faster_sampler_points_the_same_way(trained):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    embedding, target = truth()
    found = nedx.apply_prior(
        decoded(embedding[HELD]), trained, guidance=2.0, sampler="ddim", steps=15
    )
    assert cosine(found["embedding"].values, target[HELD]) > 0.7


def test_is_lazy_and_keeps_what_was_there(trained):
    embedding, _ = truth()
    ds = decoded(np.stack([embedding[:6], embedding[6:12]]))
    ds = ds.assign(embedding=ds["embedding"].chunk({"image": 2}))
    with computes_at_most(0):
        out = ds.ned.apply_prior(trained, seed=3)
        some = out.isel(image=[4], subject=0)
    assert out["embedding"].dims == ("subject", "image", "feature")
    assert out["embedding"].shape == (2, 6, WIDTH)
    assert out["embedding_one_stage"].sizes["feature_one_stage"] == CONDITION
    assert out["embedding"].attrs["model"] == "made_up"
    assert out["embedding"].attrs["prior_sha256"] == trained.model_.weights_sha256
    with computes_at_most(1):
        alone = some["embedding"].compute()
    np.testing.assert_array_equal(alone, out["embedding"].compute().isel(image=[4], subject=0))
    np.testing.assert_array_equal(out["embedding_one_stage"].values, ds["embedding"].values)


@settings(max_examples=8)
@given(st.integers(1, 11), st.integers(0, 2**31), st.permutations(range(11)))
def test_one_seed_gives_one_result_to_the_bit(trained, size, seed, order):
    embedding, _ = truth()
    ds = decoded(embedding[:11])
    options = {"steps": 4, "seed": seed, "batch_size": 8}
    whole = nedx.apply_prior(ds, trained, **options)["embedding"].values
    shuffled = ds.isel(image=list(order)).chunk({"image": size, "feature": 5})
    found = nedx.apply_prior(shuffled, trained, **options)["embedding"].values
    np.testing.assert_array_equal(found, whole[list(order)])
    other = nedx.apply_prior(ds, trained, **{**options, "seed": seed + 1})["embedding"].values
    assert not np.allclose(other, whole)


def test_stored_and_opened_again(trained, tmp_path):
    embedding, _ = truth()
    trained.to_zarr(tmp_path / "prior.zarr")
    model = nedx.load_model(tmp_path / "prior.zarr")
    assert model.recipe == trained.model_.recipe
    assert model.recipe.selection == "the lowest loss over held-out concepts"
    kinds = model.known_images["known_partition"].values.tolist()
    assert kinds.count("val") == 80
    assert kinds.count("train") == 720
    assert nedx.verify(tmp_path / "prior.zarr").ok
    ds = decoded(embedding[:3])
    expected = nedx.apply_prior(ds, trained, steps=5)["embedding"].values
    found = nedx.apply_prior(ds, tmp_path / "prior.zarr", steps=5)["embedding"].values
    np.testing.assert_array_equal(found, expected)


def test_stopped_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from nedx.reconstruction.prior_loop import PriorTraining

    embedding, target = truth(200)
    data = decoded(embedding), features(target)
    settings = {**FAST, "dropout": 0.1, "epochs": 5, "seed": 4}
    whole = nedx.DiffusionPrior(**settings).fit(*data)
    epoch, done = PriorTraining.epoch, []

    def stopped(self):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(PriorTraining, "epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            nedx.DiffusionPrior(**settings, checkpoint=tmp_path / "c").fit(*data)
    resumed = nedx.DiffusionPrior(**settings, checkpoint=tmp_path / "c").fit(*data)
    assert resumed.model_.weights_sha256 == whole.model_.weights_sha256
    assert resumed.history_ == whole.history_
    with pytest.raises(ModelError, match="another training"):
        nedx.DiffusionPrior(**{**settings, "lr": 1e-4}, checkpoint=tmp_path / "c").fit(*data)


KILLED = """
import sys, torch
from tests.reconstruction.test_prior import killed
torch.set_num_threads(1)
killed(checkpoint=sys.argv[1])
"""


def killed(**changes):
    embedding, target = truth(200)
    settings = {**FAST, "dropout": 0.1, "epochs": 25, "seed": 4, "device": "cpu", **changes}
    return nedx.DiffusionPrior(**settings).fit(decoded(embedding), features(target))


def test_killed_training_goes_on_to_the_same_weights(tmp_path):
    progress = tmp_path / "progress.json"
    process = run(KILLED, tmp_path)
    deadline = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(json.loads(progress.read_bytes())["history"]) < 25
    resumed, straight = killed(checkpoint=tmp_path), killed()
    assert resumed.history_ == straight.history_
    assert resumed.model_.weights_sha256 == straight.model_.weights_sha256


def test_published_dropout_spares_or_hits_whole_batches():
    embedding, target = truth(150)
    kinds = [
        nedx.DiffusionPrior(**FAST, epochs=2, guidance_dropout_per=per).fit(embedding, target)
        for per in ("sample", "batch")
    ]
    assert kinds[0].model_.weights_sha256 != kinds[1].model_.weights_sha256
    assert kinds[0].model_.recipe.scale == 1.0


def test_concepts_are_held_out_whole_and_test_images_left_out():
    embedding, target = truth(120)
    ds = decoded(np.stack([embedding, embedding]))
    kinds = np.array(["train"] * 100 + ["test"] * 20, object)
    ds = ds.assign_coords(partition=("image", kinds))
    concepts = np.array([f"c{i // 10}" for i in range(120)], object)
    ds = ds.assign_coords(category=("image", concepts))
    prior = nedx.DiffusionPrior(**{**FAST, "groups": "category"}, epochs=1, validation=0.2)
    known = prior.fit(ds, features(target)).model_.known_images
    kind = dict(zip(known["known_image"].values, known["known_partition"].values, strict=True))
    assert set(kind) == {f"t:{i:04d}" for i in range(100)}
    of_concept = [{kind[f"t:{10 * c + i:04d}"] for i in range(10)} for c in range(10)]
    assert sum(kinds == {"val"} for kinds in of_concept) == 2
    assert sum(kinds == {"train"} for kinds in of_concept) == 8


def test_one_dataset_may_hold_both():
    embedding, target = truth(60)
    square = np.pad(target, ((0, 0), (0, CONDITION - WIDTH)))
    apart = decoded(embedding), features(square)
    both = apart[0].assign(features=(("image", "feature"), square))
    settings = {**FAST, "epochs": 1}
    found = [nedx.DiffusionPrior(**settings).fit(*given).model_ for given in (apart, (both,))]
    assert found[0].weights_sha256 == found[1].weights_sha256
    with pytest.raises(ModelError, match="targets are missing"):
        nedx.DiffusionPrior(**settings).fit(embedding)


def test_other_variables_stay_where_widths_differ(trained):
    embedding, _ = truth()
    ds = decoded(embedding[:3]).assign(features=(("image", "feature"), embedding[3:6]))
    out = nedx.apply_prior(ds, trained, steps=2)
    assert out["features"].dims == ("image", "feature_one_stage")
    np.testing.assert_array_equal(out["features"].values, embedding[3:6])


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_hostile_checkpoints_run_nothing(tmp_path):
    from nedx.reconstruction.generators import LatentDecoder
    from nedx.reconstruction.prior_store import PriorModel

    torch.save({"input_layer.0.weight": _Hostile(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(ModelError):
        PriorModel.from_checkpoint(tmp_path / "bad.pt")
    with pytest.raises(ModelError):
        LatentDecoder(tmp_path / "bad.pt").check((4, 8, 8))
    assert not (tmp_path / "ran").exists()


def _without_ids(ds):
    return ds.drop_vars("image_id")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda e, t: (e.drop_vars("embedding"), t), r"no 'embedding' here.*ned\.decode"),
        (lambda e, t: (e, t.rename(features="pixels")), "no 'features' here"),
        (lambda e, t: (_without_ids(e), t), "'embedding' has no image_id"),
        (lambda e, t: (e, t.isel(image=slice(5))), "35 of 40 embeddings are of images without"),
        (lambda e, t: (e.where(e.image_id != "t:0003"), t), "first that of 't:0003'"),
        (lambda e, t: (e, xr.concat([t, t], "image")), "occurs twice"),
        (lambda e, t: (e.isel(image=[]), t), "no embeddings to train on"),
        (lambda e, t: (e.rename(feature="f"), t), r"'embedding' lies over .*expected"),
        (lambda e, t: (e, t.expand_dims(layer=2)), r"'features' lies over .*\(image, feature\)"),
        (lambda e, t: (e["embedding"].values[:0], t["features"].values[:0]), "at least one"),
        (lambda e, t: (e["embedding"].values, t), "both as arrays"),
        (lambda e, t: (e["embedding"].values, t["features"].values[1:]), "as many rows"),
    ],
)
def test_bad_training_data_are_one_clear_error(change, match):
    embedding, target = truth(40)
    given, wanted = change(decoded(embedding), features(target))
    with pytest.raises(ModelError, match=match):
        nedx.DiffusionPrior(**FAST, epochs=1).fit(given, wanted)


def test_targets_out_of_the_published_range_are_refused():
    embedding, target = truth(40)
    with pytest.raises(ModelError, match=r"targets reach .*scale='unit'"):
        nedx.DiffusionPrior(**FAST, epochs=1).fit(embedding, 9 * target)
    nedx.DiffusionPrior(**FAST, epochs=1, scale="unit").fit(embedding, 9 * target)


def test_concepts_must_be_named():
    embedding, target = truth(40)
    with pytest.raises(ModelError, match="groups=None"):
        nedx.DiffusionPrior(epochs=1).fit(decoded(embedding), features(target))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"scale": "big"}, "'published' or 'unit'"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0}, "lr is 0; it is above 0"),
        ({"seed": -1}, "seed is -1; it is at least 0"),
        ({"guidance_dropout_per": "epoch"}, "'sample' or 'batch'"),
        ({"hidden": (8,)}, "two widths"),
    ],
)
def test_bad_parameters(parameters, match):
    embedding, target = truth(40)
    with pytest.raises(ModelError, match=match):
        nedx.DiffusionPrior(**parameters).fit(embedding, target)


def test_bad_use_is_told_before_work(trained, tmp_path):
    embedding, _ = truth()
    ds = decoded(embedding[:4])
    with pytest.raises(ModelError, match="47 features, the prior was trained with 48"):
        nedx.apply_prior(ds.isel(feature=slice(47)), trained)
    with pytest.raises(ModelError, match="no 'embedding' here"):
        nedx.apply_prior(ds.drop_vars("embedding"), trained)
    with pytest.raises(ModelError, match="no image_id"):
        nedx.apply_prior(_without_ids(ds), trained)
    with pytest.raises(ModelError, match="did you mean 'ddpm'"):
        nedx.apply_prior(ds, trained, sampler="ddpn")
    with pytest.raises(ModelError, match="from 1 to 1000"):
        nedx.apply_prior(ds, trained, steps=1001)
    with pytest.raises(ModelError, match="no diffusion prior"):
        nedx.apply_prior(ds, object())
    square = ds.assign(embedding_one_stage=ds["embedding"])
    with pytest.raises(ModelError, match="a prior was applied"):
        nedx.apply_prior(square, trained)
    bad = ds.where(ds["image_id"] != "t:0002")
    with pytest.raises(ModelError, match="t:0002"):
        nedx.apply_prior(bad, trained, steps=2)["embedding"].compute()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    from nedx.reconstruction.prior_store import PriorModel

    with pytest.raises(ModelError, match="no checkpoint of a diffusion prior"):
        PriorModel.from_checkpoint(tmp_path / "other.pt")
    with pytest.raises(nedx.errors.NedxError, match="not fitted"):
        nedx.apply_prior(ds, nedx.DiffusionPrior())


def test_published_checkpoints(trained, tmp_path):
    from nedx.reconstruction.prior_store import PriorModel

    state = trained.model_.load("cpu").state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
    recipe = PriorModel.from_checkpoint(tmp_path / "a.pt", target="clip").recipe
    assert (recipe.width, recipe.condition_width) == (WIDTH, CONDITION)
    assert (recipe.hidden, recipe.target) == (FAST["hidden"], "clip")
    with pytest.raises(ModelError, match="tgt"):
        PriorModel.from_checkpoint(tmp_path / "a.pt", tgt="clip")
    some = {name: value for name, value in state.items() if "cond" not in name}
    torch.save(some, tmp_path / "b.pt")
    with pytest.raises(ModelError, match="no checkpoint of a diffusion prior: it lacks encode_c"):
        PriorModel.from_checkpoint(tmp_path / "b.pt")
