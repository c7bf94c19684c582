"""Pre-generated responses: the values and labels that were written, and what is read for them."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import CorruptStoreError, ModelError, SelectionError, StoreError
from nedx.sources.berg.hdf5 import open_rows
from nedx.sources.berg.layout import BUCKET
from nedx.sources.berg.responses import import_responses, open_responses
from nedx.store.location import Location
from tests.berg.models import CHANNELS, TIMES, save
from tests.berg.responses import BEFORE, COUNTS, ERAS, FIRST, NAME, write_responses, write_sparse
from tests.laziness import computes_at_most
from tests.servers import HttpServer, S3Server

FMRI = {"modality": "fmri", "dataset": "nsd", "model": "fwrf", "image_set": "nsd"}
EEG = {"modality": "eeg", "dataset": "things_eeg_2", "model": "vit_b_32", "image_set": "things"}
ROW = 4 * len(CHANNELS) * len(TIMES) * 4
"""Bytes of the EEG responses to one image."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ned")


@pytest.fixture(scope="module")
def v1(folder):
    return {s: write_responses(folder, subject=s, voxels=6 + s) for s in (1, 4)}


@pytest.fixture(scope="module")
def eeg(folder):
    return {s: write_responses(folder, "things", modality="eeg", subject=s) for s in (1, 2)}


@pytest.fixture(scope="module")
def s3(folder, v1, eeg):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        server = S3Server()
        server.url = server.fill(BUCKET.removeprefix("s3://"), folder)
        yield server
        server.close()


@pytest.fixture(scope="module")
def web(folder, v1, eeg):
    server = HttpServer(folder)
    yield server
    server.close()


@pytest.fixture(params=["s3", "web"])
def remote(request):
    """Return a server, and where the tree lies on it."""
    server = request.getfixturevalue(request.param)
    if request.param == "web":
        return server, Location.of(server.url)
    options = {"endpoint_url": server.endpoint}
    return server, Location.of(server.url, anonymous=True, storage_options=options)


@pytest.mark.parametrize("era", ERAS)
def test_all_eras(tmp_path, era):
    written = write_responses(tmp_path, era=era)
    for subject in (1, None):
        opened = open_responses(tmp_path, **FMRI, roi="V1", subject=subject)
        ds = opened if subject else opened["sub-01"].to_dataset()
        np.testing.assert_array_equal(ds["response"].values, written.values)


def test_the_first_era_in_one_folder(tmp_path):
    written = write_responses(tmp_path, era=FIRST)
    for path in (written.path, written.metadata_path):
        path.rename(tmp_path / NAME / path.name)
    ds = open_responses(tmp_path, **FMRI, roi="V1", subject=1)
    np.testing.assert_array_equal(ds["response"].values, written.values)


def test_voxels_and_images_of_nsd(folder, v1):
    ds = open_responses(folder, **FMRI, roi="V1", subject="subj04")
    nedx.validate(ds)
    written = v1[4]
    assert ds["response"].dims == ("image", "voxel")
    assert ds["response"].dtype == np.float32
    fmri, model = written.metadata["fmri"], written.metadata["encoding_models"]
    volume = np.full(fmri["roi_mask_volume"].shape, np.nan, np.float32)
    volume[fmri["roi_mask_volume"]] = written.values[11]
    places = tuple(ds[axis].values for axis in "ijk")
    np.testing.assert_array_equal(volume[places], ds["response"][11].values)
    affine = np.reshape(ds["voxel"].attrs["affine"], (4, 4))
    np.testing.assert_array_equal(affine, fmri["fmri_affine"])
    r2 = model["encoding_accuracy"]["r2"]
    np.testing.assert_allclose(ds["encoding_accuracy"].values ** 2, r2, rtol=1e-5)
    assert ds["encoding_accuracy"].attrs["metric"] == "pearson_r"
    ceiling = model["encoding_accuracy"]["noise_ceiling"]
    np.testing.assert_allclose(ds["noise_ceiling"].values, ceiling, rtol=1e-6)
    np.testing.assert_allclose(ds["ncsnr"].values, fmri["ncsnr"], rtol=1e-6)
    assert ds["image_id"].values[[0, 39]].tolist() == ["nsd:00000", "nsd:00039"]
    assert ds["nsd_id"].dtype == np.int32
    partition = dict(zip(ds["nsd_id"].values.tolist(), ds["partition"].values, strict=True))
    some = {1: "train", 3: "train", 5: "val", 7: "test", 39: "test"}
    assert partition == dict.fromkeys(range(40), "unseen") | some
    expected = {"source": "synthetic", "modality": "fmri", "license": "CC-BY-NC-4.0"}
    assert ds.attrs.items() >= expected.items()
    scale = {"units": "1", "normalization": "zscore", "normalization_scope": "session"}
    assert ds["response"].attrs.items() >= scale.items()
    assert ds.ned.sel(roi="V1", subject=4).sizes == ds.sizes


