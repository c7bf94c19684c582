"""Opening a model store: metadata and labels, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
import zarr
from pydantic import ValidationError

from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.encoding.model import LinearEncoder, lazy_weights
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import HEAVY
from nedx.encoding.weights import ROOT
from nedx.errors import IncompleteStoreError, ModelError, StoreError
from nedx.schema import SCHEMA_VERSION
from nedx.store.location import Location


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
    root = _open_group(location)
    _check(location, dict(root.attrs))
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
    recipe = _recipe(location, dict(root.attrs))
    if root.attrs.get("model_type") == "fwrf":
        from nedx.encoding.fwrf_model import open_fwrf

        return open_fwrf(location, recipe, dict(root.attrs))
    if root.attrs.get("model_type") == "fwrf_gaussian":
        from nedx.encoding.fwrf_gaussian import open_gaussian

        return open_gaussian(location, recipe, dict(root.attrs))
    return _linear(location, root, recipe)


def open_linear(location: Location) -> LinearEncoder:
    """Open a linear encoding model; as `open_model`."""
    root = _open_group(location)
    _check(location, dict(root.attrs))
    return _linear(location, root, _recipe(location, dict(root.attrs)))


def _recipe(location: Location, attrs: dict[str, Any]) -> EncoderRecipe:
    try:
        return EncoderRecipe.model_validate(attrs["recipe"])
    except (ValidationError, KeyError) as error:
        raise ModelError(
            f"the recipe of the model at {location.url} is not valid: {error}"
        ) from error


def _linear(location: Location, root: zarr.Group, recipe: EncoderRecipe) -> LinearEncoder:
    attrs: dict[str, Any] = dict(root.attrs)
    canonical = recipe.model_dump_json()
    ref = ModelRef(LOADER, location, canonical, str(attrs["weights_sha256"]))
    groups = {
        name: open_labels(location, name) for name in dict.fromkeys((ROOT, *attrs["members"]))
    }
    opened = {name: _with_weights(ref, root, name, ds) for name, ds in groups.items()}
    return LinearEncoder._opened(opened, recipe, ref, attrs)


def _open_group(location: Location) -> zarr.Group:
    try:
        return zarr.open_group(
            location.zarr_store(), mode="r", zarr_format=3, use_consolidated=True
        )
    except PermissionError as error:
        raise location.refused(error) from error
    except (FileNotFoundError, KeyError, ValueError) as error:
        if location.exists("zarr.json"):
            raise IncompleteStoreError(
                f"{location.url} has no consolidated metadata: its writing was interrupted. "
                "Write the model again"
            ) from error
        raise StoreError(
            f"there is no model at {location.url}. Check the path; models known by name are listed "
            "by nedx.list(kind='model')"
        ) from error
    except OSError as error:
        raise StoreError(f"{location.url} cannot be read: {error}") from error


def _check(location: Location, attrs: dict[str, Any]) -> None:
    kind = attrs.get("nedx_kind")
    if kind != "model":
        raise ModelError(
            f"{location.url} holds data, not a model. Type: nedx.open({location.url!r}); models "
            "are listed by nedx.list(kind='model')"
        )
    version = str(attrs.get("nedx_schema_version", "1.0"))
    if int(version.split(".")[0]) > int(SCHEMA_VERSION.split(".")[0]):
        raise StoreError(
            f"{location.url} has schema version {version}, this nedx knows {SCHEMA_VERSION}. "
            "Type: pip install -U nedx"
        )


def open_labels(location: Location, name: str, heavy: Sequence[str] = HEAVY) -> xr.Dataset:
    """Open the coordinates of a group lazily, without its weights; strings become objects."""
    ds = xr.open_zarr(
        location.zarr_store(),
        group=name or None,
        chunks=None,
        zarr_format=3,
        consolidated=True,
        drop_variables=list(heavy),
        decode_timedelta=False,
    )
    for label in ds.variables:
        if ds[label].dtype.kind in "UT":
            ds[label] = ds[label].astype(object)
    return ds.set_coords([str(v) for v in ds.data_vars])


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
