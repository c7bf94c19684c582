"""Models that joblib wrote: arrays lie out of line, and nothing in the files is run."""

from __future__ import annotations

import argparse
import os

import joblib
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from nedx.errors import CorruptStoreError, ModelError, StoreError
from nedx.sources.berg import open_model
from nedx.sources.berg.pickles import read_joblib
from nedx.store.location import Location
from tests.berg import models, tree
from tests.encoding.truth import GABOR, features, random_pixels, stimuli
from tests.servers import HttpServer

EEG, TVSD = "eeg-things_eeg_2-vit_b_32", "utah_array-tvsd-vit_b_32"
N_IMAGES = 6


@pytest.fixture(scope="module")
def taps():
    return features(random_pixels(N_IMAGES)).astype(np.float64)


@pytest.fixture
def here(tmp_path):
    return Location.of(tmp_path)


def predicted(taps, scaler, pca, fit):
    """What scikit-learn itself predicts with these parameters, in float64."""
    standard, reduced, linear = StandardScaler(), PCA(), LinearRegression()
    for made, given in ((standard, scaler), (reduced, pca), (linear, fit)):
        for name, value in given.items():
            setattr(made, name, value)
    reduced.whiten = False
    return linear.predict(reduced.transform(standard.transform(taps)))


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def encoded(root, model, taps, subject):
    opened = open_model(root, model, subject=subject, backbone=GABOR)
    return stimuli(N_IMAGES).ned.encode(opened)


@pytest.fixture
def content():
    rng = np.random.default_rng(0)
    fit = LinearRegression().fit(rng.normal(size=(9, 3)), rng.normal(size=(9, 4)))
    return {
        "pca": PCA(2).fit(rng.normal(size=(9, 3)).astype(np.float32)),
        "rep-1": fit,
        "args": argparse.Namespace(subject=3),
        "by column": np.asfortranarray(rng.normal(size=(3, 5))),
        "names": np.array(["Oz", "Pz"]),
        "big-endian": np.arange(5, dtype=">f8"),
        "bytes": np.frombuffer(b"12345", np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(2.5),
        "one": np.array(7.0),
        "list": [1, "two", (3.0, None, True)],
    }


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)])
def test_what_joblib_writes_reads_back(tmp_path, here, content, compress):
    joblib.dump(content, tmp_path / "one.joblib", compress=compress)
    found = read_joblib(here, "one.joblib")
    assert list(found) == list(content)
    for name in ("by column", "names", "big-endian", "bytes", "empty", "one"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype == content[name].dtype
        assert found[name].shape == content[name].shape
    assert (found["scalar"], found["list"]) == (content["scalar"], content["list"])
    assert found["args"].subject == 3
    for name, attribute in (("pca", "components_"), ("pca", "mean_"), ("rep-1", "coef_")):
        expected = getattr(content[name], attribute)
        np.testing.assert_array_equal(getattr(found[name], attribute), expected)


def test_arrays_written_before_joblib_aligned_them(tmp_path, here, monkeypatch):
    wrapper = joblib.numpy_pickle.NumpyArrayWrapper
    original = wrapper.__init__

    def unaligned(self, *args, **kwargs):
        original(self, *args, **kwargs)
        del self.numpy_array_alignment_bytes

    monkeypatch.setattr(wrapper, "__init__", unaligned)
    values = np.random.default_rng(1).normal(size=(4, 6))
    joblib.dump({"a": values, "b": values[:2]}, tmp_path / "old.pkl")
    found = read_joblib(here, "old.pkl")
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], values[:2])


def test_a_joblib_file_far_away(tmp_path, content):
    joblib.dump(content, tmp_path / "one.joblib")
    server = HttpServer(tmp_path)
    try:
        found = read_joblib(Location.of(server.url), "one.joblib")
    finally:
        server.close()
    np.testing.assert_array_equal(found["rep-1"].coef_, content["rep-1"].coef_)


def test_ned_before_october_2024(tmp_path, taps):
    wrote = tree.write_ned_eeg(tmp_path, 1, taps.shape[1], before_october_2024=True)["weights"]
    pca = {**wrote["pca_param"]}
    pca["components_"] = pca["components_"][: models.COMPONENTS]
    fits = wrote["reg_param"].values()
    each = [predicted(taps, wrote["scaler_param"], pca, fit) for fit in fits]
    truth = np.stack(each, axis=1).reshape(N_IMAGES, 4, 63, 140)
    out = encoded(tmp_path, EEG, taps, 1)
    close(out["response"][0], truth)
    assert out["response"].attrs["normalization_scope"] == "session"


