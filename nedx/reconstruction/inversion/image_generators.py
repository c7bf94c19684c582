"""Networks that make images of latent codes, through which features are inverted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.backbones.recipe import BackboneRecipe, Weights
from nedx.compute import cache
from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.errors import ModelError
from nedx.reconstruction.inversion.encoders import Precision
from nedx.reconstruction.inversion.pixels import CAFFE
from nedx.stimuli.preprocessing import ImagePolicy

if TYPE_CHECKING:
    import torch

    from nedx.backbones.adapters import HookedNetwork

DEEPSIM = "deepsim_fc7"
DEEPSIM_UNITS = 4096
_ADAPTERS = ("live", "module")


@dataclass(frozen=True)
class ImageGenerator:
    """A network from codes to images.

    Parameters
    ----------
    network : str
        ``"deepsim_fc7"``, or a module of your own that takes codes (image, *latent) and gives
        (image, 3, y, x): ``"live:..."`` (`nedx.backbones.register_module`) or
        ``"module:<package.module:factory>"``.
    latent : int or tuple of int
        Shape of one code.
    pixels : ImagePolicy
        Its order, scale, mean and std say what values the network gives for pixels.
    weights : Weights, optional
        State dict to load. Without, a live module keeps its own and others are random, seed 0.
    lower, upper : float or sequence of float, optional
        Range of the code, one for all units or one each. The published range is from 0 to the
        activations seen in training (`read_activation_range`).
    """

    network: str
    latent: int | tuple[int, ...]
    pixels: ImagePolicy = CAFFE
    weights: Weights | None = None
    lower: float | Sequence[float] | None = 0.0
    upper: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        kind = self.network.partition(":")[0]
        if self.network != DEEPSIM and kind not in _ADAPTERS:
            raise ModelError(
                f"no generator is called {self.network!r}; type {DEEPSIM!r}, "
                "'live:<name>@<sha256>' or 'module:<package.module:factory>'"
            )
        shape = (self.latent,) if isinstance(self.latent, int) else tuple(self.latent)
        object.__setattr__(self, "latent", shape)
        for name in ("lower", "upper"):
            object.__setattr__(self, name, _range(name, getattr(self, name), shape))
        low, high = self.bounds()
        if (low >= high).any():
            raise ModelError("lower= of a generator is not below upper=")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one code."""
        assert isinstance(self.latent, tuple)
        return self.latent

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the range of a code, float64 (*latent) each; infinite where there is none."""
        edges = ((self.lower, -np.inf), (self.upper, np.inf))
        low, high = (
            np.full(self.shape, none if edge is None else edge)
            if isinstance(edge, float | None)
            else np.asarray(edge, np.float64).reshape(self.shape)
            for edge, none in edges
        )
        return low, high

    def size(self) -> tuple[int, int]:
        """Return height and width of the images, without loading weights.

        Raises
        ------
        ModelError
            If the network does not take such codes, or makes no images of them.
        """
        return _size(self.network, self.shape)

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {
            "network": self.network,
            "latent": list(self.shape),
            "weights": self.weights.model_dump(mode="json") if self.weights else None,
            "pixels": self.pixels.model_dump(
                mode="json", include={"order", "scale", "mean", "std"}
            ),
            "lower": self.lower,
            "upper": self.upper,
        }

    def load(self, device: str, precision: Precision) -> LoadedGenerator:
        """Return it on a device, once in a process."""
        weights = self.weights.sha256 if self.weights else None
        source = self.weights.source if self.weights else ""
        ref = ModelRef(LOADER, None, f"{self.network} {source}", weights or "")
        loaded: LoadedGenerator = cache.get(ref, device, _Part(self, precision))
        return loaded


@dataclass(frozen=True)
class _Part:
    generator: ImageGenerator
    precision: Precision

    def read(self, ref: ModelRef, device: str) -> LoadedGenerator:
        """Build the network and fill it."""
        import torch

        from nedx.backbones.taps import fill
        from nedx.backbones.weights import read_state

        name, weights = self.generator.network, self.generator.weights
        # Weights that are read take the place of those that are built.
        place = "meta" if name == DEEPSIM and weights is not None else "cpu"
        with torch.random.fork_rng(devices=[]), torch.device(place):
            torch.manual_seed(0)
            network = _build(name)
        if weights is not None:
            state = read_state(weights)
            if name == DEEPSIM:
                from nedx.reconstruction.inversion.deepsim import published_state

                state = published_state(state)
            fill(network, state, BackboneRecipe(name=name, layers=("all",), weights=weights))
        network.eval().requires_grad_(requires_grad=False)
        network.to(device, getattr(torch, self.precision))
        return LoadedGenerator(network)


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready to make images.

    Attributes
    ----------
    network : HookedNetwork
    """

    network: HookedNetwork

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.network.parameters())

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Return images (image, 3, y, x) of codes (image, *latent), with gradients."""
        return self.network(codes)


def _build(name: str) -> HookedNetwork:
    from nedx.backbones import adapters

    if name == DEEPSIM:
        from nedx.reconstruction.inversion.deepsim import DeepSim

        return adapters.HookedNetwork(DeepSim())
    kind, _, rest = name.partition(":")
    network: Any = adapters.factory(kind, rest, trained=False)()
    return network


@lru_cache(maxsize=32)
def _size(name: str, latent: tuple[int, ...]) -> tuple[int, int]:
    import torch

    with torch.device("meta"):
        network = _build(name).eval()
    device = next((tensor.device for tensor in network.parameters()), torch.device("meta"))
    try:
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(1, *latent, device=device)).shape)
    except RuntimeError as error:
        raise ModelError(f"{name} does not take codes of shape {latent}: {error}") from error
    if len(shape) != 4 or shape[1] != 3:
        raise ModelError(f"{name} gives {shape} for a code, expected (1, 3, y, x)")
    return shape[2], shape[3]


def _range(name: str, given: Any, shape: tuple[int, ...]) -> Any:
    """Return a number, or a tuple of one for each unit."""
    if given is None or np.ndim(given) == 0:
        return None if given is None else float(given)
    values = np.asarray(given, np.float64).reshape(-1)
    if values.size != int(np.prod(shape)) or not np.isfinite(values).all():
        raise ModelError(f"{name}= has {values.size} values, expected {np.prod(shape)} finite ones")
    return tuple(values.tolist())


def deepsim_generator(
    weights: str | Path,
    *,
    sha256: str | None = None,
    upper: float | Sequence[float] | None = None,
) -> ImageGenerator:
    """Return the DeepSiM generator of fc7 codes, with weights of your own.

    Dosovitskiy & Brox 2016, Generating images with perceptual similarity metrics based on deep
    networks; 256 x 256 pixels.

    Parameters
    ----------
    weights : path
        State dict, with the keys that `nedx.reconstruction.inversion.deepsim.published_state` maps.
    sha256 : str, optional
        Of the file.
    upper : float or sequence of float, optional
        Of each unit; `read_activation_range` reads the published ones.
    """
    given = Weights(source=str(weights), sha256=sha256)
    return ImageGenerator(DEEPSIM, DEEPSIM_UNITS, CAFFE, given, 0.0, upper)


def read_activation_range(path: str | Path) -> tuple[float, ...]:
    """Read the upper limit of each unit, numbers on one line, as ``act_range/3x/fc7.txt`` has them.

    Raises
    ------
    ModelError
        If there is no such file, or it holds something else than positive numbers.
    """
    try:
        values = np.array(Path(path).read_text().split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} holds no limits of units: {error}") from error
    if not values.size or not (np.isfinite(values) & (values > 0)).all():
        raise ModelError(f"{path} should hold a positive number for each unit")
    return tuple(values.tolist())
