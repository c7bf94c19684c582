"""Bad input: one clear error that says what to type, before any work, and nothing changes on disk.

Each row of a table is a mistake that people make: what they did, the error, and two pieces of its
message: what was found, and what to type. The whole folder is hashed before and after.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import nedx
from nedx import errors
from nedx.backbones import BackboneRecipe, feature_layout
from nedx.encoding.recipe import EncoderRecipe
from nedx.synthesis import init
from tests.laziness import computes_at_most

SIDE = 64
GABOR = BackboneRecipe(
    name="gabor", layers=("energy_0",), pooling="avg2", policy="raw01", image_size=SIDE
)
RECIPE = EncoderRecipe(
    backbone=GABOR, model_id="tiny", version="1", units="percent", modality="fmri"
)
WIDTH = sum(feature_layout(GABOR).values())


def encoder(**changes):
    """An encoder of random weights for two subjects and eight vertices."""
    rng = np.random.default_rng(1)
    parts = {
        "scaler_mean": np.zeros(WIDTH),
        "scaler_scale": np.ones(WIDTH),
        "components": rng.normal(size=(4, WIDTH)),
        "pca_mean": np.zeros(WIDTH),
        "coef": rng.normal(size=(2, 8, 4)),
        "intercept": rng.normal(size=(2, 8)),
    }
    mask = np.zeros((2, 1, 8), dtype=bool)
    mask[:, 0, :3] = True
    coords = {
        "subject": np.array(["sub-01", "sub-02"], dtype=object),
        "vertex": np.arange(8, dtype=np.int32),
        "hemisphere": ("vertex", np.array([*"LLLLRRRR"], dtype=object)),
        "roi": np.array(["V1"], dtype=object),
        "roi_mask": (("subject", "roi", "vertex"), mask),
    }
    return nedx.LinearEncoder.from_parts(
        **(parts | changes), recipe=RECIPE, dims=("subject", "vertex"), coords=coords
    )


def photo(path, shape=(SIDE, SIDE)):
    rng = np.random.default_rng(len(path.name))
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)


def flip(store, name):
    """Flip one bit of the first chunk of an array."""
    chunk = min(path for path in (store / name / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


def grow_old(store):
    """Let a nedx of the future have written the store."""
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["nedx_schema_version"] = "9.0"
    (store / "zarr.json").write_text(json.dumps(metadata))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with all that can be wrong, and handles on what is right."""
    root = tmp_path_factory.mktemp("world")
    for number in range(3):
        photo(root / "photos" / f"{number}.png")
    photo(root / "wide" / "a.png", (SIDE, SIDE + 16))
    photo(root / "mixed" / "a.png")
    photo(root / "mixed" / "b.png", (SIDE, SIDE + 16))
    for folder in ("empty", "notes", "broken"):
        (root / folder).mkdir()
    (root / "notes" / "thesis.txt").write_text("years of work")
    (root / "broken" / "a.png").write_bytes(b"not a png")
    encoder().to_zarr(root / "model.zarr")
    images = nedx.open_images(root / "photos")
    responses = images.ned.encode(root / "model.zarr").drop_vars("pixels").compute()
    nedx.to_zarr(responses, root / "good.zarr")
    nedx.to_zarr(images.compute(), root / "pixels.zarr")
    init(root / "photos", str(root / "model.zarr"), root / "half.zarr")
    for copy, of in (("newer", "good"), ("newer_model", "model"), ("cut", "good")):
        shutil.copytree(root / f"{of}.zarr", root / f"{copy}.zarr")
    grow_old(root / "newer.zarr")
    grow_old(root / "newer_model.zarr")
    (root / "cut.zarr" / "zarr.json").write_bytes((root / "good.zarr/zarr.json").read_bytes()[:90])
    for of, name in (("good", "response"), ("pixels", "pixels")):
        flip(shutil.copytree(root / f"{of}.zarr", root / f"flipped_{of}.zarr"), name)
    flip(shutil.copytree(root / "good.zarr", root / "flipped_ids.zarr"), "image_id")
    gone = shutil.copytree(root / "good.zarr", root / "gone.zarr")
    shutil.rmtree(gone / "response" / "c")
    # Weights of their own: what a process has read of equal ones it need not read again.
    encoder(intercept=np.full((2, 8), 1.0)).to_zarr(root / "flipped_model.zarr")
    flip(root / "flipped_model.zarr", "readout")
    encoder(intercept=np.full((2, 8), 2.0)).to_zarr(root / "gone_model.zarr")
    shutil.rmtree(root / "gone_model.zarr" / "readout" / "c")
    return SimpleNamespace(
        root=root, images=images, responses=responses, model=str(root / "model.zarr")
    )


