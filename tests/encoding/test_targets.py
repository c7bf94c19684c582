"""Image and text embeddings of CLIP and DINOv2, against transformers used plainly."""

from __future__ import annotations

import json

import dask
import numpy as np
import pytest
import torch
import xarray as xr

import nedx
import tests.tvshim  # noqa: F401  (must come before transformers)
from nedx.backbones import BackboneRecipe
from nedx.backbones.registry import default_recipe
from nedx.errors import ModelError, StimulusError
from tests.laziness import computes_at_most

transformers = pytest.importorskip("transformers")
SIDE, WIDTH = 32, 12
HALF = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONCEPTS = ["aardvark", "abacus", "air_pump"]


def tokenizer():
    """Make a tokenizer of letters, as CLIP's but for its merges."""
    letters = [*"abcdefghijklmnopqrstuvwxyz_.-!"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=40
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Save a small whole CLIP whose halves say nothing true of the width of the projection."""
    folder = tmp_path_factory.mktemp("clip")
    words = tokenizer()
    config = transformers.CLIPConfig(
        text_config={
            **HALF,
            "vocab_size": len(words),
            "max_position_embeddings": 40,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={**HALF, "image_size": SIDE, "patch_size": 8},
        projection_dim=WIDTH,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    coarse = torch.tensor(rng.uniform(0, 255, (5, 3, 8, 10)), dtype=torch.float32)
    smooth = torch.nn.functional.interpolate(coarse, size=(60, 75), mode="bilinear")
    pixels = smooth.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    names = np.array(["aardvark", "abacus", "aardvark", "air_pump", "abacus"], object)
    ds = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)},
        {
            "image_id": ("image", np.array([f"things:im_{i}" for i in range(5)], object)),
            "category": ("image", names),
        },
    )
    return nedx.parse(ds).chunk(image=2)


def projected(output):
    return output if torch.is_tensor(output) else output.pooler_output


def test_image_embeddings_of_clip_are_projected_and_repeatable(clip, images):
    folder, model, processor = clip
    with computes_at_most(0):
        made = nedx.encode_features(images, f"transformers:{folder}")
    nedx.validate(made, "features")
    prepared = processor(list(images.pixels.values), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = projected(model.get_image_features(pixel_values=prepared)).numpy()
    assert made.features.shape == (5, WIDTH)
    scale = np.abs(expected).max()
    # A grey level of rounding in the resize is all that may differ.
    np.testing.assert_allclose(made.features.values, expected, atol=0.02 * scale)
    again = nedx.encode_features(images.chunk(image=5), f"transformers:{folder}")
    np.testing.assert_allclose(again.features.values, made.features.values, atol=1e-6 * scale)
    assert np.linalg.norm(expected, axis=1).min() > 0
    attrs = made.features.attrs
    assert (attrs["layers"], attrs["l2_normalized"]) == (["image_embeds"], "false")
    transform = json.loads(attrs["image_preprocessing"])
    assert (transform["policy"], transform["crop"]) == (f"clip:{SIDE}", SIDE)
    assert transform["resize"]["interpolation"] == "bicubic"
    assert attrs["model"] == f"transformers:{folder}"


def test_embeddings_of_prepared_pixels_are_those_of_the_library(clip, images):
    """Where nothing is resized both get the same numbers, and give the same."""
    folder, model, processor = clip
    small = images.isel(y=slice(0, SIDE), x=slice(0, SIDE))
    made = nedx.encode_features(small, f"transformers:{folder}").features.values
    prepared = processor(list(small.pixels.values), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = projected(model.get_image_features(pixel_values=prepared)).numpy()
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


def test_the_vision_half_with_its_projection_alone(clip, images, tmp_path):
    folder, _, _ = clip
    config = transformers.CLIPConfig.from_pretrained(folder).vision_config
    config.projection_dim = WIDTH
    half = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, config=config)
    half.save_pretrained(tmp_path)
    whole = nedx.encode_features(images, f"transformers:{folder}").features.values
    alone = nedx.encode_features(images, f"transformers:{tmp_path}").features.values
    np.testing.assert_allclose(alone, whole, rtol=1e-5)


def test_dinov2_gives_its_class_token(images, tmp_path):
    torch.manual_seed(1)
    config = transformers.Dinov2Config(**HALF, image_size=28, patch_size=14)
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
    processor.save_pretrained(tmp_path)
    made = nedx.encode_features(images, f"transformers:{tmp_path}")
    prepared = processor(list(images.pixels.values), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = model(pixel_values=prepared).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(made.features.values, expected, atol=0.02 * np.abs(expected).max())
    assert default_recipe(f"transformers:{tmp_path}").policy == "dinov2:56"


def text_truth(clip, texts):
    folder, model, _ = clip
    words = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        batch = words([text], padding="max_length", max_length=40, return_tensors="pt")
        with torch.inference_mode():
            found.append(projected(model.get_text_features(**batch)).numpy()[0])
    return np.array(found)


def test_text_embeddings_of_concepts(clip):
    model = f"transformers:{clip[0]}"
    with computes_at_most(0):
        made = nedx.encode_text(CONCEPTS, model, batch_size=2)
    assert made.features.dims == ("category", "feature")
    assert made.category.values.tolist() == CONCEPTS
    expected = text_truth(clip, [f"This picture is {name}" for name in CONCEPTS])
    np.testing.assert_allclose(made.features.values, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(expected[0], expected[1], rtol=1e-2)
    attrs = made.features.attrs
    assert (attrs["prompt"], attrs["l2_normalized"]) == ("This picture is {}", "false")
    other = nedx.encode_text(CONCEPTS, model, prompt="This is a {}.").features.values
    ubp = text_truth(clip, [f"This is a {name}." for name in CONCEPTS])
    np.testing.assert_allclose(other, ubp, rtol=1e-4, atol=1e-6)


def test_text_embeddings_of_images_read_each_concept_once(clip, images, monkeypatch):
    from nedx.encoding import text_features

    monkeypatch.setattr(text_features, "_BLOCK", 2)
    read = []
    plain = text_features._read_texts
    monkeypatch.setattr(
        text_features, "_read_texts", lambda texts, *a: read.extend(texts) or plain(texts, *a)
    )
    made = nedx.encode_text(images, f"transformers:{clip[0]}")
    nedx.validate(made, "features")
    assert "pixels" not in made
    assert made.image_id.values.tolist() == images.image_id.values.tolist()
    with dask.config.set(scheduler="sync"):
        found = made.features.values
    assert sorted(read) == sorted(f"This picture is {name}" for name in CONCEPTS)
    expected = text_truth(clip, [f"This picture is {name}" for name in images.category.values])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_concepts_are_found_among_their_texts(clip, images):
    """The published classification task: texts of the concepts as the gallery."""
    texts = nedx.encode_text(CONCEPTS, f"transformers:{clip[0]}").compute()
    where = [CONCEPTS.index(name) for name in images.category.values]
    wrong = (where[0] + 1) % 3
    embedding = texts.features.values[[wrong, *where[1:]]]
    decoded = images.drop_vars("pixels").assign(embedding=(("image", "feature"), embedding))
    found = nedx.retrieve(decoded, texts, k=2)
    assert found["rank"].values[1:].tolist() == [1, 1, 1, 1]
    assert found["rank"].values[0] > 1
    assert found["rank"].attrs["task"] == "class_centre"


def test_models_without_what_is_asked_for(clip, images, tmp_path):
    vision = {**HALF, "image_size": SIDE, "patch_size": 8}
    bare = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="without the projection"):
        nedx.encode_features(images, f"transformers:{tmp_path / 'bare'}")
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**HALF, image_size=28))
    dino.save_pretrained(tmp_path / "dino")
    with pytest.raises(ModelError, match="no text half"):
        nedx.encode_text(CONCEPTS, f"transformers:{tmp_path / 'dino'}")
    wrong = BackboneRecipe(name=f"transformers:{clip[0]}", layers=("image_embeds",), policy="clip")
    with pytest.raises(ModelError, match=r"the network takes 32 x 32.*'clip:32'"):
        nedx.encode_features(images, wrong)
    stretched = tmp_path / "stretched"
    dino.save_pretrained(stretched)
    held = {"do_center_crop": False, "size": {"height": 224, "width": 224}, "resample": 2}
    (stretched / "preprocessor_config.json").write_text(json.dumps(held))
    with pytest.raises(ModelError, match=r"resample is 2, not 3; size is 224.*policy=\.\.\."):
        nedx.encode_features(images, f"transformers:{stretched}")
    with pytest.raises(ModelError, match="neither a folder nor a repository"):
        nedx.encode_text(CONCEPTS, f"transformers:{tmp_path}")
    with pytest.raises(ModelError, match="not 'vit_b_32'"):
        nedx.encode_text(CONCEPTS, "vit_b_32")


def test_texts_that_cannot_be_read(clip, images):
    model = f"transformers:{clip[0]}"
    with pytest.raises(StimulusError, match="a list of names"):
        nedx.encode_text("aardvark", model)
    with pytest.raises(StimulusError, match="'abacus' is there twice"):
        nedx.encode_text(["abacus", "abacus"], model)
    with pytest.raises(StimulusError, match="one {} for the concept"):
        nedx.encode_text(CONCEPTS, model, prompt="a picture")
    with pytest.raises(StimulusError, match="one {} for the concept"):
        nedx.encode_text(CONCEPTS, model, prompt="{} of {")
    with pytest.raises(StimulusError, match="category"):
        nedx.encode_text(images.drop_vars("category"), model)
    with pytest.raises(ModelError, match="batch_size is 1 or more"):
        nedx.encode_text(CONCEPTS, model, batch_size=0)
    long = nedx.encode_text(["a" * 60], model)
    with pytest.raises(ModelError, match="reads 40: shorten the prompt"):
        long.compute()
