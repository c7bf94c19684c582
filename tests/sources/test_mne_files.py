"""MNE's own objects and files, against what MNE says of them."""

from __future__ import annotations

import mne
import numpy as np
import pytest

import nedx
from nedx.errors import SchemaError, SelectionError, StoreError
from nedx.sources.mne_files import from_mne, open_mne
from tests.laziness import computes_at_most

CHANNELS = ["Fz", "Pz", "O1", "Oz", "O2"]


def make_epochs(count=12, *, kind="eeg", names=CHANNELS, events=("a", "b")):
    rng = np.random.default_rng(0)
    info = mne.create_info(list(names), 200.0, kind)
    if kind == "eeg":
        info.set_montage("easycap-M1")
    data = rng.normal(size=(count, len(names), 60)) * 1e-6
    numbers = np.arange(count) % len(events) + 1
    rows = np.column_stack([np.arange(count) * 100 + 50, np.zeros(count, int), numbers])
    ids = {name: i + 1 for i, name in enumerate(events)}
    return mne.EpochsArray(data, info, rows, tmin=-0.1, event_id=ids, verbose="error")


def test_epochs_are_in_microvolts_with_their_labels():
    epochs = make_epochs()
    ds = from_mne(epochs, image_id={"a": "things:ant_01b", "b": "things:bat_02s"}, subject=3)
    nedx.validate(ds)
    np.testing.assert_allclose(ds.response.values, epochs.get_data() * 1e6, rtol=1e-6)
    assert ds.response.dims == ("trial", "channel", "time")
    assert ds.response.attrs["units"] == "uV"
    assert ds.channel.values.tolist() == CHANNELS
    np.testing.assert_allclose(ds.time.values, epochs.times)
    assert ds.time.attrs["sampling_frequency"] == 200
    assert ds.image_id.values[:2].tolist() == ["things:ant_01b", "things:bat_02s"]
    np.testing.assert_allclose(ds.onset.values, epochs.events[:, 0] / 200)
    places = epochs.get_montage().get_positions()["ch_pos"]
    for name in CHANNELS:
        found = [float(ds[axis].sel(channel=name)) for axis in "xyz"]
        np.testing.assert_allclose(found, places[name])
    assert ds.x.attrs["units"] == "m"
    assert ds.attrs["subject_ids"] == ["sub-03"]


def test_onsets_of_resampled_epochs_are_those_of_the_recording(tmp_path):
    """Resampling leaves the events as they are, in samples of the recording."""
    epochs = make_epochs()
    onsets = epochs.events[:, 0] / 200
    epochs.resample(50, verbose="error")
    epochs.save(tmp_path / "slow-epo.fif", verbose="error")
    for ds in (from_mne(epochs), open_mne(tmp_path / "slow-epo.fif")):
        np.testing.assert_allclose(ds.onset.values, onsets)
        assert ds.time.attrs["sampling_frequency"] == 50


def test_files_of_epochs_are_read_piece_by_piece(tmp_path, monkeypatch):
    import pandas as pd

    epochs = make_epochs(9)
    epochs.metadata = pd.DataFrame({"image": [f"things:im_{i}" for i in range(9)], "run": 2})
    epochs.save(tmp_path / "sub-epo.fif", verbose="error")
    monkeypatch.setattr("nedx.sources.mne_files._BLOCK_BYTES", 4 * 4 * 5 * 60)
    with computes_at_most(0):
        ds = open_mne(tmp_path / "sub-epo.fif", image_id="image")
    assert ds.response.chunks[0] == (4, 4, 1)
    truth = mne.read_epochs(tmp_path / "sub-epo.fif", verbose="error").get_data() * 1e6
    np.testing.assert_allclose(ds.response.values, truth, rtol=1e-6)
    one = ds.isel(trial=[7, 2]).ned.sel(channel=["Oz", "Pz"], time=(0.0, 0.1))
    expected = truth[[7, 2]][:, [3, 1]][..., 20:41]
    np.testing.assert_allclose(one.response.values, expected, rtol=1e-6)
    assert ds.image_id.values[3] == "things:im_3"
    assert (ds.run.values == 2).all()
    nedx.validate(ds)
    stored = nedx.open_store(ds.ned.to_zarr(tmp_path / "epochs.zarr", keep_bits=None))
    np.testing.assert_array_equal(stored.response.values, ds.response.values)


