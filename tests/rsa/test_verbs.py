"""The verbs on Datasets, trees and stores, and on real recordings."""

import numpy as np
import pytest
import xarray as xr
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm
from sklearn.svm import SVC

import nedx
from nedx.metrics.rsa import pairwise_decoding, rdm
from nedx.sources.v4_cowley2023 import open_responses
from tests.laziness import computes_at_most
from tests.rsa.responses import repeated


def test_the_accessor_does_what_the_functions_do():
    responses = repeated().to_dataset()
    xr.testing.assert_identical(
        responses.ned.rdm("euclidean").compute(), rdm(responses, "euclidean").compute()
    )
    xr.testing.assert_identical(
        responses.ned.pairwise_decoding(classifier="lda").compute(),
        pairwise_decoding(responses, classifier="lda").compute(),
    )
    moved = responses.rename(channel="voxel").assign_coords(voxel=np.arange(5))
    neighbours = [np.arange(3)] * 5
    xr.testing.assert_identical(
        moved.ned.searchlight_rdm(neighbours).compute(),
        nedx.searchlight_rdm(moved, neighbours).compute(),
    )


def test_every_subject_of_a_tree_has_its_rdm():
    children = {f"sub-0{s}": repeated(channels=3 + s, seed=s).to_dataset() for s in (1, 2)}
    found = xr.DataTree.from_dict(children).ned.rdm()
    assert found["sub-02"]["rdm"].shape == (7, 7, 3)
    for name, child in children.items():
        np.testing.assert_array_equal(found[name]["rdm"], rdm(child))
    subjects = [found[name]["rdm"] for name in children]
    both = xr.concat(subjects, xr.Variable("subject", list(children)), coords="minimal")
    similarity = nedx.compare_rdms(both, both.rename(subject="model"), "pearson")
    assert dict(similarity.sizes) == {"subject": 2, "time": 3, "model": 2}
    np.testing.assert_allclose(similarity[0, :, 0], 1)


def test_from_store_to_store_nothing_is_read_before(tmp_path):
    responses = repeated(images=30, dtype="f4")
    responses.to_dataset().ned.to_zarr(tmp_path / "responses.zarr")
    opened = nedx.open_store(tmp_path / "responses.zarr")
    with computes_at_most(0):
        found = opened.ned.rdm("crossnobis", block_size=8)
        compared = nedx.compare_rdms(found, found.isel(time=0, drop=True), "cosine")
    found.drop_encoding().to_dataset().to_zarr(tmp_path / "rdm.zarr")
    stored = xr.open_zarr(tmp_path / "rdm.zarr")["rdm"]
    # A store rounds what it holds.
    expected = rdm(opened["response"].load(), "crossnobis")
    np.testing.assert_allclose(stored, expected, atol=1e-6 * float(expected.max()))
    assert float(compared[0].compute()) == pytest.approx(1)


@pytest.fixture(scope="module")
def recorded(shared_data):
    place = shared_data / "v4_cowley2023"
    if not place.is_dir():
        pytest.skip(f"the V4 recordings are not at {place}")
    trials = open_responses(place, "210325", repeats="trials")["response"]
    wanted = np.unique(trials.image_id.values)[:8]
    kept = np.isin(trials.image_id.values, wanted) & (trials.repetition.values < 6)
    return trials.isel(trial=np.flatnonzero(kept)).astype("f8").load()


def grid(trials):
    order = np.lexsort((trials.repetition.values, trials.image_id.values))
    return trials.values[order].reshape(8, 6, -1)


def test_recorded_patterns_differ_as_rsatoolbox_says(recorded):
    values = grid(recorded)
    images, folds = (index.ravel() for index in np.indices((8, 6)))
    labels = {"image": images, "fold": folds}
    data = Dataset(values.reshape(48, -1), obs_descriptors=labels)
    expected = calc_rdm(data, "crossnobis", descriptor="image", cv_descriptor="fold")
    found = rdm(recorded, "crossnobis")
    np.testing.assert_allclose(found, expected.get_matrices()[0], rtol=1e-9)
    assert found.values[np.triu_indices(8, 1)].mean() > 0


def test_recorded_images_are_decoded_as_scikit_learn_does(recorded):
    values = grid(recorded)
    found = pairwise_decoding(recorded).values
    for i, j in ((0, 1), (2, 7), (4, 5)):
        scores = []
        for test in range(6):
            train = np.arange(6) != test
            patterns = np.concatenate([values[i, train], values[j, train]])
            fitted = SVC(kernel="linear", tol=1e-8).fit(patterns, np.repeat([0, 1], 5))
            scores.append(fitted.score(values[[i, j], test], [0, 1]))
        assert found[i, j] == pytest.approx(np.mean(scores))
    assert np.nanmean(found) > 0.6
