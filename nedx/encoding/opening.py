"""Opening a model store: metadata and labels, no weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
import zarr

from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.encoding.model import LinearEncoder, lazy_weights
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import HEAVY
from nedx.encoding.weights import ROOT
from nedx.store.location import Location
from nedx.store.models import open_labels, open_root, stored_recipe


def open_model(location: Location) -> Any:
    """Open a model of whatever kind; only metadata and the labels that are indices are read.

    Returns
    -------
    LinearEncoder, FwrfEncoder, ReAlnetModel, NeuralDecoder or PriorModel

    Raises
    ------
    StoreError
        If there is no store, or nedx is too old for it.
    IncompleteStoreError
        If its writing was interrupted.
    ModelError
        If it is no model.
    """
    root = open_root(location)
    if root.attrs.get("model_type") == "diffusion_prior":
        from nedx.reconstruction.prior_store import PriorModel

        return PriorModel.opened(location, dict(root.attrs))
    if root.attrs.get("model_type") == "low_level_decoder":
        from nedx.reconstruction.low_level import LowLevelModel

        return LowLevelModel.opened(location, dict(root.attrs))
    if root.attrs.get("model_type") == "converter":
        from nedx.conversion.storing import open_converter

        return open_converter(location, dict(root.attrs))
    if root.attrs.get("model_type") == "neural_decoder":
        from nedx.decoding.storing import open_decoder

        return open_decoder(location, dict(root.attrs))
    if root.attrs.get("model_type") == "feature_decoder":
        from nedx.decoding.feature_decoder_storing import open_feature_model

        return open_feature_model(location, dict(root.attrs))
    if root.attrs.get("model_type") == "realnet":
        from nedx.encoding.realnet_store import open_realnet

        return open_realnet(location, dict(root.attrs))
    recipe, _ = stored_recipe(EncoderRecipe, location, dict(root.attrs))
    if root.attrs.get("model_type") == "fwrf":
        from nedx.encoding.fwrf_model import open_fwrf

        return open_fwrf(location, recipe, dict(root.attrs))
    if root.attrs.get("model_type") == "fwrf_gaussian":
        from nedx.encoding.fwrf_gaussian import open_gaussian

        return open_gaussian(location, recipe, dict(root.attrs))
    return _linear(location, root, recipe)


def open_linear(location: Location) -> LinearEncoder:
    """Open a linear encoding model; as `open_model`."""
    root = open_root(location)
    return _linear(location, root, stored_recipe(EncoderRecipe, location, dict(root.attrs))[0])


def _linear(location: Location, root: zarr.Group, recipe: EncoderRecipe) -> LinearEncoder:
    attrs: dict[str, Any] = dict(root.attrs)
    canonical = recipe.model_dump_json()
    ref = ModelRef(LOADER, location, canonical, str(attrs["weights_sha256"]))
    names = dict.fromkeys((ROOT, *attrs["members"]))
    groups = {name: open_labels(location, name, HEAVY) for name in names}
    opened = {name: _with_weights(ref, root, name, ds) for name, ds in groups.items()}
    return LinearEncoder._opened(opened, recipe, ref, attrs)


def _with_weights(ref: ModelRef, root: Any, name: str, ds: xr.Dataset) -> xr.Dataset:
    """Add the weights of a group as lazy arrays in the order of its labels."""
    group = root[name] if name else root
    if "projection" in group:
        import dask.array as da

        for key in HEAVY[:2]:
            array = group[key]
            dims = array.metadata.dimension_names
            ds[key] = dims, da.from_zarr(array, chunks=array.chunks)
    if "readout" not in group:
        return ds
    stored = group["readout"]
    neuroid = _neuroid(ds)
    dims = tuple(neuroid if dim == "row" else dim for dim in stored.metadata.dimension_names)
    sizes = dict(zip(dims, stored.shape, strict=True)) | {neuroid: ds.sizes[neuroid]}
    # Stands in for the readout, whose dims the targets are found by.
    shape = np.broadcast_to(np.float32(0), tuple(sizes[dim] for dim in dims))
    return lazy_weights(ref, name, ds.assign(readout=(dims, shape)), sizes["component"])


def _neuroid(ds: xr.Dataset) -> str:
    return str(ds["nedx_row"].dims[-1])