def test_objects_of_scikit_learn_instead_of_their_parameters(tmp_path, taps):
    wrote = tree.write_ned_eeg(tmp_path, 1, taps.shape[1], before_october_2024=True)["weights"]
    by_parameters = encoded(tmp_path, EEG, taps, 1)["response"].values
    folder = next(tmp_path.rglob("pca_param.joblib")).parent
    made = [StandardScaler(), PCA(), *(LinearRegression() for _ in range(4))]
    given = [wrote["scaler_param"], wrote["pca_param"], *wrote["reg_param"].values()]
    for one, parameters in zip(made, given, strict=True):
        for name, value in parameters.items():
            setattr(one, name, value)
    joblib.dump(made[0], folder / "StandardScaler_param.joblib")
    joblib.dump(made[1], folder / "pca_param.joblib")
    regressions = dict(zip(wrote["reg_param"], made[2:], strict=True))
    joblib.dump(regressions, folder / "LinearRegression_param_sub-01.joblib")
    np.testing.assert_array_equal(encoded(tmp_path, EEG, taps, 1)["response"], by_parameters)


def test_tvsd_in_eight_chunks_of_time_first_targets(tmp_path, taps):
    wrote = tree.write_tvsd(tmp_path, "F", taps.shape[1], first_version=True)
    parts = wrote["weights"]
    chunks = [
        predicted(taps, parts["scaler_param"], parts["pca_param"], chunk).reshape(-1, 300, 3)
        for chunk in parts["chunks"]
    ]
    truth = np.concatenate(chunks, axis=2).swapaxes(1, 2)
    out = encoded(tmp_path, TVSD, taps, "F")
    assert out["response"].dims[-3:] == ("image", "unit", "time")
    close(out["response"].isel(subject=0), truth)
    v4 = wrote["metadata"]["roi"]["roi_assignments"] == 1
    model = open_model(tmp_path, TVSD, subject="F", backbone=GABOR)
    area = stimuli(N_IMAGES).ned.encode(model, roi="V4")
    close(area["response"].isel(subject=0), truth[:, v4])


class TestBadInput:
    def harmful(self, path, compress=0):
        joblib.dump({"a": np.zeros(3), "evil": _Harm()}, path, compress=compress)

    @pytest.mark.parametrize("compress", [0, 3])
    def test_a_foreign_class_is_named_and_not_run(self, tmp_path, here, monkeypatch, compress):
        monkeypatch.chdir(tmp_path)
        self.harmful(tmp_path / "bad.joblib", compress)
        with pytest.raises(ModelError, match=r"bad.joblib is refused: it names posix\.\w+"):
            read_joblib(here, "bad.joblib")
        assert not (tmp_path / "harm").exists()

    def test_an_array_of_objects_is_a_pickle_of_its_own(self, tmp_path, here, monkeypatch):
        monkeypatch.chdir(tmp_path)
        joblib.dump({"a": np.array([_Harm()], dtype=object)}, tmp_path / "bad.joblib")
        with pytest.raises(ModelError, match=r"bad.joblib is refused: it holds an array of obj"):
            read_joblib(here, "bad.joblib")
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("compress", [0, 3])
    def test_cut_short(self, tmp_path, here, content, compress):
        path = tmp_path / "one.joblib"
        joblib.dump(content, path, compress=compress)
        whole = path.read_bytes()
        for size in (0, 1, 2, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CorruptStoreError, match=r"one.joblib .*Fetch it again"):
                read_joblib(here, "one.joblib")

    def test_something_else(self, tmp_path, here):
        (tmp_path / "page.joblib").write_bytes(b"<!DOCTYPE html>" * 40)
        with pytest.raises(CorruptStoreError, match="page.joblib"):
            read_joblib(here, "page.joblib")
        joblib.dump([1, 2], tmp_path / "list.joblib")
        with pytest.raises(ModelError, match="holds a list, expected a dictionary"):
            read_joblib(here, "list.joblib")

    def test_a_chunk_is_missing(self, tmp_path, taps):
        tree.write_tvsd(tmp_path, "N", taps.shape[1], first_version=True)
        next(tmp_path.rglob("linear_all_chunk_3_*")).unlink()
        with pytest.raises(StoreError, match="utah_array-tvsd-vit_b_32, sub-N, are not at"):
            open_model(tmp_path, TVSD, subject="N", backbone=GABOR)

    def test_a_chunk_of_another_model(self, tmp_path, taps):
        tree.write_tvsd(tmp_path, "N", taps.shape[1], first_version=True)
        path = next(tmp_path.rglob("linear_all_chunk_3_*"))
        other = models.linear(np.random.default_rng(0), 299)
        joblib.dump(other, path)
        with pytest.raises(ModelError, match="predicts 299 targets, .* the 300 times"):
            open_model(tmp_path, TVSD, subject="N", backbone=GABOR)


class _Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)
