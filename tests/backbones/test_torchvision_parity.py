"""The hand-written networks against torchvision's, with the same random weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import tests.tvshim  # noqa: F401  (must come before torchvision)
from nedx.backbones import BackboneRecipe, Weights, default_recipe, load_backbone
from nedx.backbones.weights import sha256_of
from nedx.errors import ModelError

models = pytest.importorskip("torchvision.models")

NAMES = ["vit_b_32", "alexnet", "vgg19", "squeezenet1_1"]
SIZES = {"vit_b_32": 224, "alexnet": 224, "vgg19": 64, "squeezenet1_1": 227}


def theirs(name):
    torch.manual_seed(3)
    model = getattr(models, name)(weights=None)
    if name == "vit_b_32":
        # torchvision starts the head at zero, which would compare nothing.
        torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    return model.eval()


def their_taps(model, layers, images):
    """Return what each submodule of torchvision returned, before anything writes over it."""
    found = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _i, output, layer=layer: found.__setitem__(layer, output.clone())
        )
        for layer in layers
    ]
    with torch.inference_mode():
        result = model(images)
    for handle in handles:
        handle.remove()
    return found, result


@pytest.mark.parametrize("name", NAMES)
def test_same_taps_and_output_as_torchvision(name, tmp_path):
    model = theirs(name)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    weights = Weights(source=str(path), sha256=sha256_of(path))
    probe = load_backbone(default_recipe(name, weights=weights)).network
    # torchvision has no module that returns the embedding with positions.
    layers = tuple(layer for layer in probe.layer_names() if layer != "conv_proj")
    backbone = load_backbone(BackboneRecipe(name=name, layers=layers, weights=weights))
    images = torch.randn(2, 3, SIZES[name], SIZES[name])

    ours = {}
    backbone.run(images, ours.__setitem__)
    expected, output = their_taps(model, layers, images)

    assert list(ours) == list(layers)
    for layer in layers:
        scale = expected[layer].abs().max()
        torch.testing.assert_close(
            ours[layer] / scale, expected[layer].flatten(1) / scale, atol=1e-5, rtol=0
        )
    torch.testing.assert_close(backbone.network(images).flatten(1), output, atol=1e-5, rtol=1e-5)


def test_the_published_layers_have_the_published_widths():
    from nedx.backbones import feature_layout

    vit = feature_layout(default_recipe("vit_b_32"))
    assert list(vit) == [f"encoder_layer_{i}" for i in range(12)]
    assert sum(vit.values()) == 460_800
    alexnet = feature_layout(default_recipe("alexnet"))
    assert list(alexnet.values()) == [46656, 32448, 64896, 43264, 9216, 4096, 4096, 1000]


def test_names_of_older_torchvision_files_load(tmp_path):
    model = theirs("vit_b_32")
    older = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in model.state_dict().items()
    }
    path = tmp_path / "older.pth"
    torch.save(older, path)
    recipe = BackboneRecipe(
        name="vit_b_32", layers=("heads.head",), weights=Weights(source=str(path))
    )
    images = torch.randn(1, 3, 224, 224)
    got = {}
    load_backbone(recipe).run(images, got.__setitem__)
    with torch.inference_mode():
        torch.testing.assert_close(got["heads.head"], model(images), atol=1e-5, rtol=1e-5)


def test_another_networks_weights_name_every_fault_at_once(tmp_path):
    state = models.squeezenet1_1(weights=None).state_dict()
    state.pop("features.0.bias")
    state["extra.weight"] = torch.zeros(1)
    state["features.3.squeeze.weight"] = torch.zeros(1, 1, 1, 1)
    path = tmp_path / "wrong.safetensors"
    save_file(state, path)
    with pytest.raises(ModelError) as caught:
        load_backbone(default_recipe("squeezenet1_1", weights=Weights(source=str(path))))
    message = str(caught.value)
    assert "missing (1): features.0.bias" in message
    assert "unexpected (1): extra.weight" in message
    assert "features.3.squeeze.weight is (1, 1, 1, 1), expected (16, 64, 1, 1)" in message
