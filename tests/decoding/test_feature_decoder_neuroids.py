"""Which neuroids FeatureDecoder reads: found by their labels, and no others than those of ROIs."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.decoding import feature_decoder, feature_decoder_alpha
from nedx.errors import ModelError
from tests.decoding.feature_study import IMAGES, SHAPES, VOXELS, names, responses, stimuli


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(9).standard_normal((IMAGES, 6))


def decoder(**options):
    return nedx.FeatureDecoder(n_voxels=10, alpha=1.0, device="cpu", **options)


@pytest.fixture(scope="module")
def fitted(factors):
    return decoder(roi=["V1", "V2"]).fit(stimuli(factors), responses(factors))


def features(ds, model, layer="fc"):
    return ds.ned.decode(model)[f"feature_{layer}"].values


def test_neuroids_are_found_by_name_in_any_order(factors, fitted, tmp_path):
    ds = responses(factors)
    shuffled = ds.isel(voxel=np.random.default_rng(0).permutation(VOXELS))
    place = str(fitted.model_.sel(roi="V2").to_zarr(tmp_path / "decoder.zarr").url)
    for layer in SHAPES:
        expected = features(ds, fitted, layer)
        np.testing.assert_array_equal(features(shuffled, fitted, layer), expected)
        np.testing.assert_array_equal(features(shuffled, place, layer), expected[1])


def test_more_neuroids_than_were_fitted_to_may_be_there(factors):
    ds = responses(factors).drop_vars(["roi_mask", "roi"])
    some = decoder().fit(stimuli(factors), ds.isel(voxel=slice(10, 35)))
    expected = features(ds.isel(voxel=slice(10, 35)), some)
    np.testing.assert_array_equal(features(ds, some), expected)
    with pytest.raises(ModelError, match="all 25 of sub-01: .*; 5 are missing, first '10'"):
        ds.isel(voxel=slice(15, None)).ned.decode(some)
    twice = ds.assign_coords(voxel=np.arange(VOXELS) // 2)
    with pytest.raises(ModelError, match="several voxels of these responses have the same label"):
        twice.ned.decode(some)


def test_those_of_the_roi_will_do(factors, fitted):
    ds = responses(factors)
    model = fitted.model_.sel(roi="V2")
    expected = features(ds, model)
    np.testing.assert_array_equal(features(ds.ned.roi("V2"), model), expected)
    np.testing.assert_array_equal(features(ds.isel(voxel=slice(None, 10, -1)), model), expected)
    with pytest.raises(ModelError, match="; 15 are missing, first '0'"):
        ds.ned.roi("V2").ned.decode(fitted)
    with pytest.raises(ModelError, match="; 1 are missing, first '49'"):
        ds.isel(voxel=slice(49)).ned.decode(model)


def test_neuroids_without_labels_are_taken_as_they_come(factors):
    ds = responses(factors).drop_vars("voxel")
    bare = decoder().fit(stimuli(factors), ds)
    expected = features(ds, bare)
    np.testing.assert_array_equal(features(responses(factors), bare), expected)
    with pytest.raises(ModelError, match="30 voxels, the decoder was fitted to all 50"):
        ds.isel(voxel=slice(30)).ned.decode(bare)


def test_models_of_other_labels_are_other_models(factors):
    """Equal weights in the cache are not taken for them."""
    ds = responses(factors).drop_vars(["roi_mask", "roi"])
    renamed = ds.assign_coords(voxel=ds["voxel"].values + 1000)
    models = [decoder().fit(stimuli(factors), one).model_ for one in (ds, renamed)]
    assert models[0].weights_sha256 == models[1].weights_sha256
    labels = [model.neuroids("sub-01")["neuroid_label"].values[0] for model in models]
    assert labels == [0, 1000]


def test_what_lies_outside_of_the_roi_does_not_matter(factors):
    """Of a surface, vertices without brain are NaN."""
    ds = responses(factors).copy(deep=True)
    expected = decoder(roi="V1").fit(stimuli(factors), ds)
    holes = ds.copy(deep=True)
    holes["response"][:, 30:] = np.nan
    found = decoder(roi="V1").fit(stimuli(factors), holes)
    assert found.model_.weights_sha256 == expected.model_.weights_sha256
    np.testing.assert_array_equal(features(holes, found), features(ds, expected))
    with pytest.raises(ModelError, match="160 of 160 samples of 'sub-01' hold NaN"):
        decoder(roi=["V1", "V2"]).fit(stimuli(factors), holes)


def test_only_the_neuroids_of_rois_are_read(factors):
    ds = responses(factors)

    def refuse(block, block_info=None):
        assert block_info[None]["chunk-location"][1] != 4, "voxels of no ROI were read"
        return block

    lazy = ds["response"].chunk(voxel=10).data
    lazy = lazy.map_blocks(refuse, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    response = (("trial", "voxel"), lazy, ds["response"].attrs)
    found = decoder(roi="V1").fit(stimuli(factors), ds.assign(response=response))
    expected = decoder(roi="V1").fit(stimuli(factors), ds)
    assert found.model_.weights_sha256 == expected.model_.weights_sha256


def test_units_may_be_selected_in_any_order(factors, fitted):
    decoded = responses(factors).ned.decode(fitted)["feature_fc"]
    whole = decoded.values
    rows = [7, 2, 2, 9]
    np.testing.assert_allclose(decoded.isel(fc_unit=rows).values, whole[..., rows], atol=1e-5)
    np.testing.assert_allclose(decoded[..., ::-1].values, whole[..., ::-1], atol=1e-5)


def test_labels_of_stores_that_xarray_opens(factors, fitted, tmp_path):
    """Strings come as numpy's, which do not become those of a fixed width in one step."""
    ds, true = responses(factors), stimuli(factors)
    ds.to_zarr(tmp_path / "responses.zarr", zarr_format=3, consolidated=False)
    true.to_zarr(tmp_path / "features.zarr", zarr_format=3, consolidated=False)
    opened, features_ = (
        xr.open_zarr(tmp_path / f"{name}.zarr", consolidated=False)
        for name in ("responses", "features")
    )
    assert opened["image_id"].dtype.kind == "T"
    options = {"roi": ["V1", "V2"], "groups": "category", "exclusive": "category"}
    model = decoder(**options).fit(features_, opened).model_
    means = opened.ned.decode(model, average="image_id")["feature_fc"]
    expected = ds.ned.decode(fitted, average="image_id")["feature_fc"]
    np.testing.assert_allclose(means, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_any_float_is_decoded(factors, dtype):
    ds = responses(factors)
    ds["response"] = ds["response"].astype(dtype).assign_attrs(ds["response"].attrs)
    model = decoder().fit(stimuli(factors).astype(dtype), ds)
    assert ds.ned.decode(model)["feature_fc"].dtype == np.float32
    expected = features(responses(factors), decoder().fit(stimuli(factors), responses(factors)))
    np.testing.assert_allclose(features(ds, model), expected, atol=0.1 if dtype == "f2" else 1e-3)


def test_a_gram_matrix_of_a_fold_serves_all_layers(factors, monkeypatch):
    made = []

    class Counted(feature_decoder_alpha.L2LiRInputs):
        def __init__(self, *args, **options):
            made.append(1)
            super().__init__(*args, **options)

    monkeypatch.setattr(feature_decoder_alpha, "L2LiRInputs", Counted)
    model = nedx.FeatureDecoder(n_voxels=10, alpha="cv", folds=4, device="cpu")
    model.fit(stimuli(factors), responses(factors))
    assert len(made) == 4
    assert model.model_.recipe.training_data == f"responses to {IMAGES} images"
    assert f"responses to {IMAGES} images" in repr(model.model_)
    assert set(model.model_.recipe.alpha) == {"sub-01/all/conv", "sub-01/all/fc"}


def test_bad_subjects_and_features(factors):
    ds = responses(factors)
    tree = xr.DataTree.from_dict(
        {"sub-01": ds, "sub-02": responses(factors, 2).rename(voxel="vertex")}
    )
    with pytest.raises(ModelError, match="sub-02 are of vertexs, of sub-01 of voxels"):
        decoder().fit(stimuli(factors), tree)
    with pytest.raises(ModelError, match="no child of this DataTree holds a 'response'"):
        decoder().fit(stimuli(factors), xr.DataTree.from_dict({"a": stimuli(factors)}))
    absent = xr.DataTree.from_dict(
        {"sub-01": ds, "sub-02": responses(factors, 2, 37).isel(roi=[0])}
    )
    with pytest.raises(ModelError, match="sub-02: unknown ROI 'V2'"):
        decoder(roi="V2").fit(stimuli(factors), absent)
    bad = stimuli(factors)
    bad["feature_conv"][3] = np.inf
    with pytest.raises(ModelError, match="features of 'conv' hold NaN or infinity"):
        nedx.FeatureDecoder(alpha="cv", n_voxels=10).fit(bad, ds)
    others = ds.assign_coords(image_id=("trial", names(IMAGES)[np.zeros(160, int)]))
    with pytest.raises(ModelError, match="are to 1 image: a decoder"):
        decoder().fit(stimuli(factors), others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi": []}, "roi is empty; leave it out"),
        ({"layers": []}, "layers is empty; leave it out"),
        ({"n_voxels": None}, "n_voxels is None; type a whole number"),
        ({"n_voxels": 10.5}, "n_voxels is 10.5; type a whole number"),
        ({"alpha": "cv", "folds": 1}, "folds is 1; type a whole number from 2"),
        ({"alpha": ["a"]}, r"alpha is \['a'\]; expected positive numbers"),
        ({"alpha": "cv", "groups": "runs"}, "trials have no label 'runs'"),
        ({"exclusive": "subject"}, "trials have no label 'subject'"),
    ],
)
def test_wrong_options_are_told_before_features_are_computed(
    factors, monkeypatch, options, message
):
    monkeypatch.setattr(feature_decoder, "true_features", None)
    with pytest.raises(ModelError, match=message):
        nedx.FeatureDecoder(**options).fit(stimuli(factors), responses(factors))


def test_one_layer_may_be_named_alone(factors):
    assert decoder(layers="fc").fit(stimuli(factors), responses(factors)).model_.layers == ("fc",)
    assert nedx.FeatureDecoder(layers="fc6").recipe.layers == ("fc6",)


def test_decoded_features_are_no_longer_there_once_responses_are_perturbed(
    factors, fitted, tmp_path
):
    """True features of the same name are of the images, and stay."""
    stacked = responses(factors).ned.average_repetitions()
    decoded = stacked.ned.decode(fitted.model_.sel(roi="V1"))
    true = stimuli(factors)["feature_fc"].rename(image="shown").drop_vars("image_id")
    decoded = decoded.assign(feature_true=true)
    decoded.ned.to_zarr(str(tmp_path / "decoded.zarr"))
    for ds in (decoded, nedx.open(str(tmp_path / "decoded.zarr"))):
        assert "feature_fc" in ds
        hurt = ds.ned.perturb(noise="zero")
        assert set(hurt.data_vars) & {"feature_fc", "feature_conv", "feature_true"} == {
            "feature_true"
        }
