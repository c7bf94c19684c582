"""Converter folders, against plain algebra on the matrix that was written."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.errors import SourceError
from nedx.sources.bdata.converters import open_converter
from tests.laziness import computes_at_most
from tests.sources.bdata.files import write_dense

SOURCE, TARGET = 9, 7
RNG = np.random.default_rng(0)


def write_converter(folder, *, bias=True, name="transformation.mat"):
    parts = {
        "M": RNG.standard_normal((SOURCE + bias, TARGET)),
        "x_mean": RNG.standard_normal((1, SOURCE)),
        "x_norm": 1 + RNG.random((1, SOURCE)),
        "y_mean": RNG.standard_normal((1, TARGET)),
        "y_norm": 1 + RNG.random((1, TARGET)),
    }
    folder.mkdir()
    parts = {key: value.astype(np.float32) for key, value in parts.items()}
    for key, value in parts.items():
        write_dense(folder / (name if key == "M" else f"{key}.mat"), key, value)
    return parts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["transformation.mat", "NCconverter.mat"])
def test_a_converter_converts_as_published(tmp_path, bias, name):
    parts = write_converter(tmp_path / "model", bias=bias, name=name)
    with computes_at_most(0):
        ds = open_converter(tmp_path / "model")
    assert ds["weight"].chunks is not None
    assert ds["weight"].dtype == np.float32
    assert ds.attrs == {"has_bias": bias}
    x = RNG.standard_normal((5, SOURCE))
    z = (x - parts["x_mean"]) / parts["x_norm"]
    z = np.hstack([z, np.ones((5, 1))]) if bias else z
    expected = z @ parts["M"] * parts["y_norm"] + parts["y_mean"]
    got = (x - ds["source_mean"].values) / ds["source_deviation"].values @ ds["weight"].values
    got = (got + ds["bias"].values) * ds["target_deviation"].values + ds["target_mean"].values
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_folders_that_are_not_whole(tmp_path):
    write_converter(tmp_path / "norm")
    write_dense(tmp_path / "norm" / "y_norm.mat", "y_norm", np.ones((1, TARGET + 2)))
    with pytest.raises(SourceError, match="7 values in y_mean, 9 in y_norm"):
        open_converter(tmp_path / "norm")
    write_converter(tmp_path / "a")
    for name in ("y_mean", "y_norm"):
        write_dense(tmp_path / "a" / f"{name}.mat", name, np.ones((1, TARGET + 2)))
    with pytest.raises(SourceError, match=r"needs \(10, 9\), or \(9, 9\) without a bias"):
        open_converter(tmp_path / "a")
    (tmp_path / "a" / "transformation.mat").unlink()
    (tmp_path / "a" / "x_norm.mat").unlink()
    with pytest.raises(SourceError, match="lacks x_norm.mat, transformation.mat or NCconverter"):
        open_converter(tmp_path / "a")
