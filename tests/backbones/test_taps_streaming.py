"""Taps are handed out one by one, in order, and nothing is kept or run in vain."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F

from nedx.backbones import BackboneRecipe, default_recipe, feature_layout, load_backbone
from nedx.backbones.taps import pool
from nedx.errors import ModelError


@pytest.fixture(scope="module")
def vit():
    return load_backbone(default_recipe("vit_b_32", seed=1))


def test_each_tap_is_freed_before_the_one_after_next(vit):
    alive = []

    def on_tap(_name, features):
        gc.collect()
        # The residual stream that the next block reads is the only older tap still needed.
        assert sum(ref() is not None for ref in alive) <= 1
        alive.append(weakref.ref(features.untyped_storage()))

    vit.run(torch.randn(2, 3, 224, 224), on_tap)
    assert len(alive) == 12
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_the_wide_concatenation_is_never_built(vit):
    """No tensor made during the pass is as wide as all taps together."""
    widest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal widest
            result = function(*args, **(kwargs or {}))
            if torch.is_tensor(result):
                widest = max(widest, result.numel())
            return result

    with Watch():
        vit.run(torch.randn(1, 3, 224, 224), lambda *_: None)
    # The widest is a perceptron's hidden layer (50 x 3072) or a weight turned round.
    assert 0 < widest < 460_800


def test_the_pass_stops_after_the_last_layer_wanted():
    backbone = load_backbone(default_recipe("alexnet", layers=("features.2", "features.5")))
    ran = []
    for name, module in backbone.network.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: ran.append(name))
    backbone.run(torch.randn(1, 3, 224, 224), lambda *_: None)
    assert "features.5" in ran
    assert "features.6" not in ran
    assert not any(name.startswith("classifier") for name in ran)


def test_layers_come_in_the_order_of_the_recipe():
    layers = ("fire9", "conv1", "fire4")
    recipe = default_recipe("squeezenet1_1", layers=layers, pooling="mean", image_size=64)
    got = []
    load_backbone(recipe).run(torch.randn(1, 3, 64, 64), lambda name, _: got.append(name))
    assert tuple(got) == layers == tuple(feature_layout(recipe))


def test_a_tapped_layer_is_not_overwritten_by_its_rectifier():
    recipe = default_recipe("alexnet", layers=("features.0", "features.1"), pooling="flatten")
    got = {}
    load_backbone(recipe).run(torch.randn(1, 3, 224, 224), got.__setitem__)
    assert (got["features.0"] < 0).any()
    torch.testing.assert_close(F.relu(got["features.0"]), got["features.1"])


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    recipe = default_recipe("squeezenet1_1", seed=5)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, second = load_backbone(recipe), load_backbone(recipe)
    assert torch.equal(before, torch.random.get_rng_state())
    other = load_backbone(recipe.model_copy(update={"seed": 6}))
    weight = "features.0.weight"
    states = [backbone.network.state_dict()[weight] for backbone in (first, second, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_bf16_is_close_to_float32(vit):
    images = torch.randn(2, 3, 224, 224)
    half = load_backbone(default_recipe("vit_b_32", seed=1, precision="bf16"))
    assert half.nbytes * 2 == vit.nbytes
    full, low = {}, {}
    vit.run(images, full.__setitem__)
    half.run(images, low.__setitem__)
    for layer in full:
        assert low[layer].dtype == torch.bfloat16
        assert torch.corrcoef(torch.stack([full[layer][0], low[layer][0].float()]))[0, 1] > 0.999


@pytest.mark.parametrize("name", ["vit_b_32", "alexnet", "squeezenet1_1"])
def test_layout_without_weights_is_what_a_run_gives(name):
    recipe = default_recipe(name, pooling="flatten")
    got = {}
    load_backbone(recipe).run(
        torch.randn(1, 3, 224, 224), lambda layer, tap: got.update({layer: tap.shape[1]})
    )
    assert got == feature_layout(recipe)


def test_pooling_by_hand():
    maps = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert torch.equal(pool(maps, "mean"), maps.mean((2, 3)))
    quarters = maps.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)).reshape(2, 12)
    torch.testing.assert_close(pool(maps, "avg2"), quarters)
    assert torch.equal(
        pool(maps.contiguous(memory_format=torch.channels_last), "flatten"), maps.reshape(2, 48)
    )
    tokens = torch.cat([torch.full((2, 1, 3), -9.0), maps.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(pool(tokens, "avg2"), quarters)
    assert torch.equal(pool(tokens, "token"), torch.full((2, 3), -9.0))
    with pytest.raises(ModelError, match="pooling 'token' does not fit"):
        pool(maps, "token")


def test_unknown_names_say_what_there_is():
    with pytest.raises(ModelError, match="did you mean 'alexnet'"):
        default_recipe("alexnot")
    with pytest.raises(ModelError, match="did you mean 'encoder_layer_") as caught:
        load_backbone(default_recipe("vit_b_32", layers=("encoder_layer_12", "hed")))
    assert "'hed'" in str(caught.value)
    with pytest.raises(ModelError, match="named twice"):
        feature_layout(default_recipe("squeezenet1_1", layers=("fire2", "features.3")))


def test_wrong_batches_are_refused(vit):
    with pytest.raises(ModelError, match=r"224 x 224 pixels, not 96 x 96"):
        vit.run(torch.zeros(1, 3, 96, 96), lambda *_: None)
    with pytest.raises(ModelError, match=r"\(n, 3, h, w\)"):
        vit.run(torch.zeros(1, 224, 224, 3), lambda *_: None)
    with pytest.raises(ModelError, match="fp16 needs a GPU"):
        load_backbone(default_recipe("alexnet", precision="fp16"))


def test_recipes_are_checked_and_survive_json():
    recipe = default_recipe(
        "alexnet", weights={"source": "hf://a/b/c.safetensors@main", "sha256": "AB" * 32}
    )
    again = BackboneRecipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert recipe.weights.kind == "safetensors"
    for wrong in ({"pooling": "max"}, {"layers": ()}, {"layers": ("a", "a")}, {"seed": 1}):
        with pytest.raises(ValueError):
            BackboneRecipe.model_validate({**recipe.model_dump(), **wrong})


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, nedx.backbones as b; b.default_recipe('vit_b_32'); b.names(); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
