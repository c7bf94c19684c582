"""Weight files: hashes, formats, downloads; real SqueezeNet weights against a plain convolution."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.signal import correlate2d

from nedx.backbones import Weights, default_recipe, feature_layout, load_backbone
from nedx.backbones.weights import fetch, read_state, sha256_of
from nedx.errors import ModelError


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}


@pytest.fixture
def server(tmp_path):
    """Serve a folder over HTTP, as the hub does: /owner/repo/resolve/<revision>/<file>."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        asked: list[str] = []

        def log_message(self, *_args):
            self.asked.append(f"{self.command} {self.path}")

        def end_headers(self):
            path = self.translate_path(self.path)
            if "/resolve/" in self.path and os.path.isfile(path):
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            super().end_headers()

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}", Handler.asked
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
def test_local_files(tmp_path, state, ending):
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    read = read_state(Weights(source=path, sha256=sha256_of(path)))
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    with pytest.raises(ModelError) as caught:
        read_state(Weights(source=path, sha256="0" * 64))
    assert sha256_of(path) in str(caught.value)
    assert "0" * 64 in str(caught.value)


def test_pickles_that_run_code_are_refused(tmp_path):
    path = tmp_path / "bad.pth"
    marker = tmp_path / "ran"
    torch.save({"a": torch.zeros(1), "b": _Touch(str(marker))}, path)
    with pytest.raises(ModelError, match="not a state dict of tensors alone"):
        read_state(Weights(source=path))
    path.write_bytes(pickle.dumps(_Touch(str(marker))))
    with pytest.raises(ModelError):
        read_state(Weights(source=path))
    assert not marker.exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.h5"])
def test_files_that_are_no_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all" * 10)
    with pytest.raises(ModelError, match=name):
        read_state(Weights(source=tmp_path / name))
    with pytest.raises(ModelError, match="there is no weight file"):
        read_state(Weights(source=tmp_path / "absent.pth"))


def test_a_url_is_fetched_once_and_checked(server, state, monkeypatch, tmp_path):
    folder, address, asked = server
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    save_file(state, folder / "w.safetensors")
    good = sha256_of(folder / "w.safetensors")
    with pytest.raises(ModelError, match="hash to sha256"):
        fetch(Weights(source=f"{address}/w.safetensors", sha256="1" * 64))
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    weights = Weights(source=f"{address}/w.safetensors", sha256=good)
    assert torch.equal(read_state(weights)["a.bias"], state["a.bias"])
    before = len(asked)
    read_state(weights)
    assert len(asked) == before
    with pytest.raises(ModelError, match="cannot be fetched"):
        fetch(Weights(source=f"{address}/absent.safetensors"))


def test_a_file_of_the_hub(server, state, tmp_path):
    folder, address, _asked = server
    place = folder / "owner" / "repo" / "resolve" / "main"
    place.mkdir(parents=True)
    save_file(state, place / "w.safetensors")
    source = "hf://owner/repo/w.safetensors@main"
    code = (
        "from nedx.backbones.recipe import Weights\n"
        "from nedx.backbones.weights import read_state\n"
        f"w = Weights(source={source!r}, sha256={sha256_of(place / 'w.safetensors')!r})\n"
        "print(sorted(read_state(w)))\n"
    )
    # The hub's client reads its settings once, when it is imported.
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['a.bias', 'a.weight']", done.stderr
    with pytest.raises(ModelError, match="hf://owner/repo/file"):
        fetch(Weights(source="hf://nothing"))


@pytest.fixture(scope="module")
def keras(shared_data):
    folder = shared_data / "weights" / "squeezenet_v1.1_keras_notop"
    if not folder.is_dir():
        pytest.skip(f"there are no SqueezeNet weights at {folder}")
    return next(folder.glob("*.h5"))


