from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import nedx
import tests.tvshim  # noqa: F401  (must come before diffusers)
from nedx.errors import ModelError
from nedx.reconstruction.generators import LatentDecoder
from nedx.reconstruction.low_level_network import LowLevelNetwork
from tests.laziness import computes_at_most
from tests.reconstruction.simulated import ids

CHANNELS, TIMES, SHAPE = 5, 20, (4, 4, 4)
SETTINGS = {"epochs": 25, "lr": 3e-3, "dropout": 0.0, "width": 64, "groups": None}


def simulated(count: int = 260) -> tuple[xr.Dataset, xr.Dataset]:
    """Return responses that are a linear map of latents, with two noisy repetitions."""
    rng = np.random.default_rng(0)
    layout = rng.standard_normal((count, 6))
    latent = (layout @ rng.standard_normal((6, 64)) / 2).reshape(count, *SHAPE)
    response = (layout @ rng.standard_normal((6, CHANNELS * TIMES))).reshape(
        count, 1, CHANNELS, TIMES
    )
    response = response + 0.5 * rng.standard_normal((count, 2, CHANNELS, TIMES))
    attrs = {"units": "1", "normalization": "zscore", "normalization_scope": "session"}
    responses = xr.Dataset(
        {
            "response": (
                ("image", "repetition", "channel", "time"),
                response.astype(np.float32),
                attrs,
            )
        },
        coords={
            "image_id": ("image", ids(count)),
            "channel": np.array([f"E{i}" for i in range(CHANNELS)], object),
            "time": np.arange(TIMES) / 100,
        },
        attrs={"modality": "eeg", "source": "synthetic"},
    )
    dims = ("image", "latent_channel", "latent_y", "latent_x")
    latents = xr.Dataset(
        {"latent": (dims, latent.astype(np.float32), {"model": "made_up"})},
        coords={"image_id": ("image", ids(count))},
    )
    return responses, latents.isel(image=np.random.default_rng(1).permutation(count))


@pytest.fixture(scope="module")
def fitted():
    responses, latents = simulated()
    return nedx.LowLevelDecoder(**SETTINGS).fit(responses.isel(image=slice(200)), latents)


def test_network_grows_as_published():
    network = LowLevelNetwork(2, 250, (4, 64, 64))
    # 2 x 128 inputs here, 63 x 128 = 8,064 as published.
    widths = [m.out_channels for m in network.grow if isinstance(m, torch.nn.ConvTranspose2d)]
    assert widths == [1024, 512, 256, 128, 64, 32]
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 2, 250)).shape == (1, 4, 64, 64)
    with pytest.raises(ModelError, match="power of two"):
        LowLevelNetwork(2, 250, (4, 48, 48))


def test_learns_latents_of_images_it_never_saw(fitted):
    responses, latents = simulated()
    unseen = responses.isel(image=slice(200, None))
    with computes_at_most(0):
        out = fitted.predict(unseen)
        some = out["latent"].isel(image=[5, 3], latent_channel=2)
    assert out["latent"].dims == (
        *("image", "repetition"),
        *("latent_channel", "latent_y", "latent_x"),
    )
    truth = latents.set_xindex("image_id").sel(image_id=unseen["image_id"].values)["latent"].values
    found = out["latent"].values.mean(1)
    r = np.corrcoef(found.ravel(), truth.ravel())[0, 1]
    assert r > 0.8
    shuffled = np.corrcoef(found.ravel(), np.roll(truth, 1, axis=0).ravel())[0, 1]
    assert shuffled < 0.3
    np.testing.assert_allclose(some.values, out["latent"].values[[5, 3]][:, :, 2], atol=1e-5)
    assert out["latent"].attrs["model"] == "made_up"


