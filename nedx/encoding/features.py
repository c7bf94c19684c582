"""encode_features: activations of network layers, lazily and with labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from nedx.backbones.recipe import BackboneRecipe
from nedx.backbones.registry import default_recipe
from nedx.compute import cache
from nedx.compute.devices import check_device, resolve_device
from nedx.compute.planned import Indexer, PlannedArray
from nedx.encoding import kernels
from nedx.encoding.encode import dask_blocks
from nedx.encoding.loading import Network, backbone_ref
from nedx.encoding.plans import EVERYTHING, Sliced, image_blocks
from nedx.errors import ModelError, StimulusError


def encode_features(
    ds: xr.Dataset,
    backbone: BackboneRecipe | str,
    *,
    layers: Sequence[str] | None = None,
    pooling: str | None = None,
    projection: np.ndarray | None = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> xr.Dataset:
    """Compute the features of images that encoders are fitted to.

    Parameters
    ----------
    ds : Dataset
        ``pixels (image, y, x, rgb)`` uint8.
    backbone : BackboneRecipe or str
        The network, or the name of one with a published recipe: ``"transformers:<folder or
        repo>"`` of CLIP gives its projected image embeddings, of DINOv2 its class token, both
        after the preprocessing that their makers publish for inference.
    layers : sequence of str, optional
        Instead of the recipe's.
    pooling : str, optional
        Instead of the recipe's: ``"flatten"``, ``"mean"``, ``"avg<k>"`` or ``"token"``.
    projection : ndarray (feature, component), optional
        A fixed projection (random, PCA) applied layer by layer as features come, so that wide
        layers never lie side by side.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    batch_size : int, optional
        Images in one forward pass, instead of the recipe's.

    Returns
    -------
    Dataset
        What was given, with ``features (image, feature)`` float32, lazily, as the network gives
        them (not L2-normalised), and the coordinate ``layer (feature)`` where they are not
        projected.

    Raises
    ------
    ModelError, StimulusError
        If there is no such network or layer, or images or projection do not fit.
    """
    from nedx.backbones import feature_layout
    from nedx.backbones.taps import check_image_size
    from nedx.stimuli.preprocessing import check_pixels, policy

    check_device(device)
    recipe = default_recipe(backbone) if isinstance(backbone, str) else backbone
    changes = {"layers": tuple(layers) if layers else None, "pooling": pooling}
    changes |= {"batch_size": batch_size}  # type: ignore[dict-item]
    given = {name: value for name, value in changes.items() if value is not None}
    recipe = BackboneRecipe.model_validate(recipe.model_dump() | given)
    if "pixels" not in ds:
        raise StimulusError("there are no 'pixels' here. Type: nedx.open_images('folder')")
    pixels = ds["pixels"]
    check_pixels(pixels.dtype, pixels.shape, recipe.policy)
    size = policy(recipe.policy).output_shape(*pixels.shape[1:3])
    check_image_size(recipe, size)
    if recipe.image_size is None and size[0] == size[1]:
        recipe = recipe.model_copy(update={"image_size": size[0]})
    widths = feature_layout(recipe)
    if projection is not None:
        projection = np.asarray(projection, dtype=np.float32)
        if projection.ndim != 2 or len(projection) != sum(widths.values()):
            raise ModelError(
                f"the projection is {projection.shape}, expected "
                f"({sum(widths.values())}, components) for the layers {widths}"
            )
    names = ds["image_id"].values if "image_id" in ds.coords else np.arange(ds.sizes["image"])
    task = FeaturesTask(recipe, tuple(widths.values()), projection, device)
    plan = FeaturesPlan(dask_blocks(pixels), np.asarray(names, dtype=object), task)
    attrs = {
        "long_name": "network activations",
        "units": "1",
        "model": recipe.name,
        "layers": list(widths),
        "pooling": recipe.pooling,
        "backbone": recipe.model_dump_json(exclude={"batch_size"}),
        "image_preprocessing": json.dumps(policy(recipe.policy).describe()),
        "l2_normalized": "false",
        "batch_size": recipe.batch_size,
        "compute_dtype": recipe.precision,
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    out = ds.assign(features=(("image", "feature"), PlannedArray(plan), attrs))
    if projection is not None:
        return out.assign(features=out["features"].assign_attrs(projected="true"))
    labels = np.repeat(np.array(list(widths), dtype=object), list(widths.values()))
    return out.assign_coords(layer=("feature", labels))


@dataclass(frozen=True, eq=False)
class FeaturesTask:
    """Computes the features of one block of images.

    Parameters
    ----------
    recipe : BackboneRecipe
        The network.
    widths : tuple of int
        Features a layer.
    projection : ndarray (feature, component), optional
        Applied layer by layer.
    device : str
        As the user gave it; resolved where the task runs.
    """

    recipe: BackboneRecipe
    widths: tuple[int, ...]
    projection: np.ndarray | None = field(repr=False)
    device: str

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        recipe = self.recipe.model_dump_json()
        return tokenize("nedx.FeaturesTask", recipe, self.projection, self.device)

    @property
    def count(self) -> int:
        """Number of features, or of components."""
        return sum(self.widths) if self.projection is None else self.projection.shape[1]

    def __call__(self, block: Any, names: Sequence[object]) -> np.ndarray:
        """Return float32 (image, feature)."""
        from nedx.stimuli.preprocessing import policy

        device = resolve_device(self.device)
        return kernels.tap_images(
            block.__getitem__ if isinstance(block, np.ndarray) else block.read,
            len(block),
            backbone=cache.get(backbone_ref(self.recipe), device, Network()),
            widths=self.widths,
            projection=self.projection,
            policy=policy(self.recipe.policy),
            device=device,
            names=names,
        )


@dataclass(frozen=True, eq=False)
class FeaturesPlan:
    """Features ``(image, feature)`` of images, float32.

    Parameters
    ----------
    images : dask array (image, y, x, rgb)
        Pixels; planned ones are read inside the task.
    names : ndarray of object, (image,)
        Their ids, for errors.
    task : FeaturesTask
        What to do with a block.
    """

    images: da.Array
    names: np.ndarray = field(repr=False)
    task: FeaturesTask

    def build(self) -> da.Array:
        """Return the dask array, without computing anything."""
        blocks, dependencies = image_blocks(self.images)
        lengths = self.images.chunks[0]
        stops = np.cumsum(lengths)
        name = f"features-{tokenize(self.images.name, self.task)}"
        # One node holds the task, whose projection may be large.
        graph: dict[Any, Any] = {f"task-{name}": self.task}
        for i, (block, length, stop) in enumerate(zip(blocks, lengths, stops, strict=True)):
            names = self.names[stop - length : stop]
            graph[(name, i, 0)] = (_call, f"task-{name}", block, names)
        layered = HighLevelGraph.from_collections(name, graph, dependencies=dependencies)
        return da.Array(layered, name, (lengths, (self.task.count,)), dtype=np.float32)

    def narrow(self, indexers: tuple[Indexer, ...]) -> Any:
        """Return the plan of what remains; other images are not read."""
        images, features = indexers
        narrowed = replace(self, images=self.images[images], names=self.names[images])
        if isinstance(features, slice) and features == EVERYTHING:
            return narrowed
        return Sliced(PlannedArray(narrowed), features)


def _call(task: FeaturesTask, block: Any, names: Sequence[object]) -> np.ndarray:
    return task(block, names)
