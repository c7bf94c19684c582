"""Features of named metrics, against torchvision and transformers run by hand; and the report."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

import nedx
import tests.tvshim  # noqa: F401  (must come before torchvision and transformers)
from nedx.backbones import register_module
from nedx.errors import ModelError, NedxWarning, SchemaError, StimulusError
from nedx.metrics.images import feature_extractor, image_metrics, pixcorr, ssim
from nedx.metrics.images.features import NAMED
from tests.laziness import computes_at_most
from tests.metrics.images.pictures import IDS, blended, features, pictures, seen, stimuli, together

TRUE = pictures((4, 60, 75), seed=3)
RECONSTRUCTED = np.stack([blended(TRUE, share) for share in (0.9, 0.2)])
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
CLIP = (
    torch.tensor([0.48145466, 0.4578275, 0.40821073]),
    torch.tensor([0.26862954, 0.26130258, 0.27577711]),
)


def prepared(images, side, mean, std):
    """Resize uint8 to 256 and then to another side, rounded to whole levels, and normalise."""
    batch = torch.tensor(images).permute(0, 3, 1, 2).float()
    for size in (256, side):
        batch = torch.nn.functional.interpolate(
            batch, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        ).round()
    return (batch / 255 - mean[:, None, None]) / std[:, None, None]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """Return torchvision's AlexNet with random weights, and the file they are in."""
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.alexnet(weights=None).eval()
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(network.state_dict(), path)
    return network, str(path)


@pytest.mark.parametrize(("name", "stop"), [("alexnet_2", 5), ("alexnet_5", 12)])
def test_alexnet_is_that_of_torchvision(alexnet, name, stop):
    network, path = alexnet
    found = feature_extractor(name, weights=path, batch_size=3)(stimuli(TRUE)["pixels"])
    with torch.no_grad():
        expected = network.features[:stop](prepared(TRUE, 256, *IMAGENET)).flatten(1).numpy()
    assert found.dims == ("image", "feature")
    # Whole grey levels may differ by one where a resize falls between two.
    assert np.corrcoef(found.values.ravel(), expected.ravel())[0, 1] > 0.9999
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    assert json.loads(found.attrs["image_preprocessing"])["resize"]["side"] == 256
    assert found.attrs["layers"] == [NAMED[name].layer]


def test_clip_is_the_projected_embedding_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
    vision = {**small, "num_hidden_layers": 2, "image_size": 224, "patch_size": 56}
    text = {**small, "num_hidden_layers": 1, "vocab_size": 50}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    found = feature_extractor("clip", backbone=f"transformers:{tmp_path}")(stimuli(TRUE)["pixels"])
    with torch.no_grad():
        pooled = model.vision_model(prepared(TRUE, 224, *CLIP)).pooler_output
        expected = model.visual_projection(pooled).numpy()
    assert found.shape == (4, 12)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


class Pooled(torch.nn.Module):
    """Average the colours of a grid of four by four, as a layer named as in torchvision."""

    def __init__(self):
        super().__init__()
        self.avgpool = torch.nn.AdaptiveAvgPool2d(4)

    def forward(self, images):
        return self.avgpool(images)


POOLED = register_module("pooled", Pooled(), "0" * 64)


@pytest.mark.parametrize("name", ["inception", "efficientnet_b1", "swav"])
def test_a_network_of_the_users_own_is_tapped(name):
    extractor = feature_extractor(name, backbone=POOLED)
    found = extractor(seen(RECONSTRUCTED, lead=("kind",))["pixels_reconstructed"])
    assert found.dims == ("kind", "image", "feature")
    side = NAMED[name].side
    for kind, images in enumerate(RECONSTRUCTED):
        batch = prepared(images, side, *IMAGENET)
        expected = torch.nn.functional.adaptive_avg_pool2d(batch, 4).flatten(1)
        np.testing.assert_allclose(found[kind], expected, atol=0.01)


def test_features_do_not_depend_on_chunks_and_are_lazy():
    extractor = feature_extractor("swav", backbone=POOLED, batch_size=2)
    whole = extractor(stimuli(TRUE)["pixels"]).compute()
    with computes_at_most(0):
        chunked = extractor(stimuli(TRUE).chunk(image=3, y=7)["pixels"])
    np.testing.assert_allclose(chunked, whole, atol=1e-6)
    assert chunked.chunks == ((3, 1), (48,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet_3", {}, "did you mean 'alexnet_5' or 'alexnet_2'"),
        ("alexnet_2", {}, "type weights="),
        ("inception", {}, "nedx does not hold Inception v3"),
        ("swav", {"backbone": POOLED, "device": "gpu"}, "unknown device"),
    ],
)
def test_features_that_cannot_be_had_are_refused(name, options, message):
    with pytest.raises(ModelError, match=message):
        feature_extractor(name, **options)


