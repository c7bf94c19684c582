"""The content-loss converter and the converters of EEG, on subjects of known maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import zscore
from sklearn.linear_model import Ridge

import nedx
from nedx.conversion import content_loss
from nedx.conversion.content_network import content_network
from nedx.errors import ModelError
from tests.conversion.simulated import images, responses
from tests.laziness import computes_at_most


@pytest.fixture(scope="module")
def decoded():
    """Return a source, features of what it saw, and a decoder of another subject and images."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((260, 5))
    names = np.array(images(260), dtype=object)
    features = xr.Dataset(
        {
            "feature_conv": (
                ("image", "conv_channel", "conv_y", "conv_x"),
                (latents @ rng.standard_normal((5, 12))).reshape(260, 3, 2, 2).astype(np.float32),
            ),
            "feature_fc": (
                ("image", "fc_unit"),
                (4 * latents @ rng.standard_normal((5, 6))).astype(np.float32),
            ),
        },
        {"image_id": ("image", names)},
    )
    x, y = (
        latents @ rng.standard_normal((5, size)) + 0.05 * rng.standard_normal((260, size))
        for size in (20, 16)
    )
    source = responses(x[:120], names[:120], "sub-01")
    target = responses(3 + 2 * y[120:], names[120:], "sub-02")
    decoder = nedx.FeatureDecoder(alpha=1.0, n_voxels=16, device="cpu")
    decoder.fit(features.isel(image=slice(120, None)), target)
    return source, features, decoder, target, y


def test_content_is_converted_without_shared_stimuli(decoded, tmp_path):
    source, features, decoder, target, y = decoded
    with pytest.raises(ModelError, match="ContentLossConverter"):
        nedx.RidgeConverter().fit(source, target)
    fitted = nedx.ContentLossConverter(
        decoder, iterations=400, learning_rate=2e-3, device="cpu"
    ).fit(source, features.isel(image=slice(None, 120)), labels=target)
    loss = fitted.history_["loss"].values
    assert loss[-20:].mean() < 0.2 * loss[:5].mean()
    with computes_at_most(0):
        out = source.ned.convert(fitted)
    nedx.validate(out)
    np.testing.assert_array_equal(out["voxel"].values, target["voxel"].values)
    assert out["response"].attrs["normalization"] == "zscore"
    made = out["response"].values
    agreement = [np.corrcoef(made[:, v], 3 + 2 * y[:120, v])[0, 1] for v in range(16)]
    assert np.mean(agreement) > 0.75
    decoding = out.ned.decode(decoder)["feature_fc"].values
    truth = features["feature_fc"].values[:120]
    units = [np.corrcoef(decoding[:, u], truth[:, u])[0, 1] for u in range(6)]
    assert np.mean(units) > 0.9
    fitted.to_zarr(tmp_path / "content.zarr")
    again = source.ned.convert(str(tmp_path / "content.zarr"))
    picked = again["response"].isel(image=[5, 2], voxel=[7, 0, 7])
    np.testing.assert_allclose(picked.values, made[np.ix_([5, 2], [7, 0, 7])], atol=1e-4)


def test_converted_responses_can_be_decoded_as_they_are(decoded):
    source, features, decoder, target, _ = decoded
    shown = features.isel(image=slice(None, 120))
    fitted = nedx.ContentLossConverter(decoder, layers="fc", iterations=2, device="cpu")
    out = source.ned.convert(fitted.fit(source, shown))
    np.testing.assert_array_equal(out["voxel"].values, target["voxel"].values)
    nedx.validate(out)
    assert out.ned.decode(decoder)["feature_fc"].shape == (120, 6)


def test_large_decoders_are_read_by_channel(decoded, monkeypatch):
    source, features, decoder, _, _ = decoded
    shown = features.isel(image=slice(None, 120))
    make = nedx.ContentLossConverter(decoder, iterations=3, device="cpu")
    held = make.fit(source, shown).model_.weights(1, 2)
    monkeypatch.setattr(content_loss, "_HELD_BYTES", 0)
    xr.testing.assert_identical(make.fit(source, shown).model_.weights(1, 2), held)


