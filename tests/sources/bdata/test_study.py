"""A whole study in BData: responses, converted and decoded by published files, join features."""

from __future__ import annotations

import numpy as np
import pytest

import nedx
from nedx.linear.l2lir import L2LiRFit
from nedx.sources.bdata.converters import open_converter
from nedx.sources.bdata.decoders import open_decoders
from nedx.sources.bdata.features import open_features
from nedx.sources.bdata.reading import open_bdata
from nedx.store.location import Location
from tests.oracles import make_bdata as study
from tests.servers import S3Server


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return study.make(tmp_path_factory.mktemp("study") / "all")


@pytest.mark.parametrize("shown", study.SETS)
@pytest.mark.parametrize("subject", study.SUBJECTS)
def test_every_file_of_responses(root, shown, subject):
    ds = open_bdata(root / "fmri" / f"sub-{subject:02d}_{shown}.h5", units="percent")
    order, values = study.responses(shown, subject)
    np.testing.assert_array_equal(ds["response"].values, values.astype(np.float32))
    np.testing.assert_array_equal(ds["image_index"].values, order + 1)
    assert ds["repetition"].max() == study.SETS[shown][1] - 1
    for name, flag in study.rois(subject).items():
        np.testing.assert_array_equal(ds["roi_mask"].sel(roi=name).values, flag)
        assert ds.ned.select(f"{name} = 1").sizes["voxel"] == flag.sum()
    both = ds.ned.select("ROI_V1 & ROI_V2")
    assert both.sizes["voxel"] == 1
    nedx.validate(ds)


def test_responses_and_features_join_by_image(root):
    ds = open_bdata(root / "fmri" / "sub-01_NaturalImageTest.h5")
    true = open_features(root / "features" / "NaturalImageTest", image_set="NaturalImageTest")
    joined = true.sel(image_id=ds["image_id"].values)
    order, _ = study.responses("NaturalImageTest", 1)
    expected = study.features("NaturalImageTest")
    for layer, values in expected.items():
        np.testing.assert_array_equal(joined[f"feature_{layer}"].values, values[order])
    np.testing.assert_array_equal(joined["image_index"].values, ds["image_index"].values)


def decoded(decoder, x):
    part = decoder.to_dataset().compute()
    z = (x - part["response_mean"].values) / part["response_deviation"].values
    arrays = (part[name].values for name in ("index", "weight", "bias"))
    fit = L2LiRFit(*arrays, part.sizes["voxel"])
    return fit.predict(z) * part["feature_deviation"].values + part["feature_mean"].values


def profile(predicted, true):
    """Return the mean correlation over images of all units."""
    pairs = zip(predicted.T, true.reshape(len(true), -1).T, strict=True)
    return np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs])


def test_published_decoders_and_converters_do_what_they_should(root):
    decoders = open_decoders(root / "decoders")
    converter = open_converter(
        root / "converters" / "sub-022sub-01" / "ROI_VC" / "full" / "200" / "1" / "model"
    ).compute()
    means = []
    for subject in (1, 2):
        ds = open_bdata(root / "fmri" / f"sub-{subject:02d}_NaturalImageTest.h5")
        mean = ds["response"].compute().groupby(ds["image_index"].compute()).mean()
        means.append(mean.values)
    own, other = means
    z = (other - converter["source_mean"].values) / converter["source_deviation"].values
    converted = z @ converter["weight"].values + converter["bias"].values
    converted = converted * converter["target_deviation"].values + converter["target_mean"].values
    for layer, true in study.features("NaturalImageTest").items():
        assert profile(decoded(decoders[layer], own), true) > 0.9
        assert profile(decoded(decoders[layer], converted), true) > 0.9


def test_a_study_in_a_bucket(root):
    server = S3Server()
    try:
        bucket = Location.of(server.fill("study", root), storage_options=server.options)
        ds = open_bdata(bucket.child("fmri/sub-01_NaturalImageTest.h5"))
        _, values = study.responses("NaturalImageTest", 1)
        np.testing.assert_array_equal(ds["response"][3:5].values, values[3:5].astype(np.float32))
        true = open_features(bucket.child("features/NaturalImageTest"), image_set="s")
        expected = study.features("NaturalImageTest")["conv2"]
        np.testing.assert_array_equal(true["feature_conv2"][2:4].values, expected[2:4])
        far = open_decoders(bucket.child("decoders"), layers=["conv1", "fc6"])
        near = open_decoders(root / "decoders")
        for layer in far.children:
            np.testing.assert_array_equal(far[layer]["weight"].values, near[layer]["weight"].values)
    finally:
        server.close()


def test_the_study_is_fitted_as_published(root):
    """Of the decoders of the study: ridge as fastl2lir has it, of the voxels it would choose."""
    fastl2lir = pytest.importorskip("fastl2lir")
    order, values = study.responses("NaturalImageTraining", 1)
    x, _, _ = study.standardised(values)
    y, _, _ = study.standardised(study.features("NaturalImageTraining")["fc6"].astype(float))
    y = y[order]
    published = fastl2lir.FastL2LiR()
    published.fit(x, y, alpha=study.ALPHA)
    weights, bias = study.fitted(x, y, selected=x.shape[1])
    np.testing.assert_allclose(weights, published.W, atol=1e-10)
    np.testing.assert_allclose(bias[None], published.b, atol=1e-10)
    strength = np.abs(np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :])
    decoder = open_decoders(root / "decoders", layers="fc6")["fc6"].to_dataset().compute()
    for unit, index in enumerate(decoder["index"].values):
        chosen = np.argsort(-strength[:, unit])[: study.SELECTED]
        assert sorted(chosen) == index.tolist()