def test_a_layer_that_is_not_there_is_refused_before_any_work():
    extractor = feature_extractor("swav", backbone=POOLED, layer="fc")
    with pytest.raises(ModelError, match="'fc'"), computes_at_most(0):
        extractor(stimuli(TRUE)["pixels"])


def test_pixels_of_another_kind_are_refused():
    with pytest.raises(StimulusError):
        feature_extractor("swav", backbone=POOLED)(stimuli(TRUE / 255)["pixels"])


def test_the_report_holds_the_mean_of_every_metric():
    ds, given = seen(RECONSTRUCTED, lead=("kind",)), stimuli(TRUE)
    with computes_at_most(0):
        lazy = ds.chunk(image=3).ned.image_metrics(given.chunk(image=2))
    found = lazy.compute()
    np.testing.assert_allclose(found["pixcorr"], pixcorr(ds, given).mean("image"))
    for variant in ("mindeye", "necomimi"):
        expected = ssim(ds, given, variant=variant).mean("image")
        np.testing.assert_allclose(found[f"ssim_{variant}"], expected)
        assert found[f"ssim_{variant}"].attrs["variant"] == variant
    assert set(found) == {"pixcorr", "ssim_mindeye", "ssim_necomimi"}
    # The first kind holds more of the true images.
    assert (found.isel(kind=0).to_array() > found.isel(kind=1).to_array()).all()
    for array in found.values():
        assert array.dims == ("kind",)
        assert array.attrs["units"] == "1"
        assert array.attrs["n_images"] == 4


def test_metrics_of_features_are_named_after_them():
    extractor = feature_extractor("swav", backbone=POOLED)
    rows = np.random.default_rng(0).normal(size=(4, 3))
    pair = features(rows, ids=IDS[:4]), features(rows[::-1], ids=IDS[:4])
    named = {"swav": extractor, "inception": extractor, "clip": pair, "fid": pair, "mine": pair}
    # Stimuli may hold images of which nothing was reconstructed.
    more = stimuli(np.concatenate([TRUE, TRUE[:2]]))
    found = image_metrics(seen(RECONSTRUCTED[0]), more, metrics=[], features=named).compute()
    expected = {"swav", "inception", "clip", "clip_similarity", "fid", "kid", "kid_interval"}
    assert set(found) == {*expected, "mine"}
    assert found["swav"].attrs["definition"] == "1 - Pearson r over features"
    assert "identification" in found["inception"].attrs["long_name"]
    cosines = (rows * rows[::-1]).sum(1) / (rows**2).sum(1) ** 0.5 / (rows[::-1] ** 2).sum(1) ** 0.5
    np.testing.assert_allclose(found["clip_similarity"], cosines.mean())
    np.testing.assert_allclose(found["fid"], 0, atol=1e-10)


def test_equal_images_get_the_best_of_everything():
    extractor = feature_extractor("swav", backbone=POOLED)
    ds = together(TRUE, TRUE)
    with pytest.warns(NedxWarning, match="4 images for 48 features"):
        found = nedx.image_metrics(
            ds, features={"swav": extractor, "mine": extractor, "fid": extractor}
        )
    best = {"pixcorr": 1, "ssim_mindeye": 1, "ssim_necomimi": 1, "swav": 0, "mine": 1, "fid": 0}
    for name, value in best.items():
        np.testing.assert_allclose(found[name], value, atol=1e-9)


@pytest.mark.parametrize(
    ("ds", "options", "error", "message"),
    [
        (seen(TRUE), {"metrics": ["ssim"]}, ValueError, "did you mean 'ssim_mindeye'"),
        (seen(TRUE), {"metrics": []}, ValueError, "no metric was asked for"),
        (
            seen(TRUE),
            {"features": {"a": feature_extractor("swav", backbone=POOLED)}},
            SchemaError,
            "no variable 'pixels'",
        ),
        (seen(TRUE), {"features": {"a": 3}}, SchemaError, "found a int"),
        (seen(TRUE), {"features": {"a": (1, 2, 3)}}, SchemaError, "found 3 things"),
    ],
)
def test_what_cannot_be_reported_is_refused(ds, options, error, message):
    options = {"metrics": []} | options
    with pytest.raises(error, match=message):
        image_metrics(ds, **options)


def test_only_selected_reconstructions_are_compared():
    def fail(block, block_info):
        assert block_info[0]["array-location"][0][0] == 1
        return block

    lazy = da.from_array(RECONSTRUCTED, chunks=(1, 4, 60, 75, 3)).map_blocks(fail, dtype=np.uint8)
    ds = seen(lazy, lead=("kind",))
    found = image_metrics(ds, stimuli(TRUE), metrics=["pixcorr"]).isel(kind=1)
    expected = image_metrics(seen(RECONSTRUCTED[1]), stimuli(TRUE), metrics=["pixcorr"])
    xr.testing.assert_allclose(found, expected)
