"""THINGS-MEG prepared for decoding, in the layouts of ATM and of NeuroBridge."""

from __future__ import annotations

import pickle

import mne
import numpy as np
import pytest

import nedx
from nedx.errors import CorruptStoreError, ModelError, SelectionError, SourceError, StoreError
from nedx.preprocessing.repetitions import average_repetitions
from nedx.sources.importing import import_source
from nedx.sources.things_meg import open_things_meg
from nedx.sources.things_meg_prepared import open_things_meg_prepared
from tests.laziness import computes_at_most

SENSORS = [f"M{side}{row}{n:02d}-1609" for side in "LR" for row in "CFOPT" for n in (11, 12)]
CONCEPTS = ("aardvark", "air_pump", "zebra")
TRAIN = [f"{c}/{c}_{i:02d}b.jpg" for c in CONCEPTS for i in (1, 2, 3, 4)]
TEST = ["bat/bat_02s.jpg", "crayon/crayon_13s.jpg"]
IMAGES = {"train": TRAIN, "test": TEST}
TIMES = np.linspace(0, 1.0, 201)


@pytest.fixture
def values():
    rng = np.random.default_rng(5)
    return {
        "train": rng.normal(size=(3, 4, 1, 20, 201)),
        "test": rng.normal(size=(2, 1, 12, 20, 201)),
    }


def dump(path, held):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(held, protocol=4))


def write_atm(root, values, **changes):
    names = {"train": "preprocessed_meg_training.pkl", "test": "preprocessed_meg_zs_test.pkl"}
    for partition, name in names.items():
        held = {"meg_data": values[partition], "ch_names": SENSORS, "times": TIMES}
        dump(root / "sub-01" / name, {**held, **changes})


def write_neurobridge(root, values):
    for partition in ("train", "test"):
        data = values[partition][..., :200]
        held = {"data": data, "ch_names": [], "times": np.linspace(0, 0.995, 200)}
        dump(root / "sub-01" / f"{partition}.npy", held)


def write_tree(root):
    for folder, files in (("training_images", TRAIN), ("test_images", TEST)):
        for number, file in enumerate(files):
            concept, name = file.split("/")
            place = root / folder / f"{number // 4 + 1:05d}_{concept}"
            place.mkdir(parents=True, exist_ok=True)
            (place / name).touch()
    return root


def test_atm_as_single_trials(tmp_path, values):
    write_atm(tmp_path, values)
    with computes_at_most(0):
        ds = open_things_meg_prepared(tmp_path, images=IMAGES)
    nedx.validate(ds)
    assert ds.response.dims == ("trial", "channel", "time")
    assert ds.sizes == {"trial": 12 + 24, "channel": 20, "time": 201}
    expected = np.concatenate([v.reshape(-1, 20, 201) for v in values.values()])
    np.testing.assert_allclose(ds.response.values, expected, rtol=1e-6)
    train = ds.isel(trial=ds.partition.values == "train")
    stems = [file.split("/")[1][:-4] for file in TRAIN]
    assert train.image_id.values.tolist() == [f"things:{stem}" for stem in stems]
    assert train.things_concept.values.tolist() == [c for c in CONCEPTS for _ in range(4)]
    test = ds.isel(trial=ds.partition.values == "test")
    assert test.repetition.values.tolist() == list(range(12)) * 2
    mean = average_repetitions(test).response.sel(image_id="things:crayon_13s")
    np.testing.assert_allclose(mean, values["test"][1, 0].mean(0), rtol=1e-4, atol=1e-6)
    attrs = ds.response.attrs
    assert (attrs["units"], attrs["normalization_scope"]) == ("1", "baseline")
    assert set(ds.ned.sel(channel="occipital").channel.values) == {
        name for name in SENSORS if name[2] == "O"
    }
    assert ds.hemisphere.values[:10].tolist() == ["L"] * 10
    np.testing.assert_allclose(ds.time.values[[0, -1]], [0, 1])


def test_zscored_files_say_so_by_what_lies_beside_them(tmp_path, values):
    write_atm(tmp_path, values)
    np.savez(tmp_path / "sub-01" / "zscore_params.npz", mean=np.zeros(3), std=np.ones(3))
    ds = open_things_meg_prepared(tmp_path, images=IMAGES)
    assert ds.response.attrs["normalization_scope"] == "train"
    assert ds.attrs["preprocessing"] == [{"step": "zscore", "scope": "train", "fit": "train"}]


def test_fields_are_in_femtotesla(tmp_path, values):
    tesla = {name: value * 1e-13 for name, value in values.items()}
    write_atm(tmp_path, tesla)
    ds = open_things_meg_prepared(tmp_path, images=IMAGES)
    assert ds.response.attrs["units"] == "fT"
    expected = values["train"].reshape(-1, 20, 201) * 100
    np.testing.assert_allclose(ds.response.values[:12], expected, rtol=1e-5)


