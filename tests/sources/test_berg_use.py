"""Published models in use: preprocessing, projections that subjects share, labels, full size."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nedx
from nedx.errors import ModelError, SelectionError, StimulusError
from nedx.sources.berg import open_model
from nedx.stimuli.preprocessing import policy
from tests.berg import models, tree
from tests.encoding.truth import GABOR, features, random_pixels, stimuli
from tests.laziness import computes_at_most

EEG, NSD = "eeg-things_eeg_2-vit_b_32", "fmri-nsd_fsaverage-vit_b_32"
MEG, TVSD = "meg-things_meg_1-vit_b_32", "utah_array-tvsd-vit_b_32"
N_IMAGES = 5
WIDTH = features(random_pixels(1)).shape[1]
LARGE = GABOR.model_copy(update={"image_size": 224})


def predicted(taps, parts, regression):
    """The formulas of the toolboxes in float64, of as many components as are used."""
    used = regression["coef_"].shape[1]
    scaler, pca = parts["scaler_param"], parts["pca_param"]
    standard = (taps - scaler["mean_"]) / scaler["scale_"]
    components = (standard - pca["mean_"]) @ pca["components_"][:used].T.astype(np.float64)
    return components @ regression["coef_"].T + regression["intercept_"]


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class TestPreprocessing:
    @pytest.mark.parametrize("name", ["berg", "train"])
    def test_the_result_says_which_it_was(self, tmp_path, name):
        parts = tree.write_fsaverage(tmp_path, 1, WIDTH)["weights"]
        model = open_model(tmp_path, NSD, subject=1, backbone=LARGE, preprocessing=name)
        out = stimuli(N_IMAGES).ned.encode(model)
        recipe = LARGE.model_copy(update={"policy": name})
        taps = features(random_pixels(N_IMAGES), recipe).astype(np.float64)
        halves = [predicted(taps, parts, parts[f"{side}_reg_param"]) for side in ("lh", "rh")]
        close(out["response"][0], np.concatenate(halves, axis=1))
        attrs = out["response"].attrs
        assert json.loads(attrs["image_preprocessing"]) == policy(name).describe()
        assert json.loads(attrs["image_preprocessing"])["policy"] == name
        assert json.loads(attrs["backbone"])["policy"] == name

    def test_the_toolbox_is_matched_unless_something_else_is_asked_for(self, tmp_path, monkeypatch):
        from nedx.sources.berg import models as module

        tree.write_eeg(tmp_path, 1, WIDTH)
        monkeypatch.setattr(module, "default_recipe", lambda *_, **__: LARGE)
        assert open_model(tmp_path, EEG, subject=1).recipe.backbone.policy == "berg"
        given = open_model(tmp_path, EEG, subject=1, backbone=LARGE)
        assert given.recipe.backbone.policy == LARGE.policy == "raw01"

    def test_models_fitted_to_what_the_toolbox_does(self, tmp_path):
        tree.write_meg(tmp_path, 1, WIDTH)
        tree.write_ned_eeg(tmp_path, 1, WIDTH)
        for model in (MEG, EEG):
            opened = open_model(tmp_path, model, subject=1, backbone=LARGE, preprocessing="train")
            assert opened.recipe.backbone.policy == "berg"

    def test_another_name(self, tmp_path):
        with pytest.raises(SelectionError, match=r"'torch'; .*='berg'.*='train'"):
            open_model(tmp_path, NSD, subject=1, preprocessing="torch")

    def test_what_nobody_knows(self, tmp_path):
        tree.write_tvsd(tmp_path, "N", WIDTH)
        with pytest.raises(SelectionError, match="how images were prepared when utah_array"):
            open_model(tmp_path, TVSD, subject="N", backbone=LARGE, preprocessing="train")

    def test_images_that_are_not_square_are_refused(self, tmp_path):
        tree.write_fsaverage(tmp_path, 1, WIDTH)
        model = open_model(tmp_path, NSD, subject=1, backbone=LARGE, preprocessing="berg")
        with pytest.raises(StimulusError, match="square"):
            stimuli(N_IMAGES).isel(y=slice(40)).ned.encode(model)


class TestOneProjectionOfAllSubjects:
    @pytest.fixture
    def wrote(self, tmp_path):
        return [tree.write_ned_eeg(tmp_path, s, WIDTH)["weights"] for s in range(1, 11)]

    def test_ten_subjects_read_it_once(self, tmp_path, wrote, monkeypatch):
        from nedx.encoding import loading

        read = []
        original = loading.read_array

        def spied(array, *arguments):
            read.append(array.path.rpartition("/")[2])
            return original(array, *arguments)

        monkeypatch.setattr(loading, "read_array", spied)
        model = open_model(tmp_path, EEG, backbone=GABOR)
        out = stimuli(N_IMAGES).ned.encode(model, channel=["Oz", "Pz"], time=0.1)
        found = out["response"].values
        assert read.count("projection_offset") == 1
        assert read.count("projection") == len(GABOR.layers)
        taps = features(random_pixels(N_IMAGES)).astype(np.float64)
        for response, parts in zip(found, wrote, strict=True):
            fits = parts["reg_param"].values()
            truth = np.stack([predicted(taps, parts, fit) for fit in fits], axis=1)
            truth = truth.reshape(N_IMAGES, 4, 63, 140)[:, :, [15, 11]][..., [40]]
            close(response, truth)

    def test_what_was_kept_of_one_serves_all(self, tmp_path, wrote):
        one = open_model(tmp_path, EEG, subject=3, backbone=GABOR)
        kept = stimuli(N_IMAGES).ned.encode(one, keep_components=True, channel="Oz", time=0.1)
        kept = kept[["components"]].drop_vars(["subject", "channel", "time"], errors="ignore")
        several = open_model(tmp_path, EEG, subject=[7, 2], backbone=GABOR)
        reused = kept.ned.encode(several, channel="Oz", time=0.1)
        anew = stimuli(N_IMAGES).ned.encode(several, channel="Oz", time=0.1)
        assert reused["subject"].values.tolist() == ["sub-07", "sub-02"]
        np.testing.assert_allclose(reused["response"], anew["response"], rtol=0, atol=1e-5)

    def test_subjects_with_their_own_keep_them_apart(self, tmp_path):
        for subject in (1, 2):
            tree.write_eeg(tmp_path, subject, WIDTH)
        model = open_model(tmp_path, EEG, subject=[1, 2], backbone=GABOR)
        assert "subject" in model.weights["projection"].dims


class TestLabels:
    def test_eeg_channels_by_group_and_region(self, tmp_path):
        tree.write_eeg(tmp_path, 1, WIDTH)
        model = open_model(tmp_path, EEG, subject=1, backbone=GABOR)
        expected = {
            "O": [name for name in models.CHANNELS if "O" in name],
            "C": [name for name in models.CHANNELS if "C" in name],
            "visual": ["Pz", "PO3", "POz", "PO4", "O1", "Oz", "O2"],
            "occipital": ["O1", "Oz", "O2", "PO7", "PO3", "POz", "PO4", "PO8"],
            "temporal": ["FT9", "T7", "TP9", "TP10", "T8", "FT10", "FT7", "TP7", "TP8", "FT8"],
        }
        for name, channels in expected.items():
            out = stimuli(N_IMAGES).ned.encode(model, channel=name)
            assert out["channel"].values.tolist() == channels
        whole = stimuli(N_IMAGES).ned.encode(model)
        assert set(whole["region"].values) == {
            "frontal", "central", "temporal", "parietal", "occipital",
        }  # fmt: skip
        sides = dict(zip(whole["channel"].values, whole["hemisphere"].values, strict=True))
        assert [sides[name] for name in ("FT9", "TP10", "POz")] == ["L", "R", "midline"]
        nedx.validate(nedx.parse(whole))

    def test_meg_sensors_by_prefix_region_and_hemisphere(self, tmp_path):
        tree.write_meg(tmp_path, 1, WIDTH)
        model = open_model(tmp_path, MEG, subject=1, backbone=GABOR)
        for name in ("MRO", "Occipital", "MRO21-1609"):
            out = stimuli(N_IMAGES).ned.encode(model, channel=name)
            assert out["channel"].values.tolist() == ["MRO21-1609"]
            assert out["response"].shape == (1, N_IMAGES, 1, 2)
        several = stimuli(N_IMAGES).ned.encode(model, channel=["MZP", "Central"])
        assert several["channel"].values.tolist() == ["MZP01-1609", "MLC11-1609"]
        whole = stimuli(N_IMAGES).ned.encode(model)
        assert whole["hemisphere"].values.tolist() == ["L", "R", "midline"]
        nedx.validate(nedx.parse(whole))

    def test_one_hemisphere_of_fsaverage(self, tmp_path):
        tree.write_fsaverage(tmp_path, 1, WIDTH)
        whole = stimuli(N_IMAGES).ned.encode(open_model(tmp_path, NSD, subject=1, backbone=GABOR))
        right = whole.isel(vertex=whole["hemisphere"].values == "R")
        assert right["vertex"].values.tolist() == list(range(60, 120))
        assert right["vertex_index"].values.tolist() == list(range(60))
        part = whole["response"].values[:, :, 60:]
        np.testing.assert_allclose(right["response"], part, rtol=0, atol=1e-5)


class TestFullSize:
    def test_every_vertex_of_fsaverage(self, tmp_path, monkeypatch):
        monkeypatch.setattr(models, "COMPONENTS", 2)
        wrote = tree.write_fsaverage(tmp_path, 1, WIDTH, vertices=163_842)
        model = open_model(tmp_path, NSD, subject=1, backbone=GABOR)
        with computes_at_most(0):
            out = stimuli(N_IMAGES).ned.encode(model)
            assert out["response"].shape == (1, N_IMAGES, 327_684)
            assert out["vertex"].attrs["density"] == "164k"
            roi = out.ned.roi("FFA-2")["response"]
        taps = features(random_pixels(N_IMAGES)).astype(np.float64)
        truth = predicted(taps, wrote["weights"], wrote["weights"]["rh_reg_param"])
        close(roi[0], truth[:, [21, 22]])

    def test_the_names_of_all_training_images(self, tmp_path):
        wrote = tree.write_eeg(tmp_path, 1, WIDTH)["metadata"]
        path = next(tmp_path.rglob("metadata_subject-01.npy"))
        names = [f"{concept}_{n:02d}b.jpg" for concept in _concepts(1654) for n in range(1, 11)]
        tests = [f"{concept}_01b.jpg" for concept in _concepts(200, "tested")]
        wrote["encoding_models"]["train_img_info"]["train_img_files"] = names
        wrote["encoding_models"]["test_img_info"]["test_img_files"] = tests
        models.save(path, wrote)
        model = open_model(tmp_path, EEG, subject=1, backbone=GABOR)
        asked = ["things:thing0007_03b", "things:tested0199_01b", "things:else_01b"]
        ids = ("image", np.array(asked, dtype=object))
        images = nedx.parse(stimuli(3).assign_coords(image_id=ids))
        out = images.ned.encode(model)
        assert out["partition"].values.tolist() == [["train", "test", "unseen"]]
        assert model.weights.sizes["known_image"] == 16_540 + 200


def _concepts(count, name="thing"):
    return [f"{name}{number:04d}" for number in range(count)]


class TestBadInput:
    def test_the_layers_of_another_network(self, tmp_path):
        tree.write_fsaverage(tmp_path, 1, WIDTH + 4)
        with pytest.raises(ModelError, match=r"Type: backbone=default_recipe\('vit_b_32'\)$"):
            open_model(tmp_path, NSD, subject=1, backbone=GABOR)

    def test_metadata_of_a_larger_surface(self, tmp_path):
        tree.write_fsaverage(tmp_path, 1, WIDTH, vertices=80)
        weights = next(tmp_path.rglob("weights_subject-01.npy")).read_bytes()
        tree.write_fsaverage(tmp_path, 1, WIDTH)
        next(tmp_path.rglob("weights_subject-01.npy")).write_bytes(weights)
        with pytest.raises(ModelError, match="predicts 160 targets, the metadata name 120"):
            open_model(tmp_path, NSD, subject=1, backbone=GABOR)

    def test_nothing_is_left_behind_by_any(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
        tree.write_ned_eeg(tmp_path, 1, WIDTH)
        tree.write_ned_eeg(tmp_path, 2, WIDTH)
        path = next(tmp_path.rglob("LinearRegression_param_sub-02.npy"))
        path.write_bytes(path.read_bytes()[:-4000])
        with pytest.raises(nedx.errors.CorruptStoreError, match="sub-02.npy .*Fetch it again"):
            open_model(tmp_path, EEG, subject=[1, 2], backbone=GABOR)
        kept = [p.name[:6] for p in (tmp_path / "cache").rglob("*.zarr*")]
        assert kept == ["sub-01"]