def test_percent_becomes_a_fraction(tmp_path):
    written = write_responses(tmp_path)
    model = written.metadata["encoding_models"]["encoding_accuracy"]
    flat = {"r2": model["r2"], "noise_ceiling": 100 * model["noise_ceiling"]}
    save(written.metadata_path, {**written.metadata, "encoding_models": flat})
    ds = open_responses(tmp_path, **FMRI, roi="V1", subject=1)
    np.testing.assert_allclose(ds["noise_ceiling"].values, model["noise_ceiling"], rtol=1e-6)
    assert "partition" not in ds.coords


@pytest.mark.parametrize(("subject", "sessions"), [(1, 40), (4, 30)])
def test_what_an_nsd_subject_was_shown(folder, v1, subject, sessions):
    ds = open_responses(folder, **FMRI, roi="V1", subject=subject)
    design = v1[subject].metadata["nsd_labels"]
    shown = {
        int(design["subjectim"][subject - 1, condition])
        for condition in design["masterordering"][0, : 750 * sessions]
    }
    assert set(ds["nsd_id"].values[ds["seen_by_subject"].values].tolist()) == shown
    assert ds["seen_by_subject"].dtype == bool
    # Subject 4 left before the images of the last sessions; nobody is shown the last two.
    assert max(shown) < (38 if subject == 1 else 20)


def test_subjects_with_voxels_of_their_own(folder, v1):
    tree = open_responses(folder, **FMRI, roi="V1")
    nedx.validate(tree)
    assert list(tree.children) == ["sub-01", "sub-04"]
    for subject, written in v1.items():
        child = tree[f"sub-{subject:02d}"]
        np.testing.assert_array_equal(child["response"].values, written.values)
    assert list(open_responses(folder, **FMRI, roi="V1", subject=[4, 1]).children) == [
        "sub-04",
        "sub-01",
    ]


def test_eeg_on_one_grid(folder, eeg):
    ds = open_responses(folder, **EEG)
    nedx.validate(ds)
    dims = ("subject", "image", "repetition", "channel", "time")
    assert ds["response"].dims == dims
    assert ds["subject"].values.tolist() == ["sub-01", "sub-02"]
    assert ds["response"].attrs["transform"] == "csd"
    truth = np.stack([eeg[1].values, eeg[2].values])
    np.testing.assert_array_equal(ds["response"].values, truth)
    assert ds["channel"].values.tolist() == list(CHANNELS)
    np.testing.assert_allclose(ds["time"].values, TIMES)
    for subject in (0, 1):
        model = eeg[subject + 1].metadata["encoding_models"]["encoding_accuracy"]
        np.testing.assert_allclose(
            ds["encoding_accuracy"].values[subject], model["correlation_all_repetitions"], rtol=1e-6
        )
    ids = ds["image_id"].values.tolist()
    assert ids[:4] == [f"things:aardvark_{n:02d}b" for n in (1, 2, 3)] + ["things:abacus_01b"]
    assert ds["things_concept"].values[[0, 3]].tolist() == ["aardvark", "abacus"]
    assert ds["filename"].values[3] == "abacus/abacus_01b.jpg"
    expected = ["train", "unseen", "unseen", "test"] + ["unseen"] * 8
    for subject in (0, 1):
        assert ds["partition"].values[subject].tolist() == expected
    swapped = open_responses(folder, **EEG, subject=[2, 1])
    np.testing.assert_array_equal(swapped["response"].values, truth[::-1])


def test_one_subject_of_eeg(folder, eeg):
    ds = open_responses(folder, **EEG, subject=2)
    nedx.validate(ds)
    assert ds["response"].dims == ("subject", "image", "repetition", "channel", "time")
    np.testing.assert_array_equal(ds["response"].values, eeg[2].values[None])
    assert ds.attrs["subject_ids"] == ["sub-02"]
    assert ds["encoding_accuracy"].dims == ("subject", "channel", "time")
    assert ds["partition"].dims == ("subject", "image")


