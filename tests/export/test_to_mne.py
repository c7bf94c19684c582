"""What MNE reads back: positions, units, times and labels."""

from __future__ import annotations

import mne
import numpy as np
import pytest
import xarray as xr

import nedx  # noqa: F401
from nedx.errors import SchemaError, SelectionError
from nedx.sources.mne_files import from_mne

TIMES = np.arange(-10, 30) / 200


def eeg(names=("Fp1", "Cz", "Oz", "P7"), units="uV", *, places=True, **attrs) -> xr.Dataset:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 3, 2, len(names), TIMES.size)).astype(np.float32)
    coords = {
        "subject": ["sub-03"],
        "image_id": ("image", ["t:b", "t:a", "t:c"]),
        "category": ("image", ["bird", "ape", "bird"]),
        "repetition": np.arange(2),
        "channel": list(names),
        "time": ("time", TIMES, {"units": "s", "sampling_frequency": 200.0}),
    }
    if places:
        spots = 0.09 * rng.dirichlet(np.ones(3), len(names))
        coords |= {axis: ("channel", spots[:, i]) for i, axis in enumerate("xyz")}
    dims = ("subject", "image", "repetition", "channel", "time")
    return xr.Dataset({"response": (dims, values, {"units": units, **attrs})}, coords)


def test_epochs_are_volts_at_their_places(tmp_path):
    ds = eeg()
    path = tmp_path / "small-epo.fif"
    ds.ned.to_mne().save(path, fmt="double", verbose="error")
    found = mne.read_epochs(path, verbose="error")
    expected = ds.response.values[0].reshape(6, 4, -1) * 1e-6
    np.testing.assert_allclose(found.get_data(), expected, rtol=1e-6)
    np.testing.assert_allclose(found.times, TIMES, atol=1e-9)
    assert found.info["sfreq"] == 200
    assert found.get_channel_types() == ["eeg"] * 4
    for channel, place in zip(found.info["chs"], np.stack([ds[a] for a in "xyz"], 1), strict=True):
        np.testing.assert_allclose(channel["loc"][:3], place, atol=1e-7)
        assert channel["coord_frame"] == mne._fiff.constants.FIFF.FIFFV_COORD_HEAD
    assert found.metadata["image_id"].tolist() == ["t:b", "t:b", "t:a", "t:a", "t:c", "t:c"]
    assert found.metadata["repetition"].tolist() == [0, 1] * 3
    np.testing.assert_array_equal(found["t:a"].get_data(), found.get_data()[2:4])
    assert found.info["subject_info"]["his_id"] == "sub-03"


