"""Training of fwRF models: formulas, order of the steps, what is learnt, and going on."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

import nedx
from nedx.backbones.gnet import MAPS
from nedx.encoding.fwrf import predict, read_out_fwrf
from nedx.encoding.fwrf_batches import mean_colours, training_batches
from nedx.encoding.fwrf_samples import split_samples
from nedx.encoding.fwrf_training import FwrfTrainer
from nedx.encoding.fwrf_training_loop import (
    FwrfTraining,
    TrainedHead,
    fwrf_loss,
    new_trunk,
)
from nedx.errors import CorruptStoreError, ModelError, NedxWarning, StimulusError, StoreError

ATTRS = {"units": "1", "normalization": "zscore", "normalization_scope": "session"}
SMALL = {"max_epochs": 1, "batch_size": 4, "device": "cpu"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


def images(count, seed=0):
    """Images that differ in colour and contrast."""
    rng = np.random.default_rng(seed)
    contrast = rng.uniform(0, 60, (count, 1, 1, 1))
    pixels = rng.uniform(40, 215, (count, 1, 1, 3))
    pixels = pixels + contrast * rng.standard_normal((count, 6, 6, 3))
    return pixels.clip(0, 255).astype(np.uint8).repeat(4, 1).repeat(4, 2)


def stimuli(count, seed=0):
    return nedx.open_images(images(count, seed), image_set="toy")


def responses(ids, values, partition=None, **coords):
    ds = xr.Dataset(
        {"response": (("image", "voxel"), np.asarray(values, np.float32), ATTRS)},
        coords={"image_id": ("image", np.asarray(ids, dtype=object)), **coords},
        attrs={"modality": "fmri", "dataset": "toy", "source": "synthetic"},
    )
    return ds if partition is None else ds.assign_coords(partition=("image", partition))


def parts(train, val, test=0):
    return np.array(["train"] * train + ["val"] * val + ["test"] * test, dtype=object)


def toy(train=8, val=4, voxels=3, test=0):
    seen = stimuli(train + val + test)
    values = np.random.default_rng(1).standard_normal((seen.sizes["image"], voxels))
    return seen, responses(seen["image_id"].values, values, parts(train, val, test))


def maps(count, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((count, *s))).float() for s in MAPS.values()]


def random_head(voxels, seed=0):
    torch.manual_seed(seed)
    head = TrainedHead(voxels)
    with torch.no_grad():
        for each in (head.rf0, head.rf1, head.rf2, head.w, head.b):
            each.normal_()
    return head


def sigma(x):
    return np.log(1 + np.abs(x)) * np.tanh(x)


def test_the_head_is_that_of_inference():
    head, given_maps = random_head(5), maps(3)
    expected = read_out_fwrf(given_maps, head.fitted)
    torch.testing.assert_close(head(given_maps), expected, atol=1e-4, rtol=1e-4)


def test_gradients_of_the_head_are_those_of_the_formula():
    """dy/dw_f = s(Phi_f), and dy/drf by differences in float64, in numpy."""
    head, given_maps = random_head(2), maps(2)
    head(given_maps)[:, 1].sum().backward()
    state = {n: p.detach().numpy().astype(np.float64) for n, p in head.named_parameters()}
    flat = [sigma(each.numpy().astype(np.float64)).reshape(2, 256, -1) for each in given_maps]

    def phi(fields):
        soft = [np.exp(each.ravel()) / np.exp(each).sum() for each in fields]
        pooled = [f @ g for f, g in zip(flat, soft, strict=True)]
        return np.concatenate(pooled, 1)

    fields = [state[f"rf{k}"][1] for k in range(3)]
    np.testing.assert_allclose(head.w.grad[1], sigma(phi(fields)).sum(0), atol=1e-5)
    assert not head.w.grad[0].any()
    for k, place in ((0, (3, 4)), (1, (20, 2)), (2, (12, 12))):
        step = np.zeros_like(fields[k])
        step[place] = 1e-4
        up, down = ([*fields[:k], fields[k] + s, *fields[k + 1 :]] for s in (step, -step))
        difference = (sigma(phi(up)) - sigma(phi(down))).sum(0) @ state["w"][1] / 2e-4
        found = float((head.rf0, head.rf1, head.rf2)[k].grad[1][place])
        assert found == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_blocks_of_voxels_change_neither_responses_nor_gradients(monkeypatch):
    given_maps = [each.requires_grad_() for each in maps(2)]
    head = random_head(7)
    learnt = [*given_maps, *head.parameters()]
    whole = head(given_maps)
    expected = torch.autograd.grad(whole.square().sum(), learnt)
    monkeypatch.setattr("nedx.encoding.fwrf_training_loop._BLOCK_BYTES", 3 * 4 * 2 * 768)
    blocks = head(given_maps)
    torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad(blocks.square().sum(), learnt)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)


def test_loss_and_its_gradient_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    y, noise, w = (rng.standard_normal(s) for s in ((30, 5), (30, 5), (5, 9)))
    p = y * np.array([0, 0.2, 1, 3, -1]) + noise
    q = [min(1, max(0.1, np.corrcoef(a, b)[0, 1] ** 2)) for a, b in zip(p.T, y.T, strict=True)]
    q = np.array(q)
    assert q[0] == 0.1
    assert q[3] > 0.5
    expected = (q * ((p - y) ** 2).sum(0)).sum() / q.mean() + 0.1 * np.abs(w).sum()
    predicted = torch.tensor(p, requires_grad=True)
    weights = torch.tensor(w, requires_grad=True)
    loss = fwrf_loss(predicted, torch.tensor(y), weights)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    np.testing.assert_allclose(predicted.grad, 2 * q * (p - y) / q.mean(), rtol=1e-4)
    np.testing.assert_allclose(weights.grad, 0.1 * np.sign(w), rtol=1e-6)


def test_the_trunk_moves_first_and_the_head_sees_it_moved():
    """The first step of Adam is the learning rate times the sign of the gradient."""
    torch.manual_seed(0)
    trunk, head, other = new_trunk(np.full(3, 0.5)), random_head(3), random_head(2, seed=1)
    x, y = torch.rand(4, 3, 227, 227), torch.randn(4, 3)
    training = FwrfTraining(trunk, {"a": head, "b": other}, learning_rate=0.01)
    moved, before = copy.deepcopy(trunk), copy.deepcopy(head)
    untouched = [each.clone() for each in other.parameters()]
    torch.manual_seed(7)
    training.step("a", x, y)

    torch.manual_seed(7)
    moved.train()
    learnt = [each for each in moved.parameters() if each.requires_grad]
    loss = fwrf_loss(before([m for _, m in moved.walk(x, ())]), y, before.w)
    gradients = torch.autograd.grad(loss, learnt)
    with torch.no_grad():
        for each, gradient in zip(learnt, gradients, strict=True):
            each -= 0.01 * gradient / (gradient.abs() + 1e-8)
    for found, expected in zip(training.trunk.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    loss = fwrf_loss(before([m for _, m in moved.walk(x, ())]), y, before.w)
    expected = before.w - 0.01 * torch.autograd.grad(loss, [before.w])[0].sign()
    error = (head.w.detach() - expected.detach()).abs()
    assert float(error.median()) < 1e-6
    assert float((error < 1e-4).float().mean()) > 0.97
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), untouched, strict=True))


def test_the_trunk_begins_as_published_and_drops_maps_while_it_trains():
    torch.manual_seed(0)
    trunk = new_trunk(np.array([0.1, 0.2, 0.3]))
    weight = trunk.enc.conv4a.conv1.weight
    assert float(weight.detach().std()) == pytest.approx(
        np.sqrt(2) * np.sqrt(2 / (256 * 9)), rel=0.02
    )
    assert trunk.mu.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not trunk.mu.requires_grad
    x = torch.rand(2, 3, 227, 227)
    kept = []
    trunk.enc.conv4a.conv1.register_forward_hook(lambda m, i, o: kept.append(i[0]))
    for training in (True, False):
        list(trunk.train(training).walk(x, ()))
    dropped, whole = ((each == 0).all(3).all(2) for each in kept)
    # A norm moves all maps off zero while it trains: what is zero was dropped.
    assert 0.4 < float(dropped.float().mean()) < 0.6
    assert float(whole.float().mean()) < 0.3


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Responses of a known fwRF model, and what was trained on them."""
    home = tmp_path_factory.mktemp("learnt")
    seen = stimuli(80)
    head = random_head(8, seed=3)
    torch.manual_seed(100)
    truth = predict(seen["pixels"].values, new_trunk(np.full(3, 0.5)).eval(), head.fitted)
    truth = (truth - truth.mean(0)) / truth.std(0)
    ds = responses(seen["image_id"].values, truth, parts(48, 16, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEDX_CACHE", str(home))
        trainer = FwrfTrainer(max_epochs=2, batch_size=6, learning_rate=2e-3, device="cpu")
        trainer.fit(seen, ds)
        yield seen, ds, truth, trainer


def test_responses_of_a_known_model_are_learnt(learnt):
    seen, ds, truth, trainer = learnt
    assert trainer.history_[trainer.best_epoch_]["validation_r"] > 0.45
    assert trainer.best_epoch_ == int(np.argmax([h["validation_r"] for h in trainer.history_]))
    unseen = seen.isel(image=slice(64, None))
    predicted = unseen.ned.encode(trainer)["response"].transpose("image", "voxel").values
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, truth[64:].T, strict=True)]
    assert np.median(r) > 0.4
    assert trainer.score(unseen, ds.isel(image=slice(64, None))) == pytest.approx(np.mean(r), 1e-3)


