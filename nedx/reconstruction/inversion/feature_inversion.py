"""Pictures of decoded features of a network, by inverting it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import xarray as xr

from nedx.backbones.weights import fetch
from nedx.compute.batches import batches, checked
from nedx.compute.devices import forward_slot, resolve_device
from nedx.errors import ModelError, close_matches
from nedx.reconstruction.inversion.dists import Dists
from nedx.reconstruction.inversion.encoders import FeatureEncoder
from nedx.reconstruction.inversion.image_generators import ImageGenerator
from nedx.reconstruction.inversion.lbfgs import LBFGS
from nedx.reconstruction.inversion.objective import LOSSES, Objective
from nedx.reconstruction.inversion.pixels import Display, shown, to_rgb
from nedx.reconstruction.inversion.problem import Optimizer, Problem
from nedx.reconstruction.inversion.scaling import FeatureScaling
from nedx.reconstruction.inversion.targets import ROW, split_rows, target_rows
from nedx.reconstruction.reconstruct import PIXELS, check_size, made_by, picture_seed
from nedx.reconstruction.rows import over_rows

RAW = "pixels_raw"
_PARTS: dict[str, tuple[type, str]] = {
    "encoder": (FeatureEncoder, "a FeatureEncoder, such as that of vgg19_encoder(weights)"),
    "optimizer": (Optimizer, "an optimiser, LBFGS() or GeneratorDescent()"),
    "generator": (ImageGenerator, "an ImageGenerator, such as that of deepsim_generator(weights)"),
    "scaling": (FeatureScaling, "a FeatureScaling('feature_std', std)"),
    "dists": (Dists, "a Dists(alpha, beta)"),
}


@dataclass(frozen=True)
class FeatureInversion:
    """Finds the image whose features in a network come closest to those decoded.

    Shen et al. 2019, Deep image reconstruction from human brain activity: the sum over layers of
    squared differences, each layer weighted by one over the squared norm of its decoded features,
    the weights summing to 1.

    Parameters
    ----------
    encoder : FeatureEncoder
        The network; `nedx.reconstruction.inversion.vgg19_encoder` is the published one.
    optimizer : Optimizer
        `LBFGS` on pixels, or on codes where a generator is given; `GeneratorDescent` on codes.
    generator : ImageGenerator, optional
        What images are made by; `nedx.reconstruction.inversion.deepsim_generator` is the
        published one. Where its images are larger than the encoder's, their centre is taken.
    scaling : FeatureScaling, optional
        What is done to features before.
    loss : {"l2", "l1", "inner", "gram"}
        Of one layer.
    dists : Dists, optional
        A term to add.
    batch_size : int
        Images at a time on the device. `GeneratorDescent` always works on so many, so that an
        image does not depend on those beside it: choose no more than there are.
    display : {"percentiles", "range"}
        How raw values become pictures; ``"percentiles"`` stretches their contrast as the published
        pictures are shown.
    raw : bool
        Whether to keep the raw values too.
    """

    encoder: FeatureEncoder
    optimizer: Optimizer = field(default_factory=LBFGS)
    generator: ImageGenerator | None = None
    scaling: FeatureScaling | None = None
    loss: str = "l2"
    dists: Dists | None = None
    batch_size: int = 8
    display: Display = "percentiles"
    raw: bool = False

    def __post_init__(self) -> None:
        for name, (kind, advice) in _PARTS.items():
            given = getattr(self, name)
            if given is None and name in ("generator", "scaling", "dists"):
                continue
            if isinstance(given, type) or not isinstance(given, kind):
                raise ModelError(f"{name}= is a {type(given).__name__}, expected {advice}")
        if self.loss not in LOSSES:
            raise ModelError(f"no loss is called {self.loss!r}: {close_matches(self.loss, LOSSES)}")
        if self.display not in get_args(Display):
            raise ModelError(f"display={self.display!r}; type one of {get_args(Display)}")
        if self.batch_size < 1:
            raise ModelError(f"batch_size={self.batch_size}, expected 1 or more")
        if self.optimizer.needs_generator and self.generator is None:
            raise ModelError(
                f"{type(self.optimizer).__name__} needs generator=, the network that makes images "
                "of codes; without one, type optimizer=LBFGS()"
            )
        unknown = (self.dists.layers if self.dists else set()) - {*self.encoder.names}
        if unknown:
            raise ModelError(f"dists names layers that the encoder lacks: {sorted(unknown)}")

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        parts = ("encoder", "optimizer", "generator", "scaling", "dists")
        given = {name: getattr(self, name) for name in parts}
        return {
            "name": type(self).__name__,
            **{name: part.describe() for name, part in given.items() if part is not None},
            "loss": self.loss,
            "batch_size": self.batch_size,
            "display": self.display,
        }

    def reconstruct(self, ds: xr.Dataset, *, seed: int, device: str) -> xr.Dataset:
        """Assign pictures, lazily; what `nedx.reconstruct` calls.

        Returns
        -------
        Dataset
            What was given, with ``pixels_reconstructed (..., image | trial, y, x, rgb)`` uint8,
            and ``pixels_raw`` float32, 0 to 255 and beyond, where `raw` asks for it.
        """
        self._check_networks()
        check_size(ds, self.size)
        shapes = self.encoder.shapes()
        rows = target_rows(ds, shapes, self.scaling, self.batch_size)
        task = InversionTask(replace(self, scaling=None), shapes, seed, device)
        lead = rows.dims[:-1]
        raw = xr.DataArray(over_rows(rows, (ROW,), task), dims=(*lead, "y", "x", "rgb"))
        raw = raw.assign_coords(rows.coords)
        pictures = over_rows(raw, ("y", "x", "rgb"), DisplayTask(task.shape, self.display))
        attrs = made_by(self.describe(), "features", seed)
        made = {PIXELS: (raw.dims, pictures, attrs)}
        if self.raw:
            name = "reconstructed image, 0 to 255 and beyond"
            made[RAW] = (raw.dims, raw.data, {**attrs, "long_name": name})
        return ds.assign(made)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, pixels."""
        return self.encoder.side, self.encoder.side

    def _check_networks(self) -> None:
        parts = (self.encoder.recipe, self.generator)
        for weights in (part.weights for part in parts if part is not None):
            if weights is not None:
                fetch(weights)
        if self.generator is not None and min(self.generator.size()) < self.encoder.side:
            y, x = self.generator.size()
            raise ModelError(
                f"the generator makes images of {y} x {x} pixels, the encoder takes "
                f"{self.encoder.side}; give a recipe of the encoder with image_size={min(y, x)}"
            )


