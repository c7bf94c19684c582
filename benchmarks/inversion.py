"""Inverting a small random network: how far the loss goes down, and what a batch saves."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import Row, at_least, interleave, ratio
from nedx.backbones import BackboneRecipe, register_module
from nedx.reconstruction.inversion import (
    CAFFE,
    LBFGS,
    FeatureEncoder,
    FeatureInversion,
    GeneratorDescent,
    ImageGenerator,
)
from nedx.reconstruction.inversion.feature_inversion import InversionTask
from nedx.reconstruction.inversion.objective import Objective
from nedx.reconstruction.inversion.pixels import from_rgb
from nedx.reconstruction.inversion.problem import Problem

_SIDE, _UNITS, _BATCH, _NETWORKS = 32, 32, 8, 4
_LAYERS = ("0", "2", "5", "7", "11", "13", "15")
_BOUND = 6.0


def measure() -> list[Row]:
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return [*_by_lbfgs(), *_by_descent(), _batched(device)]


def _by_lbfgs() -> list[Row]:
    """Invert the features of one smooth image in each of several networks."""
    rows = []
    for iterations in (200, 500):
        lowered, alike = [], []
        for seed in range(_NETWORKS):
            encoder = _encoder(seed)
            truth = from_rgb(torch.from_numpy(_smooth_image(seed)), CAFFE)
            problem = _problem(encoder, truth, "float64", "cpu")
            found = LBFGS(iterations).solve(problem, [0])
            lowered.append(_lowered(problem, found))
            alike.append(_correlation(found, truth))
        note = (
            f"worst of {_NETWORKS} networks; pixel r >= {min(alike):.7f}; best {max(lowered):.0e}"
        )
        what = f"L-BFGS-B, {iterations} iterations: loss before / after"
        if iterations == 500:
            rows.append(at_least(what, min(lowered), 1e8, note=note))
            rows.append(at_least("L-BFGS-B, 500 iterations: pixel r", min(alike), 0.9999, ""))
        else:
            rows.append(Row(what, min(lowered), "x", note=note))
    return rows


def _by_descent() -> list[Row]:
    """Find codes again that fill the range of the generator, from their images' features."""
    lowered, codes_alike, alike = [], [], []
    for seed in range(_NETWORKS):
        encoder, generator, codes, truth = _coded(seed)
        problem = _problem(encoder, truth, "float32", "cpu", generator)
        found = GeneratorDescent().solve(problem, range(_BATCH))
        lowered.append(_lowered(problem, found))
        codes_alike += [_correlation(a, b) for a, b in zip(found, codes, strict=True)]
        images = problem.images(found)
        alike += [_correlation(a, b) for a, b in zip(images, truth, strict=True)]
    note = f"worst of {_NETWORKS * _BATCH}"
    return [
        at_least("generator descent: loss before / after", min(lowered), 1e3, note=note),
        at_least("generator descent: r of codes", min(codes_alike), 0.999, "", note=note),
        at_least("generator descent: r of pixels", min(alike), 0.999, "", note=note),
    ]


def _batched(device: str) -> Row:
    encoder, generator, _, truth = _coded(0)
    network = encoder.load("cpu", "float32")
    with torch.no_grad():
        features = network(truth.float())
    rows = np.concatenate([features[name].flatten(1).numpy() for name in encoder.names], axis=1)
    names = [str(index) for index in range(_BATCH)]
    together, alone = (
        InversionTask(
            FeatureInversion(encoder, GeneratorDescent(), generator, batch_size=size),
            encoder.shapes(),
            0,
            device,
        )
        for size in (_BATCH, 1)
    )
    ways = {
        "one by one": partial(alone, rows, names),
        "together": partial(together, rows, names),
    }
    seconds = interleave(ways, rounds=2)
    each = np.median(seconds["together"]) / _BATCH
    note = f"{each:.3f} s an image on {device}, {torch.get_num_threads()} threads"
    name = f"generator descent, {_BATCH} images: one by one / together"
    return at_least(name, ratio(seconds["one by one"], seconds["together"]), 3, note=note)


def _encoder(seed: int) -> FeatureEncoder:
    """Return four convolutions and three linear layers, tapped before their rectifiers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
            *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * (_SIDE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
            nn.Linear(64, 10),
        )
        _initialise(network)
    name = register_module(f"inverted_{seed}", network, str(seed))
    recipe = BackboneRecipe(name=name, layers=_LAYERS, image_size=_SIDE)
    return FeatureEncoder(recipe, pixels=CAFFE)


def _coded(seed: int) -> tuple[FeatureEncoder, ImageGenerator, torch.Tensor, torch.Tensor]:
    """Return an encoder, a generator, codes, and their images (image, 3, y, x)."""
    with torch.random.fork_rng():
        torch.manual_seed(100 + seed)
        network = nn.Sequential(
            *(nn.Linear(_UNITS, 512), nn.LeakyReLU(0.3), nn.Unflatten(1, (32, 4, 4))),
            *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.LeakyReLU(0.3)),
            *(nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.LeakyReLU(0.3)),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
        )
        _initialise(network)
        with torch.no_grad():
            network[-1].weight *= 30
            codes = torch.rand(_BATCH, _UNITS) * _BOUND
            images = network(codes)
    name = register_module(f"generator_{seed}", network, str(seed))
    return _encoder(seed), ImageGenerator(name, _UNITS, upper=_BOUND), codes, images


def _initialise(network: nn.Sequential) -> None:
    for layer in network:
        if hasattr(layer, "weight"):
            nn.init.kaiming_normal_(layer.weight)


def _problem(
    encoder: FeatureEncoder,
    truth: torch.Tensor,
    precision: str,
    device: str,
    generator: ImageGenerator | None = None,
) -> Problem:
    dtype = getattr(torch, precision)
    network = encoder.load(device, precision)
    with torch.no_grad():
        features = network(truth.to(device, dtype))
    targets = {name: features[name].cpu().numpy() for name in encoder.names}
    objective = Objective.of(targets, device, dtype)
    maker = None if generator is None else generator.load(device, precision)
    return Problem(encoder, network, objective, generator, maker)


def _lowered(problem: Problem, found: torch.Tensor) -> float:
    """Return the least of the ratios of the loss at zero and at the end."""
    with torch.no_grad():
        before, after = (problem.losses(v) for v in (torch.zeros_like(found), found))
    return float((before / after).min())


def _smooth_image(seed: int) -> np.ndarray:
    """Return float64 (1, 3, y, x) from 20 to 235: a few waves in each colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    frequency, phase = rng.uniform(0.3, 1.5, (4, 3, 2)), rng.uniform(0, 2 * np.pi, (4, 3))
    turns = frequency[..., 0, None, None] * y + frequency[..., 1, None, None] * x
    waves = np.sin(2 * np.pi * turns + phase[..., None, None]).sum(0)
    scaled: np.ndarray = 20 + 215 * (waves - waves.min()) / np.ptp(waves)
    return scaled[None]


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.double().numpy().ravel(), b.double().numpy().ravel())[0, 1])