def test_neurobridge_names_no_sensors(tmp_path, values):
    write_neurobridge(tmp_path, values)
    with pytest.raises(SelectionError, match="normalization='baseline'"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    folder = write_tree(tmp_path / "images")
    with computes_at_most(0):
        ds = open_things_meg_prepared(tmp_path, images=folder, normalization="zscore")
    nedx.validate(ds)
    expected = np.concatenate([v[..., :200].reshape(-1, 20, 200) for v in values.values()])
    np.testing.assert_allclose(ds.response.values, expected, rtol=1e-6)
    assert ds.channel.values[:2].tolist() == ["sensor-001", "sensor-002"]
    assert "region" not in ds.coords
    stems = [file.split("/")[1][:-4] for file in TRAIN]
    assert ds.image_id.values[:12].tolist() == [f"things:{stem}" for stem in stems]
    assert ds.filename.values[0] == "training_images/00001_aardvark/aardvark_01b.jpg"
    assert ds.attrs["layout"] == "neurobridge"
    named = open_things_meg_prepared(
        tmp_path, images=folder, normalization="whitened", channels=SENSORS
    )
    nedx.validate(named)
    assert named.region.values[0] == "central"
    assert named.response.attrs["normalization"] == "whitened"
    with pytest.raises(SourceError, match="names 2 sensors, .* has 20"):
        open_things_meg_prepared(
            tmp_path, images=folder, normalization="zscore", channels=["a", "b"]
        )


def test_a_part_reads_its_part_only(tmp_path, values, monkeypatch):
    from nedx.sources import mapped_pickles

    monkeypatch.setattr("nedx.sources.things_meg_prepared._CHUNK_BYTES", 1)
    write_atm(tmp_path, values)
    ds = open_things_meg_prepared(tmp_path, images=IMAGES)
    read = []
    whole = mapped_pickles.PickledArray.__getitem__
    monkeypatch.setattr(
        mapped_pickles.PickledArray,
        "__getitem__",
        lambda self, key: read.append(key[0]) or whole(self, key),
    )
    part = ds.isel(trial=slice(5, 7)).response.values
    np.testing.assert_allclose(part, values["train"][1, 1:3, 0], rtol=1e-6)
    assert read == [slice(1, 2, None)]


def test_import(tmp_path, values):
    write_atm(tmp_path / "in", values)
    out = tmp_path / "meg.zarr"
    folder = write_tree(tmp_path / "images")
    import_source("things-meg-prepared", tmp_path / "in", out, images=str(folder), subject=["1"])
    assert nedx.verify(out).ok
    expected = values["train"].reshape(-1, 20, 201)
    stored = nedx.open_store(out).response.values[:12]
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-6)


def write_epochs(root):
    """The published epochs that such files are made of: numbers from 1 in the order of files."""
    everything = sorted([*TRAIN, *TEST, "bat/bat_01b.jpg", "bat/bat_03s.jpg"])
    (root / "image_paths.csv").write_text("\n".join(f"images/{file}" for file in everything))
    number = {file: row for row, file in enumerate(everything, 1)}
    tests = [number[file] for file in TEST] * 12
    others = [row for file, row in number.items() if file not in TEST]
    rng = np.random.default_rng(0)
    numbers = rng.permutation([*tests, *others, 999_999, 999_999])
    data = rng.normal(size=(numbers.size, 20, 201)) * 1e-13
    events = np.column_stack([np.arange(numbers.size) * 300, np.zeros_like(numbers), numbers])
    info = mne.create_info(SENSORS, 200.0, "mag")
    epochs = mne.EpochsArray(data, info, events, tmin=0, verbose="error")
    epochs.save(root / "preprocessed_P1-epo.fif", verbose="error", fmt="double")
    return numbers, data, number


def test_epochs_split_by_concepts_make_the_same_trials(tmp_path):
    """The recipe of ATM, step by step, against the two readers."""
    numbers, data, number = write_epochs(tmp_path)
    with computes_at_most(1):
        ds = open_things_meg(tmp_path, zero_shot=True)
    nedx.validate(ds)
    assert "things:bat_01b" in open_things_meg(tmp_path).image_id.values
    kept = ds.isel(trial=ds.partition.values == "train")
    assert set(kept.things_concept.values) == set(CONCEPTS)
    assert kept.sizes["trial"] == 12
    # A stable sort by number: repetitions stay in the order in which they were recorded.
    order = np.argsort(numbers, kind="stable")
    packed = {
        "train": np.stack([data[order][numbers[order] == number[file]] for file in TRAIN]),
        "test": np.stack([data[order][numbers[order] == number[file]] for file in TEST]),
    }
    shaped = {"train": packed["train"].reshape(3, 4, 1, 20, 201), "test": packed["test"][:, None]}
    write_atm(tmp_path / "atm", shaped)
    prepared = open_things_meg_prepared(tmp_path / "atm", images=ds)
    assert prepared.sizes["trial"] == ds.sizes["trial"]
    where = {
        (image, repetition): row
        for row, (image, repetition) in enumerate(
            zip(ds.image_id.values, ds.repetition.values, strict=True)
        )
    }
    pairs = zip(prepared.image_id.values, prepared.repetition.values, strict=True)
    rows = [where[pair] for pair in pairs]
    np.testing.assert_allclose(prepared.response.values, ds.response.values[rows], rtol=1e-5)
    trial = ds.trial_number.values[rows[-1]]
    np.testing.assert_allclose(prepared.response.values[-1], data[trial] * 1e15, rtol=1e-5)


