"""`nedx decode`: the whole chain by one recipe, on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

import nedx
from nedx.cli import main
from nedx.errors import ModelError, NedxError, StoreExistsError
from nedx.fitting import load_decoding_recipe, run_decoding

IMAGES = 300
VISUAL = ["Pz", "PO3", "POz", "PO4", "O1", "Oz", "O2"]
OTHERS = ["Fp1", "F3", "F7", "FC5", "FC1", "C3", "T7", "Fp2", "F4", "F8", "FC6", "FC2", "C4", "T8"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Responses that follow the features in visual channels, and are noise in all others."""
    folder = tmp_path_factory.mktemp("recorded")
    drawn = nedx.simulate_eeg(IMAGES, repetitions=2).ned.sel(channel=[*VISUAL, *OTHERS])
    drawn = drawn.isel(time=slice(0, 80)).load()
    rng = np.random.default_rng(0)
    response = rng.standard_normal(drawn["response"].shape).astype(np.float32)
    weights = rng.standard_normal((drawn.sizes["feature"], len(VISUAL), 80)).astype(np.float32)
    signal = np.einsum("if,fct->ict", drawn["features"].values, weights)
    response[:, :, :, : len(VISUAL)] += signal[np.newaxis, :, np.newaxis]
    drawn = drawn.drop_encoding().assign(response=drawn["response"].copy(data=response))
    drawn = drawn.drop_vars("partition")
    drawn.drop_vars("features").ned.to_zarr(folder / "eeg.zarr")
    drawn[["features"]].ned.to_zarr(folder / "features.zarr")
    pixels = rng.integers(0, 255, (IMAGES, 8, 8, 3), dtype=np.uint8)
    images = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)},
        {"image_id": ("image", drawn["image_id"].values)},
    )
    nedx.parse(images).ned.to_zarr(folder / "images.zarr")
    return folder


def recipe_of(recorded, output, **changes):
    return {
        "name": "known",
        "responses": str(recorded / "eeg.zarr"),
        "targets": str(recorded / "features.zarr"),
        "images": str(recorded / "images.zarr"),
        "split": {"test_fraction": 0.2, "groups": "category"},
        "decoder": {"epochs": 30, "batch_size": 32},
        "perturbation": {"controls": 5, "seeds": 1},
        "output": str(output),
        **changes,
    }


def test_the_chain_finds_images_and_the_channels_that_carry_them(recorded, tmp_path, capsys):
    said = recipe_of(recorded, tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(said))
    assert main(["decode", str(tmp_path / "recipe.yaml")]) == 0
    out = tmp_path / "out"
    scores = pd.read_csv(out / "scores.csv")
    top1 = scores.query("measure == 'top1' and way == 60").iloc[0]
    # Sixty images of six concepts were held out.
    assert top1["chance"] == pytest.approx(1 / 60)
    assert top1["value"] > 0.7
    found = nedx.open(out / "retrieved.zarr")
    exact = (found["candidate_id"].isel(candidate=0) == found["image_id"]).mean()
    assert float(exact) == pytest.approx(top1["value"])
    decoder = nedx.load_model(out / "decoder.zarr")
    assert decoder.recipe.model_id == "known"
    text = (out / "report.md").read_text()
    assert "nothing here was measured" in text
    assert len(list((out / "figures").glob("*.png"))) == 3
    assert all(f"figures/{path.name}" in text for path in (out / "figures").glob("*.png"))
    with pytest.raises(StoreExistsError, match="--overwrite"):
        run_decoding(tmp_path / "recipe.yaml")


def test_channels_without_signal_carry_nothing(recorded, tmp_path):
    result = run_decoding(recipe_of(recorded, tmp_path / "out", images=None))
    top1 = result.perturbed["top1"].mean(["seed", "subject"])
    assert float(top1.sel(condition="perturbed")) < 0.15
    controls = [name for name in top1["condition"].values if name.startswith("control")]
    assert float(top1.sel(condition=controls).min()) > 0.8
    lost = result.importance["importance"].squeeze("subject")
    assert set(lost.sortby(lost, ascending=False)["channel"].values[: len(VISUAL)]) == set(VISUAL)
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"respones": "x"}, "respones is no word of it, did you mean 'responses'"),
        ({"decoder": {"epoch": 3}}, "EEGDecoder has no parameter 'epoch'; did you mean 'epochs'"),
        ({"perturbation": {"noise": "matcht"}}, "perturbation.noise: Input should be 'matched'"),
        ({"perturbation": {"channels": "visul"}}, "'visul'.*did you mean 'visual'"),
        ({"responses": "sim-fmri"}, "no EEG or MEG on one montage"),
        ({"targets": "sim-images"}, "holds pixels, and targets are features of them.*encode_feat"),
        ({"split": {}}, "no coordinate 'partition'"),
        ({"perturbation": {"controls": 200_000}}, "200000 control sets of 7 of the 14 other"),
        ({"images": "no_such_images"}, "no_such_images"),
        ({"images": {"place": "sim-eeg", "group": "truth"}}, "no 'pixels' with 'image_id' to draw"),
    ],
)
def test_faults_are_named_before_anything_is_trained(
    recorded, tmp_path, changes, message, monkeypatch
):
    monkeypatch.setattr(nedx.EEGDecoder, "fit", None)
    with pytest.raises(NedxError, match=message):
        run_decoding(recipe_of(recorded, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["tree", "averaged", "one time"])
def test_responses_come_as_trees_averaged_or_of_one_time(recorded, tmp_path, kind):
    ds = nedx.open(recorded / "eeg.zarr").isel(image=slice(0, 200)).load().drop_encoding()
    one = ds.isel(subject=0, drop=True)
    given = {
        "tree": xr.DataTree.from_dict(
            {"/sub-01": one, "/sub-02": one.isel(image=slice(None, None, -1))}
        ),
        "averaged": ds.ned.average_repetitions(),
        "one time": ds.isel(time=[40]),
    }[kind]
    given.ned.to_zarr(tmp_path / "eeg.zarr")
    said = recipe_of(recorded, tmp_path / "out", responses=str(tmp_path / "eeg.zarr"), images=None)
    said |= {"decoder": {"epochs": 1}, "importance": False}
    said["perturbation"] |= {"noise": "zero"}
    result = run_decoding(said)
    assert result.scores["top1"].sizes["subject"] == {"tree": 2}.get(kind, 1)
    assert (tmp_path / "out" / "decoder.zarr").exists()


def test_images_without_features_are_named(recorded, tmp_path):
    features = nedx.open(recorded / "features.zarr").isel(image=slice(0, 200)).load()
    features.drop_encoding().ned.to_zarr(tmp_path / "some.zarr")
    with pytest.raises(ModelError, match="held-out images have no features"):
        run_decoding(recipe_of(recorded, tmp_path / "out", targets=str(tmp_path / "some.zarr")))


def test_a_recipe_is_read_once(recorded, tmp_path):
    recipe = load_decoding_recipe(recipe_of(recorded, tmp_path))
    assert load_decoding_recipe(recipe) is recipe
