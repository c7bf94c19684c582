"""Small models in the very files of the published toolboxes, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_NAMES = """
Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 FC6 FC2
F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz CP4 TP8
C6 C2 FC4 FT8 F6 F2 AF4 AF8
"""
CHANNELS = tuple(_NAMES.split())
TIMES = np.round(np.arange(140) * 0.005 - 0.1, 3)
COMPONENTS = 5
FOLDER = "encoding_models/modality-{}/train_dataset-{}/model-{}"


def save(path: Path, content: dict[str, Any]) -> None:
    """Pickle a dictionary as a 0-d array, as the toolboxes do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def linear(rng: np.random.Generator, targets: int) -> dict[str, Any]:
    return {
        "coef_": rng.standard_normal((targets, COMPONENTS), dtype=np.float32),
        "intercept_": rng.standard_normal(targets, dtype=np.float32),
        "n_features_in_": COMPONENTS,
    }


def scaler(rng: np.random.Generator, features: int) -> dict[str, Any]:
    scale = rng.uniform(0.5, 2, features)
    return {
        "scale_": scale,
        "mean_": rng.standard_normal(features),
        "var_": scale**2,
        "n_features_in_": features,
        "n_samples_seen_": np.int64(16540),
    }


def pca(rng: np.random.Generator, features: int) -> dict[str, Any]:
    components, _ = np.linalg.qr(rng.standard_normal((features, COMPONENTS)))
    variance = np.arange(COMPONENTS, 0, -1, dtype=np.float32)
    return {
        "components_": components.T.astype(np.float32),
        "mean_": 0.1 * rng.standard_normal(features).astype(np.float32),
        "explained_variance_": variance,
        "explained_variance_ratio_": variance / variance.sum(),
        "singular_values_": np.sqrt(variance),
        "n_components_": COMPONENTS,
        "n_samples_": 16540,
        "noise_variance_": np.float32(0.1),
        "n_features_in_": features,
    }


def pca_object(rng: np.random.Generator, features: int) -> Any:
    """Return a PCA of scikit-learn, as the files of 2026 hold them."""
    from sklearn.decomposition import PCA

    made = PCA(COMPONENTS)
    for name, value in pca(rng, features).items():
        setattr(made, name, value)
    return made


def write_eeg(
    root: Path, subject: int, features: int, *, version: int = 1, model: str = "vit_b_32"
) -> dict[str, Any]:
    """Write a THINGS-EEG2 model; the second version has components for each repetition."""
    rng = np.random.default_rng(subject)
    repetitions = [f"rep-{r}" for r in range(1, 5)]
    weights = {
        "scaler_param": scaler(rng, features),
        "pca_param": pca(rng, features)
        if version == 1
        else {name: pca_object(rng, features) for name in repetitions},
        "reg_param": {name: linear(rng, len(CHANNELS) * len(TIMES)) for name in repetitions},
    }
    shape = (len(CHANNELS), len(TIMES))
    metadata = {
        "eeg": {"ch_names": list(CHANNELS), "times": TIMES},
        "encoding_models": {
            "correlation_averaged_repetitions": rng.uniform(0, 0.8, shape),
            "correlation_single_repetitions": rng.uniform(0, 0.7, (4, *shape)),
            "train_img_info": {
                "train_img_concepts": ["00001_aardvark"],
                "train_img_concepts_THINGS": ["00001_aardvark"],
                "train_img_files": ["aardvark_01b.jpg", "aardvark_02s.jpg"],
            },
            "test_img_info": {
                "test_img_concepts": ["00002_abacus"],
                "test_img_concepts_THINGS": ["00002_abacus"],
                "test_img_files": ["abacus_02b.jpg"],
            },
        },
    }
    folder = root / FOLDER.format("eeg", "things_eeg_2", model)
    save(folder / "encoding_models_weights" / f"weights_subject-{subject:02d}.npy", weights)
    save(folder / "metadata" / f"metadata_subject-{subject:02d}.npy", metadata)
    return {"weights": weights, "metadata": metadata}