def test_imagenet_rows(tmp_path):
    written = write_responses(tmp_path, "imagenet_val")
    ds = open_responses(tmp_path, **{**FMRI, "image_set": "imagenet_val"}, roi="V1", subject=1)
    nedx.validate(ds)
    np.testing.assert_array_equal(ds["response"].values, written.values)
    assert ds["image_id"].values[14] == "imagenet-val:row-00014"
    assert ds["imagenet_label"].values.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert ds["category"].values[5] == "goldfish, Carassius auratus"
    assert set(ds["partition"].values) == {"unseen"}
    assert "seen_by_subject" not in ds.coords


def test_eeg_subjects_are_not_those_of_nsd(tmp_path):
    write_responses(tmp_path, "nsd", modality="eeg", count=6)
    ds = open_responses(tmp_path, **{**EEG, "image_set": "nsd"}, subject=1)
    assert ds["image_id"].values.tolist() == [f"nsd:0000{row}" for row in range(6)]
    assert "seen_by_subject" not in ds.coords


KEYS = {
    "slice": np.s_[:, 2:9],
    "step": np.s_[:, 1::3],
    "backwards": np.s_[:, ::-1],
    "twice": np.s_[:, [5, 1, 5, 0]],
    "one": np.s_[0, 4],
    "swapped": np.s_[[1, 0], [7, 3]],
    "inside": np.s_[1:, 3:5, 1:3, [4, 2], ::5],
    "none": np.s_[:, :0],
    "nobody": np.s_[:0, 1:3],
}


@pytest.mark.parametrize("key", KEYS)
def test_selecting_equals_numpy(folder, eeg, key):
    truth = xr.DataArray(np.stack([eeg[1].values, eeg[2].values]))
    ds = open_responses(folder, **EEG)
    assert hasattr(ds["response"].data[KEYS[key]], "plan")
    np.testing.assert_array_equal(ds["response"][KEYS[key]].values, truth[KEYS[key]].values)
    again = ds["response"][KEYS[key]]
    if again.ndim == 5:
        np.testing.assert_array_equal(again[..., 1:4].values, truth[KEYS[key]][..., 1:4].values)


def test_blocks_are_small_and_hold_whole_rows(folder, eeg, monkeypatch):
    monkeypatch.setattr("nedx.sources.berg.hdf5.TARGET_BYTES", 5 * ROW + 1)
    ds = open_responses(folder, **EEG)
    assert ds["response"].chunks[:2] == ((1, 1), (5, 5, 2))
    truth = np.stack([eeg[1].values, eeg[2].values])
    np.testing.assert_array_equal(ds["response"].values, truth)


def test_nothing_is_computed_on_opening(folder, v1, eeg):
    with computes_at_most(0):
        ds = open_responses(folder, **EEG)
        ds.sel(channel=["O1", "Oz"]).isel(image=slice(3)).ned.sel(time=(0.0, 0.2))
        open_responses(folder, **FMRI, roi="V1")


def test_opening_reads_no_responses(tmp_path):
    written = write_responses(tmp_path, "things", modality="eeg", count=40)
    assert written.path.stat().st_size > 5_600_000
    write_responses(tmp_path, "things", modality="eeg", subject=2, count=2)
    server = HttpServer(tmp_path)
    ds = open_responses(server.url, **EEG, subject=1).isel(subject=0)
    # HDF5 is asked where the values begin, through a buffer of 1 MiB.
    assert server.counter.count(r"_sub-01\.h5", "GET") <= 2
    assert server.counter.bytes(r"_sub-01\.h5") <= 2 * 2**20
    assert server.counter.count("sub-02") == 0
    server.counter.forget()
    np.testing.assert_array_equal(ds["response"][39].values, written.values[39])
    assert [s.sent for s in server.counter.seen] == [ROW]
    server.close()


def test_only_the_rows_selected_are_fetched(remote, eeg):
    server, root = remote
    ds = open_responses(root, **EEG, subject=[1, 2])
    server.counter.forget()
    part = ds["response"].isel(image=[9, 2, 3, 4, 7]).sel(subject="sub-02", channel=["Oz"])
    found = part.values
    truth = eeg[2].values[[9, 2, 3, 4, 7]][:, :, [CHANNELS.index("Oz")]]
    np.testing.assert_array_equal(found, truth)
    seen = server.counter.matching(r"\.h5")
    assert sorted(s.sent for s in seen) == [ROW, ROW, 3 * ROW]
    assert not server.counter.matching("sub-01")


def test_rows_of_one_image_by_id(remote, v1):
    server, root = remote
    ds = open_responses(root, **FMRI, roi="V1", subject=4)
    server.counter.forget()
    found = ds.sel(image_id="nsd:00017")["response"].values
    np.testing.assert_array_equal(found, v1[4].values[17])
    assert [s.sent for s in server.counter.matching()] == [10 * 4]


