"""Prepared THINGS-EEG2 in the layouts seen in the wild, written as their makers write them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import nedx
from nedx.errors import CorruptStoreError, ModelError, SelectionError, SourceError
from nedx.preprocessing.recipes import NICE_CHANNELS
from nedx.preprocessing.repetitions import stack_repetitions
from nedx.sources.importing import import_source
from nedx.sources.things_eeg2 import open_preprocessed
from tests.laziness import computes_at_most
from tests.sources.eeg2_files import TEST, TRAIN, write_metadata

TIMES = np.arange(-50, 250) / 250
"""All 300, though values are there for the last 250 only."""


@pytest.fixture
def values():
    rng = np.random.default_rng(1)
    return {
        "train": rng.normal(size=(6, 4, 63, 250)),
        "test": rng.normal(size=(2, 8, 63, 250)),
    }


def dump(path, held, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(held, file, protocol=protocol)


def write_nice(root, values):
    for partition, name in (("train", "training"), ("test", "test")):
        held = {
            "preprocessed_eeg_data": values[partition],
            "ch_names": list(NICE_CHANNELS),
            "times": TIMES,
        }
        dump(root / "sub-01" / f"preprocessed_eeg_{name}.npy", held)
    write_metadata(root)


def write_official(root, values):
    for partition, name in (("train", "training"), ("test", "test")):
        held = {
            "preprocessed_eeg_data": values[partition][:, :, :17, :100],
            "ch_names": list(NICE_CHANNELS[-17:]),
            "times": np.arange(-20, 80) / 100,
        }
        path = root / "sub-01" / f"preprocessed_eeg_{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, held, allow_pickle=True)
    write_metadata(root)


def write_ubp(root, values):
    folders = {"train": ["00001_aardvark"] * 3 + ["00002_abacus"] * 3}
    folders["test"] = ["00001_airboat", "00002_antelope"]
    for partition, files in (("train", TRAIN), ("test", TEST)):
        reps = values[partition].shape[1]
        pairs = zip(folders[partition], files, strict=True)
        paths = [f"{partition}_images/{folder}/{file}" for folder, file in pairs]
        held = {
            "eeg": values[partition].astype(np.float16),
            "label": np.tile(np.arange(len(files))[:, None], reps),
            "img": np.array([[path] * reps for path in paths]),
            "text": np.array([["a photo"] * reps for _ in paths]),
            "session": np.tile(np.arange(reps) // 2, (len(files), 1)).astype(float),
            "ch_names": list(NICE_CHANNELS),
            "times": TIMES,
        }
        (root / "sub-01").mkdir(parents=True, exist_ok=True)
        torch.save(held, root / "sub-01" / f"{partition}.pt", pickle_protocol=5)


def write_neurobridge(root, values):
    for partition, concepts in (("train", 2), ("test", 2)):
        data = values[partition].astype(np.float32)
        held = {
            "data": data.reshape(concepts, -1, *data.shape[1:]),
            "ch_names": list(NICE_CHANNELS),
            "times": TIMES,
        }
        dump(root / "sub-01" / f"{partition}.npy", held)
    write_metadata(root)


WRITERS = {
    "nice": (write_nice, {}),
    "official": (write_official, {}),
    "ubp": (write_ubp, {}),
    "neurobridge": (write_neurobridge, {"normalization": "zscore"}),
}


@pytest.mark.parametrize("flavour", list(WRITERS))
def test_every_layout_becomes_the_same_dataset(tmp_path, values, flavour):
    root = tmp_path / "Preprocessed_data_250Hz_whiten"
    write, arguments = WRITERS[flavour]
    write(root, values)
    with computes_at_most(0):
        ds = open_preprocessed(root, **arguments)
    nedx.validate(ds)
    assert ds.response.dtype == np.float32
    channels, times = (17, 100) if flavour == "official" else (63, 250)
    tolerance = 2e-3 if flavour == "ubp" else 1e-6
    for partition, files in (("train", TRAIN), ("test", TEST)):
        stacked = stack_repetitions(ds.isel(trial=ds.partition.values == partition))
        assert stacked.image_id.values.tolist() == [f"things:{file[:-4]}" for file in files]
        expected = values[partition][:, :, :channels, :times]
        np.testing.assert_allclose(
            stacked.response.values, expected, rtol=tolerance, atol=tolerance
        )
    if flavour == "official":
        np.testing.assert_allclose(ds.time.values[[0, -1]], [-0.2, 0.79])
        assert ds.response.attrs["normalization_fit"] == "train_and_test"
    else:
        np.testing.assert_allclose(ds.time.values[[0, -1]], [0.0, 0.996], atol=1e-12)
        assert ds.response.attrs["normalization_fit"] == "train"
    assert ds.attrs["layout"] == flavour
    assert ds.attrs["preprocessing"][0]["step"] == ("zscore" if arguments else "whiten")
    if flavour == "ubp":
        assert ds.session.values[:4].tolist() == [1, 1, 2, 2]
    assert ds.things_concept.values[0] == "aardvark"


def test_a_part_reads_its_part_only(tmp_path, values, monkeypatch):
    from nedx.sources import mapped_pickles

    monkeypatch.setattr("nedx.sources.things_eeg2.preprocessed._CHUNK_BYTES", 1)
    write_nice(tmp_path, values)
    ds = open_preprocessed(tmp_path)
    read = []
    whole = mapped_pickles.PickledArray.__getitem__
    monkeypatch.setattr(
        mapped_pickles.PickledArray,
        "__getitem__",
        lambda self, key: read.append(key[0]) or whole(self, key),
    )
    part = ds.isel(trial=slice(4, 8)).response.values
    np.testing.assert_allclose(part, values["train"][1], rtol=1e-6)
    assert read == [slice(1, 2, None)]


def test_import(tmp_path, values):
    write_nice(tmp_path / "in", values)
    out = tmp_path / "eeg.zarr"
    import_source("things-eeg2-preprocessed", tmp_path / "in", out, subject=["1"])
    assert nedx.verify(out).ok
    stored = nedx.open_store(out)
    expected = values["train"].reshape(24, 63, 250)
    np.testing.assert_allclose(stored.response.values[:24], expected, rtol=1e-3)


def test_what_files_do_not_say(tmp_path, values):
    write_neurobridge(tmp_path / "nb", values)
    with pytest.raises(SelectionError, match="--mvnn"):
        open_preprocessed(tmp_path / "nb")
    write_ubp(tmp_path / "Preprocessed_data_250Hz_no_whiten", values)
    with pytest.raises(SelectionError, match="not whitened"):
        open_preprocessed(tmp_path / "Preprocessed_data_250Hz_no_whiten")


def test_voltages_have_the_units_that_are_given(tmp_path, values):
    root = tmp_path / "Preprocessed_data_250Hz_no_whiten"
    write_ubp(root, values)
    opened = open_preprocessed(root, units="uV")
    assert opened.response.attrs["units"] == "uV"
    assert opened.response.attrs["normalization"] == "none"
    expected = values["train"].reshape(24, 63, 250)
    # UBP's files are float16.
    np.testing.assert_allclose(opened.response.values[:24], expected, rtol=2e-3, atol=2e-3)
    in_volts = open_preprocessed(root, units="V").response.values[:24]
    np.testing.assert_allclose(in_volts, 1e6 * opened.response.values[:24], rtol=1e-6)
    with pytest.raises(SelectionError, match="'uV' or 'V'"):
        open_preprocessed(root, units="mV")


def change(root, **held):
    path = root / "sub-01" / "preprocessed_eeg_training.npy"
    dump(path, {**np.load(path, allow_pickle=True), **held})


class Runs:
    """What a hostile pickle does when it is read."""

    def __reduce__(self):
        return (open, ("/dev/null", "rb"))


def test_files_that_do_not_fit(tmp_path, values):
    write_nice(tmp_path, values)
    change(tmp_path, times=TIMES[:270])
    with pytest.raises(SourceError, match="names 270 times and holds 250"):
        open_preprocessed(tmp_path)
    change(tmp_path, times=TIMES, preprocessed_eeg_data=values["train"][:5])
    with pytest.raises(SourceError, match="holds 5 images.*names 6 of train"):
        open_preprocessed(tmp_path)
    change(tmp_path, preprocessed_eeg_data=values["train"], ch_names=["Oz"])
    with pytest.raises(SourceError, match="1 channel names"):
        open_preprocessed(tmp_path)
    change(tmp_path, ch_names=list(NICE_CHANNELS[::-1]))
    with pytest.raises(SourceError, match="differ in layout, channels or times"):
        open_preprocessed(tmp_path)
    change(tmp_path, ch_names=list(NICE_CHANNELS), times=TIMES * 2.5)
    with pytest.raises(SourceError, match="differ in layout, channels or times"):
        open_preprocessed(tmp_path)
    change(tmp_path, times=TIMES, preprocessed_eeg_data=values["train"][:0])
    with pytest.raises(SourceError, match=r"shape \(0, .*none of length 0"):
        open_preprocessed(tmp_path)
    change(tmp_path, preprocessed_eeg_data=values["train"], times=Runs())
    with pytest.raises(ModelError, match="refused"):
        open_preprocessed(tmp_path)
    path = tmp_path / "sub-01" / "preprocessed_eeg_training.npy"
    dump(path, {"meg_data": values["train"]})
    with pytest.raises(SourceError, match="holds meg_data"):
        open_preprocessed(tmp_path)
    path.write_bytes(b"no pickle")
    with pytest.raises(CorruptStoreError, match="begins with"):
        open_preprocessed(tmp_path)
    write_nice(tmp_path, values)
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(CorruptStoreError, match="cut short"):
        open_preprocessed(tmp_path)
    with pytest.raises(SelectionError, match="no subject 'sub-02'"):
        open_preprocessed(tmp_path, subject=2)
    with pytest.raises(SourceError, match="no folders sub-01"):
        open_preprocessed(tmp_path / "nowhere")