def test_sensors_of_meg_keep_their_units(shared_data):
    path = shared_data / "mne_sample_evoked" / "test-ave.fif.gz"
    if not path.is_file():
        pytest.skip(f"the evoked responses are not at {path}")
    evokeds = mne.read_evokeds(path, verbose="error")
    with pytest.raises(SelectionError, match="several types.*channel_type='eeg'"):
        open_mne(path)
    scales = {"eeg": ("uV", 1e6, 60), "mag": ("fT", 1e15, 102), "grad": ("fT cm-1", 1e13, 204)}
    for kind, (units, scale, count) in scales.items():
        ds = open_mne(path, channel_type=kind)
        nedx.validate(ds)
        assert ds.response.attrs["units"] == units
        # One of the sample's channels may be marked as bad.
        assert count - 2 <= ds.sizes["channel"] <= count
        for row, evoked in enumerate(evokeds):
            picked = evoked.copy().pick(list(ds.channel.values))
            np.testing.assert_allclose(ds.response.values[row], picked.data * scale, rtol=1e-5)
            assert ds.category.values[row] == evoked.comment
            assert ds.n_repetitions.values[row] == evoked.nave
    assert ds.n_repetitions.values.tolist() == [3, 6, 6, 6]
    head = mne.transforms.apply_trans(
        evokeds[0].info["dev_head_t"],
        [c["loc"][:3] for c in evokeds[0].copy().pick(list(ds.channel.values)).info["chs"]],
    )
    found = np.column_stack([ds[axis].values for axis in "xyz"])
    np.testing.assert_allclose(found, head)
    # The helmet surrounds a head of about 10 cm.
    assert 0.08 < np.linalg.norm(found, axis=1).mean() < 0.2


def test_bad_channels_are_left_out_by_name():
    epochs = make_epochs()
    epochs.info["bads"] = ["Oz"]
    ds = from_mne(epochs)
    assert ds.channel.values.tolist() == ["Fz", "Pz", "O1", "O2"]
    assert ds.attrs["bad_channels"] == ["Oz"]
    assert ds.attrs["stimulus_identity"] == "none"
    assert ds.category.values[:2].tolist() == ["a", "b"]


def test_current_source_density_says_so():
    epochs = make_epochs(names=["Fp1", "Fp2", "Fz", "C3", "C4", "Pz", "O1", "Oz", "O2"])
    csd = mne.preprocessing.compute_current_source_density(epochs, verbose="error")
    ds = from_mne(csd)
    assert (ds.response.attrs["units"], ds.response.attrs["transform"]) == ("uV m-2", "csd")
    np.testing.assert_allclose(ds.response.values, csd.get_data(picks="csd") * 1e6, rtol=1e-5)


def test_what_cannot_be_used(tmp_path):
    epochs = make_epochs()
    with pytest.raises(SelectionError, match="no image is given for 1 events, the first is 'b'"):
        from_mne(epochs, image_id={"a": "things:ant_01b"})
    with pytest.raises(SelectionError, match="2 images are given for 12"):
        from_mne(epochs, image_id=["things:a", "things:b"])
    with pytest.raises(SelectionError, match="no metadata"):
        from_mne(epochs, image_id="image")
    with pytest.raises(SelectionError, match="no channels are of type 'mag'"):
        from_mne(epochs, channel_type="mag")
    with pytest.raises(SelectionError, match="the types are misc"):
        from_mne(make_epochs(kind="misc"))
    short = epochs.average().crop(0, 0.1)
    with pytest.raises(SchemaError, match="other channels or times"):
        from_mne([epochs.average(), short])
    with pytest.raises(StoreError, match="no file"):
        open_mne(tmp_path / "none-epo.fif")
    (tmp_path / "odd-epo.fif").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="odd-epo.fif"):
        open_mne(tmp_path / "odd-epo.fif")
