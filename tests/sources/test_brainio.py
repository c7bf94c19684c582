"""Assemblies as BrainIO writes them, and those of nedx's own export, read back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import nedx
from nedx.errors import SchemaError, SourceError, StoreError
from nedx.sources.brainio import open_brainio
from nedx.sources.importing import import_source
from tests.laziness import computes_at_most

STIMULI = ["im_a", "im_b", "im_a", "im_c", "im_b", "im_a"]


def assembly(*, scale=1.0, bins=3, stimuli=STIMULI):
    values = np.random.default_rng(0).normal(size=(4, len(stimuli), bins))
    start = np.array([-0.01, 0.07, 0.15][:bins]) * scale
    return xr.DataArray(
        values,
        dims=("neuroid", "presentation", "time_bin"),
        coords={
            "neuroid_id": ("neuroid", ["w_1", "w_2", "w_3", "w_4"]),
            "region": ("neuroid", ["V4", "V4", "IT", "IT"]),
            "subject": ("neuroid", ["wilbur"] * 4),
            "stimulus_id": ("presentation", stimuli),
            "object_name": ("presentation", [s[-1] for s in stimuli]),
            "time_bin_start": ("time_bin", start),
            "time_bin_end": ("time_bin", start + 0.08 * scale),
        },
        name="dicarlo.test",
        attrs={"stimulus_set_identifier": "hvm"},
    )


@pytest.mark.parametrize(("scale", "units"), [(1000.0, "ms"), (1.0, "s")])
def test_a_file_of_netcdf(tmp_path, scale, units):
    made = assembly(scale=scale)
    made.to_netcdf(tmp_path / "assy.nc", engine="h5netcdf")
    with computes_at_most(0):
        ds = open_brainio(tmp_path / "assy.nc", modality="ephys", units="Hz")
    nedx.validate(ds)
    assert ds.response.dims == ("trial", "unit", "time")
    np.testing.assert_allclose(ds.response.values, made.values.transpose(1, 0, 2), rtol=1e-6)
    np.testing.assert_allclose(ds.time.values, [0.03, 0.11, 0.19])
    np.testing.assert_allclose(ds.time_bounds.values[1], [0.07, 0.15])
    assert ds.attrs["time_units_found_by"] == f"size: {units}"
    assert ds.image_id.values.tolist() == [f"hvm:{one}" for one in STIMULI]
    assert ds.repetition.values.tolist() == [0, 0, 1, 0, 1, 2]
    assert ds.category.values.tolist() == [one[-1] for one in STIMULI]
    assert ds.region.values.tolist() == ["V4", "V4", "IT", "IT"]
    assert ds.neuroid_id.values.tolist() == ["w_1", "w_2", "w_3", "w_4"]
    assert ds.attrs["subject_ids"] == ["wilbur"]


def test_an_assembly_in_memory_with_its_indexes():
    made = assembly(scale=1000.0).set_index(
        presentation=["stimulus_id", "object_name"],
        neuroid=["neuroid_id", "region", "subject"],
        time_bin=["time_bin_start", "time_bin_end"],
    )
    ds = open_brainio(made, modality="ephys", units="Hz")
    expected = open_brainio(assembly(scale=1000.0), modality="ephys", units="Hz")
    xr.testing.assert_identical(ds, expected)


def test_one_presentation_of_each_stimulus(tmp_path):
    made = assembly(stimuli=["im_a", "im_b", "im_c"]).isel(time_bin=0, drop=True)
    ds = open_brainio(made, modality="fmri", units="percent", image_set="mine")
    assert ds.response.dims == ("image", "voxel")
    assert ds.image_id.values.tolist() == ["mine:im_a", "mine:im_b", "mine:im_c"]
    nedx.validate(ds)


def test_what_the_attribute_says_goes_before_the_size():
    made = assembly()
    made = made.assign_attrs(time_bin_units="ms")
    ds = open_brainio(made, modality="ephys", units="Hz")
    assert ds.attrs["time_units_found_by"] == "attribute: ms"
    np.testing.assert_allclose(ds.time.values[0], 0.00003)
    ds = open_brainio(made, modality="ephys", units="Hz", time_units="s")
    assert ds.attrs["time_units_found_by"] == "argument: s"


def test_the_csv_of_the_stimulus_set(tmp_path):
    table = pd.DataFrame(
        {
            "stimulus_id": ["im_c", "im_a", "im_b"],
            "filename": ["c.png", "a.png", "b.png"],
            "object_name": ["other"] * 3,
        }
    )
    table.to_csv(tmp_path / "stimuli.csv", index=False)
    options = {"modality": "ephys", "units": "Hz", "stimuli": tmp_path / "stimuli.csv"}
    ds = open_brainio(assembly(), **options)
    assert ds.filename.values.tolist() == [f"{one[-1]}.png" for one in STIMULI]
    # What the assembly says of its presentations goes before what the table says.
    assert ds.category.values.tolist() == [one[-1] for one in STIMULI]
    table.iloc[:2].to_csv(tmp_path / "stimuli.csv", index=False)
    with pytest.raises(SourceError, match="lacks 1 stimuli.*'im_b'"):
        open_brainio(assembly(), **options)


def test_what_nedx_exports_comes_back(tmp_path):
    from nedx.export.brainio import to_brainio

    rng = np.random.default_rng(2)
    attrs = {"units": "uV", "source": "measured"}
    made = nedx.parse(
        xr.Dataset(
            {"response": (("image", "channel", "time"), rng.normal(size=(3, 2, 5)), attrs)},
            {
                "image_id": ("image", ["things:a_01b", "things:b_01b", "things:c_02s"]),
                "channel": ["Oz", "Pz"],
                "time": np.arange(-2, 3) / 100,
            },
            {"modality": "eeg"},
        )
    )
    to_brainio(made, multi_index=False).to_netcdf(tmp_path / "assy.nc", engine="h5netcdf")
    ds = open_brainio(tmp_path / "assy.nc", modality="eeg")
    np.testing.assert_array_equal(ds.response.values, made.response.values)
    np.testing.assert_allclose(ds.time.values, made.time.values, atol=1e-9)
    assert ds.channel.values.tolist() == ["Oz", "Pz"]
    assert ds.image_id.values.tolist() == made.image_id.values.tolist()
    assert ds.response.attrs["units"] == "uV"


def test_import(tmp_path):
    assembly(scale=1000.0).to_netcdf(tmp_path / "assy.nc", engine="h5netcdf")
    out = tmp_path / "out.zarr"
    import_source("brainio", tmp_path / "assy.nc", out, modality="ephys", units="Hz")
    assert nedx.verify(out).ok
    stored = nedx.open_store(out)
    expected = assembly().values.transpose(1, 0, 2)
    np.testing.assert_allclose(stored.response.values, expected, rtol=1e-3)


def test_what_assemblies_do_not_say(tmp_path):
    made = assembly()
    options = {"modality": "ephys", "units": "Hz"}
    with pytest.raises(SchemaError, match="has units None"):
        open_brainio(made, modality="ephys")
    with pytest.raises(SourceError, match="give image_set="):
        open_brainio(made.drop_attrs(), **options)
    with pytest.raises(SourceError, match="'stimulus_id' is not among.*object_name"):
        open_brainio(made.drop_vars("stimulus_id"), **options)
    gaps = made.assign_coords(repetition=("presentation", [0, 0, 1, 0, 1, np.nan]))
    with pytest.raises(SourceError, match="1 presentations have no 'repetition'"):
        open_brainio(gaps, **options)
    with pytest.raises(SourceError, match="no 'time_bin_start'"):
        open_brainio(made.drop_vars("time_bin_start"), **options)
    with pytest.raises(SourceError, match="has unit, presentation, time_bin"):
        open_brainio(made.rename(neuroid="unit"), **options)
    with pytest.raises(StoreError, match="no file"):
        open_brainio(tmp_path / "none.nc", **options)
    (tmp_path / "bad.nc").write_bytes(b"no netCDF")
    with pytest.raises(StoreError, match="no netCDF"):
        open_brainio(tmp_path / "bad.nc", **options)
