"""Epochs of THINGS-MEG in small, written by MNE, against what MNE reads of them."""

from __future__ import annotations

import mne
import numpy as np
import pandas as pd
import pytest

import nedx
from nedx.errors import SelectionError, SourceError
from nedx.preprocessing.repetitions import average_repetitions
from nedx.sources.importing import import_source
from nedx.sources.things_meg import open_things_meg
from tests.laziness import computes_at_most

SENSORS = ["MLC11-1609", "MRF12-1609", "MZO01-1609", "MLT23-1609"]
PATHS = [f"images/{c}/{c}_{i:02d}b.jpg" for c in ("aardvark", "air_pump") for i in (1, 2, 3)]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "derivatives" / "preprocessed").mkdir(parents=True)
    (tmp_path / "image_paths.csv").write_text("\n".join(PATHS) + "\n")
    return tmp_path


def write(root, subject=1, *, scale=1e-13, metadata=None, numbers=None):
    """Images 1, 2, 4 and 5 once; 3 and 6 twelve times; one catch trial."""
    rng = np.random.default_rng(subject)
    if numbers is None:
        numbers = rng.permutation([1, 2, 4, 5, *[3, 6] * 12, 999_999])
    info = mne.create_info(SENSORS, 200.0, "mag")
    data = rng.normal(size=(len(numbers), 4, 281)) * scale
    events = np.column_stack([np.arange(len(numbers)) * 300, np.zeros(len(numbers), int), numbers])
    epochs = mne.EpochsArray(data, info, events, tmin=-0.1, metadata=metadata, verbose="error")
    path = root / "derivatives" / "preprocessed" / f"preprocessed_P{subject}-epo.fif"
    epochs.save(path, verbose="error", overwrite=True)
    return mne.read_epochs(path, verbose="error")


def test_trials_in_femtotesla(root):
    epochs = write(root)
    with computes_at_most(1):
        ds = open_things_meg(root)
    nedx.validate(ds)
    numbers = epochs.events[:, 2]
    kept = numbers != 999_999
    truth = epochs.get_data()[kept] * 1e15
    np.testing.assert_allclose(ds.response.values, truth, rtol=1e-6)
    assert ds.response.attrs["units"] == "fT"
    assert ds.response.dims == ("trial", "channel", "time")
    np.testing.assert_allclose(ds.time.values[[0, -1]], [-0.1, 1.3])
    expected = [f"things:{PATHS[n - 1].rpartition('/')[2][:-4]}" for n in numbers[kept]]
    assert ds.image_id.values.tolist() == expected
    assert set(ds.things_concept.values) == {"aardvark", "air_pump"}
    assert ds.trial_number.values.tolist() == np.flatnonzero(kept).tolist()
    assert set(ds.channel_type.values) == {"mag"}
    assert ds.region.values.tolist() == ["central", "frontal", "occipital", "temporal"]
    assert ds.hemisphere.values.tolist() == ["L", "R", "midline", "L"]
    test = ds.partition.values == "test"
    assert set(ds.things_number.values[test]) == {3, 6}
    third = ds.repetition.values[ds.things_number.values == 3]
    assert third.tolist() == list(range(12))
    mean = average_repetitions(ds.isel(trial=test))
    assert mean.n_repetitions.values.tolist() == [12, 12]
    rows = numbers[kept] == 6
    found = mean.response.sel(image_id=f"things:{PATHS[5].rpartition('/')[2][:-4]}").values
    np.testing.assert_allclose(found, truth[rows].mean(0), rtol=1e-4, atol=1e-3)


def test_baseline_zscores_are_seen_by_their_size(root):
    epochs = write(root, scale=1.0)
    ds = open_things_meg(root)
    attrs = ds.response.attrs
    assert (attrs["units"], attrs["normalization_scope"]) == ("1", "baseline")
    assert ds.attrs["units_found_by"] == "size of the values"
    kept = epochs.events[:, 2] != 999_999
    np.testing.assert_allclose(ds.response.values, epochs.get_data()[kept], rtol=1e-5)
    nedx.validate(ds)


def test_epochs_that_say_which_image_was_shown(root):
    numbers = np.array([2, 5, 3, 999_999])
    metadata = pd.DataFrame(
        {
            "trial_type": ["exp", "test", "exp", "catch"],
            "image_path": ["x/bat_02s.jpg", "x/cat_01b.jpg", "x/dog_09s.jpg", "x/made_up.jpg"],
            "session_nr": [1, 1, 2, 2],
        }
    )
    write(root, numbers=numbers, metadata=metadata)
    (root / "image_paths.csv").unlink()
    ds = open_things_meg(root)
    assert ds.image_id.values.tolist() == ["things:bat_02s", "things:cat_01b", "things:dog_09s"]
    assert ds.partition.values.tolist() == ["train", "test", "train"]
    assert ds.session.values.tolist() == [1, 1, 2]


def test_several_subjects_and_import(root, tmp_path):
    write(root, 1)
    write(root, 2)
    tree = open_things_meg(root)
    assert list(tree.children) == ["sub-01", "sub-02"]
    nedx.validate(tree)
    out = tmp_path / "meg.zarr"
    import_source("things-meg", root, out, subject=["2"])
    assert nedx.verify(out).ok
    truth = open_things_meg(root, subject="P2").response.values
    np.testing.assert_allclose(nedx.open_store(out).response.values, truth, rtol=1e-3)


def test_what_is_not_there(root):
    with pytest.raises(SourceError, match="no preprocessed_P1-epo.fif"):
        open_things_meg(root)
    write(root, numbers=np.array([1, 7, 8]))
    with pytest.raises(SourceError, match="2 events have no image, the first is 7"):
        open_things_meg(root)
    (root / "image_paths.csv").unlink()
    with pytest.raises(SourceError, match="image_paths="):
        open_things_meg(root)
    with pytest.raises(SourceError, match="no file"):
        open_things_meg(root, image_paths=root / "list.csv")
    with pytest.raises(SelectionError, match="no subject 'sub-03'"):
        open_things_meg(root, subject=3)
