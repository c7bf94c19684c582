"""The rest of the published tree, and all of it at once.

`models` writes the linearised models; here are the fwRF models, TVSD and the files of NED, in the
names, keys (``"args."`` with its dot) and dtypes of the published ones.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from tests.berg.models import (
    CHANNELS,
    FOLDER,
    TIMES,
    linear,
    pca,
    save,
    scaler,
    write_eeg,
    write_fsaverage,
    write_meg,
    write_things_fmri,
)

_FWRF_NAMES = """
V1 V2 V3 hV4 EBA FBA-2 OFA FFA-1 FFA-2 PPA RSC OPA OWFA VWFA-1 VWFA-2 mfs-words early midventral
midlateral midparietal parietal lateral ventral
"""
_FSAVERAGE_NAMES = """
V1v V1d V2v V2d V3v V3d hV4 EBA FBA-1 FBA-2 OFA FFA-1 FFA-2 mTL-faces aTL-faces mTL-bodies PPA RSC
OPA OWFA VWFA-1 VWFA-2 mfs-words mTL-words early midventral midlateral midparietal parietal lateral
ventral
"""
FWRF_ROIS = tuple(_FWRF_NAMES.split())
FSAVERAGE_ROIS = tuple(_FSAVERAGE_NAMES.split())
SPLIT_ROIS = ("lateral", "ventral")
SENSOR_PREFIXES = tuple(
    f"M{side}{region}" for side in "LRZ" for region in "CFOPT" if side + region != "ZT"
)
VOLUME = (9, 8, 7)
"""Shape of the volume; subject 1 has (81, 104, 83)."""

_PUBLIC = np.random.default_rng(0).permutation(73_000)
_TRUNK = {
    "pre.conv1.0": (64, 3, 11, 11),
    "pre.conv2.0": (192, 64, 5, 5),
    "enc.conv3": (128, 192, 3, 3),
    **{f"enc.conv{stage}.conv1": (128, 128, 3, 3) for stage in ("4a", "5a", "6a", "4b", "5b")},
    "enc.conv6b.conv1": (64, 128, 3, 3),
}
_NORMS = {"enc.bn1": 192, **{f"enc.conv{s}.bn1": 128 for s in ("4a", "5a", "6a", "4b", "5b", "6b")}}
_FIELDS = {"rf0": (27, 27), "rf1": (25, 25), "rf2": (13, 13)}


def nsd_splits(subject: int) -> dict[str, np.ndarray]:
    """Return 0-based 73k ids: 9,000 of the subject's own, 485 and 515 that all have seen."""
    shared, own = _PUBLIC[:1000], _PUBLIC[1000 + 9000 * (subject - 1) :][:9000]
    return {
        "train_img_num": np.sort(own),
        "val_img_num": np.sort(shared[:485]),
        "test_img_num": np.sort(shared[485:]),
    }