def test_the_model_says_what_it_was_fitted_to(learnt, tmp_path):
    seen, ds, truth, trainer = learnt
    trainer.to_zarr(tmp_path / "model.zarr")
    model = nedx.load_model(tmp_path / "model.zarr")
    out = seen.ned.encode(model)
    nedx.validate(out)
    expected = seen.ned.encode(trainer)["response"].values
    np.testing.assert_array_equal(out["response"].values, expected)
    assert out["partition"].values.tolist() == ds["partition"].values.tolist()
    assert model.recipe.model_id == "fmri-toy-fwrf"
    assert model.recipe.training_source == "synthetic"
    assert model.recipe.fitted_by.startswith("FwrfTrainer(batch_size=6, ")
    held = slice(48, 64)
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(expected[held].T, truth[held].T, strict=True)]
    np.testing.assert_allclose(out["encoding_accuracy"], r, atol=1e-4)
    assert np.median(r) == pytest.approx(
        trainer.history_[trainer.best_epoch_]["validation_r"], abs=1e-4
    )


def test_it_has_the_manners_of_scikit_learn():
    trainer = FwrfTrainer(max_epochs=7, checkpoint="somewhere")
    assert clone(trainer).get_params() == trainer.get_params()
    assert trainer.set_params(seed=3).seed == 3
    with pytest.raises(ModelError, match=r"not fitted: type .fit"):
        trainer.predict(stimuli(1))