def test_the_full_shape(tmp_path):
    written = write_responses(tmp_path, voxels=200)
    rows = {0: np.arange(200), 41_234: np.arange(200) * 2, 72_999: np.arange(200) * 3}
    write_sparse(written.path, (73_000, 200), rows)
    assert written.path.stat().st_size > 58_400_000
    assert written.path.stat().st_blocks * 512 < 1_000_000
    with computes_at_most(0):
        ds = open_responses(tmp_path, **FMRI, roi="V1", subject=1)
    assert dict(ds.sizes) == {"image": 73_000, "voxel": 200, "roi": 1}
    chosen = ds.sel(image_id=["nsd:72999", "nsd:00000", "nsd:41234"])["response"].values
    np.testing.assert_array_equal(chosen, np.stack([rows[72_999], rows[0], rows[41_234]]))


def test_compressed_files_are_read_too(tmp_path):
    written = write_responses(tmp_path, chunks=(4, 3))
    ds = open_responses(tmp_path, **FMRI, roi="V1", subject=1)
    np.testing.assert_array_equal(ds["response"].values, written.values)
    found = ds["response"][[30, 2, 3]].values
    np.testing.assert_array_equal(found, written.values[[30, 2, 3]])


def test_import_and_import_again(folder, v1, eeg, tmp_path):
    for name, what in (("eeg", EEG), ("fmri", {**FMRI, "roi": "V1"})):
        opened = open_responses(folder, **what)
        for _ in range(2):
            import_responses(folder, tmp_path / name, **what)
        stored = nedx.open_store(tmp_path / name)
        nodes = [(opened, stored)] if name == "eeg" else [(opened[s], stored[s]) for s in opened]
        for before, after in nodes:
            np.testing.assert_allclose(after["response"].values, before["response"].values, 1e-3)
            assert after["image_id"].values.tolist() == before["image_id"].values.tolist()
            assert after["partition"].values.tolist() == before["partition"].values.tolist()


def test_a_changed_file_has_other_names_in_dask(tmp_path):
    written = write_responses(tmp_path)
    opened = [open_responses(tmp_path, **FMRI, roi="V1", subject=1) for _ in range(2)]
    assert opened[0]["response"].data.name == opened[1]["response"].data.name
    assert opened[0]["response"][:3].data.name != opened[0]["response"][1:4].data.name
    os.utime(written.path, (1, 1))
    later = open_responses(tmp_path, **FMRI, roi="V1", subject=1)
    assert later["response"].data.name != opened[0]["response"].data.name


def raises(root, error, match, **changes):
    with pytest.raises(error, match=match):
        open_responses(root, **{**FMRI, "roi": "V1", "subject": 1, **changes})


def test_what_is_not_there(folder, v1, eeg, tmp_path):
    raises(folder, SelectionError, r"'sub-02'.*there are those of: sub-01, sub-04", subject=2)
    raises(folder, SelectionError, r"ROI 'V9' of sub-01.*there are: V1", roi="V9")
    raises(folder, SelectionError, r"ROI 'V9' of sub-01.*there are: V1", roi="V9", subject=None)
    raises(folder, SelectionError, r"say of which ROI, roi=; there are: V1", roi=None)
    raises(folder, SelectionError, "image set 'NSD'.*nsd", image_set="NSD")
    raises(folder, SelectionError, "modality 'meg' is unknown", modality="meg")
    raises(folder, SelectionError, "eeg has none", **EEG)
    raises(folder, SelectionError, "the selection is empty", subject=[])
    raises(folder, StoreError, "fmri-nsd-vgg to nsd.*Check the root", model="vgg")
    raises(tmp_path, StoreError, "looked for pregenerated_insilico_neural_responses/modality-fmri")


def test_missing_metadata(tmp_path):
    write_responses(tmp_path, era=BEFORE).metadata_path.unlink()
    raises(tmp_path, StoreError, r"sub-01_roi-V1\.h5.*metadata_sub-01_roi-V1\.npy. Fetch")


def test_files_cut_short(tmp_path):
    written = write_responses(tmp_path)
    data = written.path.read_bytes()
    written.path.write_bytes(data[:-100])
    raises(tmp_path, CorruptStoreError, r"sub-01_roi-V1\.h5 has .*cut short.*Fetch it again")
    # As if the file said itself that it ends here.
    size = len(data) - 100
    head = data[:40] + size.to_bytes(8, "little") + data[48:-100]
    written.path.write_bytes(head)
    raises(tmp_path, CorruptStoreError, r"V1\.h5.*cut short.*Fetch it again")
    written.path.write_bytes(b"<html>quota exceeded</html>" * 100)
    raises(tmp_path, CorruptStoreError, r"V1\.h5 .*not HDF5.*Fetch it again")
    written.path.write_bytes(b"")
    raises(tmp_path, CorruptStoreError, r"V1\.h5 has 0 bytes")


