"""A small response Dataset, and the bytes of a store."""

from __future__ import annotations

import json
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from nedx.store.layout import plan_dataset


def make_responses(images=20, voxels=6, subjects=2, seed=0, *, lazy=True) -> xr.Dataset:
    """Return responses (subject, image, voxel) with labels of every kind."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(subjects, images, voxels)).astype(np.float32)
    data = da.from_array(values, chunks=(1, 7, voxels), name=f"values-{seed}") if lazy else values
    return xr.Dataset(
        {
            "response": (("subject", "image", "voxel"), data, {"units": "1"}),
            "encoding_accuracy": (("subject", "voxel"), rng.random((subjects, voxels))),
        },
        coords={
            "image_id": ("image", np.array([f"test:{i:03d}" for i in range(images)])),
            "subject": np.array([f"sub-{i + 1:02d}" for i in range(subjects)]),
            "voxel": np.arange(voxels, dtype=np.int32),
            "cortex": ("voxel", np.zeros(voxels, dtype=bool)),
        },
        attrs={"title": "test", "license": "CC0-1.0"},
    )


@pytest.fixture
def responses() -> xr.Dataset:
    return make_responses()


@pytest.fixture
def small_blocks():
    """Return a function that gives a layout: chunks (1, 4, 3), shards (1, 8, 6), 3 blocks."""

    def plan(ds: xr.Dataset):
        return plan_dataset(
            ds,
            chunks={"response": {"subject": 1, "image": 4, "voxel": 3}},
            shards={"response": {"subject": 1, "image": 8, "voxel": 6}},
            block=8,
        )

    return plan


@pytest.fixture
def store_bytes():
    """Return a function that gives all objects of a store, the date of creation blanked."""

    def read(root) -> dict[str, bytes]:
        root = Path(root)
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

    return read