def state(root):
    """Every file and folder with its hash."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def pixels(shape=(2, SIDE, SIDE, 3), dtype=np.uint8, value=0):
    return np.full(shape, value, dtype)


def features(values):
    ids = np.array([f"set:{i}" for i in range(len(values))], dtype=object)
    return xr.Dataset({"features": (("image", "feature"), values)}, {"image_id": ("image", ids)})


def with_nan(values, *where):
    values = np.array(values, dtype=np.float32)
    values[where] = np.nan
    return values


def with_units(world, units):
    return world.responses.assign(response=world.responses.response.assign_attrs(units=units))


# What is found out before anything is computed: (what was done, error, found, what to type).
EARLY = {
    # Pixels.
    "floats 0 to 1": (
        lambda w: nedx.open_images(pixels(dtype=np.float32, value=0.5)),
        errors.StimulusError,
        "float32",
        "(255 * images).round().astype(np.uint8)",
    ),
    "16 bits": (
        lambda w: nedx.open_images(pixels(dtype=np.uint16)),
        errors.StimulusError,
        "uint16",
        "images.astype(np.uint8)",
    ),
    "lazy floats": (
        lambda w: w.images.assign(pixels=w.images.pixels / 255).ned.encode(w.model),
        errors.StimulusError,
        "float",
        "(255 * images).round().astype(np.uint8)",
    ),
    "NaN in pixels": (
        lambda w: nedx.open_images(with_nan(pixels(), 0)),
        errors.StimulusError,
        "NaN",
        "np.argwhere(~np.isfinite(images))",
    ),
    "channels first": (
        lambda w: nedx.open_images(pixels((2, 3, SIDE, SIDE))),
        errors.StimulusError,
        "(2, 3, 64, 64)",
        "transpose(0, 2, 3, 1)",
    ),
    "grey images": (
        lambda w: nedx.open_images(pixels((2, SIDE, SIDE))),
        errors.StimulusError,
        "grey",
        "np.repeat",
    ),
    "a bare array": (
        lambda w: nedx.encode(pixels(), w.model),
        errors.StimulusError,
        "ndarray",
        "nedx.open_images",
    ),
    "not square": (
        lambda w: nedx.open_images(w.root / "wide").ned.encode(w.model),
        errors.StimulusError,
        "64 x 80",
        "fit='resize', size=64",
    ),
    "sizes differ": (
        lambda w: nedx.open_images(w.root / "mixed"),
        errors.StimulusError,
        "64 x 80 (1 image)",
        'fit="crop", size=64',
    ),
    # Files.
    "an empty folder": (
        lambda w: nedx.open_images(w.root / "empty"),
        errors.StimulusError,
        "it is empty",
        ".png",
    ),
    "a folder of texts": (
        lambda w: nedx.open_images(w.root / "notes"),
        errors.StimulusError,
        ".txt",
        ".png",
    ),
    "no such folder": (
        lambda w: nedx.open_images(w.root / "photo"),
        errors.StimulusError,
        "photo",
        "did you mean 'photos'",
    ),
    "a broken file": (
        lambda w: nedx.open_images(w.root / "broken"),
        errors.StimulusError,
        "a.png",
        'errors="skip"',
    ),
    # NaN, and what does not fit.
    "NaN in responses": (
        lambda w: nedx.RidgeEncoder(GABOR, n_components=2, cv=3).fit(
            features(np.eye(3, WIDTH, dtype=np.float32)),
            xr.Dataset(
                {"response": (("image", "unit"), with_nan(np.ones((3, 2)), 1))},
                {"image_id": ("image", ["set:0", "set:1", "set:2"])},
            ),
        ),
        errors.ModelError,
        "NaN",
        "drop these",
    ),
    "NaN in weights": (
        lambda w: encoder(intercept=with_nan(np.zeros((2, 8)), 0)),
        errors.ModelError,
        "intercept has NaN",
        "fit them again",
    ),
    "a scale of zero": (
        lambda w: encoder(scaler_scale=np.zeros(WIDTH)),
        errors.ModelError,
        "scaler_scale",
        "np.where(scale > 0, scale, 1)",
    ),
    "features of another width": (
        lambda w: features(np.zeros((2, 3), np.float32)).ned.encode(w.model),
        errors.ModelError,
        "'feature': 3",
        "nedx.encode_features",
    ),
    "features that are text": (
        lambda w: features(np.full((2, WIDTH), "a")).ned.encode(w.model),
        errors.ModelError,
        "<U1",
        "astype('float32')",
    ),
    "responses instead of images": (
        lambda w: w.responses.ned.encode(w.model),
        errors.StimulusError,
        "found response",
        "nedx.open_images('folder')",
    ),
    # Units.
    "wrong units": (
        lambda w: with_units(w, "bananas").ned.validate(),
        errors.SchemaError,
        "'bananas'",
        "'percent'",
    ),
    "no units": (
        lambda w: with_units(w, None).ned.validate(),
        errors.SchemaError,
        "units None",
        "'percent'",
    ),
    # Ids.
    "an unknown id": (
        lambda w: nedx.open("sim-fmry"),
        errors.UnknownIdError,
        "sim-fmry",
        "did you mean 'sim-fmri'",
    ),
    "an unknown version": (
        lambda w: nedx.open("sim-fmri@99"),
        errors.UnknownIdError,
        "99",
        "1.0.0",
    ),
    "an unknown model": (
        lambda w: w.images.ned.encode("sim-fmri-gabr"),
        errors.UnknownIdError,
        "sim-fmri-gabr",
        "did you mean 'sim-fmri-gabor'",
    ),
    "data instead of a model": (
        lambda w: w.images.ned.encode(w.root / "good.zarr"),
        errors.ModelError,
        "holds data",
        "nedx.open(",
    ),
    "a model instead of data": (
        lambda w: nedx.open_store(w.model),
        errors.StoreError,
        "holds a model",
        "nedx.load_model(",
    ),
    "no path": (lambda w: nedx.open(""), errors.StoreError, "''", "'a.zarr'"),
    "None": (lambda w: nedx.open(None), errors.StoreError, "None", "'a.zarr'"),
    "no such store": (
        lambda w: nedx.open(w.root / "goood.zarr"),
        errors.StoreError,
        "goood.zarr",
        "did you mean 'good.zarr'",
    ),
    "no such model": (
        lambda w: w.images.ned.encode(w.root / "nothing.zarr"),
        errors.StoreError,
        "nothing.zarr",
        "nedx.list(kind='model')",
    ),
    "nothing to verify": (
        lambda w: nedx.verify(w.root / "nothing.zarr"),
        errors.StoreError,
        "nothing.zarr",
        "heck the path",
    ),
    "nothing to pull": (
        lambda w: nedx.pull(w.root / "nothing.zarr", into=w.root / "copy"),
        errors.StoreError,
        "nothing.zarr",
        "heck the path",
    ),
    # Devices.
    "an unknown device": (
        lambda w: w.images.ned.encode(w.model, device="gpu"),
        errors.ModelError,
        "'gpu'",
        "'auto', 'cpu', 'cuda'",
    ),
    # Stores.
    "a newer store": (
        lambda w: nedx.open(w.root / "newer.zarr"),
        errors.SchemaError,
        "9.0",
        "pip install",
    ),
    "a newer model": (
        lambda w: w.images.ned.encode(w.root / "newer_model.zarr"),
        errors.StoreError,
        "9.0",
        "pip install",
    ),
    "metadata cut short": (
        lambda w: nedx.open(w.root / "cut.zarr"),
        errors.CorruptStoreError,
        "zarr.json",
        "nedx verify",
    ),
    "a flipped byte in labels": (
        lambda w: nedx.open(w.root / "flipped_ids.zarr"),
        errors.CorruptStoreError,
        "image_id",
        "nedx verify",
    ),
    "nothing to write": (
        lambda w: nedx.to_zarr(xr.Dataset(), w.root / "new.zarr"),
        errors.StoreError,
        "no variables",
        "ned.encode(model)",
    ),
    "an array to write": (
        lambda w: nedx.to_zarr(w.responses.response, w.root / "new.zarr"),
        errors.StoreError,
        "DataArray",
        "to_dataset",
    ),
    "another recipe to resume": (
        lambda w: nedx.to_zarr(2 * w.responses, w.root / "good.zarr", resume=True),
        errors.StoreError,
        "another recipe",
        "another path",
    ),
    "an unknown protocol": (
        lambda w: nedx.open("nosuch://bucket/a.zarr"),
        errors.StoreError,
        "nosuch",
        "gs://",
    ),
}

# What only reading the values shows.
LATE = {
    "NaN in features": (
        lambda w: features(with_nan(np.zeros((2, WIDTH)), 1, 3)).ned.encode(w.model).compute(),
        errors.ModelError,
        "set:1",
        "Look at these images",
    ),
    "a flipped byte": (
        lambda w: nedx.open(w.root / "flipped_good.zarr").compute(),
        errors.CorruptStoreError,
        "response",
        "nedx verify",
    ),
    "a flipped byte in pixels": (
        lambda w: nedx.open_images(w.root / "flipped_pixels.zarr").compute(),
        errors.CorruptStoreError,
        "pixels",
        "nedx verify",
    ),
    "a flipped byte in weights": (
        lambda w: w.images.ned.encode(w.root / "flipped_model.zarr", subject=1).compute(),
        errors.CorruptStoreError,
        "readout",
        "nedx verify",
    ),
    "an object that is gone": (
        lambda w: nedx.open(w.root / "gone.zarr").compute(),
        errors.CorruptStoreError,
        "response/c/",
        "nedx verify",
    ),
    "weights that are gone": (
        lambda w: w.images.ned.encode(w.root / "gone_model.zarr", subject=2).compute(),
        errors.CorruptStoreError,
        "readout/c/",
        "nedx verify",
    ),
}

# (selection, found, what to type), the same for every verb that takes one.
SELECTIONS = {
    "subject": ({"subject": 9}, "sub-09", "did you mean"),
    "one of two subjects": ({"subject": [1, 9]}, "sub-09", "did you mean"),
    "ROI": ({"roi": "V1v"}, "V1v", "did you mean 'V1'"),
    "one of two ROIs": ({"roi": ["V1", "FFA-1"]}, "FFA-1", "V1"),
    "channel": ({"channel": "Oz"}, "Oz", "these are vertices"),
    "time": ({"time": (0.1, 0.2)}, "time", "none here"),
    "nothing": ({"subject": []}, "empty", "leave it out"),
}

VERBS = {
    "open": lambda w, selection: nedx.open(w.root / "good.zarr", **selection),
    "encode": lambda w, selection: w.images.ned.encode(w.model, **selection),
    "synthesize": lambda w, selection: nedx.synthesize(
        w.images, w.model, w.root / "new.zarr", **selection
    ),
}

WRITERS = {
    "to_zarr": lambda w, place: nedx.to_zarr(w.responses, place),
    "synthesize": lambda w, place: nedx.synthesize(w.images, w.model, place),
    "a model": lambda w, place: nedx.load_model(w.model).to_zarr(place),
}


def refused(world, deed, error, found, advice, *, lazily=True):
    """Check that a deed fails as it should, and that nothing changed on disk."""
    before = state(world.root)
    with computes_at_most(0) if lazily else nullcontext(), pytest.raises(error) as caught:
        deed()
    message = str(caught.value)
    assert found in message
    assert advice in message
    assert state(world.root) == before


@pytest.mark.parametrize("mistake", EARLY)
def test_before_any_work(mistake, world):
    deed, *expected = EARLY[mistake]
    refused(world, lambda: deed(world), *expected)


@pytest.mark.parametrize("mistake", LATE)
def test_while_reading(mistake, world):
    deed, *expected = LATE[mistake]
    refused(world, lambda: deed(world), *expected, lazily=False)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", SELECTIONS)
def test_what_is_not_there_to_select(what, verb, world):
    selection, *expected = SELECTIONS[what]
    refused(world, lambda: VERBS[verb](world, selection), errors.SelectionError, *expected)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("there", ["good.zarr", "model.zarr", "half.zarr", "photos"])
def test_a_path_that_exists(there, writer, world):
    refused(
        world,
        lambda: WRITERS[writer](world, world.root / there),
        errors.StoreExistsError,
        there,
        "nother p",
    )


def test_overwriting_spares_what_is_no_store(world):
    refused(
        world,
        lambda: nedx.to_zarr(world.responses, world.root / "notes", overwrite=True),
        errors.StoreExistsError,
        "no Zarr store",
        "delete it yourself",
    )


def test_a_half_written_store(world):
    with pytest.warns(nedx.errors.NedxWarning, match="0 of .*nedx synth run"):
        opened = nedx.open(world.root / "half.zarr")
    refused(
        world,
        opened.compute,
        errors.IncompleteStoreError,
        "not written yet",
        "nedx synth run",
        lazily=False,
    )
    refused(
        world,
        lambda: nedx.pull(world.root / "half.zarr", into=world.root / "copy"),
        errors.IncompleteStoreError,
        "unfinished",
        "nedx synth status",
    )


@pytest.mark.parametrize("store", ["good", "ids", "pixels", "model"])
def test_verify_finds_a_flipped_byte(store, world):
    before = state(world.root)
    report = nedx.verify(world.root / f"flipped_{store}.zarr")
    assert not report.ok
    assert len(report.bad) == 1
    assert "sha256" in report.bad[0].reason
    assert state(world.root) == before


@pytest.mark.parametrize("deed", ["open", "to_zarr"])
def test_missing_credentials(deed, world, monkeypatch, tmp_path):
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = f"s3://nedx-no-such-bucket/{deed}.zarr"
    act = nedx.open if deed == "open" else world.responses.ned.to_zarr
    refused(world, lambda: act(place), errors.CredentialsError, place, "AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(
    ("words", "found", "advice"),
    [
        ("info sim-fmry", "sim-fmry", "did you mean"),
        ("info flipped_ids.zarr", "image_id", "nedx verify"),
        ("encode photos model.zarr good.zarr", "good.zarr exists", "another path"),
        ("synth run nothing.zarr", "nothing.zarr", "nedx synth init"),
        ("pull nothing.zarr", "nothing.zarr", "path"),
    ],
)
def test_in_a_shell(words, found, advice, world):
    before = state(world.root)
    command = [sys.executable, "-m", "nedx.cli", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=world.root, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert found in done.stderr
    assert advice in done.stderr
    assert state(world.root) == before
