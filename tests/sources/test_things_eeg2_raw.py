"""Raw THINGS-EEG2 in small, prepared as published, against MNE and scikit-learn called plainly."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler
from sklearn.utils import shuffle

import nedx
from nedx.errors import ModelError, SelectionError, SourceError, StoreError
from nedx.preprocessing.recipes import NICE_CHANNELS, RECIPES
from nedx.preprocessing.repetitions import stack_repetitions
from nedx.sources.importing import import_source
from nedx.sources.things_eeg2 import open_raw
from tests.laziness import computes_at_most
from tests.sources.eeg2_files import CHANNELS, SEEN, TEST, TRAIN, recording, write_raw

QUIET = {"verbose": "error"}
SEED = 20200220
TWO = (1, 2)
"""Sessions that together show each image, once."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things-eeg2")
    write_raw(folder, 1)
    return folder


@pytest.fixture(scope="module")
def berg(root):
    """Epochs of both partitions and two sessions, as NED and BERG cut them."""
    return {p: [epoched(root, s, p, berg_cut) for s in TWO] for p in ("training", "test")}


def load(root, session, part, subject=1):
    place = root / "Raw_data" / f"sub-{subject:02d}" / f"ses-{session:02d}"
    held = np.load(place / f"raw_eeg_{part}.npy", allow_pickle=True).item()
    info = mne.create_info(held["ch_names"], held["sfreq"], held["ch_types"])
    raw = mne.io.RawArray(held["raw_eeg_data"], info, **QUIET)
    events = mne.find_events(raw, stim_channel="stim", **QUIET)
    return raw, events[events[:, 2] != 99999]


def epoched(root, session, part, cut):
    """Return the dictionary image -> (repetition, channel, time) of one file."""
    raw, events = load(root, session, part)
    values = cut(raw, events)
    return {n: values[events[:, 2] == n] for n in np.unique(events[:, 2])}


def shrunk(samples):
    scaler = StandardScaler()
    covariance = ledoit_wolf(scaler.fit_transform(samples))[0]
    return scaler.scale_[:, None] * covariance * scaler.scale_[None, :]


def merged(sessions, number, *, order):
    """Repetitions of one image over the sessions that showed it."""
    values = np.concatenate([s[number] for s in sessions if number in s])
    return values[shuffle(np.arange(len(values)), random_state=SEED)] if order else values


def compare(ds, partition, sessions, *, order, rtol=2e-3):
    stacked = stack_repetitions(ds.isel(trial=ds.partition.values == partition))
    files = TRAIN if partition == "train" else TEST
    values = stacked.response.values
    for row, name in enumerate(stacked.image_id.values):
        number = files.index(name.removeprefix("things:") + ".jpg") + 1
        expected = merged(sessions, number, order=order)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(values[row], expected, rtol=rtol, atol=rtol * scale)
    assert len(values) == len(files)


def berg_cut(raw, events):
    raw = raw.copy().pick("eeg").filter(0.03, 100.0, **QUIET)
    raw.set_montage("easycap-M1")
    cut = mne.Epochs(raw, events, tmin=-0.1, tmax=0.6, baseline=None, preload=True, **QUIET)
    cut = mne.preprocessing.compute_current_source_density(cut, lambda2=1e-5, stiffness=4, **QUIET)
    cut.resample(200, **QUIET)
    return mne.baseline.rescale(cut.get_data(), cut.times, (None, 0), "zscore", **QUIET)


def test_berg_2025(root, berg):
    with computes_at_most(0):
        ds = open_raw(root, recipe="berg_2025", sessions=TWO)
    assert ds.response.dims == ("trial", "channel", "time")
    assert ds.response.shape == (2 * 12, 63, 140)
    assert len(ds.response.chunks[0]) == 2
    for partition, part in (("train", "training"), ("test", "test")):
        compare(ds, partition, berg[part], order=False)
    attrs = ds.response.attrs
    assert attrs["units"] == "1"
    assert attrs["normalization_scope"] == "baseline"
    assert attrs["transform"] == "csd"
    np.testing.assert_allclose(ds.time.values[[0, -1]], [-0.1, 0.595])
    assert ds.channel.values.tolist() == CHANNELS
    nedx.validate(ds)