def test_epochs_without_test_images(tmp_path):
    (tmp_path / "image_paths.csv").write_text("\n".join(f"images/{file}" for file in TRAIN))
    info = mne.create_info(SENSORS, 200.0, "mag")
    events = np.column_stack([np.arange(22) * 300, np.zeros(22, int), [*[1] * 11, *[2] * 11]])
    epochs = mne.EpochsArray(np.full((22, 20, 5), 1e-13), info, events, verbose="error")
    epochs.save(tmp_path / "preprocessed_P1-epo.fif", verbose="error")
    assert set(open_things_meg(tmp_path).partition.values) == {"train"}
    with pytest.raises(SourceError, match="no image was shown 12 times"):
        open_things_meg(tmp_path, zero_shot=True)


class Runs:
    """What a hostile pickle does when it is read."""

    def __reduce__(self):
        return (open, ("/dev/null", "rb"))


def test_what_could_run_is_refused(tmp_path, values):
    write_atm(tmp_path, values, ch_names=Runs())
    with pytest.raises(ModelError, match="is refused: it names"):
        open_things_meg_prepared(tmp_path, images=IMAGES)


def test_files_that_do_not_fit(tmp_path, values):
    write_atm(tmp_path, values)
    with pytest.raises(SourceError, match="3 concepts with 4 images, images= has 11 of train"):
        open_things_meg_prepared(tmp_path, images={"train": TRAIN[1:], "test": TEST})
    mixed = {"train": [*TRAIN[1:], TRAIN[0]], "test": TEST}
    with pytest.raises(SourceError, match="concept 0 .* not in the order"):
        open_things_meg_prepared(tmp_path, images=mixed)
    with pytest.raises(SelectionError, match="no 'test'"):
        open_things_meg_prepared(tmp_path, images={"train": TRAIN})
    with pytest.raises(SourceError, match="no images in training_images/<concept>"):
        open_things_meg_prepared(tmp_path, images=tmp_path)
    with pytest.raises(SelectionError, match="no subject 'sub-02'"):
        open_things_meg_prepared(tmp_path, images=IMAGES, subject=2)
    with pytest.raises(SourceError, match="holds no folders sub-01"):
        open_things_meg_prepared(tmp_path / "none", images=IMAGES)
    with pytest.raises(StoreError, match="on this machine"):
        open_things_meg_prepared("s3://bucket/meg", images=IMAGES)
    write_atm(tmp_path, values, times=TIMES[:200])
    with pytest.raises(SourceError, match="20 channel names and 200 times"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    write_atm(tmp_path, {name: value[0] for name, value in values.items()})
    with pytest.raises(SourceError, match=r"expected \(concept, image, repetition"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    write_atm(tmp_path, {**values, "test": values["test"][..., :10, :]}, ch_names=[])
    with pytest.raises(SourceError, match="differ in layout, channels or times"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    write_atm(tmp_path, {**values, "test": values["test"][:0]})
    with pytest.raises(SourceError, match="none of length 0"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    write_atm(tmp_path, values)
    path = tmp_path / "sub-01" / "preprocessed_meg_training.pkl"
    dump(path, {"meg_data": values["train"], "ch_names": SENSORS, "times": TIMES * 2})
    with pytest.raises(SourceError, match="differ in layout, channels or times"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    path.write_bytes(b"no pickle")
    with pytest.raises(CorruptStoreError, match="begins with"):
        open_things_meg_prepared(tmp_path, images=IMAGES)
    dump(path, {"eeg": 1})
    with pytest.raises(SourceError, match="holds eeg; expected"):
        open_things_meg_prepared(tmp_path, images=IMAGES)


def test_the_folder_of_one_subject(tmp_path, values):
    write_atm(tmp_path, values)
    inside = open_things_meg_prepared(tmp_path / "sub-01", images=IMAGES)
    assert inside.attrs["subject_ids"] == ["sub-01"]
    moved = (tmp_path / "sub-01").rename(tmp_path / "files")
    with pytest.raises(SelectionError, match="give subject=1"):
        open_things_meg_prepared(moved, images=IMAGES)
    assert open_things_meg_prepared(moved, images=IMAGES, subject=3).attrs["subject_ids"] == [
        "sub-03"
    ]
