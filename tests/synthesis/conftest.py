"""Images in a folder, small encoders on disk, and the bytes of a store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from nedx.encoding import EncoderRecipe, LinearEncoder
from nedx.synthesis import init
from tests.encoding.truth import GABOR, features, random_pixels

COMPONENTS, COUNT, BLOCK = 6, 24, 4


def random_encoder(subjects: dict[str, int], *, ragged: bool, seed: int = 0) -> LinearEncoder:
    """Return an encoder with random weights; targets of each subject by name."""
    rng = np.random.default_rng(seed)
    width = features(random_pixels(1)).shape[1]
    shared = {
        "projection": (
            ("feature", "component"),
            rng.normal(size=(width, COMPONENTS)).astype(np.float32) / np.float32(width**0.5),
        ),
        "projection_offset": (("component",), np.zeros(COMPONENTS, np.float32)),
    }

    def readout(dim: str, *shape: int) -> xr.Dataset:
        dims = ("subject", dim)[-len(shape) :]
        return xr.Dataset(
            {
                "readout": ((*dims, "component"), rng.normal(size=(*shape, COMPONENTS))),
                "intercept": (dims, rng.normal(size=shape)),
            },
            coords={dim: np.arange(shape[-1])},
        )

    recipe = EncoderRecipe(backbone=GABOR, model_id="random", units="1")
    if ragged:
        children = {f"/{name}": readout("voxel", size) for name, size in subjects.items()}
        tree = xr.DataTree.from_dict({"/": xr.Dataset(shared), **children})
        return LinearEncoder(tree, recipe)
    labels = np.array(list(subjects), dtype=object)
    weights = readout("vertex", len(labels), next(iter(subjects.values())))
    return LinearEncoder(weights.assign(shared).assign_coords(subject=labels), recipe)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthesis") / "noise"
    folder.mkdir()
    for i, pixels in enumerate(random_pixels(COUNT)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model") / "shared.zarr"
    random_encoder({"sub-01": 300, "sub-02": 300}, ragged=False).to_zarr(place)
    return place


@pytest.fixture(scope="session")
def ragged_model(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model") / "ragged.zarr"
    random_encoder({"sub-01": 30, "sub-02": 50, "sub-03": 20}, ragged=True).to_zarr(place)
    return place


@pytest.fixture
def planned(images, model):
    """Return a function that plans a job of six blocks at a place."""

    def plan(place: Path, **options: object) -> Path:
        init(images, model, place, block=BLOCK, device="cpu", **options)
        return place

    return plan


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, images, model) -> Path:
    """Return a store of the same job that nothing interrupted."""
    from nedx.synthesis import run

    place = tmp_path_factory.mktemp("whole") / "whole.zarr"
    init(images, model, place, block=BLOCK, device="cpu")
    run(place, progress=False)
    return place


def store_bytes(root: Path) -> dict[str, bytes]:
    """Return all objects of a store by key, the date of creation blanked."""
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        key = path.relative_to(root).as_posix()
        data = path.read_bytes()
        if key == "zarr.json":
            content = json.loads(data)
            content["attributes"]["date_created"] = ""
            data = json.dumps(content).encode()
        if key == "_nedx/manifest.json":
            content = json.loads(data)
            content["objects"].pop("zarr.json")
            data = json.dumps(content).encode()
        found[key] = data
    return found
