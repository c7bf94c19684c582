"""Assemblies as BrainIO has them, and tables as pandas has them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import nedx
from nedx.errors import SelectionError
from tests.laziness import computes_at_most


def responses() -> xr.Dataset:
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    dims = ("subject", "image", "repetition", "channel", "time")
    return xr.Dataset(
        {"response": (dims, values, {"units": "uV", "source": "measured", "flag": True})},
        {
            "subject": ["sub-01", "sub-02"],
            "image_id": ("image", ["t:b", "t:a", "t:c"]),
            "category": ("image", ["bird", "ape", "bird"]),
            "repetition": np.arange(4),
            "channel": list("vwxyz"),
            "region": ("channel", ["front", "back", "back", "front", "back"]),
            "n_seen": (("subject", "image"), np.arange(6).reshape(2, 3)),
            "time": ("time", np.arange(6) / 100, {"units": "s"}),
        },
    )


def test_an_assembly_finds_the_same_value_by_its_labels():
    ds = responses()
    assembly = ds.ned.to_brainio()
    assert assembly.dims == ("presentation", "neuroid", "time_bin")
    assert assembly.shape == (12, 10, 6)
    one = assembly.sel(
        presentation=(assembly.stimulus_id == "t:c") & (assembly.repetition == 2),
        neuroid=assembly.neuroid_id == "sub-02.x",
    )
    np.testing.assert_array_equal(one.values[0, 0], ds.response.values[1, 2, 2, 2])
    assert one.object_name.item() == "bird"
    assert one.region.item() == "back"
    # A sample lies in the middle of its bin.
    middle = (assembly.time_bin_start + assembly.time_bin_end).values / 2
    np.testing.assert_allclose(middle, ds.time.values * 1000)
    assert np.allclose(assembly.time_bin_end - assembly.time_bin_start, 10)
    assert isinstance(assembly.indexes["presentation"], pd.MultiIndex)
    assert assembly.attrs["units"] == "uV"


def test_an_assembly_is_read_back_from_netcdf(tmp_path):
    ds = responses()
    path = tmp_path / "assembly.nc"
    lazy = ds.assign(response=ds.response.variable.chunk(image=1).astype(np.float16))
    with computes_at_most(0):
        flat = lazy.ned.to_brainio(multi_index=False)
    flat.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataarray(path, engine="h5netcdf") as found:
        found.load()
    assert found.dims == ("presentation", "neuroid", "time_bin")
    expected = ds.response.transpose("image", "repetition", "subject", "channel", "time")
    expected = expected.values.reshape(12, 10, 6).astype(np.float16)
    np.testing.assert_array_equal(found.values, expected)
    assert found.stimulus_id.values.tolist() == list(np.repeat(["t:b", "t:a", "t:c"], 4))
    assert found.subject.values.tolist() == ["sub-01"] * 5 + ["sub-02"] * 5


def test_trials_and_units_need_no_time():
    ds = xr.Dataset(
        {"response": (("trial", "unit"), np.arange(6.0).reshape(3, 2))},
        {"image_id": ("trial", ["a", "b", "a"]), "unit": [7, 9], "subject": "sub-monkeyF"},
    )
    assembly = ds.ned.to_brainio()
    assert assembly.dims == ("presentation", "neuroid")
    assert assembly.neuroid_id.values.tolist() == ["sub-monkeyF.7", "sub-monkeyF.9"]
    assert assembly.subject.values.tolist() == ["sub-monkeyF"] * 2
    np.testing.assert_array_equal(assembly.sel(stimulus_id="a").values, [[0, 1], [4, 5]])
    with pytest.raises(SelectionError, match="no neuroids"):
        ds.isel(unit=0, drop=True).ned.to_brainio()


def test_a_table_is_that_of_xarray():
    ds = responses()
    table = ds.ned.to_dataframe()
    expected = ds.response.to_dataframe().reset_index()
    assert len(table) == len(expected) == ds.response.size
    for name in table.columns:
        np.testing.assert_array_equal(table[name].to_numpy(), expected[name].to_numpy(), name)
    assert isinstance(table["image_id"].dtype, pd.CategoricalDtype)
    assert table.attrs["units"] == "uV"
    means = table.groupby("category", observed=True)["response"].mean()
    apes = ds.response.values[:, 1].mean(dtype=np.float64)
    assert np.isclose(means["ape"], apes, atol=1e-6)


def test_a_table_of_a_statistic_and_of_halves():
    ds = responses().isel(subject=0)
    ds["noise_ceiling"] = ("channel", np.linspace(0, 1, 5).astype(np.float16))
    table = ds.ned.to_dataframe("noise_ceiling")
    assert table["noise_ceiling"].dtype == np.float32
    assert table["channel"].tolist() == list("vwxyz")
    assert set(table["subject"]) == {"sub-01"}


def test_a_table_that_nobody_can_hold_is_refused_before_it_is_computed():
    ds = responses().chunk(image=1)
    with computes_at_most(0), pytest.raises(SelectionError, match=r"720 rows.*max_rows=720"):
        ds.ned.to_dataframe(max_rows=719)
    assert len(ds.ned.to_dataframe(max_rows=720)) == 720
    tree = xr.DataTree.from_dict({"/sub-01": ds, "/sub-02": ds})
    with pytest.raises(SelectionError, match="expected one subject"):
        tree.ned.to_dataframe()


def test_subjects_with_voxels_of_their_own_stay_apart():
    tree = nedx.open("sim-fmri")
    for subject in (1, 2):
        one = tree.ned.sel(subject=subject, roi="V1").isel(image=slice(2))
        assembly = one.ned.to_brainio(multi_index=False)
        assert set(assembly["subject"].values) == {f"sub-0{subject}"}
        assert str(assembly["neuroid_id"].values[0]).startswith(f"sub-0{subject}.")
        assert set(one.ned.to_dataframe()["subject"]) == {f"sub-0{subject}"}