def test_subjects_and_rois_share_a_trunk(tmp_path):
    """Two subjects with their own voxels, images, trials and ROIs."""
    seen = stimuli(16)
    ids, rng = seen["image_id"].values, np.random.default_rng(0)
    shown = np.array([0, 1, 2, 3, 0, 1, 12, 12, 13, 13])
    first = responses(ids[shown], rng.standard_normal((10, 3))).rename(image="trial")
    first = first.assign_coords(
        roi=np.array(["V1", "V2"], dtype=object),
        roi_mask=(("roi", "voxel"), np.array([[1, 1, 0], [0, 1, 1]], bool)),
    )
    second = responses(ids[[5, 6, 7, 8, 14, 15]], rng.standard_normal((6, 2)))
    tree = xr.DataTree.from_dict({"sub-01": first, "sub-02": second})
    known = seen.assign_coords(partition=("image", parts(12, 4)))
    trainer = FwrfTrainer(**SMALL).fit(known, tree)
    out = known.drop_vars("partition").ned.encode(trainer)
    nedx.validate(out)
    assert out["sub-01"]["response"].sizes == {"image": 16, "voxel": 3}
    assert out["sub-02"]["response"].sizes == {"image": 16, "voxel": 2}
    assert out["sub-01"].to_dataset().ned.roi("V2").sizes["voxel"] == 2
    assert out["sub-01"]["partition"].values[[0, 4, 12]].tolist() == ["train", "unseen", "val"]
    assert len(trainer.model_.trunks) == 1
    trainer.to_zarr(tmp_path / "both.zarr")
    alone = nedx.load_model(tmp_path / "both.zarr", subject=2)
    got = seen.ned.encode(alone)["response"].values
    np.testing.assert_allclose(got, out["sub-02"]["response"].values, atol=1e-6)