def test_stored_and_opened_again(fitted, tmp_path):
    responses, _ = simulated(8)
    fitted.to_zarr(tmp_path / "low.zarr")
    model = nedx.load_model(tmp_path / "low.zarr")
    assert model.recipe == fitted.model_.recipe
    assert model.recipe.takes.training_source == "synthetic"
    expected = fitted.predict(responses)["latent"].values
    # Channels are found by name, images by chunk.
    turned = responses.isel(channel=slice(None, None, -1))
    turned = turned.assign(response=turned["response"].chunk({"image": 3}))
    found = model.predict(turned, device="cpu")["latent"].values
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_store_that_lacks_weights_is_refused(fitted, tmp_path):
    from nedx.reconstruction.low_level_loop import build
    from nedx.reconstruction.network_store import load_weights

    model = fitted.model_
    state = {name: values for name, values in model.state().items() if "mix" not in name}
    known = model.known_images.set_coords("known_image")
    model._write(tmp_path / "low.zarr", model.recipe, state, known)
    broken = nedx.load_model(tmp_path / "low.zarr")
    with pytest.raises(ModelError, match=r"(?s)not those of its recipe.*mix\.weight"):
        load_weights(build(model.recipe), broken.ref)


def test_bad_input_is_told_before_training(fitted):
    responses, latents = simulated(20)
    settings = {**SETTINGS, "epochs": 1}
    with pytest.raises(ModelError, match=r"isel\(subject=0\)"):
        nedx.LowLevelDecoder(**settings).fit(responses.expand_dims(subject=["sub-01"]), latents)
    with pytest.raises(ModelError, match="without a target"):
        nedx.LowLevelDecoder(**settings).fit(responses, latents.isel(image=slice(5)))
    with pytest.raises(ModelError, match="no 'latent' here"):
        nedx.LowLevelDecoder(**settings).fit(responses, responses)
    with pytest.raises(ModelError, match="groups=None"):
        nedx.LowLevelDecoder(epochs=1, width=8).fit(responses, latents)
    bad = responses.where(responses["image_id"] != "t:0004")
    with pytest.raises(ModelError, match="first that of 't:0004'"):
        nedx.LowLevelDecoder(**settings).fit(bad, latents)
    with pytest.raises(ModelError, match="channels are missing: E1"):
        fitted.predict(responses.isel(channel=[0, 2, 3, 4]))
    with pytest.raises(nedx.errors.NedxError, match="not fitted"):
        nedx.LowLevelDecoder().predict(responses)


def test_latents_are_the_mean_of_the_variational_encoder(tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tests.reconstruction.pipelines import autoencoder

    vae = autoencoder(tmp_path / "vae").eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    images = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)}, coords={"image_id": ("image", ids(3))}
    )
    with computes_at_most(0):
        out = nedx.encode_latents(images, tmp_path / "vae", batch_size=2)
    given = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = vae.encode(given).latent_dist.mean
        decoded = vae.decode(expected).sample / 2 + 0.5
    np.testing.assert_allclose(out["latent"].values, expected.numpy(), atol=1e-5)
    larger = images.isel(y=np.arange(16) // 2, x=np.arange(24) // 2)
    cut = nedx.encode_latents(larger, tmp_path / "vae", size=8)
    assert cut["latent"].shape == (3, 4, 4, 4)
    found = out.drop_vars("pixels").ned.reconstruct(LatentDecoder(tmp_path / "vae"))
    shown = (decoded.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(found["pixels_reconstructed"].values - shown).max() <= 1
    with pytest.raises(ModelError, match=r"no whole latents.*size=6"):
        nedx.encode_latents(images.isel(y=slice(7)), tmp_path / "vae")
    with pytest.raises(ModelError, match="no 'pixels' here"):
        nedx.encode_latents(images.drop_vars("pixels"), tmp_path / "vae")
    for wrong in ({"size": -8}, {"batch_size": 0}):
        with pytest.raises(ModelError, match="at least 1"):
            nedx.encode_latents(images, tmp_path / "vae", **wrong)
