"""The true features that a decoder is fitted to: read, or computed of images, layer by layer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.features import encode_features
from nedx.errors import ModelError, close_matches
from nedx.metrics.layers import layers_of
from nedx.metrics.repeats import labels_of
from nedx.schema import sample_dim

_UNITS_PER_CHUNK = 4096
_ADVICE = "Type: nedx.encode_features(images, 'vgg19'), or give images themselves"


@dataclass(frozen=True, eq=False)
class TrueFeatures:
    """Features of one layer.

    Attributes
    ----------
    values : ndarray or dask array (image, unit)
        Units in C order of ``shape``.
    shape : tuple of int
        Of the units of an image.
    image_id : ndarray of object, (image,)
    """

    values: np.ndarray | da.Array = field(repr=False)
    shape: tuple[int, ...]
    image_id: np.ndarray = field(repr=False)

    def of_images(self, names: Sequence[str]) -> np.ndarray | da.Array:
        """Return the rows of some images, which must be there."""
        places = {str(name): i for i, name in enumerate(self.image_id)}
        return self.values[np.array([places[name] for name in names])]


def needed_images(given: xr.Dataset, shown: Mapping[str, Sequence[str]]) -> xr.Dataset:
    """Return features or images of what was shown to any of the subjects.

    Parameters
    ----------
    given : Dataset
        As `true_features` takes it.
    shown : mapping of str to sequence of str
        The images of each subject.

    Raises
    ------
    ModelError
        If there is nothing to decode, images are named twice or not at all, or are absent.
    """
    if not isinstance(given, xr.Dataset):
        raise ModelError(f"features or images are a Dataset, not {type(given).__name__}. {_ADVICE}")
    if not _holds_features(given) and "pixels" not in given:
        raise ModelError(f"there are neither features nor pixels, only {list(given)}. {_ADVICE}")
    if "image_id" not in given.coords:
        raise ModelError(
            "the features have no 'image_id' to find images by. Type: "
            "ds.assign_coords(image_id=('image', names))"
        )
    ids = [str(name) for name in labels_of(given, "image_id")]
    places = {name: i for i, name in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(name for i, name in enumerate(ids) if places[name] != i)
        raise ModelError(f"several features are of {twice!r}: image_id must differ")
    needed: set[int] = set()
    for subject, names in shown.items():
        missing = [name for name in names if name not in places]
        if len(missing) == len(names):
            raise ModelError(
                f"{subject} and the features share no image: responses are to {names[0]!r} and "
                f"{len(names) - 1} others, features of {ids[0]!r} and {len(ids) - 1} others. Both "
                "need the same 'image_id'"
            )
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(names)} images of {subject} have no features, first "
                f"{missing[0]!r}; {close_matches(missing[0], places)}"
            )
        needed.update(places[name] for name in names)
    return given.isel({sample_dim(given): sorted(needed)})


@contextmanager
def true_features(
    given: xr.Dataset, recipe: BackboneRecipe, layers: Sequence[str] | None, device: str
) -> Iterator[dict[str, TrueFeatures]]:
    """Find the features of each layer in a Dataset, or compute them of its images.

    Features that are computed, or lazy and not chunked along units, lie in a temporary folder
    meanwhile: the network runs once and files are read once, whatever blocks units are fitted in.

    Parameters
    ----------
    given : Dataset
        ``feature_<layer> (image, ...)``, ``features (image, feature)`` with ``layer (feature)``,
        or ``pixels (image, y, x, rgb)``.
    recipe : BackboneRecipe
        Computes features of pixels.
    layers : sequence of str, optional
        Which; all by default.
    device : str
        Where the network runs.

    Raises
    ------
    ModelError
        If a layer or network is not there.
    """
    with tempfile.TemporaryDirectory(prefix="nedx-features-") as folder:
        if _holds_features(given):
            found = _read(given, layers)
        else:
            found = _computed(given, recipe, device, Path(folder, "computed"))
        yield {
            name: replace(one, values=_by_unit(one.values, Path(folder, str(i))))
            for i, (name, one) in enumerate(found.items())
        }


def _computed(
    given: xr.Dataset, recipe: BackboneRecipe, device: str, place: Path
) -> dict[str, TrueFeatures]:
    """Return the features of images; the network runs once for all layers."""
    shapes = layer_shapes(recipe, given)
    computed = encode_features(given, recipe, device=device)
    values = _kept(computed["features"].data, place)
    computed = computed.assign(features=(("image", "feature"), values))
    found = _read(computed, list(recipe.layers))
    return {name: replace(one, shape=shapes[name]) for name, one in found.items()}


def origin(given: xr.Dataset, recipe: BackboneRecipe) -> BackboneRecipe | None:
    """Return what computed the features of a Dataset, or will; None where they do not say."""
    if not _holds_features(given):
        return recipe
    if "features" not in given or "backbone" not in given["features"].attrs:
        return None
    return BackboneRecipe.model_validate_json(given["features"].attrs["backbone"])


def _holds_features(given: xr.Dataset) -> bool:
    return any(str(name).startswith("feature_") for name in given) or "features" in given


def layer_shapes(recipe: BackboneRecipe, given: xr.Dataset) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer: of maps that are not pooled ``(channel, y, x)``."""
    import contextlib

    import torch

    from nedx.backbones import registry
    from nedx.backbones.taps import Enough, check_image_size
    from nedx.stimuli.preprocessing import policy

    height, width = policy(recipe.policy).output_shape(*given["pixels"].shape[1:3])
    check_image_size(recipe, (height, width))
    with torch.device("meta"):
        network = registry.factory(recipe)()
    names = {network.aliases.get(layer, layer): layer for layer in recipe.layers}
    shapes: dict[str, tuple[int, ...]] = {}

    def measure(name: str, activation: torch.Tensor) -> None:
        own = tuple(activation.shape[1:])
        kept = len(own) == 3 and recipe.pooling == "flatten"
        shapes[names[name]] = own if kept else (int(np.prod(own)),)
        if len(shapes) == len(names):
            raise Enough

    device = next((tensor.device for tensor in network.parameters()), torch.device("meta"))
    network.eval()
    with torch.inference_mode(), contextlib.suppress(Enough):
        network.stream(torch.zeros(1, 3, height, width, device=device), frozenset(names), measure)
    return shapes