def test_ned_2024(root, berg):
    ds = open_raw(root, subject=1, recipe="ned_2024", sessions=TWO)
    parts = {part: [dict(held) for held in sessions] for part, sessions in berg.items()}
    for session in range(2):
        both = [parts["test"][session], parts["training"][session]]
        every = np.concatenate([values for held in both for values in held.values()])
        flat = StandardScaler().fit(every.reshape(len(every), -1))
        for held in both:
            for number, values in held.items():
                scaled = flat.transform(values.reshape(len(values), -1)).reshape(values.shape)
                held[number] = scaled[shuffle(np.arange(len(values)), random_state=SEED)]
    compare(ds, "train", parts["training"], order=True)
    compare(ds, "test", parts["test"], order=True)
    assert ds.response.attrs["normalization_scope"] == "session"
    nedx.validate(ds)


def whitened(root, cut, *, per_time, with_test):
    parts = {p: [epoched(root, s, p, cut) for s in TWO] for p in ("training", "test")}
    for session in range(2):
        covariances = []
        for part in ("training", "test") if with_test else ("training",):
            found = []
            for values in parts[part][session].values():
                if per_time:
                    times = range(values.shape[2])
                    found.append(np.mean([shrunk(values[:, :, t]) for t in times], 0))
                else:
                    found.append(np.mean([shrunk(trial.T) for trial in values], 0))
            covariances.append(np.mean(found, 0))
        root_of = fractional_matrix_power(np.mean(covariances, 0), -0.5)
        for part in parts:
            for number, values in parts[part][session].items():
                white = np.swapaxes(np.swapaxes(values, 1, 2) @ root_of, 1, 2)
                order = shuffle(np.arange(len(values)), random_state=SEED)
                parts[part][session][number] = white[order]
    return parts


def test_nice_2024(root):
    def cut(raw, events):
        raw = raw.copy().pick(list(NICE_CHANNELS))
        raw.reorder_channels(list(NICE_CHANNELS))
        epochs = mne.Epochs(
            raw, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, **QUIET
        )
        epochs.resample(250, **QUIET)
        assert epochs.times.size == 300
        return epochs.get_data()[..., 50:]

    ds = open_raw(root, recipe="nice_2024", sessions=TWO)
    assert ds.response.shape[1:] == (63, 250)
    assert ds.channel.values.tolist() == list(NICE_CHANNELS)
    np.testing.assert_allclose(ds.time.values, np.arange(250) * 0.004, atol=1e-12)
    parts = whitened(root, cut, per_time=False, with_test=False)
    compare(ds, "train", parts["training"], order=True)
    compare(ds, "test", parts["test"], order=True)
    attrs = ds.response.attrs
    assert (attrs["normalization"], attrs["normalization_fit"]) == ("whitened", "train")
    nedx.validate(ds)


def test_eeg_encoding_2022(root):
    names = [name for name in CHANNELS if name[0] in "OP"]

    def cut(raw, events):
        epochs = mne.Epochs(
            raw.copy().pick(names),
            events,
            tmin=-0.2,
            tmax=0.8,
            baseline=(None, 0),
            preload=True,
            **QUIET,
        )
        return epochs.resample(100, **QUIET).get_data()

    ds = open_raw(root, recipe="eeg_encoding_2022", sessions=TWO)
    assert ds.response.shape[1:] == (17, 100)
    assert ds.channel.values.tolist() == names
    parts = whitened(root, cut, per_time=True, with_test=True)
    compare(ds, "train", parts["training"], order=True)
    compare(ds, "test", parts["test"], order=True)
    assert ds.response.attrs["normalization_fit"] == "train_and_test"