def test_subjects_on_one_dimension_have_heads_of_their_own():
    seen, ds = toy()
    values = np.random.default_rng(2).standard_normal((2, 12, 3)).astype(np.float32)
    mask = np.array([[[1, 1, 0]], [[0, 1, 1]]], bool)
    both = ds.drop_vars("response").assign_coords(
        subject=np.array(["sub-01", "sub-03"], dtype=object),
        roi=np.array(["V1"], dtype=object),
        roi_mask=(("subject", "roi", "voxel"), mask),
    )
    both["response"] = ("subject", "image", "voxel"), values, ATTRS
    split = split_samples(seen, both, None, "fwrf")
    assert list(split.training) == ["sub-01", "sub-03"]
    for i, samples in enumerate(split.training.values()):
        np.testing.assert_array_equal(samples.read(np.arange(8)), values[i, :8])
    out = seen.ned.encode(FwrfTrainer(**SMALL).fit(seen, both))
    for name, own in zip(("sub-01", "sub-03"), mask, strict=True):
        np.testing.assert_array_equal(out[name]["roi_mask"].values, own)


def test_validation_images_can_be_given_and_repetitions_count_as_samples():
    seen = stimuli(8)
    ids, rng = seen["image_id"].values, np.random.default_rng(0)
    values = rng.standard_normal((6, 2, 3)).astype(np.float32)
    repeated = responses(ids[:6], values[:, 0]).assign(
        response=(("image", "repetition", "voxel"), values, ATTRS)
    )
    held = responses(ids[6:], rng.standard_normal((2, 3)))
    split = split_samples(seen, repeated, held, "fwrf")
    samples = split.training["sub-01"]
    assert len(samples) == 12
    np.testing.assert_array_equal(samples.image, np.repeat(np.arange(6), 2))
    np.testing.assert_array_equal(samples.read(np.arange(12)), values.reshape(12, 3))
    np.testing.assert_array_equal(samples.image_means()[1], values.mean(1))
    assert FwrfTrainer(**SMALL).fit(seen, repeated, held).best_epoch_ == 0


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(1, 40),
    chunk=st.integers(1, 17),
    batch=st.integers(1, 9),
    window=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_an_epoch_is_each_sample_once_with_its_own_image(count, chunk, batch, window, seed):
    """Whatever the chunks are; the image of a sample is known from its first colour."""
    grey = (np.arange(50, dtype=np.uint8) * 5)[:, None, None, None]
    seen = nedx.open_images(np.broadcast_to(grey, (50, 4, 4, 3)).copy(), image_set="toy")
    image = np.random.default_rng(seed).integers(0, 50, count)
    values = np.stack([np.arange(count), image * 5 / 255], 1).astype(np.float32)
    ds = responses(seen["image_id"].values[image], values).rename(image="trial")
    ds["response"] = ds["response"].copy(data=da.from_array(values, chunks=(chunk, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nedx.encoding.fwrf_samples._WINDOW_BYTES", 8 * window)
        split = split_samples(seen, ds, None, "fwrf")
        got = list(training_batches(split, "raw01", batch, (seed, 0)))
    sizes = [len(each) for _, each, _ in got]
    assert sizes == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    rows = np.concatenate([each.numpy() for _, _, each in got])
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.arange(count))
    np.testing.assert_array_equal(rows, values[rows[:, 0].astype(int)])
    shown = torch.cat([each for _, each, _ in got])
    np.testing.assert_allclose(shown[:, 0, 0, 0], rows[:, 1], atol=1e-6)


def test_an_epoch_reads_each_chunk_of_the_responses_once():
    reads = []

    def read(block, block_info=None):
        reads.append(block_info[0]["chunk-location"][0])
        return block

    seen = stimuli(30)
    values = np.random.default_rng(0).standard_normal((30, 2)).astype(np.float32)
    ds = responses(seen["image_id"].values, values, parts(24, 6))
    lazy = da.from_array(values, chunks=(5, 2)).map_blocks(read, meta=np.empty((0, 0), "f4"))
    ds["response"] = ds["response"].copy(data=lazy)
    split = split_samples(seen, ds, None, "fwrf")
    assert not reads
    orders = []
    for epoch in (0, 1):
        reads.clear()
        batches = training_batches(split, "fwrf", 4, (0, epoch))
        orders.append(torch.cat([measured for _, _, measured in batches]))
        assert sorted(reads) == [0, 1, 2, 3, 4]
    assert not torch.equal(*orders)


def test_the_mean_of_the_training_images_is_taken_off():
    seen = stimuli(9)
    found = mean_colours(seen["pixels"], np.array([1, 3, 4]), "raw01")
    expected = seen["pixels"].values[[1, 3, 4]].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(found, expected, atol=1e-6)


SCRIPT = """
import sys
from tests.encoding.test_fwrf_training import FwrfTrainer, toy
FwrfTrainer(max_epochs=50, batch_size=4, device="cpu", checkpoint=sys.argv[1]).fit(*toy())
"""


def killed_after_an_epoch(folder):
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=env, cwd=root)
    deadline = time.monotonic() + 120
    while not (folder / "progress.json").exists() and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    return len(json.loads((folder / "progress.json").read_bytes())["history"])


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    done = killed_after_an_epoch(tmp_path / "killed")
    asked = {**SMALL, "max_epochs": done + 2}
    resumed = FwrfTrainer(**asked, checkpoint=tmp_path / "killed").fit(*toy())
    straight = FwrfTrainer(**asked).fit(*toy())
    assert len(resumed.history_) == done + 2
    assert resumed.history_ == straight.history_
    assert resumed.model_.weights_sha256 == straight.model_.weights_sha256
    left = sorted(path.name.partition("-")[0] for path in (tmp_path / "killed").iterdir())
    assert left == ["best", "progress.json", "state"]
    again = FwrfTrainer(**asked, checkpoint=tmp_path / "killed").fit(*toy())
    assert again.model_.weights_sha256 == straight.model_.weights_sha256
    assert again.history_ == straight.history_


def test_another_seed_is_another_training_and_the_caller_keeps_its_random_numbers(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    seen, ds = toy()
    one, other = (FwrfTrainer(**SMALL, seed=seed).fit(seen, ds) for seed in (0, 1))
    same = FwrfTrainer(**SMALL).fit(seen.merge(ds))
    assert torch.equal(torch.rand(1), expected)
    assert one.model_.weights_sha256 == same.model_.weights_sha256
    assert one.model_.weights_sha256 != other.model_.weights_sha256
    with pytest.warns(NedxWarning, match="8 of 12 images of 'sub-01' were used in training"):
        assert same.score(seen.merge(ds)) == pytest.approx(same.score(seen, ds))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "checkpoint"
    FwrfTrainer(**SMALL, checkpoint=folder).fit(*toy())
    with pytest.raises(ModelError, match="another training"):
        FwrfTrainer(**SMALL, seed=1, checkpoint=folder).fit(*toy())
    seen, ds = toy()
    with pytest.raises(ModelError, match="another training"):
        FwrfTrainer(**SMALL, checkpoint=folder).fit(seen, ds.assign(response=2 * ds["response"]))
    (state,) = folder.glob("state-*")
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match="differs from what was written"):
        FwrfTrainer(**SMALL, checkpoint=folder).fit(*toy())
    state.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        FwrfTrainer(**SMALL, checkpoint=folder).fit(*toy())
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(StoreError, match="other files"):
        FwrfTrainer(**SMALL, checkpoint=tmp_path).fit(*toy())


def test_a_step_in_bfloat16_is_nearly_the_same_step():
    x, y = torch.rand(4, 3, 227, 227), torch.randn(4, 3)
    losses = []
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        trunk = new_trunk(np.full(3, 0.5))
        training = FwrfTraining(trunk, {"a": random_head(3)}, precision=precision)
        losses.append(training.step("a", x, y))
        weights = training.weights()
        assert all(each.dtype != torch.bfloat16 for each in weights.values())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def _nan(ds):
    values = ds["response"].values.copy()
    values[2, 1] = np.nan
    return ds.assign(response=ds["response"].copy(data=values))


def _constant(ds):
    values = ds["response"].values.copy()
    values[:, 2] = 1
    return ds.assign(response=ds["response"].copy(data=values))


def _held_nan(ds):
    values = ds["response"].values.copy()
    values[-1, 1] = np.nan
    return ds.assign(response=ds["response"].copy(data=values))


def _as_trials(ds, *further):
    """Each image once, and some again."""
    return ds.isel(image=[*range(12), *further]).rename(image="trial")


def _moved(ds, row, kind):
    partition = ds["partition"].values.copy()
    partition[row] = kind
    return ds.assign_coords(partition=(ds["partition"].dims, partition))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("partition"), "no validation images.*'val'"),
        (lambda ds: _moved(ds, slice(None), "val"), "no training images"),
        (lambda ds: _moved(_as_trials(ds, 9), 12, "train"), "1 images.*training and the validat"),
        (lambda ds: _moved(_as_trials(ds, 1), 12, "test"), "1 images.*training and the test"),
        (_nan, "1 of 3 voxels of 'sub-01' have NaN or infinite responses: 1"),
        (_constant, "1 of 3 voxels.*one response to all training images: 2"),
        (_held_nan, "validation responses of 'sub-01' are NaN"),
        (lambda ds: ds.rename(voxel="unit"), r"rename\(unit='voxel'\)"),
        (lambda ds: ds.assign_coords(image_id=("image", ["toy:x"] * 12)), "not among the stimuli"),
        (lambda ds: ds.rename(response="betas"), "no 'response'"),
        (lambda ds: ds.astype(np.int64), "floats"),
    ],
)
def test_bad_responses_are_refused_before_training(change, message, monkeypatch):
    seen, ds = toy()
    monkeypatch.setattr(FwrfTrainer, "_train", lambda *_: pytest.fail("training began"))
    with pytest.raises(ModelError, match=message):
        FwrfTrainer(**SMALL).fit(seen, change(ds))


