"""A photograph out of the features of a trained network, and its contrast out of weak ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import nedx
from nedx.backbones import Weights, default_recipe
from nedx.reconstruction.inversion import (
    LBFGS,
    FeatureEncoder,
    FeatureInversion,
    FeatureScaling,
)
from nedx.sources.v4_cowley2023 import open_stimuli
from tests.reconstruction.simulated import ids

LAYERS = ("conv1", "fire2", "fire4")


@pytest.fixture(scope="module")
def photograph(shared_data):
    folder = shared_data / "v4_cowley2023"
    weights = next((shared_data / "weights").glob("squeezenet*/*.h5"), None)
    if weights is None or not folder.is_dir():
        pytest.skip(f"photographs and trained weights are not in {shared_data}")
    pixels = open_stimuli(folder, "210325")["pixels"].isel(image=[40]).values
    recipe = default_recipe(
        "squeezenet1_1", weights=Weights(source=weights), layers=LAYERS, image_size=112
    )
    encoder = FeatureEncoder(recipe)
    # Blue first, less (104, 117, 123), as its README says.
    values = (pixels[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])).copy()
    with torch.no_grad():
        features = encoder.load("cpu", "float32")(torch.from_numpy(values).permute(0, 3, 1, 2))
    return pixels, encoder, {name: tensor.numpy() for name, tensor in features.items()}


def inverted(features, inversion):
    made = {
        f"feature_{layer}": (("image", f"{layer}_channel", f"{layer}_y", f"{layer}_x"), values)
        for layer, values in features.items()
    }
    ds = xr.Dataset(made, coords={"image_id": ("image", ids(1))})
    return nedx.reconstruct(ds, inversion, device="cpu")["pixels_reconstructed"].values


def test_a_photograph_comes_back(photograph):
    pixels, encoder, features = photograph
    optimizer = LBFGS(40, precision="float32")
    found = inverted(features, FeatureInversion(encoder, optimizer, display="range"))
    assert np.corrcoef(found.ravel(), pixels.ravel())[0, 1] > 0.9
    weak = {layer: 0.3 * values for layer, values in features.items()}
    faint = inverted(weak, FeatureInversion(encoder, optimizer, display="range"))
    std = {layer: values.std((2, 3)).mean() for layer, values in features.items()}
    scaling = FeatureScaling("std_about_zero", std)
    scaled = inverted(weak, FeatureInversion(encoder, optimizer, scaling=scaling, display="range"))
    contrasts = [image.astype(float).std() for image in (pixels, found, faint, scaled)]
    assert contrasts[2] < 0.5 * contrasts[0]
    assert contrasts[3] == pytest.approx(contrasts[1], rel=0.05)
