"""The arithmetic of encoding, on plain arrays of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nedx.compute.batches import batches, checked, prefetch
from nedx.compute.devices import forward_slot
from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

    from nedx.backbones import Backbone
    from nedx.encoding.loading import LoadedProjection, LoadedReadout
    from nedx.stimuli.preprocessing import ImagePolicy

Read = Callable[[slice], np.ndarray]
"""Reads some images of the block: uint8 (n, y, x, 3)."""


def project_images(
    read: Read,
    count: int,
    *,
    backbone: Backbone,
    projection: LoadedProjection,
    policy: ImagePolicy,
    device: str,
    names: Sequence[object] = (),
) -> np.ndarray:
    """Run the backbone once and project its layers as they come.

    ``p = A f - a`` is summed layer by layer, so that the features ``f`` of all layers, 460,800
    of them for ViT-B/32, never lie side by side.

    Parameters
    ----------
    read : callable (slice) -> ndarray of uint8, (n, y, x, 3)
        Reads images; called ahead in threads.
    count : int
        Number of images.
    backbone : Backbone
        The network; its recipe holds the batch size.
    projection : LoadedProjection
        ``A`` and ``a`` of one or more subjects.
    policy : ImagePolicy
        How images are preprocessed.
    device : str
        Where the tensors lie.
    names : sequence
        Names of the images, for errors.

    Returns
    -------
    numpy.ndarray of float32, (count, projection, component)
    """
    import torch

    out = np.empty((count, *projection.shape), np.float32)
    height, done = backbone.recipe.batch_size, 0
    for batch in preprocessed(read, count, policy, height, device):
        with forward_slot(device), torch.inference_mode():
            sums = _Sums(projection, height)
            backbone.run(batch, sums.add)
            out[done : done + len(batch)] = sums.result(len(batch))
        done += len(batch)
    return checked(out, (count, *projection.shape), np.float32, "components", names=names)


def project_features(
    features: np.ndarray,
    *,
    projection: LoadedProjection,
    batch_size: int,
    device: str,
    names: Sequence[object] = (),
) -> np.ndarray:
    """Project features that were computed before: ``p = A f - a``.

    Parameters
    ----------
    features : ndarray (image, feature)
        All layers side by side, in the order of the recipe.

    Returns
    -------
    numpy.ndarray of float32, (image, projection, component)
    """
    import torch

    out = np.empty((len(features), *projection.shape), np.float32)
    for part in batches(len(features), batch_size):
        taken = torch.from_numpy(np.array(features[part], np.float32)).to(device)
        with forward_slot(device), torch.inference_mode():
            sums = _Sums(projection, batch_size)
            start = 0
            for layer, weights in projection.layers.items():
                stop = start + weights.shape[1]
                sums.add(layer, taken[:, start:stop])
                start = stop
            out[part] = sums.result(len(taken))
    return checked(out, out.shape, np.float32, "components", names=names)


def tap_images(
    read: Read,
    count: int,
    *,
    backbone: Backbone,
    widths: Sequence[int],
    projection: np.ndarray | None,
    policy: ImagePolicy,
    device: str,
    names: Sequence[object] = (),
) -> np.ndarray:
    """Run the backbone and lay its layers side by side, or project them as they come.

    Parameters
    ----------
    read, count, backbone, policy, device, names
        As in `project_images`.
    widths : sequence of int
        Features of each layer.
    projection : ndarray of float32, (feature, component), optional
        What the features are multiplied with.

    Returns
    -------
    numpy.ndarray of float32, (count, feature) or (count, component)
    """
    import torch

    layers = backbone.recipe.layers
    starts = dict(zip(layers, np.cumsum([0, *widths[:-1]]), strict=True))
    weights = None if projection is None else torch.tensor(projection, device=device)
    size = sum(widths) if projection is None else projection.shape[1]
    out = np.zeros((count, size), np.float32)
    done = 0
    for batch in preprocessed(read, count, policy, backbone.recipe.batch_size, device):
        rows = out[done : done + len(batch)]

        def add(layer: str, tap: torch.Tensor, rows: np.ndarray = rows) -> None:
            where = slice(starts[layer], starts[layer] + tap.shape[1])
            if weights is None:
                rows[:, where] = tap.float().cpu().numpy()
            else:
                rows += (tap.float() @ weights[where]).cpu().numpy()

        with forward_slot(device), torch.inference_mode():
            backbone.run(batch, add)
        done += len(batch)
    return checked(out, (count, size), np.float32, "features", names=names)


def preprocessed(
    read: Read, count: int, policy: ImagePolicy, batch_size: int, device: str
) -> Iterator[torch.Tensor]:
    """Yield mini-batches (n, 3, h, w), read and preprocessed ahead in threads."""
    from nedx.stimuli.preprocessing import preprocess

    def make(part: slice) -> torch.Tensor:
        pixels = read(part)
        shape = (part.stop - part.start, *pixels.shape[1:])
        return preprocess(checked(pixels, shape, np.uint8, "pixels"), policy, device)

    return prefetch(make, batches(count, batch_size))


def read_out(components: np.ndarray, readout: LoadedReadout, device: str) -> np.ndarray:
    """Multiply with the readout of some targets: ``y = W p + b``.

    Parameters
    ----------
    components : ndarray of float32, (image, component)
        May have more components than the readout, which takes the first.
    readout : LoadedReadout
        ``W`` and ``b``.
    device : str
        Where the tensors lie.

    Returns
    -------
    numpy.ndarray of float32, (image, *targets)
    """
    import torch

    size = readout.weights.shape[1]
    taken = torch.from_numpy(np.array(components[:, :size], np.float32)).to(device)
    with forward_slot(device), torch.inference_mode():
        if readout.weights.dtype == torch.float32:
            out = torch.addmm(readout.intercept, taken, readout.weights.T)
        else:
            product = taken.to(readout.weights.dtype) @ readout.weights.T
            out = product.float().add_(readout.intercept)
        values = out.cpu().numpy()
    return values.reshape(len(components), *readout.shape)


class _Sums:
    """Sums the projections of the layers of one mini-batch.

    Products of another height are rounded otherwise, by more than 1e-6 where features are far
    from zero. So the last mini-batch of a block is filled up, and chunks do not show in results.
    """

    def __init__(self, projection: LoadedProjection, height: int):
        self._projection = projection
        self._height = height
        self._sums = (-projection.offset)[:, None].repeat(1, height)

    def add(self, layer: str, tap: torch.Tensor) -> None:
        """Add the part of one layer, (n, width)."""
        import torch

        weights = self._projection.layers[layer]
        if tap.shape[1] != weights.shape[1]:
            raise ModelError(
                f"layer {layer!r} has {tap.shape[1]} features for these images, the model was "
                f"fitted to {weights.shape[1]}: are the images of the size that it was fitted to?"
            )
        tap = tap.to(weights.dtype)
        if len(tap) < self._height:
            tap = torch.nn.functional.pad(tap, (0, 0, 0, self._height - len(tap)))
        self._sums.addmm_(weights, tap.T)

    def result(self, count: int) -> np.ndarray:
        """Return float32 (count, projection, component)."""
        values: np.ndarray = self._sums[:, :count].T.cpu().numpy()
        return values.reshape(count, *self._projection.shape)
