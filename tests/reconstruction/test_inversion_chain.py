"""From responses to pictures: decode, store, open again, reconstruct."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import ModelError
from nedx.reconstruction.inversion import LBFGS, FeatureInversion
from nedx.sources.bdata.features import open_features
from tests.laziness import computes_at_most
from tests.reconstruction.inverted import (
    SIDE,
    as_dataset,
    caffe_input,
    encoder,
    features_by_hand,
    small_net,
    smooth_images,
)
from tests.sources.bdata.files import write_dense

LAYERS = ("conv2_1", "fc6", "fc8")
TRAIN, TEST = slice(0, 44), slice(44, 48)


@pytest.fixture(scope="module")
def study():
    """Return an inversion, images, responses of two subjects of unequal size, and a decoder."""
    net, images = small_net(1), smooth_images(48, seed=3)
    features = features_by_hand(net, caffe_input(images))
    stimuli = as_dataset({layer: features[layer] for layer in LAYERS}, np.float32)
    flat = images.reshape(len(images), -1)
    factors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[0][:, :30] * 5
    children = {}
    for number, voxels in enumerate((90, 60), 1):
        rng = np.random.default_rng(number)
        values = factors @ rng.standard_normal((30, voxels))
        attrs = {"units": "percent", "normalization": "none"}
        children[f"sub-{number:02d}"] = xr.Dataset(
            {"response": (("image", "voxel"), values.astype(np.float32), attrs)},
            {"image_id": stimuli["image_id"], "voxel": np.arange(voxels, dtype=np.int32)},
            {"modality": "fmri", "source": "synthetic", "stimulus_type": "image"},
        )
    tree = xr.DataTree.from_dict(children)
    decoder = nedx.FeatureDecoder(n_voxels=50, alpha=1.0, device="cpu")
    decoder.fit(stimuli.isel(image=TRAIN), tree.isel(image=TRAIN))
    inversion = FeatureInversion(encoder(net, LAYERS), LBFGS(20), raw=True, batch_size=2)
    return inversion, images, tree, decoder


def test_subjects_of_unequal_size(study):
    inversion, images, tree, decoder = study
    with computes_at_most(0):
        decoded = tree.isel(image=TEST).ned.decode(decoder, device="cpu")
        seen = decoded.ned.reconstruct(inversion, device="cpu")
    assert isinstance(seen, xr.DataTree)
    for name, child in seen.children.items():
        found = child["pixels_reconstructed"]
        assert found.shape == (4, SIDE, SIDE, 3)
        assert list(child["image_id"].values) == list(tree[name]["image_id"].values[TEST])
        alone = decoded[name].to_dataset().ned.reconstruct(inversion, device="cpu")
        np.testing.assert_array_equal(found.values, alone["pixels_reconstructed"].values)
        made, truth = (v - v.mean(0) for v in (alone["pixels_raw"].values, images[TEST]))
        alike = np.corrcoef(made.reshape(4, -1), truth.reshape(4, -1))[:4, 4:]
        assert (alike.argmax(1) == np.arange(4)).all()


def test_feature_files(tmp_path):
    """Files of a published layout, one of each image and layer, and those of another network."""
    net, layers = small_net(1), ("conv2_1", "fc8")
    features = features_by_hand(net, caffe_input(smooth_images(2)))
    for layer in layers:
        place = tmp_path / layer / "sub-01" / "ROI_VC"
        place.mkdir(parents=True)
        for name, values in zip(("Img0001", "Img0002"), features[layer], strict=True):
            write_dense(place / f"{name}.mat", "feat", values[None].astype(np.float32))
    inversion = FeatureInversion(encoder(net, layers), LBFGS(3), raw=True)
    with computes_at_most(0):
        opened = open_features(tmp_path, layout="decoded", image_set="test")
        seen = opened.ned.reconstruct(inversion, device="cpu")
    assert list(seen["image_id"].values) == ["test:Img0001", "test:Img0002"]
    given = as_dataset({layer: features[layer] for layer in layers}, np.float32)
    expected = given.ned.reconstruct(inversion, device="cpu")["pixels_raw"].values
    np.testing.assert_array_equal(seen["pixels_raw"].values, expected)
    other = FeatureInversion(encoder(small_net(1, 64), layers, side=64), LBFGS(3))
    with pytest.raises(ModelError, match=r"another network.*\n.*conv2_1 is \(16, 16, 16\)"):
        opened.ned.reconstruct(other)


def test_decoded_features_of_a_store(study, tmp_path):
    inversion, _, tree, decoder = study
    inversion = replace(inversion, optimizer=LBFGS(4))
    one = tree["sub-01"].to_dataset().assign_attrs(subject_ids=["sub-01"]).isel(image=TEST)
    decoded = one.ned.decode(decoder, device="cpu")
    decoded.ned.to_zarr(tmp_path / "decoded.zarr")
    opened = nedx.open(tmp_path / "decoded.zarr")
    with computes_at_most(0):
        seen = opened.ned.reconstruct(inversion, device="cpu").isel(image=[2, 0])
    loaded = opened.load().ned.reconstruct(inversion, device="cpu").isel(image=[2, 0])
    np.testing.assert_array_equal(seen["pixels_raw"].values, loaded["pixels_raw"].values)
    # Features are stored rounded.
    before = decoded.ned.reconstruct(inversion, device="cpu").isel(image=[2, 0])
    alike = np.corrcoef(*(ds["pixels_raw"].values.ravel() for ds in (seen, before)))[0, 1]
    assert alike > 0.99
