"""Decoder folders of bdpy, against dense algebra on what was written, and against fastl2lir."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from nedx.errors import ModelError, SelectionError, SourceError
from nedx.linear.l2lir import L2LiRFit
from nedx.sources.bdata.decoders import open_decoder, open_decoders
from tests.laziness import computes_at_most
from tests.sources.bdata.decoder_files import (
    RNG,
    SELECTED,
    VOXELS,
    decoder,
    predicted,
    write_channels,
    write_norms,
    write_whole,
)
from tests.sources.bdata.files import write_dense


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


@pytest.mark.parametrize("value", [np.nan, 0])
@pytest.mark.parametrize("units", [[0], [0, 1, 2]])
def test_units_that_never_varied_do_not_say_how_many_voxels_there_are(tmp_path, value, units):
    """Whole channels never vary: files then have NaN for all voxels of a unit, or no weight."""
    parts = decoder((3, 3, 2))
    for part, dead in ((parts["W"], value), (parts["b"], value), (parts["y_norm"], 0)):
        part[:, 0, units] = dead
    write_channels(tmp_path / "model", parts)
    ds = open_decoder(tmp_path / "model")
    assert ds.sizes["selected"] == SELECTED
    parts["W"][:, 0, units] = parts["b"][:, 0, units] = 0
    np.testing.assert_allclose(decoded(ds, X), predicted(parts, X), rtol=1e-5, atol=1e-5)


def test_a_decoder_of_units_that_never_varied(tmp_path):
    parts = decoder((2, 2, 2))
    for name in ("W", "b", "y_norm"):
        parts[name][...] = 0
    write_channels(tmp_path / "model", parts)
    ds = open_decoder(tmp_path / "model")
    expected = np.broadcast_to(parts["y_mean"].ravel(), (len(X), 8))
    np.testing.assert_array_equal(decoded(ds, X), expected)


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
    for name in ("x_mean", "x_norm"):
        write_dense(tmp_path / "d" / f"{name}.mat", name, np.ones((1, VOXELS + 1)))
    with pytest.raises(SourceError, match="weights of 20 voxels, x_mean has 21"):
        open_decoder(tmp_path / "d")
    (tmp_path / "d" / "x_mean.mat").unlink()
    with pytest.raises(SourceError, match="has no x_mean.mat"):
        open_decoder(tmp_path / "d")
    for name, size, match in (
        ("x_norm", (1, VOXELS + 1), "20 values in x_mean, 21 in x_norm"),
        ("y_norm", (1, 4, 3), "24 values in y_mean, 12 in y_norm"),
    ):
        write_channels(tmp_path / name, parts)
        write_dense(tmp_path / name / f"{name}.mat", name, np.ones(size))
        with pytest.raises(SourceError, match=match):
            open_decoder(tmp_path / name)
