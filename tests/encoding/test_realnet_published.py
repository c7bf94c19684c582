"""Checkpoints as they were published: names of DataParallel, and flattened outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nedx
from nedx.encoding.realnet_network import ReAlnet
from nedx.encoding.realnet_published import import_realnet
from nedx.encoding.realnet_recipe import ReAlnetArchitecture
from nedx.errors import ModelError

ARCHITECTURE = ReAlnetArchitecture(
    widths=(4, 5, 6, 7),
    steps=(1, 3, 1),
    classes=9,
    features=8,
    image_size=224,
    n_channels=3,
    n_times=4,
)
OUTPUTS = {"channels": ["O1", "Oz", "O2"], "times": np.arange(4) * 0.01}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


def checkpoint(path, seed=0, **changes):
    """Write a network as the published training did; return it."""
    torch.manual_seed(seed)
    network = ReAlnet(ARCHITECTURE.model_copy(update=changes)).eval()
    state = {
        name.replace("realnet.", "realnet.module."): value
        for name, value in network.state_dict().items()
    }
    assert "realnet.module.V4.norm2_2.running_mean" in state
    torch.save(state, path)
    return network


def images(count=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    return nedx.open_images(pixels, image_set="toy")


def flat_outputs(network, stimuli):
    """What the network gives for images divided by 255 and normalised as ImageNet's."""
    x = stimuli["pixels"].values.astype(np.float32) / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))
    with torch.inference_mode():
        return network(x)[1].numpy()


@pytest.mark.parametrize(("order", "shape"), [("channel_time", (3, 4)), ("time_channel", (4, 3))])
def test_outputs_are_those_of_the_checkpoint(tmp_path, order, shape):
    network = checkpoint(tmp_path / "best_model_params.pt")
    stimuli, said = images(), {"normalization": "zscore", "normalization_scope": "train"}
    model = import_realnet(tmp_path / "best_model_params.pt", **OUTPUTS, order=order, **said)
    expected = flat_outputs(network, stimuli).reshape(3, *shape)
    expected = expected if order == "channel_time" else expected.transpose(0, 2, 1)
    out = stimuli.ned.encode(model)
    assert out["response"].dims == ("image", "channel", "time")
    np.testing.assert_allclose(out["response"], expected, atol=1e-4)
    part = stimuli.ned.encode(model, channel=["Oz"], time=(0.01, 0.025))["response"]
    np.testing.assert_allclose(part, expected[:, 1:2, 1:3], atol=1e-4)
    assert out["response"].attrs["normalization"] == "zscore"
    nedx.validate(out)


def test_names_are_those_of_the_published_files(tmp_path):
    """As `DataParallel` around CORnet-S, and linear layers beside it, give them."""
    checkpoint(tmp_path / "best_model_params.pt")
    names = set(torch.load(tmp_path / "best_model_params.pt", weights_only=True))
    assert {
        *("realnet.module.V1.conv1.weight", "realnet.module.V1.norm2.running_var"),
        *("realnet.module.V2.conv_input.weight", "realnet.module.V2.skip.weight"),
        *("realnet.module.V4.norm_skip.bias", "realnet.module.V4.norm3_2.weight"),
        *("realnet.module.IT.conv3.weight", "realnet.module.decoder.linear.bias"),
        *("fc_v1.weight", "fc_v2.bias", "fc_v4.weight", "fc_it.bias", "fc.weight", "fc.bias"),
    } <= names


def test_outputs_that_were_trained_are_taken(tmp_path):
    """The files of Image2EEG have 100 outputs and predict the mean of the channels by 20."""
    network = checkpoint(tmp_path / "best.pt", n_channels=5, n_times=20)
    stimuli, times = images(2), np.arange(20) / 100
    mean = {"channels": ["mean"], "times": times, "outputs": range(20, 40)}
    out = stimuli.ned.encode(import_realnet(tmp_path / "best.pt", **mean))["response"]
    assert out.dims == ("image", "channel", "time")
    np.testing.assert_allclose(out[:, 0], flat_outputs(network, stimuli)[:, 20:40], atol=1e-4)
    with pytest.raises(ModelError, match=r"has outputs 0 to 99; asked for are 90 to 109"):
        import_realnet(tmp_path / "best.pt", **{**mean, "outputs": range(90, 110)})
    with pytest.raises(ModelError, match=r"has 10 outputs; 1 channels of 20 times are 20"):
        import_realnet(tmp_path / "best.pt", **{**mean, "outputs": range(10)})


def test_several_subjects_are_one_model(tmp_path):
    networks = {n: checkpoint(tmp_path / f"{n}.pt", seed=n) for n in (1, 4)}
    stimuli = images(2)
    model = import_realnet({n: tmp_path / f"{n}.pt" for n in networks}, **OUTPUTS)
    assert model.subjects == ("sub-01", "sub-04")
    model.sel(subject=4).to_zarr(tmp_path / "four.zarr")
    for opened, names in ((model, (1, 4)), (nedx.load_model(tmp_path / "four.zarr"), (4,))):
        out = stimuli.ned.encode(opened)["response"]
        assert out.dims == ("subject", "image", "channel", "time")
        for position, name in enumerate(names):
            expected = flat_outputs(networks[name], stimuli).reshape(2, 3, 4)
            np.testing.assert_allclose(out[position], expected, atol=1e-4)


def test_wrong_checkpoints_are_told(tmp_path):
    network = checkpoint(tmp_path / "good.pt")
    with pytest.raises(ModelError, match="has 12 outputs; 3 channels of 5 times are 15"):
        import_realnet(tmp_path / "good.pt", channels=OUTPUTS["channels"], times=range(5))
    with pytest.raises(ModelError, match="type 'channel_time' or 'time_channel'"):
        import_realnet(tmp_path / "good.pt", **OUTPUTS, order="C")
    torch.save(network.realnet.state_dict(), tmp_path / "trunk.pt")
    with pytest.raises(ModelError, match="is no checkpoint of a ReAlnet"):
        import_realnet(tmp_path / "trunk.pt", **OUTPUTS)
    torch.save(dict(list(network.state_dict().items())[:-1]), tmp_path / "cut.pt")
    with pytest.raises(ModelError, match=r"fc\.bias"):
        import_realnet(tmp_path / "cut.pt", **OUTPUTS)
    checkpoint(tmp_path / "other.pt", classes=7)
    with pytest.raises(ModelError, match="the network of sub-02"):
        import_realnet({1: tmp_path / "good.pt", 2: tmp_path / "other.pt"}, **OUTPUTS)
