"""Checkpoints under the names of the original repositories, against their arithmetic."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import nedx
from nedx.decoding.model import NeuralDecoder
from nedx.decoding.networks import NetworkRecipe
from nedx.decoding.networks.checkpoints import load_checkpoint
from nedx.decoding.recipe import DecoderRecipe
from nedx.errors import ModelError

C, T, D = 6, 90, 24
Weights = dict[str, torch.Tensor]


def norm(width: int, prefix: str) -> Weights:
    return {f"{prefix}.weight": torch.randn(width), f"{prefix}.bias": torch.randn(width)}


def batch_norm(prefix: str) -> Weights:
    running = {
        f"{prefix}.running_mean": torch.randn(40),
        f"{prefix}.running_var": torch.rand(40) + 0.5,
        f"{prefix}.num_batches_tracked": torch.tensor(7),
    }
    return norm(40, prefix) | running


def layer(prefix: str, *shape: int) -> Weights:
    scale = torch.tensor(shape[1:]).prod().float().rsqrt()
    return {f"{prefix}.weight": torch.randn(shape) * scale, f"{prefix}.bias": torch.randn(shape[0])}


def attention(prefix: str, width: int) -> Weights:
    joint = layer(prefix, 3 * width, width)
    return {
        f"{prefix}.in_proj_weight": joint[f"{prefix}.weight"],
        f"{prefix}.in_proj_bias": joint[f"{prefix}.bias"],
        **layer(f"{prefix}.out_proj", width, width),
    }


def head(inputs: int) -> Weights:
    parts = layer("proj_eeg.0", D, inputs) | layer("proj_eeg.1.fn.1", D, D)
    unused = layer("proj_img.0", D, D)
    return parts | norm(D, "proj_eeg.2") | unused | {"logit_scale": torch.tensor(2.5)}


def temporal(prefix: str) -> Weights:
    first, second = layer(f"{prefix}.0", 40, 1, 1, 25), layer(f"{prefix}.4", 40, 40, C, 1)
    return first | batch_norm(f"{prefix}.2") | second | batch_norm(f"{prefix}.5")


def spatial(prefix: str) -> Weights:
    first, second = layer(f"{prefix}.0", 40, 1, C, 1), layer(f"{prefix}.3", 40, 40, 1, 25)
    return first | batch_norm(f"{prefix}.1") | second | batch_norm(f"{prefix}.5")


def time_attention() -> Weights:
    found: Weights = {"attention_model.pos_encoder.pe": torch.randn(5000, 1, C)}
    for copy in ("transformer_encoder.layers.0", "encoder_layer"):
        prefix = f"attention_model.{copy}"
        found |= attention(f"{prefix}.self_attn", C)
        found |= layer(f"{prefix}.linear1", 2048, C) | layer(f"{prefix}.linear2", C, 2048)
        found |= norm(C, f"{prefix}.norm1") | norm(C, f"{prefix}.norm2")
    return found | layer("subject_wise_linear.0", T, T)


def bn(x: torch.Tensor, w: Weights, prefix: str) -> torch.Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(w[f"{prefix}.{name}"] for name in names))


def conv(x: torch.Tensor, w: Weights, prefix: str) -> torch.Tensor:
    return F.conv2d(x, w[f"{prefix}.weight"], w[f"{prefix}.bias"])


def linear(x: torch.Tensor, w: Weights, prefix: str) -> torch.Tensor:
    return x @ w[f"{prefix}.weight"].T + w[f"{prefix}.bias"]


def layer_norm(x: torch.Tensor, w: Weights, prefix: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{prefix}.weight"] + w[f"{prefix}.bias"]


def attend(x: torch.Tensor, w: Weights, prefix: str, heads: int) -> torch.Tensor:
    """Attend within (n, token, width), written out."""
    n, count, width = x.shape
    joint = x @ w[f"{prefix}.in_proj_weight"].T + w[f"{prefix}.in_proj_bias"]
    q, k, v = (
        part.reshape(n, count, heads, width // heads).transpose(1, 2) for part in joint.chunk(3, -1)
    )
    share = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).softmax(-1)
    return linear((share @ v).transpose(1, 2).reshape(n, count, width), w, f"{prefix}.out_proj")


def tsconv(x: torch.Tensor, w: Weights, prefix: str) -> torch.Tensor:
    maps = F.avg_pool2d(conv(x, w, f"{prefix}.0"), (1, 51), (1, 5))
    return F.elu(bn(conv(F.elu(bn(maps, w, f"{prefix}.2")), w, f"{prefix}.4"), w, f"{prefix}.5"))


def stconv(x: torch.Tensor, w: Weights, prefix: str) -> torch.Tensor:
    maps = conv(F.elu(bn(conv(x, w, f"{prefix}.0"), w, f"{prefix}.1")), w, f"{prefix}.3")
    return F.elu(bn(F.avg_pool2d(maps, (1, 51), (1, 5)), w, f"{prefix}.5"))


def project(x: torch.Tensor, w: Weights) -> torch.Tensor:
    x = linear(x, w, "proj_eeg.0")
    return layer_norm(x + linear(F.gelu(x), w, "proj_eeg.1.fn.1"), w, "proj_eeg.2")


def over_time(x: torch.Tensor, w: Weights) -> torch.Tensor:
    prefix = "attention_model.transformer_encoder.layers.0"
    positions = torch.zeros(T, C)
    for column in range(C):
        angle = torch.arange(T) / 10_000 ** (2 * (column // 2) / C)
        positions[:, column] = angle.cos() if column % 2 else angle.sin()
    tokens = x.transpose(1, 2) + positions
    mixed = attend(tokens, w, f"{prefix}.self_attn", 1)
    tokens = layer_norm(tokens + mixed, w, f"{prefix}.norm1")
    hidden = linear(linear(tokens, w, f"{prefix}.linear1").relu(), w, f"{prefix}.linear2")
    tokens = layer_norm(tokens + hidden, w, f"{prefix}.norm2")
    return linear(tokens.transpose(1, 2), w, "subject_wise_linear.0")


def tokens_of(maps: torch.Tensor) -> torch.Tensor:
    return maps.squeeze(2).transpose(1, 2)


def nice(x: torch.Tensor, w: Weights) -> torch.Tensor:
    maps = conv(tsconv(x[:, None], w, "enc_eeg.0.tsconv"), w, "enc_eeg.0.projection.0")
    return project(tokens_of(maps).flatten(1), w)


def muse(x: torch.Tensor, w: Weights) -> torch.Tensor:
    maps = conv(stconv(x[:, None], w, "enc_eeg.stconv"), w, "enc_eeg.projection.0")
    return project(tokens_of(maps).flatten(1), w)


def nervformer(x: torch.Tensor, w: Weights) -> torch.Tensor:
    mean, variance = x.mean((1, 2), keepdim=True), x.var((1, 2), keepdim=True, correction=0)
    plane = ((x - mean) / (variance + 1e-5).sqrt())[:, None]
    branches = []
    for conv_, name, number in ((tsconv, "ts", 1), (stconv, "st", 2)):
        tokens = tokens_of(conv_(plane, w, f"enc_eeg.{name}conv"))
        mixed = attend(tokens, w, f"enc_eeg.self_attn_{name}", 5)
        branches.append(layer_norm(tokens + mixed, w, f"enc_eeg.norm{number}"))
    both = torch.cat(branches, 1)
    both = layer_norm(both + attend(both, w, "enc_eeg.cross_attn", 8), w, "enc_eeg.norm3")
    hidden = linear(both.flatten(1), w, "enc_eeg.feed_forward.1").relu()
    return project(linear(hidden, w, "enc_eeg.feed_forward.4"), w)


def nerv_weights(flat: int) -> Weights:
    found = temporal("enc_eeg.tsconv") | spatial("enc_eeg.stconv")
    for name in ("self_attn_ts", "self_attn_st", "cross_attn"):
        found |= attention(f"enc_eeg.{name}", 40)
    for number in (1, 2, 3):
        found |= norm(40, f"enc_eeg.norm{number}")
    found |= layer("enc_eeg.feed_forward.1", 2048, 2 * flat)
    return found | layer("enc_eeg.feed_forward.4", flat, 2048) | head(flat)


def case(name: str) -> tuple[Weights, object]:
    torch.manual_seed(1)
    flat = 40 * ((T - 75) // 5 + 1)
    mixing = layer("enc_eeg.0.projection.0", 40, 40, 1, 1)
    if name == "nice":
        return temporal("enc_eeg.0.tsconv") | mixing | head(flat), nice
    if name == "muse":
        mixing = layer("enc_eeg.projection.0", 40, 40, 1, 1)
        return spatial("enc_eeg.stconv") | mixing | head(flat), muse
    if name == "atms_50":
        weights = time_attention() | temporal("enc_eeg.0.tsconv") | mixing | head(flat)
        return weights, lambda x, w: nice(over_time(x, w), w)
    if name == "nervformer_v1":
        return nerv_weights(flat), nervformer
    return time_attention() | nerv_weights(flat), lambda x, w: nervformer(over_time(x, w), w)


def recipe(name: str) -> NetworkRecipe:
    return NetworkRecipe(name=name, n_channels=C, n_times=T, n_outputs=D)


@pytest.mark.parametrize("name", ["nice", "muse", "atms_50", "nervformer_v1", "nervformer_v2"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_original_checkpoints(tmp_path: Path, name: str, prefix: str) -> None:
    weights, forward = case(name)
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / "40.pth")
    network = load_checkpoint(tmp_path / "40.pth", recipe(name))
    x = torch.randn(4, C, T)
    with torch.no_grad():
        torch.testing.assert_close(network(x), forward(x, weights), atol=2e-4, rtol=1e-3)
    assert float(network.logit_scale.detach()) == 2.5


@pytest.mark.parametrize("residual", ["model.1.f.1", "model.1.fn.1"])
@pytest.mark.parametrize("prefix", ["", "brain."])
def test_checkpoints_of_eeg_project(tmp_path: Path, residual: str, prefix: str) -> None:
    torch.manual_seed(1)
    weights = layer("model.0", D, C * T) | layer(residual, D, D) | norm(D, "model.2")
    weights |= {"logit_scale": torch.tensor(2.5)}
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / "a.pth")
    network = load_checkpoint(tmp_path / "a.pth", recipe("eeg_project"))
    x = torch.randn(4, C, T)
    flat = linear(x.flatten(1), weights, "model.0")
    expected = layer_norm(flat + linear(F.gelu(flat), weights, residual), weights, "model.2")
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-3)


def test_original_checkpoints_decode_labelled_responses(tmp_path: Path) -> None:
    weights, forward = case("atms_50")
    torch.save(weights, tmp_path / "40.pth")
    channels = tuple(f"E{i}" for i in range(C))
    times = tuple((np.arange(T) / 250).tolist())
    about = DecoderRecipe(
        network=recipe("atms_50"), channels=channels, times=times, sampling_frequency=250.0
    )
    decoder = NeuralDecoder.from_checkpoint(tmp_path / "40.pth", about)
    x = torch.randn(4, C, T)
    ds = xr.Dataset(
        {"response": (("image", "channel", "time"), x.numpy(), {"units": "1"})},
        {
            "image_id": ("image", np.array(list("abcd"), object)),
            "channel": np.array(channels, object),
            "time": np.array(times),
        },
        {"modality": "eeg"},
    )
    expected = forward(x, weights)
    found = ds.isel(channel=slice(None, None, -1)).ned.decode(decoder)["embedding"].values
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4, rtol=1e-3)
    decoder.to_zarr(tmp_path / "decoder.zarr")
    again = ds.ned.decode(nedx.load_model(tmp_path / "decoder.zarr"))["embedding"].values
    np.testing.assert_allclose(again, expected.numpy(), atol=2e-4, rtol=1e-3)
    fewer = about.model_copy(update={"channels": channels[1:]})
    with pytest.raises(ModelError, match="the recipe names .* channels"):
        NeuralDecoder.from_checkpoint(tmp_path / "40.pth", fewer)


def test_own_checkpoints(tmp_path: Path) -> None:
    weights, _ = case("muse")
    torch.save(weights, tmp_path / "a.pth")
    network = load_checkpoint(tmp_path / "a.pth", recipe("muse"))
    torch.save(network.state_dict(), tmp_path / "b.pth")
    again = load_checkpoint(tmp_path / "b.pth", recipe("muse"))
    x = torch.randn(4, C, T)
    with torch.no_grad():
        torch.testing.assert_close(again(x), network(x))


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    torch.save(case("nervformer_v2")[0], tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"does not fit nice.*looks like .* of nervformer_v2"):
        load_checkpoint(tmp_path / "a.pth", recipe("nice"))


def test_a_checkpoint_of_another_width(tmp_path: Path) -> None:
    torch.save(case("nice")[0], tmp_path / "a.pth")
    wider = recipe("nice").model_copy(update={"n_channels": C + 1})
    with pytest.raises(ModelError, match=r"convolutions.4.weight has shape .* expected"):
        load_checkpoint(tmp_path / "a.pth", wider)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path):
        self.place = str(place)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.place,)


def test_a_hostile_checkpoint(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"weight": Hostile(made)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"weight": Hostile(made)}, protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ModelError, match="not a checkpoint of tensors alone"):
            load_checkpoint(tmp_path / name, recipe("nice"))
    assert not made.exists()


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "a.pth", recipe("nice"))
    torch.save([torch.zeros(3)], tmp_path / "b.pth")
    with pytest.raises(ModelError, match="holds list, expected a dict of tensors"):
        load_checkpoint(tmp_path / "b.pth", recipe("nice"))