def test_realnet_2024(root):
    """Means of whitened trials, 0 to 190 ms, standardised by those of training images."""
    names = [name for name in CHANNELS if name[0] in "OP"]

    def cut(raw, events):
        raw = raw.copy().pick(names)
        baseline = {"tmin": -0.2, "tmax": 0.8, "baseline": (None, 0)}
        return mne.Epochs(raw, events, preload=True, **baseline, **QUIET).resample(100).get_data()

    with computes_at_most(0):
        ds = open_raw(root, recipe="realnet_2024", sessions=TWO)
    assert ds.response.dims == ("image", "channel", "time")
    np.testing.assert_allclose(ds.time.values, np.arange(20) * 0.01, atol=1e-12)
    parts = whitened(root, cut, per_time=True, with_test=False)
    means = {
        part: {
            f"things:{file[:-4]}": merged(parts[part], number, order=False).mean(0)[:, 20:40]
            for number, file in enumerate(files, 1)
        }
        for part, files in (("training", TRAIN), ("test", TEST))
    }
    trained = np.stack(list(means["training"].values()))
    every = {**means["training"], **means["test"]}
    expected = np.stack([every[name] for name in ds.image_id.values])
    expected = (expected - trained.mean(0)) / trained.std(0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ds.response.values, expected, rtol=5e-3, atol=5e-3 * scale)
    attrs = ds.response.attrs
    assert (attrs["units"], attrs["normalization_scope"]) == ("1", "train")
    nedx.validate(ds)


def test_realnet_2024_averages_the_repetitions_that_were_published():
    """It was made of the prepared data of Gifford et al., who drew two of an image in a session."""
    images = np.tile([4, 2, 9], 5)
    published, found = (
        RECIPES[name].choose(images, "train") for name in ("eeg_encoding_2022", "realnet_2024")
    )
    np.testing.assert_array_equal(found, published)
    assert found[0].tolist() != RECIPES["berg_2025"].choose(images, "train")[0].tolist()


def test_eras_cannot_be_mistaken():
    said = set()
    for recipe in RECIPES.values():
        from nedx.preprocessing.epochs import response_attrs

        attrs = response_attrs("eeg", recipe.epochs)
        if recipe.whitening:
            attrs |= {"normalization": "whitened", "normalization_fit": recipe.whitening}
        if recipe.zscored:
            attrs |= {"normalization": "zscore", "normalization_scope": recipe.zscored}
        said.add(tuple(sorted(attrs.items())))
    assert len(said) == len(RECIPES) == 5


def test_labels(root):
    ds = open_raw(root)
    first = ds.isel(trial=(ds.session.values == 1) & (ds.partition.values == "train"))
    _, events = load(root, 1, "training")
    expected = [f"things:{TRAIN[n - 1][:-4]}" for n in events[:, 2]]
    assert first.image_id.values.tolist() == expected
    assert first.things_concept.values[0] == expected[0].split(":")[1].rsplit("_", 1)[0]
    np.testing.assert_allclose(first.onset.values, events[:, 0] / 1000)
    for number, name in enumerate(TRAIN, 1):
        mine = ds.isel(trial=ds.image_id.values == f"things:{name[:-4]}")
        assert sorted(mine.repetition.values) == [0, 1, 2, 3]
        seen = [s for s in SEEN if number in SEEN[s]]
        assert mine.sortby("repetition").session.values.tolist() == np.repeat(seen, 2).tolist()
    regions = dict(zip(*np.unique(ds.region.values.astype(str), return_counts=True), strict=True))
    assert regions == {
        "frontal": 15,
        "central": 14,
        "parietal": 16,
        "temporal": 10,
        "occipital": 8,
    }
    assert ds.channel.attrs["montage"] == "easycap-M1"


def test_the_most_repetitions_of_an_image(tmp_path):
    """Of three repetitions in a session two are kept: the first ones, or those the seed picks."""
    folder = write_raw(tmp_path, trains=3)
    first = open_raw(tmp_path, recipe="berg_2025")
    drawn = open_raw(tmp_path, recipe="ned_2024")
    held = np.load(folder / "ses-01" / "raw_eeg_training.npy", allow_pickle=True).item()
    stim = held["raw_eeg_data"][-1]
    for number in SEEN[1]:
        onsets = np.flatnonzero(stim == number) / 1000
        picked = shuffle(np.arange(3), n_samples=2, random_state=SEED)
        for ds, expected in ((first, onsets[:2]), (drawn, onsets[picked])):
            here = (ds.image_id.values == f"things:{TRAIN[number - 1][:-4]}") & (
                ds.session.values == 1
            )
            here &= ds.partition.values == "train"
            assert sorted(ds.onset.values[here]) == pytest.approx(sorted(expected))


