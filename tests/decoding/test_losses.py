"""The loss in closed form, and a gradient of every term of it."""

import math

import numpy as np
import pytest
import torch

from nedx.decoding.augmentation import Noise
from nedx.decoding.batches import Batch
from nedx.decoding.losses import (
    INITIAL_SCALE,
    compared,
    contrastive_loss,
    distance_loss,
    logit_scale,
)
from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.settings import checked_settings
from nedx.decoding.standardized import Standardized
from nedx.decoding.training import Training

DEFAULTS = {
    "image": 0.99,
    "text": 0.01,
    "mse": 0.0,
    "logit_scale": "exp",
    "mask_same_image": True,
    "epochs": 2,
    "batch_size": 4,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "betas": (0.9, 0.999),
    "schedule": "cosine",
    "warmup": 0.0,
    "ema": None,
    "precision": "float32",
    "average_trials": True,
    "augmentation": (),
    "mode": "in_subject",
    "validation": 0.0,
    "patience": None,
    "seed": 0,
}


def test_identical_pairs_cost_the_logarithm_of_their_number():
    one = torch.nn.functional.normalize(torch.ones(7, 5), dim=1)
    assert float(contrastive_loss(one, one, 14.3)) == pytest.approx(math.log(7), abs=1e-6)


def test_it_is_the_mean_cross_entropy_of_rows_and_columns():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 4))
    s = 2.5 * a @ b.T
    rows = np.log(np.exp(s).sum(1)) - np.diag(s)
    columns = np.log(np.exp(s).sum(0)) - np.diag(s)
    found = contrastive_loss(torch.from_numpy(a), torch.from_numpy(b), 2.5)
    assert float(found) == pytest.approx((rows.mean() + columns.mean()) / 2, abs=1e-12)


def test_another_response_to_the_same_image_is_no_negative():
    rng = np.random.default_rng(1)
    a, b = torch.from_numpy(rng.normal(size=(2, 4, 3)))
    row = torch.tensor([0, 1, 0, 2])
    s = (a @ b.T).numpy()
    kept = (row[:, None] != row).numpy() | np.eye(4, dtype=bool)
    rows = [np.log(np.exp(s[i][kept[i]]).sum()) - s[i, i] for i in range(4)]
    columns = [np.log(np.exp(s[:, i][kept[i]]).sum()) - s[i, i] for i in range(4)]
    found = contrastive_loss(a, b, 1.0, row[:, None] == row)
    assert float(found) == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, abs=1e-12)


def test_scales_begin_where_the_published_ones_do():
    start = torch.tensor(INITIAL_SCALE)
    found = {
        kind: float(logit_scale(start, kind)) for kind in ("exp", "softplus", "linear", "fixed")
    }
    assert found == pytest.approx(
        {"exp": 1 / 0.07, "softplus": 2.727, "linear": 2.65926, "fixed": 1 / 0.07}, abs=1e-3
    )
    assert float(logit_scale(torch.tensor(9.0), "exp")) == 100


def test_embeddings_have_unit_norm_where_the_scale_expects_it():
    x = torch.randn(3, 8)
    assert torch.allclose(compared(x, "exp").norm(dim=1), torch.ones(3))
    assert torch.equal(compared(x, "linear"), x)


def test_the_distance_is_that_of_unit_vectors():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    assert float(distance_loss(a, b)) == pytest.approx(float((2 - 2 * cosine).mean()), abs=1e-12)


def training(name="eeg_project", *, with_text=False, **changes):
    torch.manual_seed(0)
    recipe = NetworkRecipe(name=name, n_channels=4, n_times=80, n_outputs=6)
    rows = torch.nn.functional.normalize(torch.randn(2, 9, 6), dim=2)
    return Training(
        Standardized(recipe),
        checked_settings({**DEFAULTS, **changes}),
        rows[0],
        rows[1] if with_text else None,
        steps=4,
        device="cpu",
    )


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 4, 80)).astype("f4")
    return Batch(x, np.zeros(4, np.int64), np.array([0, 3, 5, 8]))


@pytest.mark.parametrize("term", ["image", "text", "mse"])
@pytest.mark.parametrize("name", ["eeg_project", "nice"])
def test_every_term_alone_moves_every_weight(term, name):
    weights = {"image": 0.0, "text": 0.0, "mse": 0.0, term: 0.7}
    run = training(name, with_text=True, **weights)
    run.module.train()
    loss = run.loss(batch())
    loss.backward()
    still = [
        key
        for key, value in run.module.network.named_parameters()
        if key != "logit_scale" and (value.grad is None or not value.grad.abs().sum() > 0)
    ]
    # What comes before a batch norm may be shifted without any effect.
    assert [key for key in still if not key.endswith("bias")] == []
    moved = run.scale.grad is not None and float(run.scale.grad) != 0
    assert moved == (term != "mse")


def test_terms_add_up():
    parts = {}
    for name, weights in {
        "all": {"image": 0.6, "text": 0.3, "mse": 0.2},
        "image": {"image": 0.6, "text": 0.0, "mse": 0.0},
        "text": {"image": 0.0, "text": 0.3, "mse": 0.0},
        "mse": {"image": 0.0, "text": 0.0, "mse": 0.2},
    }.items():
        run = training(with_text=True, **weights)
        run.module.eval()
        parts[name] = float(run.loss(batch()).detach())
    assert parts["all"] == pytest.approx(parts["image"] + parts["text"] + parts["mse"], abs=1e-5)


def test_a_fixed_scale_is_not_learnt_and_others_are():
    for kind in ("exp", "softplus", "linear", "fixed"):
        run = training("nice", logit_scale=kind)
        before = float(run.scale.detach())
        run.step(batch())
        assert (float(run.scale.detach()) != before) == (kind != "fixed")


def test_the_rate_rises_and_then_falls_as_a_cosine():
    run = training(lr=1.0, epochs=3, warmup=1.0)
    rates = []
    for _ in range(12):
        rates.append(run.rate)
        run.step(batch())
    expected = [(i + 1) / 4 for i in range(4)]
    expected += [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert rates == pytest.approx(expected)


def test_averaged_weights_are_the_running_mean_of_the_trained_ones():
    run = training(ema=0.5)
    expected = {k: v.clone() for k, v in run.module.state_dict().items()}
    for done in range(1, 4):
        run.step(batch(done))
        keep = min(0.5, (1 + done) / (10 + done))
        for key, value in run.module.state_dict().items():
            expected[key] = keep * expected[key] + (1 - keep) * value
    for key, value in run.weights().items():
        torch.testing.assert_close(value, expected[key])
    assert not torch.equal(
        run.weights()["network.projection.linear.weight"],
        run.module.state_dict()["network.projection.linear.weight"],
    )


def test_half_precision_learns_much_the_same():
    full, half = (training(precision=p) for p in ("float32", "bfloat16"))
    full.module.eval()
    half.module.eval()
    a, b = (float(run.loss(batch()).detach()) for run in (full, half))
    assert a == pytest.approx(b, rel=0.05)
    assert a != b


def test_a_state_holds_all_that_the_next_step_depends_on():
    run = training(ema=0.9)
    run.step(batch())
    state = run.state()
    again = training(ema=0.9)
    again.restore(state)
    for each in (run, again):
        torch.manual_seed(3)
        each.step(batch(1))
    for key, value in run.state().items():
        assert torch.equal(value, again.state()[key]), key


def test_augmentation_is_drawn_anew():
    run = training(augmentation=(Noise(sd=1.0),))
    run.module.eval()
    assert float(run.loss(batch()).detach()) != float(run.loss(batch()).detach())