def _read(given: xr.Dataset, layers: Sequence[str] | None) -> dict[str, TrueFeatures]:
    there = {name or "features": array for name, array in layers_of(given).items()}
    wanted = list(there) if layers is None else list(layers)
    for layer in wanted:
        if layer not in there:
            raise ModelError(
                f"there are no features of the layer {layer!r}: {close_matches(layer, there)}"
            )
    return {layer: _flat(there[layer]) for layer in wanted}


def _flat(array: xr.DataArray) -> TrueFeatures:
    array = array.transpose(sample_dim(array), ...)
    ids = labels_of(array, "image_id").astype(object)
    data, shape = array.data, tuple(array.shape[1:])
    if isinstance(data, da.Array):
        data = data.rechunk(dict.fromkeys(range(2, data.ndim), -1))
    return TrueFeatures(data.reshape(len(ids), -1), shape, ids)


def _by_unit(values: np.ndarray | da.Array, place: Path) -> np.ndarray | da.Array:
    """Return features of which some units can be read without all of them."""
    if isinstance(values, da.Array) and values.numblocks[1] == 1:
        return _kept(values, place)
    return values


def _kept(values: da.Array, place: Path) -> da.Array:
    """Compute features once, into a folder."""
    array = zarr.create_array(
        place,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(values.chunksize[0], min(_UNITS_PER_CHUNK, values.shape[1])),
        compressors=None,
    )
    stop = 0
    for block, length in enumerate(values.chunks[0]):
        array[stop : stop + length] = values.blocks[block].compute()
        stop += length
    return da.from_zarr(array)
