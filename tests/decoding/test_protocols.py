"""NeuralBench's retrieval, against its definition spelled out one prediction at a time."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import SchemaError, SelectionError
from tests.laziness import computes_at_most

IMAGES, SUBJECTS, REPETITIONS, WIDTH = 30, 3, 4, 16


@pytest.fixture(scope="module")
def things() -> tuple[xr.Dataset, xr.Dataset]:
    """Return predictions (subject, image, repetition, feature) and targets of more images."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((IMAGES + 10, WIDTH)).astype(np.float32)
    features[5] = features[6]
    names = np.array([f"t:{i:02d}" for i in range(len(features))], dtype=object)
    of = xr.Dataset({"features": (("image", "feature"), features)}, {"image_id": ("image", names)})
    shape = (SUBJECTS, IMAGES, REPETITIONS, WIDTH)
    values = features[:IMAGES][None, :, None] + 3 * rng.standard_normal(shape)
    dims = ("subject", "image", "repetition", "feature")
    ds = xr.Dataset(
        {"embedding": (dims, values.astype(np.float32))}, {"image_id": ("image", names[:IMAGES])}
    )
    return ds, of


def one_by_one(predictions: np.ndarray, images: np.ndarray, targets: np.ndarray) -> list[float]:
    """Score predictions (n, feature) of images (n,) among targets (image, feature)."""
    ranks = []
    for prediction, image in zip(predictions, images, strict=True):
        scores = targets @ prediction / np.linalg.norm(targets, axis=1)
        scores = scores.round(9)
        more, same = (scores > scores[image]).sum(), (scores >= scores[image]).sum() - 1
        ranks.append((more + same) / 2)
    ranks = np.array(ranks)
    inverse = np.sort(1 - ranks / (len(targets) - 1))
    return [(ranks < 5).mean(), inverse.mean(), inverse[(len(inverse) - 1) // 2]]


def test_scores_are_those_of_the_definition(things):
    ds, of = things
    with computes_at_most(0):
        found = nedx.neuralbench_retrieval(ds, of)
    found = found.compute()
    values = ds["embedding"].values.astype(np.float64)
    targets = of["features"].values[:IMAGES].astype(np.float64)
    each = np.arange(IMAGES)
    expected = [
        one_by_one(
            values.reshape(-1, WIDTH),
            np.tile(np.repeat(each, REPETITIONS), SUBJECTS),
            targets,
        ),
        one_by_one(values.mean(2).reshape(-1, WIDTH), np.tile(each, SUBJECTS), targets),
        one_by_one(values.mean((0, 2)), each, targets),
    ]
    names = ["top5_acc", "inv_norm_rank_mean", "inv_norm_rank_median"]
    np.testing.assert_allclose(found[names].to_array().T, expected, rtol=1e-12)
    assert found["aggregation"].values.tolist() == ["none", "subject", "instance"]
    assert found.attrs["n_candidates"] == IMAGES
    assert found["top5_acc_chance"].item() == pytest.approx(5 / IMAGES)
    # Means over more presentations are closer.
    assert (np.diff(found["inv_norm_rank_mean"]) > 0).all()


def test_trials_score_as_images_and_repetitions_do(things):
    ds, of = things
    trials = ds.stack(trial=("image", "repetition"), create_index=False)
    trials = trials.transpose("subject", "trial", "feature")
    found, expected = (nedx.neuralbench_retrieval(x, of).compute() for x in (trials, ds))
    xr.testing.assert_allclose(found, expected)
    names = trials["image_id"].values.astype(np.dtypes.StringDType())
    strings = trials.assign_coords(image_id=("trial", names))
    xr.testing.assert_allclose(nedx.neuralbench_retrieval(strings, of).compute(), expected)


def test_random_predictions_are_at_chance(things):
    _, of = things
    rng = np.random.default_rng(1)
    values = rng.standard_normal((400, IMAGES, WIDTH)).astype(np.float32)
    ds = xr.Dataset(
        {"embedding": (("subject", "image", "feature"), values)},
        {"image_id": ("image", of["image_id"].values[:IMAGES])},
    )
    found = nedx.neuralbench_retrieval(ds, of).sel(aggregation="none").compute()
    n = 400 * IMAGES
    assert abs(found["inv_norm_rank_mean"] - 0.5) < 4 * np.sqrt(1 / 12 / n)
    chance = 5 / IMAGES
    # The twin of two images costs each of them half a rank.
    assert abs(found["top5_acc"] - chance) < 4 * np.sqrt(chance * (1 - chance) / n) + 0.004


def test_bad_input_is_told(things):
    ds, of = things
    with pytest.raises(SchemaError, match="no variable 'embedding'"):
        nedx.neuralbench_retrieval(ds.drop_vars("embedding"), of)
    with pytest.raises(SchemaError, match="one image only"):
        nedx.neuralbench_retrieval(ds.isel(image=[0]), of)
    with pytest.raises(SelectionError, match="no true match of 20 of 30 image_ids"):
        nedx.neuralbench_retrieval(ds, of.isel(image=slice(10)))
