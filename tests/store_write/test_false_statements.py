"""What cannot be true is not written; what is left unsaid may be."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nedx.errors import SchemaError
from nedx.store.writing import to_zarr


def responses(units: str = "percent", ids: tuple[str, ...] = ("a:0", "a:1")) -> xr.Dataset:
    return xr.Dataset(
        {"response": (("image", "voxel"), np.zeros((2, 3), np.float32), {"units": units})},
        coords={"image_id": ("image", np.array(ids, object)), "voxel": np.arange(3)},
        attrs={"modality": "fmri"},
    )


@pytest.mark.parametrize(
    ("ds", "said"),
    [
        (responses(units="a.u."), "'a.u.'"),
        (responses(units="uV"), "'uV'"),
        (responses(ids=("a:0", "a:0")), "'a:0'"),
    ],
)
def test_it_is_refused_before_anything_is_written(ds, said, tmp_path):
    with pytest.raises(SchemaError, match=said):
        to_zarr(ds, tmp_path / "false.zarr")
    assert not list(tmp_path.iterdir())


def test_all_of_it_in_one_message(tmp_path):
    with pytest.raises(SchemaError) as caught:
        to_zarr(responses(units="a.u.", ids=("a:0", "a:0")), tmp_path / "false.zarr")
    assert len(caught.value.faults) == 2


def test_the_rest_is_written(tmp_path):
    to_zarr(responses(), tmp_path / "true.zarr")
    to_zarr(responses().drop_attrs(), tmp_path / "unsaid.zarr")
