"""Networks of timm, transformers and users, against running those libraries directly."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tests.tvshim  # noqa: F401  (must come before timm and transformers)
from nedx.backbones import (
    BackboneRecipe,
    Weights,
    feature_layout,
    load_backbone,
    register_module,
    trust_modules,
)
from nedx.errors import MissingExtraError, ModelError


def taps(recipe, images):
    got = {}
    load_backbone(recipe).run(images, got.__setitem__)
    return got


def small_net():
    """A factory for ``module:`` names."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def test_timm_with_a_local_state_dict(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(4)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    path = tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), path)
    recipe = BackboneRecipe(
        name="timm:vit_tiny_patch16_224",
        layers=("blocks.3", "blocks.11"),
        weights=Weights(source=path),
    )
    images = torch.randn(2, 3, 224, 224)
    got = taps(recipe, images)
    with torch.inference_mode():
        expected = model.forward_intermediates(
            images,
            indices=[3, 11],
            output_fmt="NLC",
            return_prefix_tokens=True,
            intermediates_only=True,
        )
    for layer, (patches, prefix) in zip(recipe.layers, expected, strict=True):
        whole = torch.cat([prefix, patches], 1).flatten(1)
        torch.testing.assert_close(got[layer], whole, atol=1e-5, rtol=1e-5)
    assert feature_layout(recipe) == dict.fromkeys(recipe.layers, 197 * 192)
    pooled = taps(recipe.model_copy(update={"pooling": "avg14"}), images)
    assert pooled["blocks.3"].shape == (2, 14 * 14 * 192)


def test_timm_names_are_checked():
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        load_backbone(BackboneRecipe(name="timm:resnet_18", layers=("fc",)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Small CLIP and DINOv2 models with random weights, saved as their repositories are."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    clip = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**size, intermediate_size=64, image_size=32, patch_size=8)
    )
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**size, image_size=32, patch_size=8))
    folders = {}
    for name, model in (("clip", clip), ("dinov2", dino)):
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        folders[name] = (model.eval(), folder)
    return folders


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_transformers_from_a_folder(saved, name):
    model, folder = saved[name]
    layers = ("layer_0", "layer_2", "pooler")
    recipe = BackboneRecipe(
        name=f"transformers:{folder}", layers=layers, image_size=32, policy="raw01"
    )
    images = torch.randn(2, 3, 32, 32)
    got = taps(recipe, images)
    with torch.inference_mode():
        expected = model(pixel_values=images, output_hidden_states=True)
    torch.testing.assert_close(got["layer_0"], expected.hidden_states[1].flatten(1))
    torch.testing.assert_close(got["layer_2"], expected.hidden_states[3].flatten(1))
    torch.testing.assert_close(got["pooler"], expected.pooler_output)
    assert feature_layout(recipe) == {"layer_0": 17 * 32, "layer_2": 17 * 32, "pooler": 32}
    drawn = taps(recipe.model_copy(update={"seed": 1}), images)
    assert not torch.allclose(drawn["pooler"], got["pooler"])


def test_the_vision_half_of_a_whole_clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    half = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.CLIPConfig(
        text_config={**half, "vocab_size": 50},
        vision_config={**half, "image_size": 16, "patch_size": 8},
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    recipe = BackboneRecipe(name=f"transformers:{tmp_path}", layers=("pooler",), image_size=16)
    images = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        expected = model.vision_model(pixel_values=images).pooler_output
    torch.testing.assert_close(taps(recipe, images)["pooler"], expected)


def test_a_folder_without_a_model(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="neither a folder nor a repository"):
        load_backbone(BackboneRecipe(name=f"transformers:{tmp_path}", layers=("pooler",)))


def test_a_live_module_is_used_and_left_alone():
    module = small_net().train()
    name = register_module("mine", module, "abc")
    recipe = BackboneRecipe(name=name, layers=("0", "3"), pooling="flatten", precision="bf16")
    images = torch.rand(2, 3, 8, 8)
    got = taps(recipe, images)
    torch.testing.assert_close(got["3"].float(), module(images), atol=0.02, rtol=0.02)
    assert module.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in module.parameters())
    with pytest.raises(ModelError, match="not registered in this process"):
        load_backbone(recipe.model_copy(update={"name": "live:mine@other"}))


def test_a_live_module_is_not_there_in_another_process():
    name = register_module("here", small_net(), "abc")
    recipe = BackboneRecipe(name=name, layers=("0",)).model_dump_json()
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        message = workers.apply(_message_of_loading, (recipe,))
    assert "not registered in this process" in message
    assert "module:<package.module:factory>" in message


def _message_of_loading(recipe):
    try:
        load_backbone(BackboneRecipe.model_validate_json(recipe))
    except ModelError as error:
        return str(error)
    return "loaded"


def test_factories_run_only_when_trusted(monkeypatch, tmp_path):
    (tmp_path / "someones_nets.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("NEDX_TRUSTED_MODULES", raising=False)
    recipe = BackboneRecipe(name="module:someones_nets:make", layers=("1",), seed=2, image_size=5)
    with pytest.raises(ModelError, match=r"trust_modules\('someones_nets'\)"):
        load_backbone(recipe)
    monkeypatch.setenv("NEDX_TRUSTED_MODULES", "another")
    trust_modules("someones_nets")
    assert os.environ["NEDX_TRUSTED_MODULES"] == "another,someones_nets"
    assert feature_layout(recipe) == {"1": 2 * 3 * 3}
    assert taps(recipe, torch.rand(1, 3, 5, 5))["1"].shape == (1, 18)
    for name, message in (
        ("module:someones_nets:absent", "cannot be imported"),
        ("module:someones_nets:wrong", "made a int"),
        ("module:someones_nets", "is not of the form"),
    ):
        with pytest.raises(ModelError, match=message):
            load_backbone(recipe.model_copy(update={"name": name}))


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nedx\[timm\]'"):
        load_backbone(BackboneRecipe(name="timm:resnet18", layers=("fc",)))
