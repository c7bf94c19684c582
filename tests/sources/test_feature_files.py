"""Files of features in the layouts seen in the wild, written as their makers write them."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
import xarray as xr

import nedx
from nedx.errors import CorruptStoreError, ModelError, SelectionError, SourceError, StoreError
from nedx.sources.feature_files import open_feature_file
from nedx.sources.importing import import_source
from tests.laziness import computes_at_most
from tests.sources.eeg2_files import TEST, TRAIN, write_metadata

WIDTH = 4000
"""Wide enough that arrays lie outside of the frames of their pickles, and are mapped."""
FOLDERS = ["00001_aardvark"] * 3 + ["00002_abacus"] * 3
IDS = [f"things:{file[:-4]}" for file in TRAIN]


@pytest.fixture
def root(tmp_path):
    write_metadata(tmp_path)
    return tmp_path


@pytest.fixture
def values():
    return np.random.default_rng(7).normal(size=(6, WIDTH)).astype(np.float32)


def paths():
    return [f"train_images/{d}/{f}" for d, f in zip(FOLDERS, TRAIN, strict=True)]


def test_image_and_text_of_one_dictionary(root, values):
    text = np.random.default_rng(8).normal(size=(2, WIDTH)).astype(np.float32)
    path = root / "ViT-H-14_features_train.pt"
    held = {"text_features": torch.from_numpy(text), "img_features": torch.from_numpy(values)}
    torch.save(held, path)
    with computes_at_most(0):
        ds = open_feature_file(path, images=root)
    nedx.validate(ds, "features")
    assert ds.features.dtype == np.float32
    assert ds.image_id.values.tolist() == IDS
    assert set(ds.partition.values) == {"train"}
    np.testing.assert_array_equal(ds.features.values, values)
    np.testing.assert_array_equal(ds.features.sel(image_id=IDS[4]).values, values[4])
    assert ds.features.attrs["l2_normalized"] == "unknown"
    words = open_feature_file(path, images=root, of="text", partition="train")
    nedx.validate(words, "features")
    np.testing.assert_array_equal(words.features.values, text[[0, 0, 0, 1, 1, 1]])
    assert words.things_concept.values.tolist() == ["aardvark"] * 3 + ["abacus"] * 3


def test_a_bare_tensor_and_a_half_one(root, values):
    torch.save(torch.from_numpy(values), root / "a.pt")
    torch.save(torch.from_numpy(values).half(), root / "b.pt")
    found = open_feature_file(root / "a.pt", images=root / "image_metadata.npy")
    np.testing.assert_array_equal(found.features.values, values)
    half = open_feature_file(root / "b.pt", images=root)
    assert half.features.dtype == np.float32
    np.testing.assert_allclose(half.features.values, values, rtol=1e-3, atol=1e-4)


def test_a_tensor_of_others_strides(root, values):
    torch.save(torch.from_numpy(np.ascontiguousarray(values.T)).T, root / "a.pt")
    found = open_feature_file(root / "a.pt", images=root)
    np.testing.assert_array_equal(found.features.values, values)


def test_vectors_by_path_join_by_name(root, values):
    """UBP: rows of one tensor, in any order, found by their paths; text by its words."""
    order = np.random.default_rng(0).permutation(6)
    whole = torch.from_numpy(values)
    vectors = {paths()[row]: whole[row] for row in order}
    names = {"abacus": whole[1], "aardvark": whole[0]}
    torch.save({"img_features": vectors, "text_features": names}, root / "u.pt", pickle_protocol=5)
    ds = open_feature_file(root / "u.pt")
    assert ds.image_id.values.tolist() == [IDS[row] for row in order]
    assert set(ds.partition.values) == {"train"}
    np.testing.assert_array_equal(ds.features.sel(image_id=IDS).values, values)
    np.testing.assert_array_equal(ds.features.sel(image_id=IDS[2])[5:9].values, values[2, 5:9])
    np.testing.assert_array_equal(ds.features[:, 3].sel(image_id=IDS).values, values[:, 3])
    sorted_rows = open_feature_file(root / "u.pt", images=root)
    np.testing.assert_array_equal(sorted_rows.features.values, values)
    words = open_feature_file(root / "u.pt", images=ds.drop_vars("features"), of="text")
    expected = [0 if row < 3 else 1 for row in order]
    np.testing.assert_array_equal(words.features.values, values[expected])


def test_folders_without_numbers_are_concepts_all_the_same(root, values):
    plain = {f"train_images/air_pump/{file}": torch.from_numpy(values[0]) for file in ("a_1.jpg",)}
    torch.save({"img_features": plain}, root / "plain.pt")
    ds = open_feature_file(root / "plain.pt")
    assert ds.things_concept.values.tolist() == ds.category.values.tolist() == ["air_pump"]


def test_levels_of_blur(root, values):
    levels = {
        level: {path: torch.from_numpy(values[row] * scale) for row, path in enumerate(paths())}
        for level, scale in (("low", 1), ("medium", 2), ("high", 3), ("avg", 2))
    }
    torch.save({"img_features": levels, "text_features": {}}, root / "u.pt")
    with pytest.raises(SelectionError, match="one of 'low', 'medium', 'high', 'avg'"):
        open_feature_file(root / "u.pt")
    with pytest.raises(SelectionError, match="did you mean 'medium'"):
        open_feature_file(root / "u.pt", variant="medum")
    ds = open_feature_file(root / "u.pt", images=root, variant="high")
    np.testing.assert_array_equal(ds.features.values, values * 3)
    assert ds.features.attrs["variant"] == "high"


def test_arrays_of_neurobridge(root, values):
    stacked = values.reshape(2, 3, WIDTH)
    np.save(root / "image_train.npy", stacked)
    ds = open_feature_file(root / "image_train.npy", images=root)
    assert ds.image_id.values.tolist() == IDS
    np.testing.assert_array_equal(ds.features.values, values)
    np.save(root / "augmented.npy", np.stack([stacked, stacked + 1]))
    with pytest.raises(SelectionError, match="2 variants; type variant=0 to 1"):
        open_feature_file(root / "augmented.npy", images=root)
    second = open_feature_file(root / "augmented.npy", images=root, variant=1)
    np.testing.assert_array_equal(second.features.values, values + 1)
    with pytest.raises(SelectionError, match="one variant only"):
        open_feature_file(root / "image_train.npy", images=root, variant=1)


def test_embeddings_of_eeg_have_rows_for_repetitions(root, values):
    trials = np.random.default_rng(2).normal(size=(24, WIDTH)).astype(np.float32)
    torch.save(torch.from_numpy(trials), root / "features_sub-01_train.pt")
    ds = open_feature_file(
        root / "features_sub-01_train.pt", images=root, of="eeg", partition="train"
    )
    assert ds.embedding.dims == ("trial", "feature")
    np.testing.assert_array_equal(ds.embedding.values, trials)
    assert ds.image_id.values.tolist() == [name for name in IDS for _ in range(4)]
    assert ds.repetition.values.tolist() == [0, 1, 2, 3] * 6
    test = torch.from_numpy(values[:2])
    torch.save(test, root / "features_sub-01_test.pt")
    images = xr.Dataset(coords={"image_id": ("image", [f"things:{f[:-4]}" for f in TEST])})
    averaged = open_feature_file(root / "features_sub-01_test.pt", images=images, of="eeg")
    assert averaged.embedding.dims == ("image", "feature")


@pytest.mark.parametrize(("of", "name"), [("image", "features"), ("eeg", "embedding")])
def test_import(root, values, tmp_path, of, name):
    rows = values if of == "image" else np.repeat(values, 4, axis=0)
    torch.save(torch.from_numpy(rows), root / "a.pt")
    out = tmp_path / "features.zarr"
    arguments = {"images": str(root), "partition": "train", "of": of}
    import_source("features", root / "a.pt", out, **arguments)
    assert nedx.verify(out).ok
    stored = nedx.open_store(out)
    np.testing.assert_allclose(stored[name].values, rows, rtol=1e-3)
    assert stored.image_id.values[-1] == IDS[-1]
    assert stored.category.values[-1] == "abacus"


def test_a_part_reads_its_part_only(root, values, monkeypatch):
    from nedx.sources import feature_files

    monkeypatch.setattr(feature_files, "_BLOCK_BYTES", 1)
    torch.save(torch.from_numpy(values), root / "a.pt")
    ds = open_feature_file(root / "a.pt", images=root)
    read = []
    whole = feature_files._Rows.__getitem__
    monkeypatch.setattr(
        feature_files._Rows, "__getitem__", lambda self, key: read.append(key) or whole(self, key)
    )
    np.testing.assert_array_equal(ds.features[3].values, values[3])
    assert [np.arange(6)[key[0]].tolist() for key in read] == [3]
    assert len(pickle.dumps(ds.features.data)) < 10_000


def test_tensors_are_mapped_not_read(root, values):
    """What is on the disk after opening is what is seen."""
    path = root / "a.pt"
    torch.save(torch.from_numpy(values), path)
    ds = open_feature_file(path, images=root)
    about = path.stat()
    start = path.read_bytes().find(values.tobytes())
    with path.open("r+b") as file:
        file.seek(start + 4)
        file.write(np.float32(123.0).tobytes())
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert ds.features.values[0, 1] == 123.0


class Runs:
    """What a hostile pickle does when it is read."""

    def __reduce__(self):
        return (open, ("/dev/null", "rb"))


@pytest.mark.parametrize("held", [Runs(), {"img_features": Runs()}, [torch.zeros(3), Runs()]])
def test_what_could_run_is_refused(root, held):
    torch.save(held, root / "a.pt")
    with pytest.raises(ModelError, match="is refused: it names"):
        open_feature_file(root / "a.pt", images=root)
    (root / "a.npy").write_bytes(pickle.dumps(held))
    with pytest.raises(ModelError, match="is refused: it names"):
        open_feature_file(root / "a.npy", images=root)
    np.save(root / "b.npy", np.array([held, 1], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError):
        open_feature_file(root / "b.npy", images=root)


def test_rows_that_do_not_belong_to_the_images(root, values):
    torch.save(torch.from_numpy(values[:5]), root / "a.pt")
    with pytest.raises(SourceError, match=r"5 rows, there are 6 of train and 2 of test images"):
        open_feature_file(root / "a.pt", images=root)
    with pytest.raises(SourceError, match="5 rows, there are 6 images"):
        open_feature_file(root / "a.pt", images=root, partition="train")
    twice = torch.from_numpy(np.concatenate([values, values]))
    torch.save({"img_features": twice, "text_features": twice[:3]}, root / "b.pt")
    with pytest.raises(SourceError, match="12 rows, there are 6 images"):
        open_feature_file(root / "b.pt", images=root, partition="train")
    with pytest.raises(SourceError, match="3 rows of text, the images have 2 concepts"):
        open_feature_file(root / "b.pt", images=root, partition="train", of="text")
    lacking = {path: torch.from_numpy(values[0]) for path in paths()[:-1]}
    torch.save({"img_features": lacking}, root / "c.pt")
    with pytest.raises(SourceError, match="5 images, there are 6, the first .* things:abacus_03b"):
        open_feature_file(root / "c.pt", images=root, partition="train")
    with pytest.raises(SelectionError, match="no features of='text'"):
        open_feature_file(root / "c.pt", images=root, of="text")
    with pytest.raises(SelectionError, match="does not say which images"):
        open_feature_file(root / "a.pt")
    with pytest.raises(SelectionError, match="partition is 'train' or 'test'"):
        open_feature_file(root / "a.pt", images=root, partition="val")


def test_files_of_other_kinds(root, values):
    with pytest.raises(StoreError, match="Copy the file first"):
        open_feature_file("s3://bucket/a.pt", images=root)
    with pytest.raises(StoreError, match="no file"):
        open_feature_file(root / "none.pt", images=root)
    torch.save(torch.zeros(6, dtype=torch.int64), root / "a.pt")
    with pytest.raises(SourceError, match="no floating-point numbers, but int64"):
        open_feature_file(root / "a.pt", images=root)
    torch.save(torch.zeros(6), root / "a.pt")
    with pytest.raises(SourceError, match=r"an array \(6,\); expected \(image, feature\)"):
        open_feature_file(root / "a.pt", images=root)
    (root / "a.pt").write_bytes(b"no file of torch")
    with pytest.raises(CorruptStoreError, match="begins with"):
        open_feature_file(root / "a.pt", images=root)
    np.save(root / "a.npy", values)
    whole = (root / "a.npy").read_bytes()
    (root / "a.npy").write_bytes(whole[:-1000])
    with pytest.raises(CorruptStoreError, match="cut short"):
        open_feature_file(root / "a.npy", images=root)
    torch.save(torch.from_numpy(values), root / "b.pt")
    (root / "b.pt").write_bytes((root / "b.pt").read_bytes()[:-30_000])
    with pytest.raises(CorruptStoreError, match="cut short"):
        open_feature_file(root / "b.pt", images=root)
    mixed = {path: torch.zeros(2 + i % 2) for i, path in enumerate(paths())}
    torch.save({"img_features": mixed}, root / "c.pt")
    with pytest.raises(SourceError, match=r"have the shapes \[\(2,\), \(3,\)\]"):
        open_feature_file(root / "c.pt", images=root)