@dataclass(frozen=True)
class InversionTask:
    """Inverts the features of one block of images.

    Parameters
    ----------
    inversion : FeatureInversion
        How; features were scaled before.
    shapes : mapping of str to tuple of int
        Of the features of each layer.
    seed : int
        Of all images.
    device : str
        As the user gave it; resolved where the task runs.
    """

    inversion: FeatureInversion
    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    device: str

    def __dask_tokenize__(self) -> tuple[str, str, int, str]:
        # Of equal recipes dask makes different tokens, once they went through pickle.
        recipe = json.dumps(self.inversion.describe(), sort_keys=True)
        return "nedx.InversionTask", recipe, self.seed, self.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (*self.inversion.size, 3)

    @property
    def dtype(self) -> np.dtype:
        """Of raw values."""
        return np.dtype(np.float32)

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return raw float32 (image, y, x, rgb) of features (image, inverted_unit)."""
        rows = checked(rows, rows.shape, rows.dtype, "decoded features", names=names)
        seeds = [picture_seed(self.seed, name) for name in names]
        device = resolve_device(self.device)
        inversion = self.inversion
        # One by one, no more than the features of one image need to be on the device.
        size = inversion.batch_size if inversion.optimizer.in_batches else 1
        with forward_slot(device):
            parts = batches(len(rows), size)
            made = [self._inverted(rows[part], seeds[part], device) for part in parts]
        raw = np.concatenate(made)
        return checked(raw, (len(rows), *self.shape), np.float32, "raw images", names=names)

    def _inverted(self, rows: np.ndarray, seeds: Sequence[int], device: str) -> np.ndarray:
        """Return raw images of one batch; a batch that is not full is filled with copies.

        Networks round otherwise in batches of another size, and a long descent makes much of it.
        """
        import torch

        count = len(rows)
        if self.inversion.optimizer.in_batches:
            places = np.minimum(np.arange(self.inversion.batch_size), count - 1)
            rows, seeds = rows[places], [seeds[place] for place in places]
        targets = split_rows(rows, self.shapes)
        inversion, precision = self.inversion, self.inversion.optimizer.precision
        dtype = getattr(torch, precision)
        objective = Objective.of(targets, device, dtype, inversion.loss, inversion.dists)
        generator = inversion.generator
        maker = None if generator is None else generator.load(device, precision)
        encoder = inversion.encoder.load(device, precision)
        problem = Problem(inversion.encoder, encoder, objective, generator, maker)
        variables = inversion.optimizer.solve(problem, seeds)
        with torch.inference_mode():
            pixels = to_rgb(problem.images(variables), inversion.encoder.policy)[:count]
        return pixels.permute(0, 2, 3, 1).float().cpu().numpy()


@dataclass(frozen=True)
class DisplayTask:
    """Makes pictures of raw values.

    Parameters
    ----------
    shape : (int, int, 3)
        Of one image.
    display : {"percentiles", "range"}
        How.
    """

    shape: tuple[int, ...]
    display: Display

    @property
    def dtype(self) -> np.dtype:
        """Of pixels."""
        return np.dtype(np.uint8)

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return uint8 (image, y, x, rgb)."""
        return shown(rows, self.display)
