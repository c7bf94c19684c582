"""The preprocessing of CLIP and DINOv2 against Pillow's bicubic resize."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nedx.errors import StimulusError
from nedx.stimuli import policy, preprocess


def smooth(rng, y, x):
    coarse = Image.fromarray(rng.integers(0, 256, (y // 6, x // 6, 3), np.uint8))
    return np.asarray(coarse.resize((x, y), Image.Resampling.BICUBIC))


def prepared(image, resize, crop, mean, std):
    """What the published transforms do, by Pillow."""
    y, x = image.shape[:2]
    short, long = resize, int(resize * max(y, x) / min(y, x))
    size = (long, short) if x > y else (short, long)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), float)
    top, left = (round((n - crop) / 2) for n in resized.shape[:2])
    cut = resized[top : top + crop, left : left + crop] / 255
    return ((cut - mean) / std).transpose(2, 0, 1)


CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "resize", "crop", "colours"),
    [
        ("clip", 224, 224, CLIP),
        ("clip:336", 336, 336, CLIP),
        ("dinov2", 256, 224, IMAGENET),
        ("dinov2:112", 128, 112, IMAGENET),
    ],
)
@pytest.mark.parametrize("shape", [(300, 400), (500, 500), (150, 180)])
def test_the_published_transform(name, resize, crop, colours, shape):
    image = smooth(np.random.default_rng(1), *shape)
    found = preprocess(image[None], name)[0].numpy()
    expected = prepared(image, resize, crop, *map(np.array, colours))
    # Weights in fixed point: a grey level of one value in a hundred, two of a few in a million.
    level = 1 / 255 / np.array(colours[1]).min()
    assert np.abs(found - expected).max() < 2.01 * level
    assert (np.abs(found - expected) > 0.25 * level).mean() < 0.01
    assert (np.abs(found - expected) > 1.01 * level).mean() < 1e-4
    assert policy(name).describe()["resize"]["interpolation"] == "bicubic"


@pytest.mark.parametrize("arithmetic", ["uint8", "float32"])
def test_edges_do_not_overshoot(arithmetic):
    board = np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((40, 40))).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=-1)[None]
    chosen = policy("clip").model_copy(
        update={"arithmetic": arithmetic, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    )
    found = preprocess(image, chosen).numpy()
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize("name", ["clip:", "clip:0", "clip:x", "berg:100", "clip:-3"])
def test_sizes_that_are_none(name):
    with pytest.raises(StimulusError, match="unknown preprocessing policy"):
        policy(name)
