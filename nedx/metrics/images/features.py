"""Which network, layer and size each named metric of reconstructions means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.backbones.recipe import BackboneRecipe, Weights
from nedx.compute import cache
from nedx.compute.batches import batches, checked
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.compute.references import ModelRef
from nedx.errors import ModelError, close_matches
from nedx.metrics.images.pairing import lazy_pixels
from nedx.metrics.images.resizing import COMMON_SIDE
from nedx.stimuli.preprocessing import ImagePolicy, policy, preprocess, resize_pixels

Comparison = Literal["two_way_identification", "correlation_distance"]


@dataclass(frozen=True)
class NamedFeature:
    """A layer of a network, as published figures take it.

    Parameters
    ----------
    network : str
        What it is, in words.
    layer : str
        Its layer, flattened.
    side : int
        Pixels a side of the images that it gets.
    comparison : {"two_way_identification", "correlation_distance"}
        What is computed of its activations.
    backbone : str, optional
        Its name in `nedx.backbones`, where there is one.
    normalized_as : str
        The policy whose means and standard deviations it takes.
    """

    network: str
    layer: str
    side: int
    comparison: Comparison = "two_way_identification"
    backbone: str | None = None
    normalized_as: str = "imagenet"

    @property
    def policy(self) -> ImagePolicy:
        """The preprocessing: a resize of the whole image."""
        like = policy(self.normalized_as)
        return ImagePolicy(
            name=f"{self.normalized_as}_whole_{self.side}",
            resize=self.side,
            arithmetic="float32",
            mean=like.mean,
            std=like.std,
        )


NAMED: dict[str, NamedFeature] = {
    "alexnet_2": NamedFeature("AlexNet of torchvision", "features.4", 256, backbone="alexnet"),
    "alexnet_5": NamedFeature("AlexNet of torchvision", "features.11", 256, backbone="alexnet"),
    "inception": NamedFeature("Inception v3 of torchvision", "avgpool", 342),
    "clip": NamedFeature(
        "CLIP ViT-L/14",
        "image_embeds",
        224,
        backbone="transformers:openai/clip-vit-large-patch14",
        normalized_as="clip",
    ),
    "efficientnet_b1": NamedFeature(
        "EfficientNet-B1 of torchvision", "avgpool", 255, "correlation_distance"
    ),
    "swav": NamedFeature("ResNet-50 of SwAV", "avgpool", 224, "correlation_distance"),
}
"""The features by the names of Scotti et al. (2023, Reconstructing the mind's eye, NeurIPS,
Table 1). All are of images of 256 x 256 pixels, resized once more."""


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """Computes the features of a named metric; made by `feature_extractor`.

    Parameters
    ----------
    name : str
        The metric.
    recipe : BackboneRecipe
        Network, layer, weights and batch size.
    device : str
        As the user gave it; resolved where the task runs.
    policy : ImagePolicy
        What happens to images of 256 x 256 pixels.
    """

    name: str
    recipe: BackboneRecipe
    device: str
    policy: ImagePolicy

    def __call__(self, pixels: xr.DataArray) -> xr.DataArray:
        """Return ``features (..., image, feature)`` float32 of uint8 pixels, lazily.

        Raises
        ------
        StimulusError
            If they are no uint8 RGB.
        ModelError
            If the network or its layer cannot be had.
        """
        from nedx.backbones import feature_layout

        pixels = lazy_pixels(pixels)
        width = sum(feature_layout(self.recipe).values())
        found: xr.DataArray = xr.apply_ufunc(
            self._of_block,
            pixels,
            kwargs={"width": width},
            input_core_dims=[list(pixels.dims[-3:])],
            output_core_dims=[["feature"]],
            dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": {"feature": width}},
            keep_attrs="override",
        )
        found.attrs = {
            "units": "1",
            "long_name": "network activations",
            "model": self.recipe.name,
            "layers": list(self.recipe.layers),
            "backbone": self.recipe.model_dump_json(exclude={"batch_size"}),
            "image_preprocessing": json.dumps(self.policy.describe()),
            "common_side": COMMON_SIDE,
        }
        return found.rename("features")

    def _of_block(self, pixels: np.ndarray, *, width: int) -> np.ndarray:
        """Return float32 (..., image, feature) of uint8 (..., image, y, x, rgb)."""
        import torch

        device = resolve_device(self.device)
        sha256 = self.recipe.weights.sha256 if self.recipe.weights else None
        ref = ModelRef(f"{__name__}:load", None, self.recipe.model_dump_json(), sha256 or "")
        backbone = cache.get(ref, device)
        images = pixels.reshape(-1, *pixels.shape[-3:])
        found = np.empty((len(images), width), np.float32)
        for part in batches(len(images), self.recipe.batch_size):
            sized = [resize_pixels(image, COMMON_SIDE, COMMON_SIDE) for image in images[part]]
            batch = preprocess(np.stack(sized), self.policy, device)
            taken: list[torch.Tensor] = []
            with forward_slot(device), torch.inference_mode():
                backbone.run(batch, lambda _, layer, taken=taken: taken.append(layer))
                found[part] = torch.cat(taken, dim=1).float().cpu().numpy()
        found = checked(found, found.shape, np.float32, f"features of {self.name}")
        return found.reshape(*pixels.shape[:-3], width)


def feature_extractor(
    name: str,
    *,
    backbone: str | None = None,
    layer: str | None = None,
    weights: Weights | str | None = None,
    seed: int | None = None,
    device: str = "auto",
    batch_size: int = 32,
) -> FeatureExtractor:
    """Return what computes the features of a named metric from pixels.

    Images are resized to 256 x 256 and then to the size that the metric names, bilinearly with
    antialias, to whole grey levels.

    Parameters
    ----------
    name : str
        One of `NAMED`: ``"alexnet_2"``, ``"alexnet_5"``, ``"inception"``, ``"clip"``,
        ``"efficientnet_b1"``, ``"swav"``.
    backbone : str, optional
        Where the network is, in terms of `nedx.backbones.BackboneRecipe`; needed for those that
        nedx does not hold, such as ``"timm:inception_v3"`` or what `register_module` returns.
    layer : str, optional
        The layer, where that backbone calls it otherwise.
    weights : Weights or str, optional
        Trained weights.
    seed : int, optional
        Of random weights, instead.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    batch_size : int
        Images in one forward pass.

    Returns
    -------
    FeatureExtractor
        From ``pixels (..., image, y, x, rgb)`` to ``features (..., image, feature)``, lazily.

    Raises
    ------
    ModelError
        If there is no such metric, nedx does not hold its network, or it has no weights.
    """
    check_device(device)
    if name not in NAMED:
        raise ModelError(f"no metric has the features {name!r}; {close_matches(name, NAMED)}")
    named = NAMED[name]
    chosen = backbone or named.backbone
    if chosen is None:
        raise ModelError(
            f"nedx does not hold {named.network}: type backbone='timm:<name>', or "
            f"backbone=nedx.backbones.register_module(name, module, sha256), whose layer "
            f"{named.layer!r} is taken"
        )
    # Others bring their own weights: a repository of transformers, a module, what is registered.
    bare = chosen.partition(":")[0] in ("timm", chosen)
    if bare and weights is None and seed is None:
        raise ModelError(
            f"{name} is computed with trained weights: type weights='<file>', or seed=0 for "
            "random ones, whose figures are no published ones"
        )
    if isinstance(weights, str):
        weights = Weights(source=weights)
    recipe = BackboneRecipe(
        name=chosen,
        layers=(layer or named.layer,),
        weights=weights,
        seed=seed,
        policy=named.policy.name,
        batch_size=batch_size,
        image_size=named.side,
    )
    return FeatureExtractor(name, recipe, device, named.policy)


def load(ref: ModelRef, device: str, part: Any) -> Any:
    """Load a network; the loader that references to extractors name."""
    from nedx.backbones import load_backbone

    return load_backbone(BackboneRecipe.model_validate_json(ref.recipe), device)
