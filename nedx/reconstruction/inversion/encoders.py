"""From images to the features that are inverted, with gradients: any backbone is an encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nedx.backbones.recipe import BackboneRecipe, Weights
from nedx.compute import cache
from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.errors import ModelError
from nedx.reconstruction.inversion.pixels import CAFFE
from nedx.stimuli.preprocessing import ImagePolicy, policy

if TYPE_CHECKING:
    import torch

    from nedx.backbones.taps import Network

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class FeatureEncoder:
    """A network whose layers are compared with features.

    Parameters
    ----------
    recipe : BackboneRecipe
        The network, its weights, the layers tapped, and ``image_size`` where its policy does not
        say it. A module of your own is ``"live:..."`` (`nedx.backbones.register_module`) or
        ``"module:..."``. Features are not pooled; convolutions and linear layers are tapped before
        the rectifier that follows.
    names : tuple of str, optional
        What the features of the layers are called, ``feature_<name>``, in the order of
        ``recipe.layers``; as the layers by default.
    pixels : ImagePolicy or str, optional
        Its order, scale, mean and std say what values the network takes for pixels; those of the
        recipe's policy by default.
    """

    recipe: BackboneRecipe
    names: tuple[str, ...] = ()
    pixels: ImagePolicy | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, BackboneRecipe):
            raise ModelError(
                f"recipe= is a {type(self.recipe).__name__}, expected a BackboneRecipe; type "
                "nedx.backbones.default_recipe('vgg19', weights=...)"
            )
        object.__setattr__(self, "names", tuple(self.names) or self.recipe.layers)
        if len(self.names) != len(self.recipe.layers) or len(set(self.names)) < len(self.names):
            raise ModelError(
                f"the {len(self.recipe.layers)} layers of {self.recipe.name} need as many "
                f"different names, got {list(self.names)}"
            )

    @property
    def policy(self) -> ImagePolicy:
        """What values the network takes for pixels."""
        return policy(self.pixels or self.recipe.policy)

    @property
    def side(self) -> int:
        """Height and width of the images, pixels.

        Raises
        ------
        ModelError
            If neither the recipe nor its policy says.
        """
        from nedx.backbones.taps import image_size

        side = image_size(self.recipe)
        if side is None:
            raise ModelError(
                f"the recipe of {self.recipe.name} does not say how large the images are; type "
                "image_size=<pixels>"
            )
        return side

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one image's features in each layer, without loading weights.

        Raises
        ------
        ModelError
            If a layer is not there, or the network takes no images of this size.
        """
        return dict(zip(self.names, _shapes(self.recipe, self.side), strict=True))

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {
            "backbone": self.recipe.model_dump(mode="json"),
            "layers": list(self.names),
            "pixels": self.policy.model_dump(
                mode="json", include={"order", "scale", "mean", "std"}
            ),
        }

    def load(self, device: str, precision: Precision) -> LoadedEncoder:
        """Return it on a device, once in a process."""
        weights = self.recipe.weights.sha256 if self.recipe.weights else None
        ref = ModelRef(LOADER, None, self.recipe.model_dump_json(), weights or "")
        loaded: LoadedEncoder = cache.get(ref, device, _Part(self, precision))
        return loaded


@dataclass(frozen=True)
class _Part:
    """An encoder in a precision, which the cache keeps apart from the backbone of its recipe."""

    encoder: FeatureEncoder
    precision: Precision

    def read(self, ref: ModelRef, device: str) -> LoadedEncoder:
        """Load the network."""
        import torch

        from nedx.backbones.taps import load_backbone

        # Rounded to bfloat16 once, weights would stay so in any other precision.
        recipe = self.encoder.recipe.model_copy(update={"precision": "float32"})
        network = load_backbone(recipe, device).network
        network.to(getattr(torch, self.precision))
        return LoadedEncoder(network, _tapped(self.encoder, network))


@dataclass(frozen=True)
class LoadedEncoder:
    """A network ready to compute features.

    Attributes
    ----------
    network : Network
    taps : dict of str to str
        Full names of layers, and what their features are called.
    """

    network: Network
    taps: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.network.parameters())

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return features (image, *unit) by name of images (image, 3, y, x), with gradients."""
        return _activations(self.network, self.taps, images)


def _tapped(encoder: FeatureEncoder, network: Network) -> dict[str, str]:
    full = [network.aliases.get(layer, layer) for layer in encoder.recipe.layers]
    return dict(zip(full, encoder.names, strict=True))


def _activations(
    network: Network, taps: dict[str, str], images: torch.Tensor
) -> dict[str, torch.Tensor]:
    from nedx.backbones.taps import Enough

    found: dict[str, torch.Tensor] = {}

    def take(name: str, activation: torch.Tensor) -> None:
        # A copy: rectifiers and shortcuts may work in place, on what was tapped before them.
        found[taps[name]] = activation.clone()
        if len(found) == len(taps):
            raise Enough

    with contextlib.suppress(Enough):
        network.stream(images, taps.keys(), take)
    return found


@lru_cache(maxsize=32)
def _shapes(recipe: BackboneRecipe, side: int) -> list[tuple[int, ...]]:
    import torch

    from nedx.backbones import registry
    from nedx.backbones.taps import feature_layout

    feature_layout(recipe.model_copy(update={"pooling": "flatten", "image_size": side}))
    with torch.device("meta"):
        network = registry.factory(recipe)()
    network.eval()
    device = next((tensor.device for tensor in network.parameters()), torch.device("meta"))
    taps = {network.aliases.get(layer, layer): layer for layer in recipe.layers}
    with torch.inference_mode():
        found = _activations(network, taps, torch.zeros(1, 3, side, side, device=device))
    return [tuple(found[layer].shape[1:]) for layer in recipe.layers]


def vgg19_encoder(
    weights: str | Path,
    *,
    sha256: str | None = None,
    layers: Sequence[str] | None = None,
    pixels: ImagePolicy | str = CAFFE,
) -> FeatureEncoder:
    """Return VGG19 with weights of your own, its layers by their published names.

    Parameters
    ----------
    weights : path
        State dict with the names of torchvision (``features.0.weight``, ...), which those of the
        published Caffe network have when converted.
    sha256 : str, optional
        Of the file.
    layers : sequence of str, optional
        Some of ``conv1_1`` to ``conv5_4`` and ``fc6`` to ``fc8``, before the rectifiers; all 19 by
        default.
    pixels : ImagePolicy or str
        What values the weights take for pixels: `CAFFE` for the published network, ``"imagenet"``
        for torchvision's weights.

    Returns
    -------
    FeatureEncoder

    Raises
    ------
    ModelError
        If a layer is not there.
    """
    from nedx.backbones.vgg import VGG19

    names = tuple(layers or VGG19.aliases)
    unknown = [name for name in names if name not in VGG19.aliases]
    if unknown:
        raise ModelError(f"VGG19 has no layers {unknown}; there are: {', '.join(VGG19.aliases)}")
    recipe = BackboneRecipe(
        name="vgg19",
        layers=names,
        weights=Weights(source=str(weights), sha256=sha256),
        image_size=224,
        policy=policy(pixels).name,
    )
    return FeatureEncoder(recipe, pixels=pixels)