def test_the_content_network_is_that_of_torch_modules():
    rng = np.random.default_rng(1)
    sizes = [8, 4, 4, 6]
    layers = [torch.nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    norm, leak = torch.nn.InstanceNorm1d(1), torch.nn.LeakyReLU(0.2)
    arrays = {}
    for number, layer in enumerate(layers, 1):
        arrays |= {f"weight_{number}": layer.weight, f"bias_{number}": layer.bias}
    z = torch.from_numpy(rng.standard_normal((7, 8), np.float32))
    expected = z[:, None]
    for layer in layers[:2]:
        expected = leak(norm(layer(expected)))
    expected = layers[2](expected)[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(content_network(arrays)(z), expected, atol=1e-6, rtol=1e-5)


def _never(block):
    raise AssertionError("features were read")


def test_content_faults_are_told_first(decoded):
    source, features, decoder, target, _ = decoded
    make = nedx.ContentLossConverter
    with pytest.raises(ModelError, match="sub-01 and the features share no image"):
        make(decoder).fit(source, features.isel(image=slice(120, None)))
    narrow = features.isel(fc_unit=slice(4))
    with pytest.raises(ModelError, match="4 units, the decoder 6: they are of another network"):
        make(decoder).fit(source, narrow)
    with pytest.raises(ModelError, match="nothing is to be converted"):
        make(decoder).fit(target, features)
    with pytest.raises(ModelError, match="a decoder is a fitted FeatureDecoder"):
        make("vgg19").fit(source, features)
    weights = {name: decoder.model_.weights(name) for name in ("conv", "fc")}
    weights = {name: ds.drop_vars("position") for name, ds in weights.items()}
    with pytest.raises(ModelError, match="this FeatureDecoder is not fitted yet"):
        make(nedx.FeatureDecoder()).fit(source, features)
    with pytest.raises(ModelError, match="layers= names none"):
        make(decoder, layers=[]).fit(source, features)
    with pytest.raises(ModelError, match="iterations is 'many'; type a whole number"):
        make(decoder, iterations="many").fit(source, features)
    with pytest.raises(ModelError, match="sub-02 has no 'response'"):
        make(decoder).fit(source, features, labels=features)
    with pytest.raises(
        ModelError, match=r"loss of the content network is .* smaller learning_rate than 1e\+30"
    ):
        make(decoder, learning_rate=1e30, device="cpu").fit(source, features)
    silent = source.copy(deep=True).compute()
    silent["response"].values[:, 2] = np.nan
    # Responses are read before features, which may be those of a network that runs for hours.
    unread = features.chunk(image=5).map(
        lambda v: v.copy(data=v.data.map_blocks(_never, dtype="f4"))
    )
    with pytest.raises(ModelError, match="1 of 20 neuroids of sub-01 are NaN"):
        make(decoder, device="cpu").fit(silent, unread)
    missing = features.copy(deep=True)
    missing["feature_fc"].values[3, 1] = np.nan
    with pytest.raises(ModelError, match="features of fc are NaN or infinite"):
        make(decoder, device="cpu").fit(source, missing)
    tested = source.assign_coords(partition=("image", np.array(["test"] * 120, dtype=object)))
    with pytest.raises(ModelError, match="sub-01 saw no training images"):
        make(decoder).fit(tested, features)
    timed = source.assign(response=source["response"].expand_dims(time=[0.0, 0.1], axis=-1))
    with pytest.raises(ModelError, match=r"without time.*ds.mean\('time'"):
        make(decoder).fit(timed, features)
    with pytest.raises(ModelError, match="labels= has 20 voxels"):
        make(weights, iterations=1, device="cpu").fit(source, features, labels=source)


def eeg(count=120, noise=0.4, repeats=4, subjects=(1, 2)):
    """Return responses of subjects whose channels mix the same courses of sources."""
    rng = np.random.default_rng(3)
    times = np.arange(20) / 100
    waves = np.stack([np.sin(2 * np.pi * f * times + p) for f, p in ((5, 0), (10, 1), (15, 2))])
    drive = rng.standard_normal((count, 3))
    sources = drive[:, :, None] * waves
    made = {}
    for n in subjects:
        mixing = rng.standard_normal((6, 3))
        signal = 1 + np.einsum("cs,nst->nct", mixing, sources)
        values = signal[:, None] + noise * rng.standard_normal((count, repeats, 6, 20))
        ds = xr.Dataset(
            {
                "response": (
                    ("image", "repetition", "channel", "time"),
                    values.astype(np.float32),
                    {"units": "uV", "source": "synthetic"},
                )
            },
            {
                "image_id": ("image", np.array(images(count), dtype=object)),
                "channel": np.array(["O1", "Oz", "O2", "POz", "Pz", "P3"], dtype=object),
                "time": ("time", times, {"units": "s"}),
                "partition": (
                    "image",
                    np.where(np.arange(count) < count - 20, "train", "test").astype(object),
                ),
            },
            {"modality": "eeg", "subject": f"sub-0{n}"},
        )
        made[f"sub-0{n}"] = nedx.parse(ds).chunk(image=30, channel=4)
    return made


def test_a_u_net_that_cannot_learn_is_told():
    one, other = (ds.isel(image=slice(6)) for ds in eeg(repeats=1).values())
    make = nedx.EEGConverter
    with pytest.raises(ModelError, match="all 6 samples are held out: type a smaller validation"):
        make("unet", validation=0.95, device="cpu").fit(one, other)
    with pytest.raises(
        ModelError, match=r"loss of the U-Net is .*smaller learning_rate than 1e\+20"
    ):
        make("unet", epochs=5, learning_rate=1e20, device="cpu").fit(one, other)
    still = one.copy(deep=True).compute()
    still["response"].values[..., 2, 5] = 0
    with pytest.raises(ModelError, match=r"1 of 120 pairs of channel and time .* \[\(2, 5\)\]"):
        make("unet", device="cpu").fit(still, other)
    for wrong, told in (
        ({"validation": "few"}, "validation is 'few'"),
        ({"epochs": 1.5}, "epochs is 1.5; type a whole number"),
        ({"learning_rate": 0}, "learning_rate is 0"),
    ):
        with pytest.raises(ModelError, match=told), computes_at_most(0):
            make("unet", **wrong).fit(one, other)
    with pytest.raises(ModelError, match="alpha is 'best'"), computes_at_most(0):
        make("linear", alpha="best").fit(one, other)


def test_channels_are_mapped_alike_at_all_times():
    one, other = eeg().values()
    fitted = nedx.RidgeConverter(alpha=4.0, device="cpu").fit(one, other)
    assert fitted.model_.recipe.pairs[0].n_samples == 100 * 4 * 20

    def flat(ds):
        values = ds["response"].values[:100].reshape(-1, 6, 20)
        return np.moveaxis(values, 1, 2).reshape(-1, 6)

    x, y = flat(one), flat(other)
    expected = Ridge(4.0).fit(zscore(x, ddof=1), zscore(y, ddof=1)).coef_.T
    np.testing.assert_allclose(fitted.model_.weights(1, 2)["weight"], expected, atol=1e-4)
    out = one.ned.sel(time=(0.05, 0.1)).ned.convert(fitted)
    nedx.validate(out)
    z = (one["response"].values - x.mean(0)[:, None]) / x.std(0, ddof=1)[:, None]
    hand = np.einsum("ct,nrcx->nrtx", expected, z)
    hand = hand * y.std(0, ddof=1)[:, None] + y.mean(0)[:, None]
    np.testing.assert_allclose(out["response"].values, hand[..., 5:11], atol=1e-3)
    assert out["response"].attrs["units"] == "uV"


def test_eeg_is_converted_channels_and_times_together(tmp_path):
    one, other = eeg().values()
    fitted = nedx.EEGConverter("linear", alpha=30.0, device="cpu").fit(one, other)
    x, y = (ds["response"].values.mean(1)[:100].reshape(100, -1) for ds in (one, other))
    expected = Ridge(30.0).fit(zscore(x, ddof=1), zscore(y, ddof=1)).coef_.T
    np.testing.assert_allclose(fitted.model_.weights(1, 2)["weight"], expected, atol=1e-4)
    with computes_at_most(0):
        out = one.ned.convert(fitted)
    nedx.validate(out)
    z = (one["response"].values.reshape(120 * 4, -1) - x.mean(0)) / x.std(0, ddof=1)
    hand = (z @ expected * y.std(0, ddof=1) + y.mean(0)).reshape(120, 4, 6, 20)
    np.testing.assert_allclose(out["response"].values, hand, atol=1e-3)
    picked = out["response"].isel(image=[3, 1], channel=[4, 0], time=slice(3, 7))
    np.testing.assert_allclose(picked.values, hand[[3, 1]][:, :, [4, 0], 3:7], atol=1e-3)
    # Another order of channels, and more times than it was fitted to.
    reordered = one.isel(channel=[3, 1, 5, 0, 2, 4]).ned.convert(fitted)
    np.testing.assert_allclose(reordered["response"].values, hand, atol=1e-3)
    with pytest.raises(ModelError, match=r"they span 0.05 to 0.1 s, the converter takes"):
        one.ned.sel(time=(0.05, 0.1)).ned.convert(fitted)


def test_the_u_net_learns_and_keeps_the_epoch_that_generalises(tmp_path):
    one, other = eeg(noise=0.2, repeats=2).values()
    test = one.isel(image=slice(100, None))
    fitted = nedx.EEGConverter("unet", epochs=12, learning_rate=1e-3, seed=1, device="cpu")
    fitted.fit(one, other)
    history = fitted.history_
    assert history["loss"].values[0, -1] < 0.5 * history["loss"].values[0, 0]
    out = test.ned.convert(fitted)
    nedx.validate(out)
    made = out["response"].mean("repetition").values
    truth = other["response"].values[100:].mean(1)
    assert np.corrcoef(made.ravel(), truth.ravel())[0, 1] > 0.9
    fitted.to_zarr(tmp_path / "unet.zarr")
    again = test.ned.convert(str(tmp_path / "unet.zarr"))["response"]
    np.testing.assert_allclose(
        again.isel(channel=[5, 0], time=[2]).values,
        out["response"].values[:, :, [5, 0]][..., [2]],
        atol=1e-4,
    )
    repeated = nedx.EEGConverter("unet", epochs=12, learning_rate=1e-3, seed=1, device="cpu")
    repeated.fit(one, other)
    assert repeated.model_.weights_sha256 == fitted.model_.weights_sha256
