"""Training of ReAlnets: formulas of the losses and of the head, and what a step moves."""

from __future__ import annotations

import copy
import weakref

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nedx.encoding.realnet_losses import generation_loss, task_loss
from nedx.encoding.realnet_network import ReAlnet
from nedx.encoding.realnet_recipe import ReAlnetArchitecture
from nedx.encoding.realnet_training import ReAlnetTraining

SMALL = {"widths": (4, 4, 4, 4), "steps": (1, 2, 1), "classes": 5}
ARCHITECTURE = ReAlnetArchitecture(**SMALL, features=6, image_size=32, n_channels=3, n_times=4)


def network(seed=0):
    torch.manual_seed(seed)
    return ReAlnet(ARCHITECTURE)


def pair(count=6, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.uniform(0, 1, (count, 3, 32, 32)).astype(np.float32))
    return images, torch.from_numpy(rng.standard_normal((count, 12)).astype(np.float32))


def published(p, y, rho):
    """mean (p - y)^2 + [1 - mean_i rho_ii + mean_{i != j} rho_ij], pair by pair."""
    table = np.array([[rho(a, b) for b in y] for a in p])
    n = len(p)
    own, others = np.trace(table) / n, table[~np.eye(n, dtype=bool)].mean()
    return ((p - y) ** 2).mean() + 1 - own + others


def test_losses_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    p, y = rng.standard_normal((2, 5, 7))
    p[0, :3] = 1.0
    given = torch.from_numpy(p), torch.from_numpy(y)
    assert float(generation_loss(*given, None)) == pytest.approx(((p - y) ** 2).mean())
    expected = published(p, y, lambda a, b: np.corrcoef(a, b)[0, 1])
    assert float(generation_loss(*given, "pearson")) == pytest.approx(expected)
    expected = published(p, y, lambda a, b: spearmanr(a, b)[0])
    assert float(generation_loss(*given, "monitor")) == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_term_has_a_gradient_as_pearson_and_none_as_monitor():
    rng = np.random.default_rng(1)
    p, y = rng.standard_normal((2, 4, 6))
    gradients = {}
    for kind in (None, "monitor", "pearson"):
        predicted = torch.tensor(p, requires_grad=True)
        generation_loss(predicted, torch.tensor(y), kind).backward()
        gradients[kind] = predicted.grad.numpy()
    np.testing.assert_array_equal(gradients["monitor"], gradients[None])
    step = np.zeros_like(p)
    step[2, 3] = 1e-5
    up, down = (published(p + s, y, lambda a, b: np.corrcoef(a, b)[0, 1]) for s in (step, -step))
    assert gradients["pearson"][2, 3] == pytest.approx((up - down) / 2e-5, rel=1e-5)
    assert abs(gradients["pearson"] - gradients[None]).max() > 1e-2