def test_arrays_without_labels_are_refused():
    seen, ds = toy()
    with pytest.raises(StimulusError, match="not ndarray"):
        FwrfTrainer(**SMALL).fit(seen["pixels"].values, ds)
    for bare in ((ds["response"].values,), (ds, ds["response"].values)):
        with pytest.raises(ModelError, match="not ndarray"):
            FwrfTrainer(**SMALL).fit(seen, *bare)


def test_test_images_of_the_stimuli_are_not_trained_on():
    seen, ds = toy()
    tested = seen.assign_coords(partition=("image", parts(7, 4, 1)[[*range(6), 11, *range(6, 11)]]))
    with pytest.raises(ModelError, match="1 training images of 'sub-01' are test images"):
        FwrfTrainer(**SMALL).fit(tested, ds)


def test_validation_that_is_given_is_checked():
    seen, ds = toy(8, 2, test=2)
    train = ds.isel(image=slice(8))
    with pytest.raises(ModelError, match="2 of the validation.*test images"):
        FwrfTrainer(**SMALL).fit(seen, train, ds.isel(image=slice(10, 12)))
    again = ds.isel(image=slice(2)).drop_vars("partition")
    with pytest.raises(ModelError, match="among the training and the validation"):
        FwrfTrainer(**SMALL).fit(seen, train, again)
    with pytest.raises(ModelError, match="of 2 voxels"):
        FwrfTrainer(**SMALL).fit(seen, train, ds.isel(image=[8, 9], voxel=[0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.isel(y=slice(8)), "square"),
        (lambda ds: ds.assign(pixels=ds["pixels"].astype(np.float32)), "uint8"),
        (lambda ds: ds.drop_vars("pixels"), "fitted to 'pixels'"),
        (lambda ds: ds.drop_vars("image_id"), "no 'image_id'"),
    ],
)
def test_bad_images_are_refused(change, message):
    seen, ds = toy()
    with pytest.raises(StimulusError, match=message):
        FwrfTrainer(**SMALL).fit(change(seen), ds)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"batch_size": 1}, "at least 2"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"device": "gpu"}, "unknown device"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ModelError, match=message):
        FwrfTrainer(**{**SMALL, **parameters}).fit(*toy())
