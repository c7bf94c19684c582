"""From JPEG files to the tensors of a network, against Pillow and numpy, on one thread."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from nedx.stimuli import decoding, open_images, preprocess

SIDE = 425
COUNT = 48
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def natural_image(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Return noise with the 1/f spectrum of photographs, uint8 (y, x, rgb)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    shared, own = rng.standard_normal((2, 3, side, side))
    noise = shared[:1] + 0.3 * own
    image = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    image = 127.5 + 50 * (image - image.mean()) / image.std()
    return np.clip(image, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)


def plain(paths: list[Path]) -> np.ndarray:
    """Decode, resize and normalise as tutorials do; float32 (image, rgb, y, x)."""
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        values = np.asarray(image, dtype=np.float32) / 255
        images.append(((values - MEAN) / STD).transpose(2, 0, 1))
    return np.stack(images)


def measure() -> list[Row]:
    """Return the ratios and how far the pixels are apart."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{i:03d}.jpg") for i in range(COUNT)]
            for path in paths:
                Image.fromarray(natural_image(rng)).save(path, quality=92)
            return _rows(paths)
    finally:
        torch.set_num_threads(threads)


def _rows(paths: list[Path]) -> list[Row]:
    source = open_images(paths[0].parent).pixels.data.plan.source
    batches = np.array_split(np.arange(len(paths)), 3)

    def ours() -> np.ndarray:
        # In batches, as `encode` does it.
        return np.concatenate([preprocess(source.read(i), "train").numpy() for i in batches])

    def with_pillow() -> np.ndarray:
        with patch.object(decoding, "_simplejpeg", return_value=None):
            return ours()

    expected = plain(paths)
    shape = (3, 1, 1)
    levels = 255 * STD.reshape(shape)
    difference = np.abs((ours() - expected) * levels).round()
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    note = f"{SIDE} px JPEG of {size:.0f} kB to 224 px, 1 thread"
    rows = [
        at_most("largest difference from Pillow", float(difference.max()), 1, "grey levels"),
        Row("values that differ", 100 * float((difference > 0).mean()), "%"),
    ]
    ways = {"plain": lambda: plain(paths), "pillow": with_pillow}
    if decoding._simplejpeg() is not None:
        ways["simplejpeg"] = ours
    seconds = interleave(ways, rounds=9)
    for name, bound in (("simplejpeg", 1.7), ("pillow", 1.3)):
        if name in seconds:
            faster = ratio(seconds["plain"], seconds[name])
            each = 1e3 * sorted(seconds[name])[len(seconds[name]) // 2] / len(paths)
            rows.append(
                at_least(f"faster, {name} decode", faster, bound, note=f"{note}, {each:.2f} ms")
            )
    return rows
