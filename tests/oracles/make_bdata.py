"""Make a small study in BData: responses of subjects, features, decoders and a converter.

Everything is written with h5py by the published layout and computed with numpy, nothing of it
with nedx. Subjects have voxels of their own that mix the same latent factors::

    python -m tests.oracles.make_bdata FOLDER

Where bdpy is installed, tests/sources/bdata/test_against_bdpy.py compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.sources.bdata.files import write_bdata, write_dense, write_sparse

SUBJECTS = (1, 2, 3)
SETS = {"NaturalImageTraining": (40, 5), "NaturalImageTest": (10, 24)}
LAYERS = {"conv1": (4, 6, 6), "conv2": (8, 3, 3), "fc6": (16,)}
FACTORS, SELECTED, ALPHA = 8, 12, 1.0
AREAS = ("V1", "V2", "V3", "hV4", "HVC")


def voxels(subject):
    """Return how many voxels a subject has; no two have as many."""
    return 30 + 4 * subject


def rois(subject):
    """Return the ROIs of a subject: hemispheres in halves, areas in fifths, V1 and V2 share one."""
    count = voxels(subject)
    number = np.arange(count)
    left = number < count // 2
    within = np.where(left, number, number - count // 2) * len(AREAS) // (count - count // 2)
    found = {"ROI_VC": np.ones(count, bool), "ROI_LH_VC": left, "ROI_RH_VC": ~left}
    for place, area in enumerate(AREAS):
        flag = within == place
        if area == "V2":
            flag = flag | (number == np.flatnonzero(found["ROI_V1"])[0])
        found[f"ROI_{area}"] = flag
        found[f"ROI_LH_{area}"], found[f"ROI_RH_{area}"] = flag & left, flag & ~left
    return found


def factors(shown):
    """Return the latent factors of the images of a set, (image, factor)."""
    seed = sorted(SETS).index(shown)
    return np.random.default_rng([seed, 0]).standard_normal((SETS[shown][0], FACTORS))


def features(shown):
    """Return the features of each layer, (image, ...), float32: mixtures of the same factors."""
    found = {}
    for place, (layer, shape) in enumerate(LAYERS.items()):
        mixing = np.random.default_rng([place, 1]).standard_normal((FACTORS, int(np.prod(shape))))
        values = 3 + factors(shown) @ mixing
        found[layer] = values.reshape(-1, *shape).astype(np.float32)
    return found


def responses(shown, subject):
    """Return the image of each trial, from 0, and responses (trial, voxel)."""
    images, repeats = SETS[shown]
    rng = np.random.default_rng([subject, sorted(SETS).index(shown), 2])
    order = np.concatenate([rng.permutation(images) for _ in range(repeats)])
    mixing = np.random.default_rng([subject, 3]).standard_normal((FACTORS, voxels(subject)))
    noise = rng.standard_normal((len(order), voxels(subject)))
    return order, factors(shown)[order] @ mixing + noise + 1


def write_responses(folder, shown, subject, *, legacy=False):
    """Write one BData file; where `legacy`, as older programs did."""
    order, values = responses(shown, subject)
    labels = np.column_stack([1 + np.arange(len(order)) // SETS[shown][0], order + 1, order])
    matrix = np.hstack([values, labels])
    count = voxels(subject)
    keys = {"VoxelData": (slice(0, count), 1.0)}
    for column, key in enumerate(("Run", "image_index", "stimulus_name")):
        keys[key] = (count + column, 1.0)
    keys.update({key: (slice(0, count), flag) for key, flag in rois(subject).items()})
    for axis, scale in zip("xyz", (1, 2, 3), strict=True):
        keys[f"voxel_{axis}"] = (slice(0, count), scale * np.arange(count))
    rows = np.full((len(keys), matrix.shape[1]), np.nan)
    for row, (where, content) in zip(rows, keys.values(), strict=True):
        row[where] = content
    names = {float(n): f"n{1 + n:08d}_{n}" for n in range(SETS[shown][0])}
    descriptions = [f"1 = {key}" for key in keys]
    parts = (matrix, list(keys), descriptions, rows, {"stimulus_name": names}, None)
    write_bdata(folder / f"sub-{subject:02d}_{shown}.h5", parts, legacy=legacy)


def write_features(root, values, *, python):
    """Write the true features of a set, one file an image; the names sort as the images do."""
    for layer, array in values.items():
        (root / layer).mkdir(parents=True)
        for number, one in enumerate(array):
            path = root / layer / f"n{1 + number:08d}_{number}.mat"
            write_dense(path, "feat", one[None], python=python)


def standardised(values):
    """Return z-scores with the mean and the deviation, of samples, they were made by."""
    mean, deviation = values.mean(0, keepdims=True), values.std(0, ddof=1, keepdims=True)
    return (values - mean) / deviation, mean, deviation


def fitted(x, y, selected=SELECTED):
    """Fit a penalised constant and the voxels of largest correlation for each unit, with numpy."""
    samples, count = x.shape
    weights, bias = np.zeros((count, y.shape[1])), np.zeros(y.shape[1])
    strength = np.abs((x - x.mean(0)).T @ (y - y.mean(0)) / samples / x.std(0)[:, None])
    for unit in range(y.shape[1]):
        chosen = np.argsort(-strength[:, unit], kind="stable")[:selected]
        design = np.hstack([x[:, chosen], np.ones((samples, 1))])
        solved = np.linalg.solve(
            design.T @ design + ALPHA * np.eye(selected + 1), design.T @ y[:, unit]
        )
        weights[chosen, unit], bias[unit] = solved[:-1], solved[-1]
    return weights, bias


def write_decoders(root, subject):
    """Write decoders of all layers from a subject's visual cortex: conv by channel, fc whole."""
    order, values = responses("NaturalImageTraining", subject)
    x, x_mean, x_norm = standardised(values)
    for layer, array in features("NaturalImageTraining").items():
        y, y_mean, y_norm = standardised(array.astype(np.float64))
        weights, bias = fitted(x, y.reshape(len(y), -1)[order])
        shape = array.shape[1:]
        whole = {"W": weights.reshape(-1, *shape), "b": bias.reshape(1, *shape)}
        folder = root / layer / f"sub-{subject:02d}" / "ROI_VC" / "model"
        folder.mkdir(parents=True)
        norms = {"x_mean": x_mean, "x_norm": x_norm, "y_mean": y_mean, "y_norm": y_norm}
        for name, norm in norms.items():
            write_dense(folder / f"{name}.mat", name, norm.astype(np.float32))
        if len(shape) == 1:
            for name, one in whole.items():
                write_dense(folder / f"{name}.mat", name, one.astype(np.float32))
            continue
        for name in whole:
            (folder / name).mkdir()
        for channel in range(shape[0]):
            parts = {name: one[:, [channel]].astype(np.float32) for name, one in whole.items()}
            write_sparse(folder / "W" / f"{channel:08d}.mat", "W", parts["W"])
            write_dense(folder / "b" / f"{channel:08d}.mat", "b", parts["b"])


