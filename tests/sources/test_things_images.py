"""Images of THINGS, joined to recordings and to files of features by their ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import nedx
from nedx.errors import SelectionError, SourceError
from nedx.sources.feature_files import open_feature_file
from nedx.sources.things_eeg2 import open_preprocessed
from nedx.sources.things_images import open_things_images
from tests.laziness import computes_at_most
from tests.sources.eeg2_files import TEST, TRAIN, write_metadata
from tests.sources.test_things_eeg2_preprocessed import write_nice

FOLDERS = {
    "training_images": ["00001_aardvark"] * 3 + ["00002_abacus"] * 3,
    "test_images": ["00001_airboat", "00002_antelope"],
}


@pytest.fixture
def root(tmp_path):
    """Write images whose colour tells which they are."""
    write_metadata(tmp_path)
    for (place, folders), files in zip(FOLDERS.items(), (TRAIN, TEST), strict=True):
        for number, (folder, file) in enumerate(zip(folders, files, strict=True)):
            (tmp_path / place / folder).mkdir(parents=True, exist_ok=True)
            colour = (40 * number, 200 if place == "test_images" else 0, 90)
            Image.new("RGB", (12, 12), colour).save(tmp_path / place / folder / file, quality=95)
    return tmp_path


def test_images_have_the_ids_of_recordings(root):
    with computes_at_most(0):
        ds = open_things_images(root)
    nedx.validate(ds)
    assert ds.image_id.values.tolist() == [f"things:{file[:-4]}" for file in (*TRAIN, *TEST)]
    assert ds.partition.values.tolist() == ["train"] * 6 + ["test"] * 2
    assert ds.category.values.tolist() == ["aardvark"] * 3 + ["abacus"] * 3 + [
        "airboat",
        "antelope",
    ]
    assert ds.filename.values[0] == f"training_images/00001_aardvark/{TRAIN[0]}"
    seen = ds.pixels[:, 6, 6].values
    np.testing.assert_allclose(seen[:6, 0], 40 * np.arange(6), atol=6)
    assert (seen[6:, 1] > 150).all()
    test = open_things_images(root, partition="test", size=6, fit="resize")
    assert test.pixels.shape == (2, 6, 6, 3)


def test_recordings_features_and_images_join(root):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(n, 2, 63, 250)) for name, n in (("train", 6), ("test", 2))}
    write_nice(root, values)
    torch.save(torch.arange(6.0)[:, None].expand(6, 3).clone(), root / "features.pt")
    eeg = open_preprocessed(root)
    images = open_things_images(root)
    features = open_feature_file(root / "features.pt", images=root)
    assert set(eeg.image_id.values) == set(images.image_id.values)
    train = eeg.isel(trial=eeg.partition == "train")
    paired = images.sel(image_id=train.image_id.values)
    assert paired.category.values.tolist() == train.category.values.tolist()
    red = paired.pixels[:, 6, 6, 0].values
    rows = features.sel(image_id=train.image_id.values).features[:, 0].values
    np.testing.assert_allclose(red, 40 * rows, atol=6)


def test_things_itself_has_no_partitions(root):
    ds = open_things_images(root / "training_images")
    assert "partition" not in ds.coords
    assert ds.sizes["image"] == 6
    assert ds.things_concept.values[-1] == "abacus"


def test_hidden_files_are_no_images(root):
    seen = open_things_images(root).image_id.values
    concept = root / "training_images" / "00001_aardvark"
    (concept / f"._{TRAIN[0]}").write_bytes(b"of another system")
    copy = root / "training_images" / ".ipynb_checkpoints"
    copy.mkdir()
    (copy / "aardvark_09b.jpg").write_bytes((concept / TRAIN[0]).read_bytes())
    np.testing.assert_array_equal(open_things_images(root).image_id.values, seen)


def test_what_is_not_there(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no images: expected training_images"):
        open_things_images(tmp_path / "empty")
    with pytest.raises(SelectionError, match="not 'val'"):
        open_things_images(root, partition="val")
    with pytest.raises(SourceError, match="holds no images"):
        open_things_images(root / "training_images", partition="test")
