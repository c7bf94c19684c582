"""The verbs together, from a folder of images to numbers, as typed in a shell."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import nedx
from nedx import demo
from nedx.backbones import BackboneRecipe, feature_layout
from nedx.cli import main
from nedx.encoding.recipe import EncoderRecipe
from tests.laziness import computes_at_most

GABOR = BackboneRecipe(
    name="gabor",
    layers=("energy_0", "energy_1"),
    pooling="avg2",
    policy="raw01",
    batch_size=4,
    image_size=64,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            path / f"{number}.png"
        )
    return path


def make_model(path, side):
    """An encoder of random weights for two subjects and eight vertices."""
    rng = np.random.default_rng(1)
    backbone = GABOR.model_copy(update={"image_size": side})
    width = sum(feature_layout(backbone).values())
    mask = np.zeros((2, 1, 8), dtype=bool)
    mask[0, 0, :3] = True
    mask[1, 0, 2:6] = True
    encoder = nedx.LinearEncoder.from_parts(
        np.zeros(width),
        np.ones(width),
        rng.normal(size=(4, width)),
        np.zeros(width),
        rng.normal(size=(2, 8, 4)),
        rng.normal(size=(2, 8)),
        recipe=EncoderRecipe(
            backbone=backbone, model_id="tiny", version="1", units="percent", modality="fmri"
        ),
        dims=("subject", "vertex"),
        coords={
            "subject": np.array(["sub-01", "sub-02"], dtype=object),
            "vertex": np.arange(8, dtype=np.int32),
            "hemisphere": ("vertex", np.array([*"LLLLRRRR"], dtype=object)),
            "roi": np.array(["V1"], dtype=object),
            "roi_mask": (("subject", "roi", "vertex"), mask),
        },
    )
    encoder.to_zarr(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny.zarr", side=64)


@pytest.fixture(scope="module")
def expected(folder, model):
    return nedx.open_images(folder).ned.encode(model).compute()


def test_what_is_encoded_obeys_the_schema(folder, model):
    with computes_at_most(0):
        responses = nedx.open_images(folder).ned.encode(model)
        responses.ned.validate()
        assert "synthetic" in repr(responses.ned)
        assert "tiny@1" in repr(responses.ned)


def test_roi_mean_of_predictions(folder, model, expected):
    with computes_at_most(0):
        mean = nedx.open_images(folder).ned.encode(model).ned.roi_mean("V1")
    values = expected.response.values
    found = mean.response.compute()
    np.testing.assert_allclose(found[0], values[0][:, :3].mean(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], values[1][:, 2:6].mean(-1), rtol=1e-4, atol=1e-4)


def test_encode_command(folder, model, expected, tmp_path, capsys):
    place = str(tmp_path / "out.zarr")
    words = ["encode", str(folder), model, place, "--subject", "2", "--roi", "V1", "--quiet"]
    assert main(words) == 0
    opened = nedx.open_store(place)
    assert "pixels" not in opened
    assert opened.response.shape == (1, 6, 4)
    wanted = expected.response.values[1:, :, 2:6]
    # The store keeps 10 bits of the mantissa.
    np.testing.assert_allclose(opened.response, wanted, rtol=1e-3, atol=1e-3)
    assert main(words) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main(["validate", place]) == 0
    assert main(["cite", place]) == 0
    assert "tiny" in capsys.readouterr().out
    opened.ned.verify().raise_if_bad()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--roi", "V9"], "unknown ROI 'V9'"),
        (["--subject", "7"], "sub-07"),
        (["--size", "16"], "--fit|fit="),
    ],
)
def test_encode_command_refuses_before_it_writes(folder, model, tmp_path, capsys, words, said):
    place = tmp_path / "out.zarr"
    assert main(["encode", str(folder), model, str(place), *words]) == 1
    assert said.split("|")[-1] in capsys.readouterr().err
    assert not place.exists()


def test_synth_commands(folder, model, expected, tmp_path, capsys):
    place = str(tmp_path / "job.zarr")
    assert main(["synth", "init", str(folder), model, place, "--subject", "1,2"]) == 0
    assert main(["synth", "status", place, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], found["complete"]) == (0, False)
    assert main(["synth", "finalize", place]) == 1
    assert "nedx synth run" in capsys.readouterr().err
    assert main(["synth", "run", place, "--part", "1/1", "--quiet"]) == 0
    assert main(["synth", "finalize", place]) == 0
    assert main(["synth", "status", place]) == 0
    assert "complete" in capsys.readouterr().out
    assert main(["synth", "verify", place, "--recompute", "100%"]) == 0
    opened = nedx.open_store(place)
    np.testing.assert_allclose(opened.response, expected.response, rtol=1e-3, atol=1e-3)


def test_pull_command_and_verify_by_path(folder, model, tmp_path, capsys):
    place = nedx.open_images(folder).ned.synthesize(model, tmp_path / "a.zarr")
    assert main(["pull", place.url, "--into", str(tmp_path / "copy"), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "copy")
    assert nedx.verify(tmp_path / "copy").ok
    xr.testing.assert_identical(
        nedx.open_store(tmp_path / "copy").compute(), nedx.open_store(place).compute()
    )


def test_commands_on_a_model(model, capsys):
    assert main(["info", model]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["info", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_id"] == "tiny"
    assert main(["cite", model]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["validate", model]) == 1
    assert "is a model" in capsys.readouterr().err


def test_demo(tmp_path, monkeypatch, capsys):
    """The demo with a smaller model: images, store, stream, figure; and again over itself."""
    monkeypatch.setattr(demo, "MODEL", make_model(tmp_path / "tiny.zarr", side=128))
    monkeypatch.setattr(demo, "SUBJECTS", (1, 2))
    monkeypatch.setattr(demo, "ROIS", ("V1",))
    place = tmp_path / "demo"
    for _ in range(2):
        assert main(["demo", "--into", str(place)]) == 0
    said = capsys.readouterr().out
    assert "ned.encode" in said
    assert "synthetic" in said
    assert "requests" in said
    assert len(list(place.glob("images/*/*.png"))) == 48
    assert nedx.verify(place / "responses.zarr").ok
    assert nedx.open_store(place / "responses.zarr").response.shape == (2, 48, 8)
    with Image.open(place / "figure.png") as figure:
        assert len(figure.convert("L").getcolors()) > 50