def trunk_state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the weights of the trunk, at their real size: 1,365,635 and the buffers."""
    state = {"mu": rng.uniform(0.4, 0.5, (1, 3, 1, 1)).astype(np.float32)}
    for name, shape in _TRUNK.items():
        spread = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        state[f"{name}.weight"] = spread * rng.standard_normal(shape, dtype=np.float32)
        state[f"{name}.bias"] = np.float32(0.01) * rng.standard_normal(shape[0], dtype=np.float32)
    for name, width in _NORMS.items():
        state[f"{name}.weight"] = rng.uniform(0.8, 1.2, width).astype(np.float32)
        state[f"{name}.bias"] = np.float32(0.1) * rng.standard_normal(width, dtype=np.float32)
        state[f"{name}.running_mean"] = rng.uniform(0, 0.3, width).astype(np.float32)
        state[f"{name}.running_var"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(5000, np.int64)
    return state


def head_state(rng: np.random.Generator, voxels: int) -> dict[str, np.ndarray]:
    """Return what the voxels read out: 2,292 numbers each."""
    shapes = {**{name: (voxels, *size) for name, size in _FIELDS.items()}, "w": (voxels, 768)}
    state = {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
    state["w"] *= np.float32(0.05)
    return {**state, "b": rng.standard_normal(voxels, dtype=np.float32)}


def _volume(subject: int, roi: str, voxels: int) -> dict[str, Any]:
    """Return where the voxels of a ROI are; its split files share this."""
    rng = np.random.default_rng([400, subject, *roi.encode()])
    mask = np.zeros(VOLUME, bool)
    mask.flat[rng.choice(mask.size, voxels, replace=False)] = True
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    affine[:3, 3] = (-80.1, -100.2, -70.3)
    return {
        "roi_mask_volume": mask,
        "fmri_affine": affine,
        "ncsnr": rng.uniform(0, 1, voxels),
    }


def write_fwrf_metadata(
    root: Path, subject: int, roi: str, voxels: int, *, ned: bool = False
) -> dict[str, Any]:
    """Write the metadata of a ROI; NED nests them, and has a fraction where BERG has percent."""
    rng = np.random.default_rng([500, subject, *roi.encode()])
    r2, ceiling = rng.uniform(0, 0.5, voxels), rng.uniform(0.5, 1, voxels)
    if ned:
        model: dict[str, Any] = {
            "encoding_accuracy": {
                "r2": r2,
                "noise_ceiling": ceiling,
                "noise_normalized_encoding": r2 / ceiling,
            },
            "train_val_test_nsd_image_splits": nsd_splits(subject),
        }
    else:
        accuracy = {"r2": r2, "noise_ceiling": ceiling, "explained_variance": 100 * r2 / ceiling}
        model = {**accuracy, **nsd_splits(subject)}
    metadata = {"fmri": _volume(subject, roi, voxels), "encoding_models": model}
    folder = root / FOLDER.format("fmri", "nsd", "fwrf")
    save(folder / "metadata" / f"metadata_sub-{subject:02d}_roi-{roi}.npy", metadata)
    return metadata


def write_fwrf(
    root: Path, subject: int, roi: str, voxels: int, *, split: int | None = None
) -> dict[str, Any]:
    """Write the model of a ROI of ``voxels`` voxels, or one half of it.

    The first half has ceil(voxels / 2). The metadata are of the whole ROI.
    """
    import torch

    rng = np.random.default_rng([600, subject, split or 0, *roi.encode()])
    first = -(-voxels // 2)
    count = {None: voxels, 1: first, 2: voxels - first}[split]
    places = _volume(subject, roi, voxels)
    part = slice(0, voxels) if split is None else (slice(0, first), slice(first, voxels))[split - 1]
    history = [float(loss) for loss in rng.uniform(0, 1, 3)]
    splits = nsd_splits(subject)
    weights = {
        "args.": argparse.Namespace(sub=subject, roi=roi, lr=0.001, batch_size=128, epochs=75),
        "best_params": {"enc": trunk_state(rng), "fwrfs": {subject: head_state(rng, count)}},
        "final_params": {"enc": trunk_state(rng), "fwrfs": {subject: head_state(rng, count)}},
        "trn_hist": history,
        "hold_hist": history[::-1],
        "hold_cc_hist": [np.float32(0.1), np.float32(0.2)],
        "best_epoch": 41,
        "best_joint_cc_score": np.float64(0.31),
        "subject_val_cc": {subject: rng.uniform(0, 1, count).astype(np.float32)},
        "stim_mean": rng.uniform(0.4, 0.5, (1, 3, 1, 1)).astype(np.float32),
        "betas_info": {
            subject: {
                **places,
                "ncsnr": places["ncsnr"][part],
                "volume_shape": VOLUME,
                "masterordering": rng.integers(1, 10_001, (1, 30_000)),
                "subjectim": rng.integers(1, 73_001, (8, 10_000)).astype(np.int32),
                "img_presentation_order": rng.integers(0, 73_000, 30_000),
                **splits,
                **{f"{k[:-3]}idx": np.arange(len(v)) for k, v in splits.items()},
            }
        },
    }
    tensors = {
        **weights,
        **{
            key: {
                "enc": _tensors(weights[key]["enc"]),
                "fwrfs": {subject: _tensors(weights[key]["fwrfs"][subject])},
            }
            for key in ("best_params", "final_params")
        },
    }
    end = "" if split is None else f"_split-{split}"
    folder = root / FOLDER.format("fmri", "nsd", "fwrf") / "encoding_models_weights"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / f"weights_sub-{subject:02d}_roi-{roi}{end}.pt")
    return {"weights": weights, "metadata": write_fwrf_metadata(root, subject, roi, voxels)}


def _tensors(state: dict[str, np.ndarray]) -> OrderedDict[str, Any]:
    """Return a state dict as torch makes it, with the attribute that travels along."""
    import torch

    made = OrderedDict((name, torch.from_numpy(values)) for name, values in state.items())
    made._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]
    return made


def write_tvsd(
    root: Path, monkey: str, features: int, *, electrodes: int = 24, first_version: bool = False
) -> dict[str, Any]:
    """Write a TVSD model.

    The first version keeps scaler and components apart from eight joblib files of ``electrodes``/8
    electrodes each, whose targets are (time, electrode); later it is one file, (electrode, time).
    """
    rng = np.random.default_rng([700, ord(monkey)])
    times = np.arange(300) / 1000 - 0.1
    common = {"scaler_param": scaler(rng, features), "pca_param": pca(rng, features)}
    folder = root / FOLDER.format("utah_array", "tvsd", "vit_b_32")
    kept = folder / "encoding_models_weights"
    if first_version:
        chunks = [linear(rng, len(times) * (electrodes // 8)) for _ in range(8)]
        weights = {**common, "chunks": chunks}
        save(kept / f"preprocessing_linear_all_monkey{monkey}.npy", common)
        for number, chunk in enumerate(chunks):
            joblib.dump(_regression(chunk), kept / f"linear_all_chunk_{number}_monkey{monkey}.pkl")
    else:
        weights = {**common, "reg_param": linear(rng, electrodes * len(times))}
        save(kept / f"weights_monkey{monkey}.npy", weights)
    snr = rng.uniform(0, 5, (4, electrodes))
    shape = (electrodes, len(times))
    metadata = {
        "utah-array" if first_version else "utah_array": {
            "times": times,
            "electrode_order": np.arange(electrodes),
        },
        "roi": {
            "roi_assignments": np.sort(rng.integers(0, 3, electrodes)),
            "roi_labels": ["V1", "V4", "IT"],
        },
        "encoding_model": {
            "SNR": snr,
            "SNR_max": snr.max(0),
            "oracle": rng.uniform(0, 1, electrodes),
            "ncsnr": rng.uniform(0, 1, shape),
            "noise_ceiling": rng.uniform(0, 100, shape),
        },
    }
    save(folder / "metadata" / f"metadata_monkey{monkey}.npy", metadata)
    return {"weights": weights, "metadata": metadata}


def _regression(parameters: dict[str, Any]) -> Any:
    from sklearn.linear_model import LinearRegression

    made = LinearRegression()
    for name, value in parameters.items():
        setattr(made, name, value)
    return made


def write_ned_eeg(
    root: Path, subject: int, features: int, *, before_october_2024: bool = False
) -> dict[str, Any]:
    """Write an EEG model of NED: scaler and components of all subjects are the same files.

    There are twice as many components as the regressions use. Until October 2024 the weights
    were joblib files.
    """
    shared = np.random.default_rng(800)
    components = [pca(shared, features) for _ in range(2)]
    joined = np.concatenate([part["components_"] for part in components])
    weights: dict[str, Any] = {
        "scaler_param": scaler(shared, features),
        "pca_param": {**components[0], "components_": joined, "n_components_": len(joined)},
    }
    rng = np.random.default_rng([801, subject])
    targets = len(CHANNELS) * len(TIMES)
    weights["reg_param"] = {f"rep-{r}": linear(rng, targets) for r in range(1, 5)}
    folder = root / FOLDER.format("eeg", "things_eeg_2", "vit_b_32")
    names = {
        "scaler_param": "StandardScaler_param",
        "pca_param": "pca_param",
        "reg_param": f"LinearRegression_param_sub-{subject:02d}",
    }
    for key, name in names.items():
        path = folder / "encoding_models_weights" / f"{name}.npy"
        if before_october_2024:
            path.parent.mkdir(parents=True, exist_ok=True)
            joblib.dump(weights[key], path.with_suffix(".joblib"))
        else:
            save(path, weights[key])
    shape = (len(CHANNELS), len(TIMES))
    accuracy = {
        "correlation_all_repetitions": rng.uniform(0, 0.8, shape),
        "correlation_single_repetitions": rng.uniform(0, 0.7, (4, *shape)),
        "noise_ceiling_upper": rng.uniform(0.7, 1, shape),
        "noise_ceiling_lower": rng.uniform(0, 0.7, shape),
    }
    splits = {
        f"{part}_img_{what}": [value]
        for part, concept in (("train", "aardvark"), ("test", "abacus"))
        for what, value in (
            ("concepts", f"00001_{concept}"),
            ("concepts_THINGS", f"00001_{concept}"),
            ("files", f"{concept}_01b.jpg"),
        )
    }
    metadata = {
        "eeg": {"ch_names": list(CHANNELS), "times": TIMES},
        "encoding_models": {
            "encoding_accuracy": accuracy,
            "train_test_things_image_splits": splits,
        },
    }
    save(folder / "metadata" / f"metadata_sub-{subject:02d}.npy", metadata)
    return {"weights": weights, "metadata": metadata}


def write_tree(root: Path, features: int) -> dict[str, dict[str, Any]]:
    """Write a bucket with one of each kind; returns what each model holds, by a short name."""
    for name in ("LICENSE.txt", "TERMS.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("CC BY-NC 4.0\n")
    return {
        "eeg-1": write_eeg(root, 1, features, version=1),
        "eeg-2": write_eeg(root, 2, features, version=2),
        "eeg-alexnet": write_eeg(root, 1, features, model="alexnet"),
        "fsaverage-1": write_fsaverage(root, 1, features, version=1),
        "fsaverage-2": write_fsaverage(root, 2, features, version=2),
        "fwrf-V1": write_fwrf(root, 1, "V1", 5),
        "fwrf-lateral-1": write_fwrf(root, 1, "lateral", 7, split=1),
        "fwrf-lateral-2": write_fwrf(root, 1, "lateral", 7, split=2),
        "meg-1": write_meg(root, 1, features),
        "meg-2": write_meg(root, 2, features, time_first=True),
        "things-fmri": write_things_fmri(root, 1, features),
        "tvsd-N": write_tvsd(root, "N", features),
        "tvsd-F": write_tvsd(root, "F", features, first_version=True),
    }