@pytest.fixture(scope="module")
def photographs(shared_data):
    """Eight real photographs as Keras's SqueezeNet takes them: 227 pixels, BGR, less the mean."""
    path = shared_data / "v4_cowley2023" / "images" / "images_210325.zip"
    if not path.is_file():
        pytest.skip(f"there are no photographs at {path}")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:8]
        images = [
            Image.open(archive.open(name)).convert("RGB").resize((227, 227)) for name in names
        ]
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.float32)
    return pixels[..., ::-1] - np.array([104, 117, 123], np.float32)


def test_keras_weights_against_a_plain_convolution(keras, photographs):
    """conv1, its rectifier, pool1 and fire2 in numpy, straight from the HDF5 file."""
    h5py = pytest.importorskip("h5py")
    image = photographs[0]

    def conv(maps, kernel, bias, mode="valid"):
        planes = [
            sum(correlate2d(maps[..., i], kernel[..., i, o], mode) for i in range(maps.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        return np.stack(planes, -1) + bias

    with h5py.File(keras) as file:
        first = file["conv1/conv1_3"]
        relu1 = np.maximum(conv(image, first["kernel:0"][()], first["bias:0"][()])[::2, ::2], 0)
        windows = np.lib.stride_tricks.sliding_window_view(relu1, (3, 3), (0, 1))[::2, ::2]
        pool1 = windows.max((-1, -2))

        def fire(part):
            group = file[f"fire2/{part}/fire2/{part}_3"]
            return group["kernel:0"][()], group["bias:0"][()]

        squeezed = np.maximum(conv(pool1, *fire("squeeze1x1")), 0)
        wide = [conv(squeezed, *fire("expand1x1")), conv(squeezed, *fire("expand3x3"), "same")]
        fire2 = np.maximum(np.concatenate(wide, -1), 0)

    recipe = default_recipe(
        "squeezenet1_1",
        weights=Weights(source=keras),
        layers=("relu1", "pool1", "fire2"),
        pooling="flatten",
    )
    assert recipe.policy == "squeezenet_keras"
    got = {}
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    load_backbone(recipe).run(batch, got.__setitem__)
    for layer, expected in (("relu1", relu1), ("pool1", pool1), ("fire2", fire2)):
        ours = got[layer].numpy().reshape(expected.transpose(2, 0, 1).shape)
        error = np.abs(ours - expected.transpose(2, 0, 1)).max()
        assert error < 1e-5 * np.abs(expected).max(), layer


def test_keras_maps_have_the_published_sides(keras):
    """keras-squeezenet at 227 pixels: 113, 56, 27 and 13 a side."""
    recipe = default_recipe(
        "squeezenet1_1",
        weights=Weights(source=keras),
        layers=("conv1", "pool1", "pool3", "pool5", "fire9"),
        pooling="flatten",
    )
    channels, sides = (64, 64, 128, 256, 512), (113, 56, 27, 13, 13)
    expected = [c * s * s for c, s in zip(channels, sides, strict=True)]
    assert list(feature_layout(recipe).values()) == expected


def test_trained_features_find_the_mirror_image(keras, photographs):
    """Deep features of a photograph are nearer to those of its mirror image than to another's.

    With the channels or the kernels' axes confused, or random weights, this fails.
    """
    images = torch.from_numpy(photographs.transpose(0, 3, 1, 2).copy())
    recipe = default_recipe(
        "squeezenet1_1", weights=Weights(source=keras), layers=("fire9",), pooling="mean"
    )

    def features(batch):
        got = {}
        load_backbone(recipe).run(batch, got.__setitem__)
        return got["fire9"]

    straight, mirrored = features(images), features(images.flip(3))
    near = torch.corrcoef(torch.cat([straight, mirrored]))[:8, 8:]
    assert torch.equal(near.argmax(1), torch.arange(8))
    assert torch.diagonal(near).mean() - near[~torch.eye(8, dtype=bool)].mean() > 0.3


def test_a_classifier_that_the_file_lacks_cannot_be_tapped(keras):
    recipe = default_recipe(
        "squeezenet1_1", weights=Weights(source=keras), layers=("classifier.1",)
    )
    with pytest.raises(ModelError, match="no such layers"):
        load_backbone(recipe)
