"""Published folders of decoders as models, against plain algebra on what was written."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.conversion.published import import_converter
from nedx.decoding.published import import_decoder
from nedx.errors import ModelError, SelectionError, SourceError
from nedx.sources.bdata.features import open_features
from nedx.sources.bdata.reading import open_bdata
from tests.laziness import computes_at_most
from tests.oracles import make_bdata as study
from tests.sources.bdata.decoder_files import (
    SELECTED,
    VOXELS,
    decoder,
    predicted,
    write_channels,
    write_whole,
)

X = np.random.default_rng(1).normal(1, 2, (7, VOXELS)).astype(np.float32)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def responses(values, voxel=None, subject="sub-01", **attrs):
    """Return responses to images, with labels of their voxels where some are given."""
    coords = {} if voxel is None else {"voxel": np.asarray(voxel)}
    coords["image_id"] = ("image", np.array([f"s:{n}" for n in range(len(values))], dtype=object))
    about = {"subject_ids": [subject], "modality": "fmri", "source": "measured"}
    return xr.Dataset({"response": (("image", "voxel"), values, attrs)}, coords, about)


@pytest.fixture
def folder(tmp_path):
    """Write a convolution by channels and a layer in one file; one unit of each never varied."""
    layers = {"conv1_1": decoder((4, 3, 2)), "fc6": decoder((10,))}
    norms = {name: layers["fc6"][name] for name in ("x_mean", "x_norm")}
    for parts, unit in ((layers["conv1_1"], (1, 2, 0)), (layers["fc6"], (3,))):
        parts.update(norms)
        for name in ("W", "b"):
            parts[name][(slice(None), *unit)] = np.nan
        parts["y_norm"][(0, *unit)] = 0
    write_channels(tmp_path / "conv1_1" / "S1" / "ROI_VC" / "model", layers["conv1_1"])
    write_whole(tmp_path / "fc6" / "S1" / "ROI_VC" / "model", layers["fc6"], sparse=True)
    return tmp_path, layers


def expected(parts, x):
    """Return what is decoded; of units that never varied their mean."""
    known = {name: np.nan_to_num(values) for name, values in parts.items()}
    return predicted(known, x).reshape(len(x), *parts["y_mean"].shape[1:])


def check(decoded, layers, x):
    for layer, parts in layers.items():
        np.testing.assert_allclose(decoded[f"feature_{layer}"].values, expected(parts, x), **CLOSE)


def test_a_published_folder_decodes(folder, tmp_path):
    root, layers = folder
    model = import_decoder(root)
    assert model.subjects == ("sub-01",)
    assert model.layers == ("conv1_1", "fc6")
    assert model.recipe.rois == ("ROI_VC",)
    assert model.recipe.n_voxels == SELECTED
    with computes_at_most(0):
        decoded = responses(X).ned.decode(model)
    check(decoded, layers, X)
    assert decoded["feature_conv1_1"].dims == ("image", "conv1_1_channel", "conv1_1_y", "conv1_1_x")
    assert decoded["roi"].item() == "ROI_VC"
    np.testing.assert_array_equal(decoded["feature_fc6"][:, 3], layers["fc6"]["y_mean"][0, 3])
    model.to_zarr(tmp_path / "model.zarr")
    again = responses(X).ned.decode(nedx.load_model(str(tmp_path / "model.zarr")).sel(layer="fc6"))
    assert "feature_conv1_1" not in again
    np.testing.assert_array_equal(again["feature_fc6"].values, decoded["feature_fc6"].values)


def test_weights_are_those_of_the_files_block_by_block(folder, monkeypatch):
    root, layers = folder
    whole = import_decoder(root)
    monkeypatch.setattr("nedx.decoding.published._UNITS_AT_ONCE", 10)
    pieces = import_decoder(root)
    assert pieces.weights_sha256 == whole.weights_sha256
    for layer, parts in layers.items():
        ds = pieces.weights(layer).compute()
        dense = np.zeros((ds.sizes["unit"], VOXELS), np.float32)
        np.put_along_axis(dense, ds["index"].values.astype(int), ds["weight"].values, 1)
        np.testing.assert_array_equal(dense.T, np.nan_to_num(parts["W"].reshape(VOXELS, -1)))
        np.testing.assert_array_equal(ds["response_deviation"], parts["x_norm"][0])
        np.testing.assert_array_equal(ds["feature_mean"], parts["y_mean"].ravel())


def test_voxels_are_found_by_the_labels_of_responses(folder):
    """Given responses say which voxels the decoders were fitted to, and in which units."""
    root, layers = folder
    voxel = np.arange(100, 100 + VOXELS)
    own = responses(X, voxel, units="percent")
    model = import_decoder(root, responses=own)
    check(own.ned.decode(model), layers, X)
    order = np.random.default_rng(2).permutation(VOXELS + 5)
    wide = np.hstack([X, np.full((len(X), 5), np.nan, np.float32)])[:, order]
    more = responses(wide, np.arange(100, 105 + VOXELS)[order], units="percent")
    check(more.ned.decode(model), layers, X)
    with pytest.raises(ModelError, match="units is '1', the decoder takes 'percent'"):
        responses(X, voxel).ned.decode(model)


def test_voxels_that_never_varied_are_only_centred(folder):
    root, layers = folder
    for layer, parts in layers.items():
        parts["x_norm"] = parts["x_norm"].copy()
        parts["x_norm"][0, 4] = 0
        again = root / "again" / layer / "S1" / "ROI_VC" / "model"
        write_whole(again, parts, sparse=False)
        parts["x_norm"][0, 4] = 1
    check(responses(X).ned.decode(import_decoder(root / "again")), layers, X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (responses(X[:, :-1]), "sub-01 have 19 voxels, the decoders 20"),
        (responses(X[:, :-1]), r"select\('ROI_VC'\)"),
        (responses(X, subject="sub-02"), "are of sub-01, the responses of sub-02"),
    ],
)
def test_responses_that_do_not_fit_the_folder(folder, given, message):
    with pytest.raises((SourceError, ModelError), match=message):
        import_decoder(folder[0], responses=given)


def test_responses_that_do_not_fit_the_model(folder):
    model = import_decoder(folder[0])
    with pytest.raises(ModelError, match="they have 19 voxels, the decoder was fitted to all 20"):
        responses(X[:, :-1]).ned.decode(model)
    with pytest.raises(ModelError, match="of 'sub-02', the decoder was fitted to sub-01"):
        responses(X, subject="sub-02").ned.decode(model)
    with pytest.raises(ModelError, match="units is 'percent', the decoder takes '1'"):
        responses(X, units="percent").ned.decode(model)
    with pytest.raises(SelectionError, match="unknown layer 'fc7'"):
        model.sel(layer="fc7")


def test_layers_that_do_not_belong_together(folder):
    root, layers = folder
    shifted = {**layers["fc6"], "x_mean": layers["fc6"]["x_mean"] + 1}
    write_whole(root / "fc7" / "S1" / "ROI_VC" / "model", shifted, sparse=True)
    with pytest.raises(SourceError, match="conv1_1 and fc7 standardise their voxels by other"):
        import_decoder(root)
    check(responses(X).ned.decode(import_decoder(root, layers="fc7")), {"fc7": shifted}, X)
    fewer = {**layers["fc6"], "W": layers["fc6"]["W"][:-1]}
    fewer |= {name: fewer[name][:, :-1] for name in ("x_mean", "x_norm")}
    write_whole(root / "fc8" / "S1" / "ROI_VC" / "model", fewer, sparse=True)
    with pytest.raises(SourceError, match="fc6 and fc8 take 20 and 19 voxels.*layers='fc8'"):
        import_decoder(root, layers=["fc6", "fc8"])
    gone = {**layers["fc6"], "x_norm": np.full((1, VOXELS), np.nan, np.float32)}
    write_whole(root / "fc9" / "S1" / "ROI_VC" / "model", gone, sparse=True)
    with pytest.raises(SourceError, match="x_mean or x_norm of fc9 hold NaN"):
        import_decoder(root, layers="fc9")


def test_layers_subjects_and_rois_are_chosen_and_checked(folder):
    root, layers = folder
    with pytest.raises(SelectionError, match="no layer is called 'fc66': did you mean 'fc6'"):
        import_decoder(root, layers="fc66")
    write_whole(root / "fc6" / "S1" / "ROI_V1" / "model", decoder((10,)), sparse=True)
    with pytest.raises(SelectionError, match="give roi=, one of: ROI_V1, ROI_VC"):
        import_decoder(root, layers="fc6")
    model = import_decoder(root, layers="fc6", roi="ROI_VC", subject="S1")
    check(responses(X).ned.decode(model), {"fc6": layers["fc6"]}, X)
    bare = {"layout": "{layer}/S1/ROI_VC/model"}
    with pytest.raises(SourceError, match="nothing says whose decoders are in"):
        import_decoder(root, **bare)
    model = import_decoder(root, **bare, responses=responses(X, subject="sub-07"))
    assert model.subjects == ("sub-07",)
    check(responses(X).drop_attrs(deep=False).ned.decode(model), layers, X)


def test_from_one_subjects_responses_to_features_through_another(tmp_path):
    """The whole chain with published files: convert, average and decode BData without units."""
    root = study.make(tmp_path / "study")
    own, other = (
        open_bdata(root / "fmri" / f"sub-{subject:02d}_NaturalImageTest.h5") for subject in (1, 2)
    )
    folder = root / "converters" / "sub-022sub-01" / "ROI_VC" / "full" / "200" / "1" / "model"
    converter = import_converter(folder, 2, 1, target_responses=own)
    model = import_decoder(root / "decoders", responses=own)
    true = open_features(root / "features" / "NaturalImageTest", image_set="NaturalImageTest")
    for ds in (own, other.ned.convert(converter)):
        decoded = ds.ned.decode(model, average="image_id")
        for layer in study.LAYERS:
            found = decoded[f"feature_{layer}"].values.reshape(10, -1)
            features = true[f"feature_{layer}"].sel(image_id=decoded["image_id"].values)
            pairs = zip(found.T, features.values.reshape(10, -1).T, strict=True)
            assert np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]) > 0.9
