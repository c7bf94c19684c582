"""What drives every simulated cortex: contrast energy, and the 64 features made from it."""

from __future__ import annotations

import numpy as np

from nedx.simulation.concepts import SEED, SHAPES

N_FEATURES = 64
"""Width of the ``features`` target."""
N_COMPONENTS = 42
"""Features that come from energy, before all are mixed; the others come from the concept."""
N_SCALES, N_ORIENTATIONS, GRID = 4, 8, 32

_BATCH = 32


def contrast_energy(pixels: np.ndarray) -> np.ndarray:
    """Return the energy of the Gabor pyramid on a 32 x 32 grid.

    Parameters
    ----------
    pixels : uint8 array (image, y, x, 3)
        Square images.

    Returns
    -------
    float32 array (image, scale, orientation, y, x)
        Amplitude of the grating at 2, 4, 8 and 16 cycles an image and 8 orientations.
    """
    import torch

    from nedx.backbones import default_recipe, load_backbone
    from nedx.stimuli.preprocessing import preprocess

    backbone = load_backbone(default_recipe("gabor", pooling=f"avg{GRID}"))
    energy = np.empty((len(pixels), N_SCALES, N_ORIENTATIONS, GRID, GRID), dtype=np.float32)

    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            batch = pixels[start : start + _BATCH]
            rows = energy[start : start + len(batch)]

            def keep(layer: str, tapped: torch.Tensor, rows: np.ndarray = rows) -> None:
                scale = int(layer.removeprefix("energy_"))
                rows[:, scale] = tapped.numpy().reshape(-1, N_ORIENTATIONS, GRID, GRID)

            backbone.run(preprocess(batch, "raw01"), keep)
    return energy


def pool(energy: np.ndarray, side: int) -> np.ndarray:
    """Average energies to a ``side`` x ``side`` grid, float32 (image, feature).

    Equal to the Gabor backbone pooled with ``avg<side>``, layers in order.
    """
    images, scales, orientations, grid, _ = energy.shape
    step = grid // side
    blocks = energy.reshape(images, scales, orientations, side, step, side, step)
    return blocks.mean((4, 6)).reshape(images, -1)


def concept_axes(vectors: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Return the standardised parameters and shapes of the concepts, float64 (image, 22)."""
    one_hot = (shapes[:, None] == np.array(SHAPES, dtype=object)).astype(float)
    table = np.concatenate([vectors, one_hot], axis=1)
    return (table - table.mean(0)) / table.std(0)


def make_features(
    energy: np.ndarray, axes: np.ndarray, train: np.ndarray, seed: int = SEED
) -> np.ndarray:
    """Return the 64-dimensional target: principal components of energy, and the concept.

    Parameters
    ----------
    energy : array (image, scale, orientation, y, x)
        See `contrast_energy`.
    axes : array (image, 22)
        See `concept_axes`.
    train : bool array (image,)
        Images that the components are found on.
    seed : int
        Seed of the rotation that mixes all 64.

    Returns
    -------
    float32 array (image, 64)
        Mean 0 over the training images; the variance is 1 on average.
    """
    logs = np.log(pool(energy, 4) + 1e-3)
    logs = (logs - logs[train].mean(0)) / logs[train].std(0)
    _, _, components = np.linalg.svd(logs[train], full_matrices=False)
    scores = logs @ components[:N_COMPONENTS].T
    # Half way to whitening: later components count, but less.
    scores /= np.sqrt(scores[train].std(0))
    scores *= np.sqrt(scores.shape[1] / scores[train].var(0).sum())
    both = np.concatenate([scores, axes], axis=1)
    both = both - both[train].mean(0)
    return (both @ rotation(seed)).astype(np.float32)


def rotation(seed: int = SEED) -> np.ndarray:
    """Return the rotation, float64 (64, 64), of components of energy and axes into features."""
    return np.linalg.qr(np.random.default_rng([seed, 2]).normal(size=(N_FEATURES,) * 2))[0]