@pytest.mark.parametrize("term", ["task", "distance", "contrast"])
def test_every_term_of_the_loss_has_a_gradient(term):
    """The task moves the trunk alone, both terms of the generation loss trunk and head."""
    made = network().train()
    teacher = copy.deepcopy(made.realnet).eval()
    images, y = pair()
    logits, p = made(images)
    with torch.no_grad():
        wanted = teacher(images)
    bare = generation_loss(p, y, None)
    loss = {
        "task": task_loss(logits, wanted),
        "distance": bare,
        "contrast": generation_loss(p, y, "pearson") - bare,
    }[term]
    names, tensors = zip(*made.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    moved = {
        name.partition(".")[0]
        for name, g in zip(names, found, strict=True)
        if g is not None and float(g.abs().max()) > 1e-6
    }
    heads = set() if term == "task" else {"fc_v1", "fc_v2", "fc_v4", "fc_it", "fc"}
    assert moved == {"realnet"} | heads


def test_validation_keeps_no_images():
    """What is held out may be more images than memory holds."""
    alive = weakref.WeakSet()

    def pairs():
        for seed in range(5):
            images, y = pair(seed=seed)
            alive.add(images)
            assert len(alive) <= 2
            yield images, y

    training = ReAlnetTraining(network())
    terms, predicted, measured = training.validate(pairs())
    torch.testing.assert_close(measured, torch.cat([pair(seed=seed)[1] for seed in range(5)]))
    assert predicted.shape == measured.shape
    assert terms[-1] == pytest.approx(terms[0] + 100 * terms[1])


def test_a_batch_of_one_image_has_no_others():
    p, y = torch.randn(1, 5), torch.randn(1, 5)
    expected = 1 - np.corrcoef(p, y)[0, 1] + float(((p - y) ** 2).mean())
    assert float(generation_loss(p, y, "pearson")) == pytest.approx(expected, rel=1e-5)


def test_the_head_reads_each_area():
    """Linear and rectifier of each flattened area, side by side, then all outputs."""
    made = network().eval()
    state = {k: v.numpy().astype(np.float64) for k, v in made.state_dict().items()}
    images, _ = pair()
    with torch.inference_mode():
        taps = dict(made.realnet.walk(images, made.realnet.layer_names()))
        parts = [
            np.maximum(
                taps[area].flatten(1).numpy().astype(np.float64) @ state[f"fc_{name}.weight"].T
                + state[f"fc_{name}.bias"],
                0,
            )
            for area, name in (("V1", "v1"), ("V2", "v2"), ("V4", "v4"), ("IT", "it"))
        ]
        logits, found = made(images)
    expected = np.concatenate(parts, 1) @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    torch.testing.assert_close(logits, taps["decoder"])
    assert ReAlnetArchitecture(n_channels=17, n_times=20).outputs == 340


def test_the_published_number_of_parameters():
    """101.76 million with 340 outputs, 101.64 with 100."""
    for channels, millions in ((17, 101.76), (5, 101.64)):
        with torch.device("meta"):
            made = ReAlnet(ReAlnetArchitecture(n_channels=channels, n_times=20))
        assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("contrastive", ["pearson", None])
def test_a_step_is_that_of_adam_on_both_losses(contrastive):
    """The first step of Adam is the learning rate times the sign of the gradient."""
    made = network()
    before, teacher = copy.deepcopy(made), copy.deepcopy(made.realnet).eval()
    training = ReAlnetTraining(made, learning_rate=1e-2, beta=7.0, contrastive=contrastive)
    images, y = pair()
    terms = training.step(images, y)

    before.train()
    logits, p = before(images)
    task = ((logits - teacher(images)) ** 2).mean()
    rho = torch.corrcoef(torch.cat([p, y]))[:6, 6:]
    bracket = 1 - rho.diagonal().mean() + (rho.sum() - rho.trace()) / 30 if contrastive else 0.0
    generation = ((p - y) ** 2).mean() + bracket
    loss = task + 7 * generation
    expected = [float(each.detach()) for each in (task, generation, loss)]
    assert terms == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    agree, count = 0, 0
    for moved, old, g in zip(made.parameters(), before.parameters(), gradients, strict=True):
        there = g.abs() > 1e-4 * g.abs().max()
        wanted = (old - 1e-2 * g.sign())[there]
        agree += int(((moved[there] - wanted).abs() < 1e-3).sum())
        count += int(there.sum())
    assert agree / count > 0.99


def test_batch_norms_count_a_step_once_and_the_teacher_stays():
    made = network()
    start = copy.deepcopy(made.realnet)
    training = ReAlnetTraining(made, learning_rate=1e-2)
    images, y = pair()
    for _ in range(3):
        training.step(images, y)
    counted = {k: int(v) for k, v in made.state_dict().items() if k.endswith("batches_tracked")}
    assert set(counted.values()) == {3}
    for (name, kept), first in zip(
        training.teacher.state_dict().items(), start.state_dict().values(), strict=True
    ):
        assert torch.equal(kept, first), name
    assert all(p.grad is None for p in training.teacher.parameters())


def test_without_a_generation_loss_only_the_trunk_moves():
    made = network()
    before = copy.deepcopy(made)
    ReAlnetTraining(made, learning_rate=1e-2, beta=0.0).step(*pair())
    moved = {
        name.partition(".")[0]
        for (name, new), old in zip(made.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved == {"realnet"}
