"""Shapes, sizes and manners of the networks."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from nedx.decoding.networks import NetworkRecipe, build, names
from nedx.decoding.networks.blocks import SubjectLinear, sinusoids
from nedx.errors import MissingExtraError, ModelError

PUBLISHED = {
    "nice": 2_630_913,
    "muse": 2_571_633,
    "atms_50": 2_970_202,
    "nervformer_v1": 11_542_801,
    "nervformer_v2": 11_882_090,
}
"""Parameters for 63 channels, 250 samples and 1,024 outputs, an unused copy left out."""


def made(name: str, channels: int = 63, times: int = 250, **more: object) -> nn.Module:
    torch.manual_seed(0)
    return build(NetworkRecipe(name=name, n_channels=channels, n_times=times, **more))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    assert sum(p.numel() for p in made(name).parameters()) == PUBLISHED[name]


def test_size_of_eeg_project() -> None:
    assert sum(p.numel() for p in made("eeg_project", 17).parameters()) == 5_404_672


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("channels", "times"), [(63, 250), (271, 201), (17, 75)])
def test_any_number_of_channels_and_samples(name: str, channels: int, times: int) -> None:
    network = made(name, channels, times, n_outputs=96, n_subjects=2).eval()
    x = torch.randn(3, channels, times)
    found = network(x, torch.tensor([0, 1, -1]))
    assert found.shape == (3, 96)
    # All of them end in a normalisation, so that an embedding has mean 0 and variance 1.
    torch.testing.assert_close(found.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.full((3,), 96.0).sqrt(), atol=0.3, rtol=0)


@pytest.mark.parametrize("name", names())
def test_every_weight_learns(name: str) -> None:
    network = made(name, 8, 90, n_outputs=32, n_subjects=2).train()
    # Of both subjects and of one that is unknown, many, so that none is dropped by chance.
    x, subject = torch.randn(60, 8, 90), torch.arange(60) % 3 - 1
    (network(x, subject) * torch.randn(60, 32)).sum().backward()
    still = [
        key
        for key, weight in network.named_parameters()
        if key != "logit_scale" and (weight.grad is None or not weight.grad.any())
    ]
    assert still == []


@pytest.mark.parametrize("name", names())
def test_an_image_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    network = made(name, 8, 90, n_outputs=32).eval()
    x = torch.randn(5, 8, 90)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["atm_s", "atms_50", "nervformer_v2", "atm_e"])
def test_subjects_have_layers_of_their_own(name: str) -> None:
    network = made(name, 8, 90, n_outputs=32, n_subjects=3).eval()
    x = torch.randn(1, 8, 90).expand(4, -1, -1)
    found = network(x, torch.tensor([0, 1, -1, -1]))
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    torch.testing.assert_close(found[2], found[3])
    torch.testing.assert_close(found[2:], network(x[2:]))


def test_layers_of_subjects() -> None:
    torch.manual_seed(0)
    layer = SubjectLinear(4, 3, 2)
    x = torch.randn(3, 5, 4)
    found = layer(x, torch.tensor([1, 0, -1]))
    own = [each(x) for each in layer.layers]
    torch.testing.assert_close(found[0], own[1][0])
    torch.testing.assert_close(found[1], own[0][1])
    torch.testing.assert_close(found[2], (own[0][2] + own[1][2]) / 2)


def test_atm_s_reads_every_channel() -> None:
    network = made("atm_s", 8, 90, n_outputs=32).eval()
    x = torch.randn(1, 8, 90, requires_grad=True)
    network(x)[0, 0].backward()
    assert x.grad is not None
    assert x.grad.abs().sum(2).gt(0).all()


def test_unknown_subjects_are_read_with_what_was_learnt_of_others() -> None:
    network = made("atm_s", 8, 90, n_outputs=32, n_subjects=2).eval()
    learnt = {name for name, _ in network.named_parameters()}
    network(torch.randn(4, 8, 90), torch.tensor([0, 1, 0, 1])).sum().backward()
    # Trained on known subjects, no weight that unknown ones need is left as it was drawn.
    without = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert learnt & without == {"logit_scale"}


@pytest.mark.parametrize("name", ["atms_50", "nervformer_v2", "atm_e"])
def test_one_channel_is_too_few_for_attention_over_times(name: str) -> None:
    with pytest.raises(ModelError, match="^attention over times needs at least 2 channels"):
        made(name, 1, 90)
    assert made("nice", 1, 90)(torch.randn(2, 1, 90)).shape == (2, 1024)


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids(width: int) -> None:
    found = sinusoids(9, width)
    for column in range(width):
        angle = torch.arange(9) * 10_000.0 ** (-2 * (column // 2) / width)
        expected = angle.cos() if column % 2 else angle.sin()
        torch.testing.assert_close(found[:, column], expected, atol=1e-5, rtol=1e-5)


def test_a_window_too_short() -> None:
    with pytest.raises(ModelError, match=r"nice needs at least 75 samples, .* have 74"):
        made("nice", 63, 74)


def test_an_unknown_network_and_option() -> None:
    with pytest.raises(ModelError, match=r"no network is called 'nervformer'.*nervformer_v"):
        made("nervformer")
    with pytest.raises(ModelError, match=r"nice has no option 'droput'.*dropout"):
        made("nice", options={"droput": 0.1})
    with pytest.raises(ModelError, match=r"nice cannot be made with .*1\.5"):
        made("nice", options={"dropout": 1.5})


def test_options_reach_the_network() -> None:
    network = made("eeg_project", 4, 10, options={"dropout": 0.0}).train()
    x = torch.randn(2, 4, 10)
    torch.testing.assert_close(network(x), network(x))


class Classifier(nn.Module):
    """What braindecode's classes look like from outside."""

    def __init__(self, n_chans: int, n_times: int, n_outputs: int, depth: int = 1):
        super().__init__()
        if n_chans > 100:
            message = "at most 100 channels"
            raise ValueError(message)
        self.last = nn.Sequential(nn.Linear(n_chans * n_times, n_outputs), nn.LogSoftmax(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.flatten(1))


def test_networks_of_braindecode(monkeypatch: pytest.MonkeyPatch) -> None:
    # braindecode brings another build of torch here, so only its way of calling is tried.
    package = types.ModuleType("braindecode")
    models = types.ModuleType("braindecode.models")
    models.Classifier = Classifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "braindecode", package)
    monkeypatch.setitem(sys.modules, "braindecode.models", models)
    network = made("braindecode:Classifier", 4, 10, n_outputs=6, options={"depth": 2})
    x = torch.randn(3, 4, 10)
    torch.testing.assert_close(network(x), network.network.last[0](x.flatten(1)))
    with pytest.raises(ModelError, match="at most 100 channels"):
        made("braindecode:Classifier", 101, 10)
    with pytest.raises(ModelError, match="braindecode has no 'Classifer'"):
        made("braindecode:Classifer", 4, 10)


def test_braindecode_is_not_installed() -> None:
    with pytest.raises(MissingExtraError, match=r"nedx\[braindecode\]"):
        made("braindecode:EEGConformer")
