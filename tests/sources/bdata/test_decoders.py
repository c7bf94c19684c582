"""Decoder folders of bdpy, against dense algebra on what was written, and against fastl2lir."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import yaml
from sklearn.linear_model import Ridge

from nedx.errors import ModelError, SelectionError, SourceError
from nedx.linear.l2lir import L2LiRFit
from nedx.sources.bdata.decoders import open_decoder, open_decoders
from tests.laziness import computes_at_most
from tests.sources.bdata.files import write_dense, write_sparse

VOXELS, SELECTED = 20, 6
RNG = np.random.default_rng(0)


def decoder(shape):
    """Return W with SELECTED voxels a unit, b, and the four norms, as they are published."""
    units = int(np.prod(shape))
    weights = np.zeros((VOXELS, units), np.float32)
    for unit in range(units):
        chosen = RNG.choice(VOXELS, SELECTED, replace=False)
        weights[chosen, unit] = RNG.standard_normal(SELECTED)
    norms = {
        "x_mean": RNG.standard_normal((1, VOXELS)),
        "x_norm": 1 + RNG.random((1, VOXELS)),
        "y_mean": RNG.standard_normal((1, *shape)),
        "y_norm": 1 + RNG.random((1, *shape)),
    }
    bias = RNG.standard_normal((1, *shape)).astype(np.float32)
    norms = {key: value.astype(np.float32) for key, value in norms.items()}
    return {"W": weights.reshape(VOXELS, *shape), "b": bias, **norms}


def write_norms(folder, parts, status="done"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("x_mean", "x_norm", "y_mean", "y_norm"):
        write_dense(folder / f"{name}.mat", name, parts[name])
    info = {"_status": {"computation_id": "x", "computation_status": status}}
    (folder / "info.yaml").write_text(yaml.safe_dump(info))


def write_channels(folder, parts, writer="cells"):
    write_norms(folder, parts)
    for name in "Wb":
        (folder / name).mkdir()
    for channel in range(parts["b"].shape[1]):
        file = f"{channel:08d}.mat"
        write_sparse(folder / "W" / file, "W", parts["W"][:, [channel]], writer=writer)
        write_dense(folder / "b" / file, "b", parts["b"][:, [channel]])


def write_whole(folder, parts, *, sparse):
    write_norms(folder, parts)
    if sparse:
        write_sparse(folder / "W.mat", "W", parts["W"])
    else:
        write_dense(folder / "W.mat", "W", parts["W"])
    write_dense(folder / "b.mat", "b", parts["b"])


def predicted(parts, x):
    """Decode as published: standardise, multiply, bring back."""
    z = (x - parts["x_mean"]) / parts["x_norm"]
    y = np.tensordot(z, parts["W"], 1) + parts["b"]
    return (y * parts["y_norm"] + parts["y_mean"]).reshape(len(x), -1)


def decoded(ds, x):
    ds = ds.compute()
    z = (x - ds["response_mean"].values) / ds["response_deviation"].values
    fit = L2LiRFit(ds["index"].values, ds["weight"].values, ds["bias"].values, ds.sizes["voxel"])
    return fit.predict(z) * ds["feature_deviation"].values + ds["feature_mean"].values


X = RNG.standard_normal((7, VOXELS))


@pytest.mark.parametrize("writer", ["cells", "plain"])
def test_channels_of_a_convolution(tmp_path, writer):
    parts = decoder((4, 3, 2))
    write_channels(tmp_path / "model", parts, writer)
    with computes_at_most(0):
        ds = open_decoder(tmp_path / "model")
    assert ds["index"].shape == (24, SELECTED)
    assert ds["index"].chunksizes["unit"] == (6, 6, 6, 6)
    assert ds["index"].dtype == np.int32
    assert ds["weight"].dtype == np.float32
    assert ds.attrs["unit_shape"] == [4, 3, 2]
    np.testing.assert_allclose(decoded(ds, X), predicted(parts, X), rtol=1e-5, atol=1e-5)
    # Voxels of a unit are those of the file, rising.
    flat = parts["W"].reshape(VOXELS, -1)
    for unit in (0, 7, 23):
        assert ds["index"].values[unit].tolist() == np.flatnonzero(flat[:, unit]).tolist()


def test_one_channel_is_read_alone(tmp_path):
    parts = decoder((4, 3, 2))
    write_channels(tmp_path / "model", parts)
    ds = open_decoder(tmp_path / "model")
    for channel in (0, 1, 3):
        (tmp_path / "model" / "W" / f"{channel:08d}.mat").unlink()
    some = ds["weight"].isel(unit=slice(12, 18)).values
    flat = parts["W"].reshape(VOXELS, -1)[:, 12:18]
    np.testing.assert_array_equal(some.ravel(), flat.T[flat.T != 0])


@pytest.mark.parametrize("sparse", [True, False])
def test_fully_connected_layers(tmp_path, sparse, monkeypatch):
    monkeypatch.setattr("nedx.sources.bdata.decoders._UNITS_PER_TASK", 4)
    parts = decoder((10,))
    write_whole(tmp_path / "model", parts, sparse=sparse)
    ds = open_decoder(tmp_path / "model")
    assert ds["index"].chunksizes["unit"] == ((10,) if sparse else (4, 4, 2))
    np.testing.assert_allclose(decoded(ds, X), predicted(parts, X), rtol=1e-5, atol=1e-5)


def test_a_convolution_in_one_file(tmp_path):
    parts = decoder((2, 3, 2))
    write_whole(tmp_path / "model", parts, sparse=False)
    got = decoded(open_decoder(tmp_path / "model"), X)
    np.testing.assert_allclose(got, predicted(parts, X), rtol=1e-5, atol=1e-5)


def test_units_that_never_varied_predict_their_mean(tmp_path):
    parts = decoder((4, 3, 2))
    parts["W"][:, 1, 2, 0] = np.nan
    parts["b"][:, 1, 2, 0] = np.nan
    parts["y_norm"][:, 1, 2, 0] = 0
    # A weight may be 0 by chance.
    parts["W"][np.flatnonzero(parts["W"][:, 0, 0, 0])[0], 0, 0, 0] = 0
    write_channels(tmp_path / "model", parts)
    ds = open_decoder(tmp_path / "model")
    assert ds.sizes["selected"] == SELECTED
    parts["W"][:, 1, 2, 0] = parts["b"][:, 1, 2, 0] = 0
    got = decoded(ds, X)
    np.testing.assert_allclose(got, predicted(parts, X), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[:, 10], np.repeat(parts["y_mean"][0, 1, 2, 0], len(X)))
    index = ds["index"].values
    assert all(len(set(row)) == SELECTED for row in index.tolist())
    assert (np.diff(index, axis=1) > 0).all()


def pickled(folder, parts, models, shapes):
    write_norms(folder, parts)
    for number, (model, shape) in enumerate(zip(models, shapes, strict=True)):
        with (folder / f"{number:08d}.pkl.gz").open("wb") as file:
            pickle.dump({"model": model, "y_shape": shape}, file, protocol=4)


def test_pickles_of_fastl2lir(tmp_path):
    fastl2lir = pytest.importorskip("fastl2lir")
    parts = decoder((2, 3, 4))
    x, y = RNG.standard_normal((50, VOXELS)), RNG.standard_normal((50, 2, 3, 4))
    expected, models = [], []
    for channel in range(2):
        model = fastl2lir.FastL2LiR()
        # Units are laid out in Fortran order before they are fitted.
        flat = y[:, [channel]].reshape(50, -1, order="F")
        model.fit(x, flat, alpha=3.0)
        models.append(model)
        expected.append(model.predict(x).reshape(50, 1, 3, 4, order="F").reshape(50, -1))
    pickled(tmp_path / "model", parts, models, [(1, 3, 4)] * 2)
    ds = open_decoder(tmp_path / "model")
    fit = L2LiRFit(ds["index"].values, ds["weight"].values, ds["bias"].values, VOXELS)
    np.testing.assert_allclose(fit.predict(x), np.hstack(expected), atol=1e-12)


def test_pickles_of_scikit_learn(tmp_path):
    parts = decoder((5,))
    x, y = RNG.standard_normal((50, VOXELS)), RNG.standard_normal((50, 5))
    model = Ridge(2.0).fit(x, y)
    pickled(tmp_path / "model", parts, [model], [(5,)])
    ds = open_decoder(tmp_path / "model")
    fit = L2LiRFit(ds["index"].values, ds["weight"].values, ds["bias"].values, VOXELS)
    np.testing.assert_allclose(fit.predict(x), model.predict(x), atol=1e-12)


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_a_pickle_that_could_run_is_refused(tmp_path, capsys):
    pickled(tmp_path / "model", decoder((5,)), [Evil()], [(5,)])
    with pytest.raises(ModelError, match=r"names builtins\.print.*could run any code"):
        open_decoder(tmp_path / "model")
    assert capsys.readouterr().out == ""


def test_all_layers_of_a_tree(tmp_path):
    layers = {"conv1": decoder((4, 3, 2)), "fc6": decoder((10,))}
    for roi in ("ROI_V1", "ROI_VC"):
        write_channels(tmp_path / "conv1" / "sub-01" / roi / "model", layers["conv1"])
        write_whole(tmp_path / "fc6" / "sub-01" / roi / "model", layers["fc6"], sparse=False)
    with pytest.raises(SelectionError, match="give roi=, one of: ROI_V1, ROI_VC"):
        open_decoders(tmp_path)
    tree = open_decoders(tmp_path, roi="ROI_VC")
    assert list(tree.children) == ["conv1", "fc6"]
    assert tree["fc6"].attrs["subject"] == "sub-01"
    assert tree["fc6"].attrs["layer"] == "fc6"
    for layer, parts in layers.items():
        got = decoded(tree[layer].to_dataset(), X)
        np.testing.assert_allclose(got, predicted(parts, X), rtol=1e-5, atol=1e-5)


def test_folders_that_are_not_whole(tmp_path):
    parts = decoder((4, 3, 2))
    write_norms(tmp_path / "a", parts, status="running")
    with pytest.raises(SourceError, match="its status is 'running'"):
        open_decoder(tmp_path / "a")
    write_norms(tmp_path / "b", parts)
    with pytest.raises(SourceError, match="neither W.mat, nor a folder W, nor pickles"):
        open_decoder(tmp_path / "b")
    write_channels(tmp_path / "c", parts)
    (tmp_path / "c" / "W" / "00000003.mat").unlink()
    with pytest.raises(SourceError, match="weights of 18 units, y_mean has 24"):
        open_decoder(tmp_path / "c")
    (tmp_path / "c" / "b" / "00000002.mat").unlink()
    with pytest.raises(SourceError, match="lacks files of b"):
        open_decoder(tmp_path / "c")
    write_channels(tmp_path / "d", parts)
    write_dense(tmp_path / "d" / "x_mean.mat", "x_mean", np.zeros((1, VOXELS + 1)))
    with pytest.raises(SourceError, match="weights of 20 voxels, x_mean has 21"):
        open_decoder(tmp_path / "d")
    (tmp_path / "d" / "x_mean.mat").unlink()
    with pytest.raises(SourceError, match="has no x_mean.mat"):
        open_decoder(tmp_path / "d")
