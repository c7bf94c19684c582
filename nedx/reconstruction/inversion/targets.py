"""The features that are inverted, as rows: all layers of an image side by side, lazily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import ModelError, SchemaError
from nedx.metrics.layers import in_chunks, in_order, layers_of, unit_dims
from nedx.reconstruction.inversion.scaling import FeatureScaling, scale_features
from nedx.schema import sample_dim

ROW = "inverted_unit"

Shapes = Mapping[str, tuple[int, ...]]


def target_rows(
    ds: xr.Dataset, shapes: Shapes, scaling: FeatureScaling | None, batch_size: int
) -> xr.DataArray:
    """Arrange the features of some layers as rows.

    Parameters
    ----------
    ds : Dataset
        ``feature_<layer> ([subject,] [roi,] image | trial, *unit)``, or ``features (image,
        feature)`` with the coordinate ``layer (feature)``; units in space, or flat (C order).
    shapes : mapping of str to tuple of int
        Shape of one image's features in each layer of the network.
    scaling : FeatureScaling, optional
        How they are scaled.
    batch_size : int
        Images in a chunk.

    Returns
    -------
    DataArray (..., image | trial, inverted_unit)
        Lazy, with ``image_id``.

    Raises
    ------
    ModelError
        If layers are missing or of another shape than in the network, or are no floats.
    """
    found = _found(ds, shapes)
    units = {layer: _units(array) for layer, array in found.items()}
    _check_shapes(found, units, shapes)
    first = next(iter(found))
    lead = [dim for dim in found[first].dims if dim not in units[first]]
    for layer, array in found.items():
        if {*array.dims} - {*units[layer]} != {*lead}:
            raise ModelError(
                f"feature_{layer} is over {array.dims}, feature_{first} over {found[first].dims}: "
                "all layers need the same images, subjects and ROIs"
            )
    kept = dict.fromkeys(lead, 1) | {sample_dim(found[first]): batch_size}
    means = _means(scaling, shapes)
    rows = []
    for layer, array in found.items():
        chunks = dict.fromkeys(array.dims, -1) | kept
        # Stored in half precision, they would lose digits to scaling.
        exact = array.astype(np.result_type(array.dtype, np.float32), copy=False)
        data = in_chunks(exact.transpose(*lead, *units[layer]), chunks).data
        folded = data.reshape((*data.shape[: len(lead)], *shapes[layer]))
        scaled = _scaled(folded, layer, len(lead), scaling, means.get(layer))
        # Spelt out: without images there is no telling how wide a row is.
        width = int(np.prod(shapes[layer]))
        rows.append(scaled.reshape((*data.shape[: len(lead)], width)))
    coords = {"image_id": ds["image_id"].variable} if "image_id" in ds.coords else {}
    return xr.DataArray(da.concatenate(rows, axis=-1), coords, (*lead, ROW))


def split_rows(rows: np.ndarray, shapes: Shapes) -> dict[str, np.ndarray]:
    """Return the features (image, *unit) of each layer of rows (image, inverted_unit)."""
    widths = [int(np.prod(shape)) for shape in shapes.values()]
    parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
    return {
        layer: np.ascontiguousarray(part).reshape(len(rows), *shape)
        for (layer, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _found(ds: xr.Dataset, shapes: Shapes) -> dict[str, xr.DataArray]:
    try:
        layers = layers_of(ds)
    except SchemaError as error:
        raise ModelError(
            "there are no features to invert here; type ds.ned.decode(decoder) with a decoder of "
            f"features, or open some. {error}"
        ) from error
    missing = [layer for layer in shapes if layer not in layers]
    if missing:
        there = ", ".join(
            name or "features of which no 'layer (feature)' is told" for name in layers
        )
        raise ModelError(
            f"there are no features of the layers {', '.join(missing)}; there are those of: "
            f"{there}. Give the encoder only layers that were decoded, by the same names"
        )
    return {layer: layers[layer] for layer in shapes}


def _units(array: xr.DataArray) -> list[str]:
    return in_order(unit_dims(array, array, None))


def _check_shapes(
    found: Mapping[str, xr.DataArray],
    units: Mapping[str, Sequence[str]],
    shapes: Shapes,
    fault: str = "the features do not fit the encoder, they are of another network or image size",
) -> None:
    """Refuse features of another network, all layers in one message."""
    faults = []
    for layer, array in found.items():
        shape = tuple(array.sizes[dim] for dim in units[layer])
        if shape not in (shapes[layer], (int(np.prod(shapes[layer])),)):
            faults.append(f"{layer} is {shape}, in the network {shapes[layer]}")
        if array.dtype.kind != "f":
            faults.append(f"{layer} is {array.dtype}, expected floats")
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise ModelError(f"{fault}:{lines}")


def _means(scaling: FeatureScaling | None, shapes: Shapes) -> dict[str, da.Array]:
    """Return the mean of each layer in training, where the scaling has them."""
    if scaling is None:
        return {}
    lacking = [layer for layer in shapes if layer not in scaling.std]
    if lacking:
        raise ModelError(f"the scaling has no std= of the layers {', '.join(lacking)}")
    if scaling.train_mean is None:
        return {}
    means = _found(scaling.train_mean, shapes)
    units = {layer: in_order([*map(str, array.dims)]) for layer, array in means.items()}
    fault = "train_mean= is of another network or image size, or of images: type .mean('image')"
    _check_shapes(means, units, shapes, fault)
    return {
        layer: da.asarray(array.transpose(*units[layer]).data).reshape(shapes[layer]).rechunk(-1)
        for layer, array in means.items()
    }


def _scaled(
    features: da.Array,
    layer: str,
    lead: int,
    scaling: FeatureScaling | None,
    mean: da.Array | None,
) -> da.Array:
    if scaling is None:
        return features
    about_zero = scaling.kind == "std_about_zero"
    scale = partial(_scale_block, lead=lead, std=scaling.std[layer], about_zero=about_zero)
    if mean is None:
        return features.map_blocks(scale, dtype=features.dtype)
    mean = mean.astype(features.dtype)
    return (features - mean).map_blocks(scale, dtype=features.dtype) + mean


def _scale_block(block: np.ndarray, lead: int, std: float, *, about_zero: bool) -> np.ndarray:
    flat = block.reshape(-1, *block.shape[lead:])
    return scale_features(flat, std, about_zero=about_zero).reshape(block.shape)
