from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nedx.reconstruction.prior_loop import cosine
from nedx.reconstruction.prior_network import PriorNetwork, read_checkpoint, sinusoids, widths_of
from nedx.reconstruction.prior_sampling import guided
from nedx.reconstruction.prior_store import PriorModel
from nedx.reconstruction.schedule import (
    add_noise,
    kept_signal,
    leading_times,
    predicted_start,
    step_back,
)


def test_noise_is_added_and_taken_away_exactly():
    start, noise = torch.randn(2, 7, 64, dtype=torch.float64)
    kept = kept_signal(1000)
    for time in (0, 1, 500, 999):
        noisy = add_noise(start, noise, torch.full((7, 1), kept[time], dtype=torch.float64))
        found = predicted_start(noisy, noise, kept[time])
        torch.testing.assert_close(found, start, rtol=1e-9, atol=1e-9)


def test_schedule_is_that_of_the_paper():
    kept = kept_signal(1000)
    # Ho et al. 2020 say that about 1e-5 of the signal is left at the end (KL 4e-5 of 2 bits).
    product = math.exp(sum(math.log1p(-(1e-4 + i * (0.02 - 1e-4) / 999)) for i in range(1000)))
    assert kept[-1] == pytest.approx(product, rel=1e-10)
    times = leading_times(1000, 50)
    assert times[0] == 980
    assert times[-1] == 0
    assert len(times) == 50
    assert (np.diff(times) == -20).all()


def test_steps_equal_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(50)
    assert theirs.timesteps.tolist() == leading_times(1000, 50).tolist()
    kept = kept_signal(1000)
    generator = torch.Generator().manual_seed(1)
    for time in (980, 500, 20, 0):
        noisy, noise = torch.randn(2, 3, 16, generator=generator)
        expected = theirs.step(noise, time, noisy, generator=torch.Generator().manual_seed(2))
        start = predicted_start(noisy, noise, kept[time]).clamp(-1, 1)
        mean, deviation = step_back(noisy, start, kept[time], kept[time - 20] if time else 1.0)
        drawn = torch.randn((3, 16), generator=torch.Generator().manual_seed(2))
        found = mean + deviation * drawn if time else mean
        torch.testing.assert_close(found, expected.prev_sample, rtol=1e-4, atol=1e-5)


def test_network_has_the_published_size_and_names():
    state = PriorNetwork().state_dict()
    assert sum(value.numel() for value in state.values()) == 9_675_648
    expected = {"output_layer.weight": (1024, 1024), "input_layer.1.bias": (1024,)}
    expected |= {"encode_layers.3.0.weight": (64, 128), "decode_layers.0.0.weight": (128, 64)}
    expected |= {"decode_time_embedding.0.linear_1.weight": (64, 512)}
    expected |= {"encode_cond_embedding.1.weight": (512, 1024)}
    for name, shape in expected.items():
        assert tuple(state[name].shape) == shape


def test_network_computes_what_the_specification_says():
    torch.manual_seed(0)
    network = PriorNetwork(8, 6, (16, 8, 4)).eval()
    w = network.state_dict()
    x, condition, time = torch.randn(5, 8), torch.randn(5, 6), torch.tensor([0, 3, 50, 500, 999])

    def linear(name, value):
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(name, value):
        centred = value - value.mean(1, keepdim=True)
        spread = (centred**2).mean(1, keepdim=True) + 1e-5
        return centred / spread.sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def silu(value):
        return value / (1 + torch.exp(-value))

    frequencies = 10_000 ** (-torch.arange(256) / 256)
    angles = time[:, None] * frequencies
    waves = torch.cat([angles.cos(), angles.sin()], 1)

    def level(side, i, value):
        when = linear(f"{side}_time_embedding.{i}.linear_1", waves)
        value = value + linear(f"{side}_time_embedding.{i}.linear_2", silu(when))
        value = value + linear(f"{side}_cond_embedding.{i}", condition)
        return silu(normed(f"{side}_layers.{i}.1", linear(f"{side}_layers.{i}.0", value)))

    h0 = silu(normed("input_layer.1", linear("input_layer.0", x)))
    h1 = level("encode", 0, h0)
    h2 = level("encode", 1, h1)
    up = level("decode", 0, h2) + h1
    up = level("decode", 1, up) + h0
    with torch.no_grad():
        torch.testing.assert_close(sinusoids(time), waves, rtol=1e-3, atol=1e-3)
        found = network(x, time, condition)
        torch.testing.assert_close(found, linear("output_layer", up), rtol=1e-3, atol=1e-4)


def test_samples_without_condition_are_those_of_no_condition():
    torch.manual_seed(0)
    network = PriorNetwork(8, 6, (16, 8)).eval()
    x, condition, time = torch.randn(4, 8), torch.randn(4, 6), torch.arange(4)
    keep = torch.tensor([[1.0], [0], [1], [0]])
    with torch.no_grad():
        mixed = network(x, time, condition, keep)
        given, free = network(x, time, condition), network(x, time)
        torch.testing.assert_close(mixed[[0, 2]], given[[0, 2]])
        torch.testing.assert_close(mixed[[1, 3]], free[[1, 3]])
        assert not torch.allclose(given, free)
        times = torch.full((4,), 7)
        for guidance, expected in (
            (1.0, network(x, times, condition)),
            (0.0, network(x, times)),
            (5.0, network(x, times) * -4 + 5 * network(x, times, condition)),
        ):
            found = guided(network, condition, guidance)(x, 7)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_learning_rate_rises_and_falls_as_published():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = transformers.get_cosine_schedule_with_warmup(optimizer, 20, 200)
    for step in range(200):
        assert cosine(step, 20, 200) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_published_checkpoint_loads(tmp_path):
    torch.manual_seed(3)
    network = PriorNetwork(8, 6, (16, 8, 4)).eval()
    torch.save(network.state_dict(), tmp_path / "diffusion_prior_All.pt")
    state = read_checkpoint(tmp_path / "diffusion_prior_All.pt")
    assert widths_of(state) == {"width": 8, "condition_width": 6, "hidden": (16, 8, 4)}
    model = PriorModel.from_checkpoint(tmp_path / "diffusion_prior_All.pt", target="ViT-H-14")
    assert model.recipe.target == "ViT-H-14"
    loaded = model.load("cpu")
    x, condition, time = torch.randn(4, 8), torch.randn(4, 6), torch.arange(4)
    with torch.no_grad():
        assert torch.equal(loaded(x, time, condition), network(x, time, condition))
