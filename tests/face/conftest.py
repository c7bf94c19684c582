"""Small valid Datasets of each kind, made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr


def strings(*values):
    return np.array(values, dtype=object)


def _attrs(modality):
    return {"nedx_schema_version": "1.0", "modality": modality, "license": "CC0-1.0"}


@pytest.fixture
def eeg() -> xr.Dataset:
    """Two subjects, three images, five channels, six times."""
    rng = np.random.default_rng(0)
    response = rng.normal(size=(2, 3, 5, 6)).astype(np.float32)
    times = np.arange(6) / 10 - 0.1
    ds = xr.Dataset(
        {
            "response": (
                ("subject", "image", "channel", "time"),
                response,
                {"units": "uV", "source": "measured"},
            ),
            "noise_ceiling": (("subject", "channel", "time"), np.full((2, 5, 6), 0.5, "f4")),
        },
        coords={
            "subject": strings("sub-01", "sub-02"),
            "image_id": ("image", strings("set:a", "set:b", "set:c")),
            "channel": strings("Fp1", "Pz", "O1", "Oz", "Cz"),
            "region": ("channel", strings("frontal", "parietal", "back", "back", "central")),
            "time": ("time", times, {"units": "s"}),
        },
        attrs=_attrs("eeg"),
    )
    return ds.set_xindex("image_id")


@pytest.fixture
def fmri() -> xr.Dataset:
    """Three subjects on eight vertices; sub-03 has no FFA-1."""
    rng = np.random.default_rng(1)
    response = rng.normal(size=(3, 4, 8)).astype(np.float32)
    mask = np.zeros((3, 2, 8), dtype=bool)
    mask[0, 0, [0, 1, 4]] = True
    mask[1, 0, [1, 2, 5]] = True
    mask[2, 0, [0, 5]] = True
    mask[0, 1, [6, 7]] = True
    mask[1, 1, [7]] = True
    ds = xr.Dataset(
        {
            "response": (
                ("subject", "image", "vertex"),
                response,
                {"units": "percent", "source": "synthetic"},
            )
        },
        coords={
            "subject": strings("sub-01", "sub-02", "sub-03"),
            "image_id": ("image", strings("set:a", "set:b", "set:c", "set:d")),
            "vertex": np.arange(8, dtype=np.int32),
            "hemisphere": ("vertex", strings(*"LLLLRRRR")),
            "roi": strings("V1", "FFA-1"),
            "roi_mask": (("subject", "roi", "vertex"), mask),
        },
        attrs=_attrs("fmri"),
    )
    return ds.set_xindex("image_id")


@pytest.fixture
def stimuli() -> xr.Dataset:
    """Two images of 4 x 4 pixels."""
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    ds = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)},
        coords={"image_id": ("image", strings("set:a", "set:b"))},
        attrs={"nedx_schema_version": "1.0"},
    )
    return ds.set_xindex("image_id")


@pytest.fixture
def tree(fmri) -> xr.DataTree:
    """Two subjects with voxels of their own, each with its truth."""
    children = {}
    for number, size in ((1, 5), (2, 7)):
        mask = np.zeros((1, size), dtype=bool)
        mask[0, :3] = True
        response = np.arange(4 * size, dtype=np.float32).reshape(4, size)
        attrs = {"units": "percent", "source": "synthetic"}
        children[f"/sub-0{number}"] = xr.Dataset(
            {"response": (("image", "voxel"), response, attrs)},
            coords={
                "image_id": ("image", strings("set:a", "set:b", "set:c", "set:d")),
                "voxel": np.arange(size, dtype=np.int32),
                "roi": strings("V1"),
                "roi_mask": (("roi", "voxel"), mask),
            },
            attrs=_attrs("fmri"),
        )
        truth = {"response": (("image", "voxel"), response * 2)}
        children[f"/sub-0{number}/truth"] = xr.Dataset(truth)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=_attrs("fmri")), **children})
