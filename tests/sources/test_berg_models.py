"""Published models against a plain numpy reading of their formulas."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import CorruptStoreError, ModelError, SelectionError, StoreError
from nedx.sources.berg import open_model
from tests.berg import models, tree
from tests.encoding.truth import GABOR, features, random_pixels
from tests.encoding.truth import stimuli as noise

EEG, NSD = "eeg-things_eeg_2-vit_b_32", "fmri-nsd_fsaverage-vit_b_32"
TVSD = "utah_array-tvsd-vit_b_32"
MEG, THINGS = "meg-things_meg_1-vit_b_32", "fmri-things_fmri_1-vit_b_32"
N_IMAGES = 7


@pytest.fixture(scope="module")
def taps():
    return features(random_pixels(N_IMAGES)).astype(np.float64)


@pytest.fixture(scope="module")
def width(taps):
    return taps.shape[1]


@pytest.fixture
def images():
    ds = noise(N_IMAGES)
    ids = ["nsd:00000", "nsd:00011", "nsd:00012", "nsd:00002", "nsd:00003", "nsd:00099"]
    ids = np.array([*ids, "things:abacus_02b"], dtype=object)
    return nedx.parse(ds.assign_coords(image_id=("image", ids)))


def plain(taps, scaler, pca, regression):
    """The formulas of the toolboxes, step by step in float64."""
    standard = (taps - scaler["mean_"]) / scaler["scale_"]
    components = (standard - pca["mean_"]) @ pca["components_"].T.astype(np.float64)
    return components @ regression["coef_"].T + regression["intercept_"]


def close(found: xr.DataArray, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def eeg_truth(taps, weights):
    pcas = weights["pca_param"]
    own = "components_" not in pcas
    responses = [
        plain(taps, weights["scaler_param"], vars(pcas[name]) if own else pcas, fit)
        for name, fit in weights["reg_param"].items()
    ]
    return np.stack(responses, axis=1).reshape(len(taps), 4, 63, 140)


@pytest.mark.parametrize("version", [1, 2])
def test_eeg(tmp_path, taps, width, images, version):
    wrote = tree.write_eeg(tmp_path, 1, width, version=version)
    encoded = images.ned.encode(open_model(tmp_path, EEG, subject=1, backbone=GABOR))
    response = encoded["response"]
    assert response.dims == ("subject", "image", "repetition", "channel", "time")
    close(response[0], eeg_truth(taps, wrote["weights"]))
    nedx.validate(encoded)
    accuracy = wrote["metadata"]["encoding_models"]["correlation_averaged_repetitions"]
    np.testing.assert_allclose(encoded["encoding_accuracy"][0], accuracy, rtol=1e-6)
    assert encoded["partition"].values[0].tolist() == [*["unseen"] * 6, "test"]
    assert response.attrs["transform"] == "csd"
    assert encoded.attrs["license"] == "CC-BY-NC-4.0"


@pytest.mark.parametrize("factor", [1, 100])
def test_ceilings_of_eeg_are_fractions_whatever_the_file_says(tmp_path, width, factor):
    tree.write_eeg(tmp_path, 1, width, model="alexnet")
    place = next(tmp_path.rglob("metadata_subject-01.npy"))
    metadata = np.load(place, allow_pickle=True).item()
    ceiling = np.random.default_rng(0).uniform(0.05, 0.9, (63, 140))
    metadata["eeg"]["noise_ceiling"] = factor * ceiling
    models.save(place, metadata)
    model = open_model(tmp_path, "eeg-things_eeg_2-alexnet", subject=1, backbone=GABOR)
    np.testing.assert_allclose(model.weights["noise_ceiling"][0], ceiling, rtol=1e-6)


def test_versions_are_told_apart_file_by_file(tmp_path, taps, width, images):
    first = tree.write_eeg(tmp_path, 1, width, version=1)
    second = tree.write_eeg(tmp_path, 2, width, version=2)
    each = [open_model(tmp_path, EEG, subject=s, backbone=GABOR) for s in (1, 2)]
    for model, wrote in zip(each, (first, second), strict=True):
        encoded = images.ned.encode(model, channel=["Oz", "Pz"], time=0.1)
        truth = eeg_truth(taps, wrote["weights"])[:, :, [15, 11]][..., [40]]
        close(encoded["response"][0], truth)


@pytest.mark.parametrize("version", [1, 2])
def test_fsaverage_subjects_share_the_surface(tmp_path, taps, width, images, version):
    wrote = [tree.write_fsaverage(tmp_path, s, width, version=version) for s in (1, 2)]
    model = open_model(tmp_path, NSD, subject=["sub-01", 2], backbone=GABOR)
    encoded = images.ned.encode(model)
    for s, one in enumerate(wrote):
        parts = one["weights"]
        halves = [
            plain(taps, parts["scaler_param"], parts["pca_param"], parts[f"{h}_reg_param"])
            for h in ("lh", "rh")
        ]
        close(encoded["response"][s], np.concatenate(halves, axis=1))
    nedx.validate(encoded)
    assert encoded["hemisphere"].values.tolist() == ["L"] * 60 + ["R"] * 60
    assert encoded["partition"].values.tolist() == [
        ["train", "train", "unseen", "val", "test", "unseen", "unseen"],
        ["train", "unseen", "train", "val", "test", "unseen", "unseen"],
    ]
    assert np.isnan(encoded["encoding_accuracy"].values[:, [0, 60]]).all()


def test_a_roi_is_its_slice_of_the_whole(tmp_path, width, images):
    for s in (1, 2):
        tree.write_fsaverage(tmp_path, s, width)
    whole = images.ned.encode(open_model(tmp_path, NSD, subject=[1, 2], backbone=GABOR))
    model = open_model(tmp_path, NSD, subject=[1, 2], backbone=GABOR)
    for roi in ("V1v", ["early", "V1v"], "FFA-2", "OWFA"):
        part = images.ned.encode(model, roi=roi)
        same = whole["response"].sel(vertex=part["vertex"])
        np.testing.assert_allclose(part["response"], same, rtol=0, atol=1e-5)
    only = images.ned.encode(model, subject=2, roi="FFA-2")
    assert only["vertex"].values.tolist() == [82, 83]


def test_one_image_is_its_row_of_a_batch(tmp_path, width, images):
    tree.write_eeg(tmp_path, 1, width)
    model = open_model(tmp_path, EEG, subject=1, backbone=GABOR)
    whole = images.ned.encode(model)["response"].values
    alone = images.isel(image=[4]).ned.encode(model)["response"]
    assert alone.shape == (1, 1, 4, 63, 140)
    np.testing.assert_allclose(alone, whole[:, 4:5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("split", ["full", "all_training_splits"])
def test_meg_in_both_orders(tmp_path, taps, width, images, time_first, split):
    wrote = tree.write_meg(tmp_path, 1, width, time_first=time_first, split=split)
    encoded = images.ned.encode(open_model(tmp_path, MEG, subject=1, backbone=GABOR))
    parts = wrote["weights"]
    flat = plain(taps, parts["scaler_param"], parts["pca_param"], parts["reg_param"])
    truth = flat.reshape(-1, 2, 3).swapaxes(1, 2) if time_first else flat.reshape(-1, 3, 2)
    close(encoded["response"][0], truth)
    ceiling = wrote["metadata"]["encoding_model"]["noise_ceiling"] / 100
    found = encoded["noise_ceiling"].values[0]
    np.testing.assert_allclose(found, ceiling.T if time_first else ceiling, rtol=1e-6)
    assert encoded["region"].values.tolist() == ["Central", "Occipital", "Parietal"]


def test_things_fmri(tmp_path, taps, width, images):
    wrote = tree.write_things_fmri(tmp_path, 2, width)
    encoded = images.ned.encode(open_model(tmp_path, THINGS, subject=2, backbone=GABOR))
    parts = wrote["weights"]
    flat = plain(taps, parts["scaler_param"], parts["pca_param"], parts["reg_param"])
    close(encoded["response"].squeeze("subject"), flat)
    percent = wrote["metadata"]["encoding_model"]["noise_ceiling_testset"]
    np.testing.assert_allclose(encoded["noise_ceiling"].squeeze(), percent / 100, rtol=1e-6)
    assert encoded.ned.roi("lFFA")["voxel"].values.tolist() == [2, 7]


@pytest.mark.parametrize("subject", [None, [3, 1]])
def test_subjects_with_voxels_of_their_own(tmp_path, taps, width, images, subject):
    wrote = {f"sub-{s:02d}": tree.write_things_fmri(tmp_path, s, width) for s in (1, 2, 3)}
    model = open_model(tmp_path, THINGS, subject=subject, backbone=GABOR)
    wanted = ["sub-03", "sub-01"] if subject else list(wrote)
    assert model.is_ragged
    assert list(model.subjects) == wanted
    encoded = images.ned.encode(model)
    for name in wanted:
        parts = wrote[name]["weights"]
        truth = plain(taps, parts["scaler_param"], parts["pca_param"], parts["reg_param"])
        close(encoded[name]["response"].squeeze(), truth)
        alone = images.ned.encode(open_model(tmp_path, THINGS, subject=name, backbone=GABOR))
        alone = alone.squeeze("subject", drop=True)
        for label in ("noise_ceiling", "roi_mask", "i"):
            np.testing.assert_array_equal(encoded[name][label], alone[label])
    one = images.ned.encode(model, subject=wanted[0], roi="lFFA")
    chosen = encoded[wanted[0]].to_dataset().ned.roi("lFFA")
    found = one if isinstance(one, xr.Dataset) else one[wanted[0]].to_dataset()
    np.testing.assert_allclose(found["response"].squeeze(), chosen["response"].squeeze(), atol=1e-5)
    model.to_zarr(tmp_path / "all.zarr")
    again = images.ned.encode(nedx.load_model(tmp_path / "all.zarr"))
    for name in wanted:
        np.testing.assert_allclose(again[name]["response"], encoded[name]["response"], atol=1e-5)
        nedx.validate(encoded[name].to_dataset())


def test_arrays_of_two_animals_that_are_numbered_otherwise(tmp_path, width, images):
    for animal in "FN":
        tree.write_tvsd(tmp_path, animal, width)
    place = next(tmp_path.rglob("metadata_monkeyN.npy"))
    metadata = np.load(place, allow_pickle=True).item()
    home = metadata.get("utah_array", metadata.get("utah-array"))
    home["electrode_order"] = np.asarray(home["electrode_order"])[::-1]
    models.save(place, metadata)
    encoded = images.ned.encode(open_model(tmp_path, TVSD, backbone=GABOR))
    assert len(encoded.children) == 2
    for name, found in encoded.children.items():
        alone = images.ned.encode(open_model(tmp_path, TVSD, subject=name, backbone=GABOR))
        close(found["response"].values, alone["response"].squeeze("subject").values)
        np.testing.assert_array_equal(found["electrode"], alone["electrode"])


def test_tvsd(tmp_path, taps, width, images):
    wrote = tree.write_tvsd(tmp_path, "N", width)
    model = open_model(tmp_path, TVSD, subject="N", backbone=GABOR)
    encoded = images.ned.encode(model, roi="V4")
    parts = wrote["weights"]
    flat = plain(taps, parts["scaler_param"], parts["pca_param"], parts["reg_param"])
    v4 = wrote["metadata"]["roi"]["roi_assignments"] == 1
    close(encoded["response"].squeeze("subject"), flat.reshape(-1, 24, 300)[:, v4])
    nedx.validate(encoded)


def test_ned_kept_one_pca_for_all_subjects(tmp_path, taps, width, images):
    wrote = [tree.write_ned_eeg(tmp_path, s, width)["weights"] for s in (1, 2)]
    encoded = images.ned.encode(open_model(tmp_path, EEG, subject=[1, 2], backbone=GABOR))
    for found, weights in zip(encoded["response"], wrote, strict=True):
        used = {**weights["pca_param"]}
        used["components_"] = used["components_"][: models.COMPONENTS]
        close(found, eeg_truth(taps, {**weights, "pca_param": used}))
    assert encoded["response"].attrs["normalization_scope"] == "session"


def test_a_file_is_read_once(tmp_path, width, images, caplog):
    tree.write_eeg(tmp_path, 1, width)
    with caplog.at_level(logging.INFO, "nedx.sources.berg"):
        open_model(tmp_path, EEG, subject=1, backbone=GABOR)
        open_model(tmp_path, EEG, subject=1, backbone=GABOR)
    assert sum("once" in record.message for record in caplog.records) == 1
    tree.write_eeg(tmp_path, 1, width, version=2)
    with caplog.at_level(logging.INFO, "nedx.sources.berg"):
        open_model(tmp_path, EEG, subject=1, backbone=GABOR)
    assert sum("once" in record.message for record in caplog.records) == 2


class TestBadInput:
    @pytest.fixture
    def weights(self, tmp_path, width):
        tree.write_eeg(tmp_path, 1, width)
        return next(tmp_path.rglob("weights_subject-01.npy"))

    def refused(self, tmp_path, error, said, **options):
        options = {"subject": 1, "backbone": GABOR, **options}
        with pytest.raises(error, match=said):
            open_model(tmp_path, EEG, **options)

    def test_cut_short(self, tmp_path, weights):
        whole = weights.read_bytes()
        for size in (0, 50, 300, len(whole) // 2, len(whole) - 1):
            weights.write_bytes(whole[:size])
            self.refused(tmp_path, CorruptStoreError, r"weights_subject-01.npy .*Fetch it again")

    def test_a_foreign_class_is_named_and_not_run(self, tmp_path, weights):
        class Evil:
            def __reduce__(self):
                return exec, ("open('harm', 'w').close()",)

        np.save(weights, np.array({"scaler_param": Evil()}, dtype=object), allow_pickle=True)
        self.refused(tmp_path, ModelError, r"weights_subject-01.npy is refused: it names .*exec")

    def test_another_array(self, tmp_path, weights):
        np.save(weights, np.zeros((3, 2)))
        self.refused(tmp_path, ModelError, r"array \(3, 2\) of float64, expected one pickled")

    def test_not_npy(self, tmp_path, weights):
        weights.write_bytes(pickle.dumps({}))
        self.refused(tmp_path, CorruptStoreError, "not a .npy file")

    def test_other_weights(self, tmp_path, weights, width):
        tree.save(weights, {"scaler_param": {}, "else": 1})
        self.refused(tmp_path, ModelError, r"weights_subject-01.npy has no .*it holds scaler_param")

    def test_metadata_missing(self, tmp_path, weights):
        next(tmp_path.rglob("metadata_subject-01.npy")).unlink()
        self.refused(tmp_path, StoreError, "the metadata of .*metadata_subject-01.npy")

    def test_subject_missing(self, tmp_path, weights):
        self.refused(tmp_path, SelectionError, "no subject 'sub-11'", subject=11)
        self.refused(tmp_path, StoreError, "weights_subject-02.npy", subject=2)

    def test_another_backbone(self, tmp_path, weights, width):
        narrow = GABOR.model_copy(update={"layers": ("energy_0",)})
        said = rf"weights_subject-01.npy was fitted to {width} features, gabor has {width // 3}"
        self.refused(tmp_path, ModelError, said, backbone=narrow)

    def test_nothing_is_left_behind(self, tmp_path, weights, monkeypatch):
        monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
        weights.write_bytes(weights.read_bytes()[:-1000])
        self.refused(tmp_path, CorruptStoreError, "Fetch it again")
        assert not list((tmp_path / "cache").rglob("*.zarr*"))