def write_fsaverage(
    root: Path, subject: int, features: int, *, vertices: int = 60, version: int = 1
) -> dict[str, Any]:
    """Write an NSD model on a small surface: overlapping ROIs, one empty on the left."""
    rng = np.random.default_rng(100 + subject)
    weights = {
        "scaler_param": scaler(rng, features),
        "pca_param": pca(rng, features),
        "lh_reg_param": linear(rng, vertices),
        "rh_reg_param": linear(rng, vertices),
    }
    rois = {"V1v": [3, 4, 5], "early": [3, 4, 5, 6, 7], "OWFA": [9], "FFA-2": [20, 21]}
    left = {name: np.array(rows, np.int64) for name, rows in rois.items()}
    right = {name: np.array([r + subject for r in rows], np.int64) for name, rows in rois.items()}
    left["FFA-2"] = np.array([], np.int64)
    figures = {}
    end = "" if version == 1 else "_nsdcore"
    for side in ("lh", "rh"):
        correlation = rng.uniform(0, 0.9, vertices).astype(np.float32)
        correlation[0] = np.nan
        figures[f"{side}_correlation{end}"] = correlation
        figures[f"{side}_r2{end}"] = correlation**2
        figures[f"{side}_noise_ceiling{end}"] = rng.uniform(0, 1, vertices).astype(np.float32)
        figures[f"{side}_explained_variance{end}"] = 100 * figures[f"{side}_r2{end}"]
        if version == 2:
            figures[f"{side}_correlation_nsdsynthetic"] = correlation / 2
    metadata = {
        "fmri": {
            "lh_ncsnr": rng.uniform(0, 1, vertices).astype(np.float32),
            "rh_ncsnr": rng.uniform(0, 1, vertices).astype(np.float32),
            "lh_fsaverage_rois": left,
            "rh_fsaverage_rois": right,
        },
        "encoding_models": {
            "train_img_num": np.array([0, 10 + subject]),
            "val_img_num": np.array([2]),
            "test_img_num": np.array([3]),
            **figures,
        },
    }
    folder = root / FOLDER.format("fmri", "nsd_fsaverage", "vit_b_32")
    save(folder / "encoding_models_weights" / f"weights_subject-{subject:02d}.npy", weights)
    save(folder / "metadata" / f"metadata_subject-{subject:02d}.npy", metadata)
    return {"weights": weights, "metadata": metadata}


def write_meg(
    root: Path, subject: int, features: int, *, split: str = "full", time_first: bool = False
) -> dict[str, Any]:
    """Write a THINGS-MEG model of few sensors and times, in either order of the axes."""
    rng = np.random.default_rng(200 + subject)
    names = ["MLC11-1609", "MRO21-1609", "MZP01-1609"]
    times = np.array([0.0, 0.005])
    shape = (len(times), len(names)) if time_first else (len(names), len(times))
    weights = {
        "scaler_param": scaler(rng, features),
        "pca_param": pca(rng, features),
        "reg_param": linear(rng, 6),
    }
    metadata = {
        "meg": {"times": times, "subject_id": f"P{subject}"},
        "sensors": {
            "sensor_names": names,
            "sensor_prefixes": ["MLC", "MRO", "MZP"],
            "sensor_hemispheres": ["L", "R", "Z"],
            "sensor_regions": ["Central", "Occipital", "Parietal"],
            "n_sensors": 3,
        },
        "encoding_model": {
            "train_img_files": ["aardvark_01b.jpg"],
            "test_img_files": ["abacus_02b.jpg"],
            "ncsnr": rng.uniform(0, 1, shape),
            "noise_ceiling": rng.uniform(0, 100, shape),
            "correlation_results": rng.uniform(0, 0.5, shape),
        },
    }
    folder = root / FOLDER.format("meg", "things_meg_1", "vit_b_32")
    save(folder / "encoding_models_weights" / f"weights_P{subject}_{split}.npy", weights)
    save(folder / "metadata" / f"metadata_P{subject}.npy", metadata)
    return {"weights": weights, "metadata": metadata}


def write_things_fmri(root: Path, subject: int, features: int) -> dict[str, Any]:
    """Write a THINGS-fMRI model of few voxels."""
    rng = np.random.default_rng(300 + subject)
    count = 12
    weights = {
        "scaler_param": scaler(rng, features),
        "pca_param": pca(rng, features),
        "reg_param": linear(rng, count),
    }
    metadata = {
        "fmri": {
            "voxel_coords": rng.integers(0, 60, (count, 3)),
            "n_voxels": count,
            "subject_id": f"{subject:02d}",
        },
        "encoding_model": {
            "train_stimuli": ["aardvark_01b.jpg"],
            "test_stimuli": ["abacus_02b.jpg"],
            "noise_ceiling_testset": rng.uniform(5, 90, count),
            "correlation_results": rng.uniform(0, 0.5, count),
        },
        "roi": {"V1": np.array([1, 2]), "lFFA": np.array([2, 7])},
    }
    folder = root / FOLDER.format("fmri", "things_fmri_1", "vit_b_32")
    save(folder / "encoding_models_weights" / f"weights_sub-{subject:02d}.npy", weights)
    save(folder / "metadata" / f"metadata_sub-{subject:02d}.npy", metadata)
    return {"weights": weights, "metadata": metadata}
