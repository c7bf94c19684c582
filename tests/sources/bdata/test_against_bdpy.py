"""The same files read by bdpy, where it is installed; it asks for Python before 3.12."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.sources.bdata.features import open_features
from nedx.sources.bdata.matlab_arrays import read_array
from nedx.sources.bdata.reading import open_bdata
from nedx.sources.bdata.writing import to_bdata
from tests.oracles import make_bdata as study

bdpy = pytest.importorskip("bdpy", reason="bdpy is not installed")
dataform = pytest.importorskip("bdpy.dataform", reason="bdpy is not installed")

EXPRESSIONS = (
    "ROI_V1",
    "ROI_V1 = 1",
    "ROI_V1 = 2",
    "ROI_V1 + ROI_V2",
    "ROI_VC - ROI_V1 + ROI_V2",
    "ROI_VC - (ROI_V1 + ROI_V2)",
    "ROI_V1 + ROI_V2 & ROI_LH_VC",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return study.make(tmp_path_factory.mktemp("study") / "all")


@pytest.mark.parametrize("written", [False, True])
def test_bdata(root, tmp_path, written):
    path = root / "fmri" / "sub-01_NaturalImageTest.h5"
    ds = open_bdata(path, dtype="float64")
    if written:
        path = tmp_path / "written.h5"
        to_bdata(ds, path)
    theirs = bdpy.BData(str(path))
    for expression in EXPRESSIONS:
        ours = ds.ned.select(expression)["response"].values
        np.testing.assert_array_equal(ours, theirs.select(expression))
    assert ds["stimulus_name_label"].values.tolist() == list(theirs.get_labels("stimulus_name"))


def test_features_and_arrays(root):
    folder = root / "features" / "NaturalImageTest"
    ours = open_features(folder, image_set="s")
    theirs = dataform.Features(str(folder))
    assert ours["label"].values.tolist() == theirs.labels
    for layer in study.LAYERS:
        np.testing.assert_array_equal(ours[f"feature_{layer}"].values, theirs.get(layer))
    model = root / "decoders" / "conv1" / "sub-01" / "ROI_VC" / "model"
    for name, file in (("b", "b/00000001.mat"), ("y_mean", "y_mean.mat")):
        theirs = dataform.load_array(str(model / file), key=name)
        np.testing.assert_array_equal(read_array(model / file, name), theirs)


@pytest.mark.parametrize("sparse", [False, True])
def test_arrays_that_bdpy_wrote(tmp_path, sparse):
    rng = np.random.default_rng(0)
    array = np.where(rng.random((7, 1, 3, 2)) < 0.3, rng.standard_normal((7, 1, 3, 2)), 0)
    path = tmp_path / "array.mat"
    dataform.save_array(str(path), array, key="W", dtype=np.float64, sparse=sparse)
    np.testing.assert_array_equal(read_array(path, "W"), array)