def test_import_goes_on_where_it_stopped(tmp_path, root, monkeypatch):
    from nedx.sources.things_eeg2 import raw

    done = []
    prepare = raw._session_values

    def stopping(recordings, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(recordings[0].session)
        return prepare(recordings, *rest)

    out = tmp_path / "eeg.zarr"
    arguments = {"subject": ["1"], "recipe": "nice_2024"}
    monkeypatch.setattr(raw, "_session_values", stopping)
    monkeypatch.setattr("nedx.sources.importing._CHUNK_SAMPLES", 6)
    monkeypatch.setattr("nedx.sources.importing._FEWEST_SAMPLES", 1)
    with pytest.raises(KeyboardInterrupt):
        import_source("things-eeg2", root, out, **arguments)
    seen = []
    monkeypatch.setattr(
        raw, "_session_values", lambda r, *rest: seen.append(r[0].session) or prepare(r, *rest)
    )
    import_source("things-eeg2", root, out, **arguments)
    assert len(seen) == len(set(seen)) < 4
    assert nedx.verify(out).ok
    stored = nedx.open_store(out)
    truth = open_raw(root, recipe="nice_2024").response.values
    np.testing.assert_allclose(stored.response.values, truth, rtol=1e-3, atol=1e-6)
    assert stored.attrs["recipe"] == "nice_2024"
    assert [s["step"] for s in stored.attrs["preprocessing"]][-1] == "whiten"
    nedx.validate(stored)


def test_several_subjects_are_children(tmp_path):
    write_raw(tmp_path, 1)
    write_raw(tmp_path, 10)
    tree = open_raw(tmp_path)
    assert list(tree.children) == ["sub-01", "sub-10"]
    nedx.validate(tree)
    one = open_raw(tmp_path, subject="10")
    assert open_raw(tmp_path, subject=np.int64(10)).attrs["subject_ids"] == ["sub-10"]
    assert one.attrs["subject_ids"] == ["sub-10"]
    with pytest.raises(SelectionError, match="no subject 'sub-03'"):
        open_raw(tmp_path, subject=3)


HEADER = """Brain Vision Data Exchange Header File Version 1.0

[Common Infos]
Codepage=UTF-8
DataFile=eeg.eeg
MarkerFile=eeg.vmrk
DataFormat=BINARY
DataOrientation=MULTIPLEXED
NumberOfChannels=63
SamplingInterval=1000

[Binary Infos]
BinaryFormat=INT_16

[Channel Infos]
"""


def test_positions_of_the_recording_itself(tmp_path):
    folder = write_raw(tmp_path) / "ses-01"
    lines = [f"Ch{i}={name},,0.1,uV" for i, name in enumerate(CHANNELS, 1)]
    angles = np.random.default_rng(0).integers(-90, 90, (63, 2))
    places = [f"Ch{i}=1,{t},{p}" for i, (t, p) in enumerate(angles, 1)]
    text = HEADER + "\n".join([*lines, "", "[Coordinates]", *places, ""])
    (folder / "eeg.vhdr").write_text(text)
    (folder / "eeg.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\n"
        "DataFile=eeg.eeg\n[Marker Infos]\n"
    )
    np.zeros((10, 63), "<i2").tofile(folder / "eeg.eeg")
    ds = open_raw(tmp_path)
    truth = mne.io.read_raw_brainvision(folder / "eeg.vhdr", **QUIET).info["chs"]
    found = np.column_stack([ds[axis].values for axis in "xyz"])
    np.testing.assert_allclose(found, [c["loc"][:3] for c in truth], atol=1e-12)
    assert ds.channel.attrs["montage"] == "session"
    with pytest.raises(SelectionError, match="easycap-M1"):
        open_raw(tmp_path, montage="no-such-cap")


def rewrite(folder, change, session=2, part="training"):
    path = folder / f"ses-{session:02d}" / f"raw_eeg_{part}.npy"
    held = np.load(path, allow_pickle=True).item()
    change(held)
    np.save(path, held, allow_pickle=True)


def test_files_that_are_not_as_published(tmp_path):
    folder = write_raw(tmp_path)
    rewrite(folder, lambda held: held.update(sfreq=500.0, ch_names=[*CHANNELS, "trigger"]))
    with pytest.raises(SourceError) as caught:
        open_raw(tmp_path)
    message = str(caught.value)
    assert "ses-02" in message
    assert "no channel 'stim'" in message
    assert "500 Hz, expected 1000 Hz" in message
    rewrite(folder, lambda held: held.pop("ch_types"))
    with pytest.raises(SourceError, match="it has no ch_types"):
        open_raw(tmp_path)
    np.save(folder / "ses-02" / "raw_eeg_training.npy", recording([1, 7, 8, 2], 0))
    with pytest.raises(SourceError, match="2 events have no image, the first is 7.*from 1 to 6"):
        open_raw(tmp_path)
    (folder / "ses-02" / "raw_eeg_test.npy").unlink()
    with pytest.raises(SourceError, match=r"no ses-02/raw_eeg_test.npy.*sessions=\[1, 3, 4\]"):
        open_raw(tmp_path)
    assert set(open_raw(tmp_path, sessions=[1, 3]).session.values) == {1, 3}
    with pytest.raises(SelectionError, match="did you mean 'berg_2025'"):
        open_raw(tmp_path, recipe="berg")
    with pytest.raises(SourceError, match="no folders sub-01/ses-01"):
        open_raw(tmp_path / "image_set")
    (tmp_path / "image_set" / "image_metadata.npy").unlink()
    with pytest.raises(SourceError, match="image_metadata.npy says which image"):
        open_raw(tmp_path)


class Runs:
    """What a hostile pickle does when it is read."""

    def __reduce__(self):
        return (open, ("/dev/null", "rb"))


def test_a_hostile_file_is_refused(tmp_path):
    folder = write_raw(tmp_path)
    rewrite(folder, lambda held: held.update(sfreq=Runs()))
    with pytest.raises(ModelError, match=r"refused: it names (io|_io).open"):
        open_raw(tmp_path)


def test_values_that_are_not_finite(tmp_path):
    folder = write_raw(tmp_path)

    def spoil(held):
        held["raw_eeg_data"][5, 700] = np.nan

    rewrite(folder, spoil)
    ds = open_raw(tmp_path)
    with pytest.raises(SelectionError, match="ses-02.*channel FC1 holds 1 values"):
        ds.response.isel(trial=ds.session.values == 2).compute()
    assert np.isfinite(ds.response.isel(trial=ds.session.values == 1)).all()


def test_a_recording_cut_short(tmp_path):
    folder = write_raw(tmp_path)
    path = folder / "ses-01" / "raw_eeg_test.npy"
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(StoreError, match="cut short"):
        open_raw(tmp_path)


def test_trials_at_the_ends_of_a_recording_are_counted(tmp_path):
    folder = write_raw(tmp_path)

    def shorten(held):
        onsets = np.flatnonzero(held["raw_eeg_data"][-1])
        held["raw_eeg_data"] = held["raw_eeg_data"][:, onsets[0] - 50 : onsets[-1] + 300]

    whole = open_raw(tmp_path)
    rewrite(folder, shorten)
    ds = open_raw(tmp_path)
    assert whole.attrs["trials_cut_off"] == 0
    assert ds.attrs["trials_cut_off"] == whole.sizes["trial"] - ds.sizes["trial"] > 1


def test_channels_that_a_recipe_needs(tmp_path):
    write_raw(tmp_path, channels=CHANNELS[:20])
    with pytest.raises(SelectionError, match="nice_2024 needs 43 channels that are missing"):
        open_raw(tmp_path, recipe="nice_2024")
    write_raw(tmp_path / "misnamed", channels=["FP1", *CHANNELS[1:]])
    with pytest.raises(SelectionError, match="the first is 'Fp1'; did you mean 'FP1'"):
        open_raw(tmp_path / "misnamed", recipe="nice_2024")