def write_converter(root, source, target):
    """Write a ridge converter of the whole visual cortex from one subject to another."""
    by_image = {}
    for subject in (source, target):
        order, values = responses("NaturalImageTraining", subject)
        by_image[subject] = standardised(values[np.argsort(order, kind="stable")])
    (x, x_mean, x_norm), (y, y_mean, y_norm) = by_image[source], by_image[target]
    design = np.hstack([x, np.ones((len(x), 1))])
    matrix = np.linalg.solve(design.T @ design + ALPHA * np.eye(design.shape[1]), design.T @ y)
    folder = root / f"sub-{source:02d}2sub-{target:02d}" / "ROI_VC" / "full" / "200" / "1" / "model"
    folder.mkdir(parents=True)
    norms = {"x_mean": x_mean, "x_norm": x_norm, "y_mean": y_mean, "y_norm": y_norm}
    for name, norm in norms.items():
        write_dense(folder / f"{name}.mat", name, norm.astype(np.float32))
    write_dense(folder / "transformation.mat", "M", matrix.astype(np.float32))


def make(folder):
    """Write the study; the training file of the last subject has the older layout."""
    root = Path(folder)
    (root / "fmri").mkdir(parents=True)
    for shown in SETS:
        for subject in SUBJECTS:
            legacy = subject == SUBJECTS[-1] and shown == "NaturalImageTraining"
            write_responses(root / "fmri", shown, subject, legacy=legacy)
        write_features(
            root / "features" / shown, features(shown), python=shown == "NaturalImageTest"
        )
    write_decoders(root / "decoders", 1)
    write_converter(root / "converters", 2, 1)
    return root


if __name__ == "__main__":
    make(sys.argv[1])