def test_evokeds_average_what_is_there(tmp_path):
    ds = eeg()
    ds.response[0, 1, 1] = np.nan
    path = tmp_path / "small-ave.fif"
    mne.write_evokeds(path, ds.ned.to_mne("evoked"), verbose="error")
    found = mne.read_evokeds(path, verbose="error")
    assert [evoked.comment for evoked in found] == ["t:b", "t:a", "t:c"]
    assert [evoked.nave for evoked in found] == [2, 1, 2]
    values = ds.response.values[0] * 1e-6
    np.testing.assert_allclose(found[0].data, values[0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[1].data, values[1, 0], rtol=1e-5)
    birds = ds.ned.to_mne("evoked", by="category")[0]
    assert (birds.comment, birds.nave) == ("bird", 4)
    np.testing.assert_allclose(birds.data, values[[0, 2]].mean((0, 1)), rtol=1e-5)


def test_names_place_channels_as_the_standard_montage():
    epochs = eeg(names=("FP1", "Cz", "Oz", "P7"), places=False).ned.to_mne()
    expected = mne.create_info(["Fp1", "Cz", "Oz", "P7"], 200.0, "eeg")
    expected.set_montage("colin27_1005")
    for channel, own in zip(epochs.info["chs"], expected["chs"], strict=True):
        np.testing.assert_allclose(channel["loc"][:3], own["loc"][:3], atol=1e-9)
    assert epochs.ch_names[0] == "FP1"


def test_averages_of_averages_count_as_mne_counts_them():
    ds = eeg().isel(subject=0).mean("repetition", keep_attrs=True)
    ds = ds.assign_coords(n_repetitions=("image", [2, 8, 6]))
    evokeds = ds.ned.to_mne("evoked")
    assert [evoked.nave for evoked in evokeds] == [2, 8, 6]
    bird = ds.ned.to_mne("evoked", by="category")[0]
    expected = mne.combine_evoked([evokeds[0], evokeds[2]], "equal")
    np.testing.assert_allclose(bird.data * 2, expected.data * 2, atol=1e-12)
    assert bird.nave == round(expected.nave)
    apart = eeg().assign_coords(n_repetitions=("image", [2, 2, 2])).ned.to_mne("evoked")
    assert [evoked.nave for evoked in apart] == [2, 2, 2]


@pytest.mark.parametrize(
    ("units", "kind", "factor"), [("fT", "mag", 1e-15), ("fT cm-1", "grad", 1e-13)]
)
def test_magnetic_fields_are_tesla(units, kind, factor):
    ds = eeg(units=units).assign_coords(channel_type=("channel", [kind] * 4))
    evoked = ds.ned.to_mne("evoked")[0]
    assert evoked.get_channel_types() == [kind] * 4
    np.testing.assert_allclose(evoked.data, ds.response.values[0, 0].mean(0) * factor, rtol=1e-5)
    places = np.stack([channel["loc"][:3] for channel in evoked.info["chs"]])
    head = mne.transforms.apply_trans(evoked.info["dev_head_t"], places)
    np.testing.assert_allclose(head, np.stack([ds[axis] for axis in "xyz"], 1), atol=1e-7)


def test_current_source_density_keeps_its_unit():
    ds = eeg(units="uV m-2", transform="csd").assign_coords(channel_type=("channel", ["eeg"] * 4))
    epochs = ds.ned.to_mne()
    assert np.isclose(epochs.info["chs"][1]["loc"][0], ds.x.values[1])
    assert epochs.get_channel_types() == ["csd"] * 4
    assert np.isclose(epochs.get_data()[0, 0, 0], eeg().response.values[0, 0, 0, 0, 0] * 1e-6)


def test_what_has_no_unit_is_written_as_asked_only():
    ds = eeg(units="1", normalization="zscore")
    with pytest.raises(SchemaError, match=r"zscore.*units='uV'"):
        ds.ned.to_mne()
    epochs = ds.ned.to_mne(units="uV")
    assert np.isclose(epochs.get_data()[0, 0, 0], ds.response.values[0, 0, 0, 0, 0] * 1e-6)
    with pytest.raises(SchemaError, match="not 'fT'"):
        eeg().ned.to_mne(units="fT")


def test_trials_come_and_go():
    trials = eeg().isel(subject=0).stack(trial=("image", "repetition")).reset_index("trial")
    trials = trials.drop_vars("image", errors="ignore").transpose("trial", "channel", "time")
    back = from_mne(trials.ned.to_mne(), image_id="image_id")
    np.testing.assert_allclose(back.response, trials.response, rtol=1e-6)
    assert back.image_id.values.tolist() == trials.image_id.values.tolist()
    np.testing.assert_allclose(back.x, trials.x, atol=1e-7)


def test_real_evoked_responses_survive(shared_data):
    path = shared_data / "mne_sample_evoked" / "test-ave.fif.gz"
    if not path.is_file():
        pytest.skip(f"the evoked responses are not at {path}")
    for kind, factor in (("eeg", 1e6), ("mag", 1e15), ("grad", 1e13)):
        evokeds = [e.pick(kind, exclude="bads") for e in mne.read_evokeds(path, verbose="error")]
        ds = from_mne(evokeds, image_id=[f"t:{i}" for i in range(len(evokeds))])
        assert np.isclose(ds.response.values[0, 0, 0], evokeds[0].data[0, 0] * factor, rtol=1e-5)
        found = ds.ned.to_mne("evoked")
        info = evokeds[0].info
        assert found[0].ch_names == evokeds[0].ch_names
        for own, made in zip(evokeds, found, strict=True):
            np.testing.assert_allclose(made.data, own.data, rtol=1e-5, atol=1e-20)
            np.testing.assert_allclose(made.times, own.times, atol=1e-6)
            assert made.nave == own.nave
        for own, made in zip(info["chs"], found[0].info["chs"], strict=True):
            places = [own["loc"][:3], made["loc"][:3]]
            if kind != "eeg":
                places[0] = mne.transforms.apply_trans(info["dev_head_t"], places[0])
            np.testing.assert_allclose(*places, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ds: ds.rename(channel="voxel"), "channel"),
        (lambda ds: ds.isel(time=0, drop=True), "time axis"),
        (lambda ds: ds.isel(time=[0, 1, 5]), "regular times"),
        (lambda ds: ds.drop_vars("x").assign_coords(channel=list("abcd")), "positions=False"),
        (lambda ds: ds.assign_coords(x=ds.x * 1000), "expected m"),
        (lambda ds: ds.assign_coords(x=ds.x.where(ds.channel != "Oz")), "Oz are not finite"),
        (lambda ds: ds.assign_coords(channel_type=("channel", ["mag"] * 4)), "type mag"),
    ],
)
def test_one_clear_error_each(change, says):
    with pytest.raises(SchemaError, match=says):
        change(eeg()).ned.to_mne()


def test_errors_of_selection():
    two = xr.concat([eeg(), eeg().assign_coords(subject=["sub-04"])], "subject")
    with pytest.raises(SelectionError, match="2 subjects"):
        two.ned.to_mne()
    with pytest.raises(SelectionError, match="no trial"):
        eeg().isel(image=slice(0)).ned.to_mne()
    with pytest.raises(SelectionError, match="by='colour'"):
        eeg().ned.to_mne("evoked", by="colour")
    with pytest.raises(SelectionError, match="model"):
        eeg().expand_dims(model=2).ned.to_mne()
    tree = xr.DataTree.from_dict({"/sub-01": eeg(), "/sub-02": eeg()})
    with pytest.raises(SelectionError, match=r"sub-01, sub-02.*sel\(subject=1\)"):
        tree.ned.to_mne()
    assert len(tree.ned.sel(subject=1).ned.to_mne()) == 6
    with pytest.raises(SelectionError, match="unknown variable"):
        eeg().ned.to_mne(variable="respones")