def test_a_file_cut_short_after_opening(tmp_path):
    written = write_responses(tmp_path)
    ds = open_responses(tmp_path, **FMRI, roi="V1", subject=1)
    written.path.write_bytes(written.path.read_bytes()[:-100])
    with pytest.raises(CorruptStoreError, match="gave .* bytes where .* Fetch it again"):
        ds["response"].compute()
    written.path.unlink()
    with pytest.raises(StoreError, match=r"no file .*V1\.h5"):
        ds["response"].compute()


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("betas", np.zeros((40, 7), np.float32), "no dataset 'synthetic.*', it holds betas"),
        (NAME, np.zeros((40, 7), np.float64), r"float64 \(40, 7\), expected float32"),
        (NAME, np.zeros((40, 7), np.int16), "int16"),
        (NAME, np.zeros(40, np.float32), r"\(40,\), expected float32"),
        (NAME, np.zeros((40, 8), np.float32), r"\(40, 8\), its metadata describe 7 voxels"),
        (NAME, np.zeros((40, 7, 1), np.float32), r"describe \(image, voxel\)"),
        (NAME, np.zeros((30, 7), np.float32), "describe between 38 and 73,000 images"),
    ],
)
def test_wrong_files(tmp_path, name, values, match):
    written = write_responses(tmp_path)
    with h5py.File(written.path, "w") as file:
        file[name] = values
    raises(tmp_path, ModelError, rf"sub-01_roi-V1\.h5.*{match}|{match}.*sub-01_roi-V1\.h5")


@pytest.mark.parametrize("image_set", ["imagenet_val", "things"])
def test_other_images_than_the_metadata_say(tmp_path, image_set):
    written = write_responses(tmp_path, image_set)
    with h5py.File(written.path, "w") as file:
        file[NAME] = np.zeros((9, 7), np.float32)
    raises(tmp_path, ModelError, f"describe {COUNTS[image_set]} images", image_set=image_set)


def test_a_file_that_was_never_filled(tmp_path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(NAME, (5, 3), np.float32)
    with pytest.raises(CorruptStoreError, match=r"empty\.h5 was never filled"):
        open_rows(Location.of(tmp_path), "empty.h5", NAME)


def test_metadata_of_other_responses(tmp_path):
    written = write_responses(tmp_path)
    for key in ("nsd_labels", "fmri", "encoding_models"):
        rest = {name: value for name, value in written.metadata.items() if name != key}
        save(written.metadata_path, rest)
        raises(tmp_path, ModelError, rf"metadata_sub-01_roi-V1\.npy lacks .*{key}.*fetch it again")


def test_eeg_of_other_montages(tmp_path):
    for subject in (1, 2):
        written = write_responses(tmp_path, "things", modality="eeg", subject=subject)
    metadata = dict(written.metadata)
    metadata["eeg"] = {**metadata["eeg"], "ch_names": [*CHANNELS[::-1]]}
    save(written.metadata_path, metadata)
    with pytest.raises(ModelError, match="of sub-02 are not those of sub-01"):
        open_responses(tmp_path, **EEG)


def test_servers_that_do_not_answer():
    options = {"endpoint_url": "http://127.0.0.1:9"}
    nowhere = Location.of(BUCKET, anonymous=True, storage_options=options)
    for root, name in ((nowhere, "brain-encoding"), (Location.of("http://127.0.0.1:9"), "127")):
        for subject in (1, None):
            raises(root, StoreError, f"{name}.* cannot be read", subject=subject)


def test_a_server_that_fails_on_the_way(remote, eeg):
    server, root = remote
    ds = open_responses(root, **EEG, subject=1).isel(subject=0)
    with server.counter.faulty("503", match=r"\.h5", times=1):
        np.testing.assert_array_equal(ds["response"][:2].values, eeg[1].values[:2])
    with server.counter.faulty("403", match=r"\.h5"), pytest.raises(StoreError, match="refuses"):
        ds["response"][:2].compute()


def test_a_server_without_ranges(web, eeg):
    ds = open_responses(web.url, **EEG, subject=1).isel(subject=0)
    with (
        web.counter.faulty("norange", match=r"\.h5"),
        pytest.raises(StoreError, match="download the file"),
    ):
        ds["response"][2].compute()
