"""Each rule of the schema has a Dataset that breaks it and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from nedx.errors import SchemaError, SelectionError
from nedx.schema import (
    neuroid_dim,
    parse,
    restore_index,
    role_dim,
    sample_dim,
    schema_as_json,
    subject_label,
    validate,
)
from tests.laziness import computes_at_most


def strings(*values):
    return np.array(values, dtype=object)


def faults_of(ds, kind=None):
    with pytest.raises(SchemaError) as caught:
        validate(ds, kind)
    return caught.value.faults


def one_fault(ds):
    faults = faults_of(ds)
    assert len(faults) == 1, faults
    return faults[0]


def with_attrs(ds, **attrs):
    return ds.assign(response=ds.response.assign_attrs(attrs))


@pytest.mark.parametrize("name", ["eeg", "fmri", "stimuli", "tree"])
def test_valid(name, request):
    validate(request.getfixturevalue(name))


def test_golden():
    golden = Path(__file__).parent / "schema.json"
    assert json.loads(golden.read_text()) == schema_as_json()


def test_roles_by_name_and_by_attribute(eeg):
    assert neuroid_dim(eeg) == "channel"
    assert role_dim(eeg, "subject") == "subject"
    assert role_dim(eeg, "trial") is None
    assert sample_dim(eeg) == "image"
    sensors = eeg.rename(channel="sensor").drop_vars("region")
    assert neuroid_dim(sensors) is None
    sensors["sensor"].attrs["nedx_role"] = "neuroid"
    assert neuroid_dim(sensors) == "sensor"
    with pytest.raises(ValueError, match="role is one of"):
        role_dim(eeg, "voxels")


def test_sample_dim_missing():
    with pytest.raises(SelectionError, match="'image' or 'trial'"):
        sample_dim(xr.Dataset({"a": ("x", [1])}))


@given(
    st.integers(0, 100_000), st.sampled_from(["{}", "{:02d}", "sub-{}", "sub-{:02d}", "subj{:02d}"])
)
def test_subject_label_is_the_number(number, form):
    expected = f"sub-{number:02d}"
    assert subject_label(number) == expected
    assert subject_label(np.int64(number)) == expected
    assert subject_label(form.format(number)) == expected
    assert subject_label(subject_label(number)) == expected


@given(st.text(max_size=12))
def test_subject_label_is_idempotent_or_refuses(text):
    try:
        label = subject_label(text)
    except SelectionError:
        return
    assert subject_label(label) == label


@pytest.mark.parametrize("bad", ["", "sub-", "a b", True, "sub_01"])
def test_no_subject(bad):
    with pytest.raises(SelectionError, match="label such as 'sub-01'"):
        subject_label(bad)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ("a.u.", "normalization='zscore'"),
        ("z-score", "normalization='zscore'"),
        ("V", "multiply by 1e6"),
        ("fT", "'uV'"),
        ("\N{MICRO SIGN}V", "type 'uV'"),
        (None, "'uV'"),
    ],
)
def test_units_of_eeg(eeg, units, said):
    fault = one_fault(with_attrs(eeg, units=units))
    assert repr(units) in fault
    assert said in fault


@pytest.mark.parametrize(
    ("modality", "units"),
    [
        *(("fmri", "percent"), ("eeg", "uV"), ("eeg", "uV m-2"), ("meg", "fT")),
        *(("meg", "fT cm-1"), ("ephys", "Hz"), ("ieeg", "uV")),
    ],
)
def test_units_of_each_modality(eeg, modality, units):
    validate(with_attrs(eeg.assign_attrs(modality=modality), units=units))


def test_normalized_units(eeg):
    assert "normalization None" in one_fault(with_attrs(eeg, units="1"))
    scored = with_attrs(eeg, units="1", normalization="zscore")
    assert "normalization_scope" in one_fault(scored)
    validate(with_attrs(scored, normalization_scope="session"))
    validate(with_attrs(eeg.assign_attrs(modality="ephys"), units="1", normalization="dff"))


def test_modality_and_source(eeg):
    assert "'modality' is 'mri'" in one_fault(with_attrs(eeg.assign_attrs(modality="mri")))
    assert "'source'" in one_fault(with_attrs(eeg, source="simulated"))


def test_image_id_missing(eeg):
    nameless = eeg.drop_vars("image_id")
    assert "'image_id (image)' is missing" in one_fault(nameless)
    assert "'category (image)'" in one_fault(nameless.assign_attrs(stimulus_identity="none"))
    named = nameless.assign_coords(category=("image", strings("cat", "dog", "cat")))
    validate(named.assign_attrs(stimulus_identity="none"))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (strings("set:a", "set:a", "set:c"), "must be unique"),
        (strings("a", "set:b", "set:c"), "'<set>:<id>'"),
        (np.arange(3), "needs strings"),
    ],
)
def test_image_ids(eeg, ids, said):
    fault = one_fault(eeg.drop_vars("image_id").assign_coords(image_id=("image", ids)))
    assert said in fault


def test_trials_may_repeat_images(eeg):
    trials = eeg.drop_indexes("image_id").rename(image="trial")
    trials = trials.assign_coords(image_id=("trial", strings("set:a", "set:a", "set:b")))
    validate(trials)
    assert restore_index(trials).sel(image_id="set:a").sizes["trial"] == 2


def test_image_has_no_coordinate_of_its_own(eeg):
    assert "drop_vars('image')" in one_fault(eeg.assign_coords(image=[3, 4, 5]))


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([0, 0.1, 0.1, 0.2, 0.3, 0.4], "increase"),
        ([0, 0.1, np.nan, 0.2, 0.3, 0.4], "finite"),
        (np.arange(6), "float64"),
    ],
)
def test_times(eeg, times, said):
    assert said in one_fault(eeg.assign_coords(time=("time", times, {"units": "s"})))


def test_time_units(eeg):
    assert "'seconds'" in one_fault(eeg.assign_coords(time=eeg.time.assign_attrs(units="seconds")))
    assert "no coordinate" in one_fault(eeg.drop_vars("time"))


def test_subjects(eeg):
    assert "'sub-01'" in one_fault(eeg.assign_coords(subject=strings("1", "sub-02")))
    assert "unique" in one_fault(eeg.assign_coords(subject=strings("sub-02", "sub-02")))
    assert "no coordinate" in one_fault(eeg.drop_vars("subject"))


def test_neuroids(eeg, fmri):
    assert "no coordinate" in one_fault(eeg.drop_vars("channel"))
    assert "MNE" in one_fault(eeg.assign_coords(channel=np.arange(5)))
    assert "integer" in one_fault(fmri.assign_coords(vertex=np.arange(8) / 2))
    assert "count from 0" in one_fault(fmri.assign_coords(vertex=np.arange(8) - 1))
    assert "unique" in one_fault(fmri.assign_coords(vertex=np.zeros(8, int)))


def test_hemispheres(fmri):
    assert "L before R" in one_fault(
        fmri.assign_coords(hemisphere=("vertex", strings(*"RRRRLLLL")))
    )
    assert "'lh'" in one_fault(fmri.assign_coords(hemisphere=("vertex", strings(*["lh"] * 8))))
    assert "missing" in one_fault(fmri.drop_vars("hemisphere"))


def test_vertices_that_count_from_one(fmri):
    whole = fmri.assign_attrs(space="fsaverage", density="10k")
    validate(whole)
    shifted = whole.assign_coords(vertex=np.arange(20_477, 20_485))
    assert "subtract 1" in one_fault(shifted)
    assert "subtract 1" in one_fault(fmri.assign_coords(nsd_id=("image", [1, 2, 3, 73_000])))


@pytest.mark.parametrize(
    ("ceiling", "said"), [(85.0, "divide by 100"), (-0.2, "outside"), (400.0, "outside")]
)
def test_noise_ceiling(eeg, ceiling, said):
    wrong = eeg.assign(noise_ceiling=eeg.noise_ceiling * 0 + np.float32(ceiling))
    fault = one_fault(wrong)
    assert said in fault
    assert ("percent" in fault) == (ceiling == 85.0)


def test_padding_is_refused_and_lazy_arrays_are_left_alone(eeg):
    holes = eeg.copy(deep=True)
    holes.response[1, :, 3:] = np.nan
    fault = one_fault(holes)
    assert "36 values that are not finite" in fault
    assert "'subject': 1" in fault
    with computes_at_most(0):
        validate(holes.chunk())


def test_dims(eeg, stimuli):
    assert "another order" in one_fault(eeg.transpose("image", "subject", ...))
    assert "it needs" in one_fault(eeg.rename(subject="person").drop_vars("noise_ceiling"))
    assert "it needs (image | trial, y, x, rgb)" in one_fault(stimuli.rename(rgb="colour"))
    assert "it needs 3" in one_fault(stimuli.isel(rgb=[0, 1]))
    assert any("needs a variable 'response'" in f for f in faults_of(stimuli, "responses"))


def test_dtypes(eeg, stimuli):
    assert "float64" in one_fault(eeg.assign(response=eeg.response.astype(np.float64)))
    assert "uint8" in one_fault(stimuli.astype(np.int16))


def test_strings_of_fixed_width(eeg):
    assert "astype(object)" in one_fault(eeg.assign_coords(region=eeg.region.astype("U8")))
    odd = eeg.assign_coords(region=("channel", strings("a", None, "b", "c", "d")))
    assert "use ''" in one_fault(odd)


def test_attrs_that_json_cannot_hold(eeg):
    fault = one_fault(with_attrs(eeg, made=np.datetime64("2026-01-01")))
    assert "'made'" in fault
    assert "'response'" in fault
    validate(with_attrs(eeg, mean=np.array([1.0, 2.0]), count=np.int64(3)))


def test_multi_index_is_refused(eeg):
    stacked = eeg.drop_vars("noise_ceiling").stack(neuroid_time=("channel", "time"))
    assert any("reset_index('neuroid_time')" in fault for fault in faults_of(stacked))


def test_newer_schema_is_refused(eeg):
    newer = eeg.assign_attrs(nedx_schema_version="1.1")
    for check in (validate, parse):
        with pytest.raises(SchemaError, match="pip install --upgrade nedx"):
            check(newer)
    with pytest.raises(SchemaError, match="no version"):
        validate(eeg.assign_attrs(nedx_schema_version="latest"))


def test_unknown_kinds(eeg):
    assert "its variables are: a" in faults_of(xr.Dataset({"a": 1}))[0].replace("'", "")
    assert "did you mean 'responses'" in faults_of(eeg, "response")[0]


def test_every_fault_in_one_message(eeg):
    bad = with_attrs(eeg, units="a.u.", source="real").assign_attrs(modality="EEG")
    bad = bad.assign_coords(subject=strings("1", "2"), time=eeg.time[::-1].values)
    with pytest.raises(SchemaError) as caught:
        validate(bad.drop_vars("image_id"))
    said = str(caught.value)
    for word in ("a.u.", "'real'", "'EEG'", "'sub-02'", "increase", "image_id", "units None"):
        assert word in said
    assert "(8 faults)" in said


def test_faults_of_a_tree_name_the_group(tree):
    tree["sub-02"]["response"].attrs["units"] = "a.u."
    assert one_fault(tree).startswith("/sub-02: 'response' has units 'a.u.'")
    with pytest.raises(SchemaError, match="no group holds"):
        validate(xr.DataTree())


def test_parse_makes_valid_and_stays_lazy():
    raw = xr.Dataset(
        {
            "response": (
                ("image", "subject", "channel", "time"),
                da.zeros((3, 2, 2, 3), chunks=1),
                {"units": "\N{MICRO SIGN}V", "source": "measured"},
            )
        },
        coords={
            "image": ["set:a", "set:b", "set:c"],
            "subject": [1, 2],
            "channel": ["Oz", "Pz"],
            "time": ("time", [-100, 0, 100], {"units": "ms"}),
        },
        attrs={"modality": "eeg"},
    )
    with computes_at_most(0):
        ds = parse(raw)
        validate(ds)
    assert ds.response.dims == ("subject", "image", "channel", "time")
    assert ds.response.dtype == np.float32
    assert ds.response.attrs["units"] == "uV"
    assert ds.subject.values.tolist() == ["sub-01", "sub-02"]
    assert ds.channel.dtype == object
    assert ds.channel.attrs["nedx_role"] == "neuroid"
    np.testing.assert_allclose(ds.time, [-0.1, 0, 0.1])
    assert ds.sel(image_id="set:b").sizes == {"subject": 2, "channel": 2, "time": 3}
    xr.testing.assert_identical(parse(ds), ds)
    assert "nedx_role" not in raw.channel.attrs


def test_parse_leaves_what_is_wrong_to_its_user(eeg):
    with pytest.raises(SchemaError, match=r"a\.u\."):
        parse(with_attrs(eeg, units="a.u."))


def test_parse_takes_timedeltas_and_positions(eeg):
    raw = eeg.assign_coords(time=(eeg.time * 1e9).astype("timedelta64[ns]"), image=[0, 1, 2])
    raw.time.attrs.clear()
    ds = parse(raw)
    np.testing.assert_allclose(ds.time, eeg.time, atol=1e-9)
    assert "image" not in ds.coords


def test_parse_casts_strings_of_any_width(eeg):
    raw = eeg.assign_coords(
        region=eeg.region.astype("S8"), channel=eeg.channel.astype("U3"), note="as \u00b5V"
    )
    raw = raw.drop_vars("image_id").assign_coords(image_id=("image", ["set:a", "set:b", "set:c"]))
    raw = raw.set_xindex("image_id").assign(name=("channel", ["a", "b", "c", "d", "e"]))
    ds = parse(raw)
    for name in ("region", "channel", "image_id", "name", "note"):
        assert ds[name].dtype == object
        assert all(isinstance(value, str) for value in ds[name].values.ravel())
    assert ds.region.values.tolist() == eeg.region.values.tolist()
    assert {"image_id", "channel", "subject", "time"} <= set(ds.xindexes)


def test_parse_a_tree(tree):
    del tree["sub-01"].attrs["nedx_schema_version"]
    parsed = parse(tree)
    assert parsed["sub-01"].attrs["nedx_schema_version"] == "1.0"
    assert parsed["sub-01"].to_dataset().sel(image_id="set:d").response.shape == (5,)
    assert "truth" in parsed["sub-01"].children


def test_stored_and_opened_again_is_valid(eeg, tmp_path):
    """Strings, attrs and times survive a Zarr store, written and read by xarray alone."""
    eeg.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, decode_timedelta=False)
    opened = restore_index(opened)
    validate(opened)
    assert "image_id" in opened.xindexes
    np.testing.assert_array_equal(opened.sel(image_id="set:b").response, eeg.response[:, 1])
