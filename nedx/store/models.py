"""Models in Zarr stores: written whole or not at all, found by content, checked when opened.

What is in the groups, and what opens them, is known by the modules that write them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import xarray as xr
import zarr
from pydantic import BaseModel, ValidationError
from zarr.codecs import BloscCodec, Crc32cCodec

from nedx.config import cache_dir
from nedx.errors import IncompleteStoreError, ModelError, StoreError, StoreExistsError
from nedx.schema import SCHEMA_VERSION
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, RecordingStore

COMPRESSORS = [
    BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=4),
    Crc32cCodec(),
]

Recipe = TypeVar("Recipe", bound=BaseModel)


class ModelWriter:
    """Writes the store of a model; it is one, and can be opened, once it is finished.

    Parameters
    ----------
    location : Location
        Where; nothing may be there. Of `write_whole` or `partial_model`, so that nothing is left
        of what fails.

    Attributes
    ----------
    root : zarr.Group
        Arrays are written into it and into groups of it.
    """

    def __init__(self, location: Location):
        self._location = location
        self._store = RecordingStore(location.zarr_store(read_only=False))
        with _quiet():
            self.root = zarr.create_group(self._store, zarr_format=3)

    def labels(self, ds: xr.Dataset, group: str = "", heavy: Sequence[str] = ()) -> None:
        """Write the variables of a Dataset as labels of a group, without those in ``heavy``."""
        with _quiet():
            storable_labels(ds, heavy).to_zarr(
                self._store, group=group or None, mode="a", zarr_format=3, consolidated=False
            )

    def finish(self, recipe: BaseModel, **attrs: Any) -> None:
        """Write what opens the model: recipe, attributes, and the manifest of all objects.

        Parameters
        ----------
        recipe : pydantic model
            Its recipe.
        **attrs
            JSON values, such as ``model_type`` and ``weights_sha256``.
        """
        with _quiet():
            self.root.attrs.put(
                {
                    "nedx_kind": "model",
                    "nedx_schema_version": SCHEMA_VERSION,
                    "nedx_status": "complete",
                    "recipe": json.loads(recipe.model_dump_json()),
                    **attrs,
                }
            )
            zarr.consolidate_metadata(self._store, zarr_format=3)
        self._location.write(MANIFEST, Manifest(self._store.written).to_bytes())


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    chunks: tuple[int, ...] | None = None,
    dims: Sequence[str] | None = None,
    shards: tuple[int, ...] | None = None,
) -> zarr.Array:
    """Create an array of weights, compressed, each chunk with a checksum.

    Parameters
    ----------
    group : zarr.Group
    name : str
    shape : tuple of int
    dtype : numpy dtype
    chunks : tuple of int, optional
        One of all by default.
    dims : sequence of str, optional
        Names of its dimensions.
    shards : tuple of int, optional
    """
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(max(1, size) for size in (shape if chunks is None else chunks)),
        shards=shards,
        compressors=COMPRESSORS,
        dimension_names=dims,
        # A chunk of zeros that is absent could not be told from one that was lost.
        config={"write_empty_chunks": True},
    )


def write_whole(place: str | Path | Location, write: Callable[[Location], None]) -> Location:
    """Write a store whole, or on a local disk not at all.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    write : callable (Location)
        Writes it.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """
    location = Location.of(place)
    if location.exists():
        raise StoreExistsError(
            f"{location.url} exists already and was not changed. Choose another place, or delete it"
        )
    if not location.is_local:
        write(location)
        return location
    partial = Location(f"{location.url}.{os.getpid()}.partial")
    try:
        write(partial)
        os.rename(partial.url, location.url)
    except BaseException:
        shutil.rmtree(partial.url, ignore_errors=True)
        raise
    return location


def keep(identity: str, write: Callable[[Location], object]) -> Location:
    """Put a model into the cache, unless an equal one is there; it stays until written elsewhere.

    Parameters
    ----------
    identity : str
        What decides all that is written.
    write : callable (Location)
        Writes it.

    Returns
    -------
    Location
    """
    place = Location.of(_kept_as(identity))
    if not place.exists("zarr.json"):
        os.makedirs(os.path.dirname(place.url), exist_ok=True)
        try:
            write(place)
        except (StoreExistsError, OSError):
            # Another process may have been faster.
            if not place.exists("zarr.json"):
                raise
    return place


@contextmanager
def partial_model() -> Iterator[Location]:
    """Give a place in the cache to a model that is written while it is fitted.

    `keep_partial` makes it one that stays; else nothing is left of it.

    Yields
    ------
    Location
    """
    partial = cache_dir() / "models" / f"{uuid.uuid4().hex}.partial"
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield Location.of(partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def keep_partial(partial: Location, identity: str) -> Location:
    """Keep a model of `partial_model` in the cache, unless an equal one is there.

    Parameters
    ----------
    partial : Location
        Where it was written.
    identity : str
        What decides all that was written.

    Returns
    -------
    Location
    """
    place = _kept_as(identity)
    try:
        os.rename(partial.url, place)
    except OSError:
        if not (place / "zarr.json").exists():
            raise
    return Location.of(place)


def _kept_as(identity: str) -> Path:
    return cache_dir() / "models" / hashlib.sha256(identity.encode()).hexdigest()


def storable_labels(ds: xr.Dataset, heavy: Sequence[str] = ()) -> xr.Dataset:
    """Return the coordinates, strings as objects, with nothing left of an earlier encoding.

    Parameters
    ----------
    ds : Dataset
    heavy : sequence of str
        Variables that are no labels.
    """
    labels = ds.drop_vars([name for name in heavy if name in ds]).drop_encoding()
    labels.attrs = {}
    for name in labels.variables:
        variable = labels[name]
        if variable.dtype.kind in "UST" or str(variable.dtype).startswith("str"):
            labels[name] = variable.astype(object)
    return labels.reset_coords([n for n in labels.coords if n not in labels.dims]).set_coords(
        [str(n) for n in labels.variables]
    )


def open_labels(location: Location, name: str, heavy: Sequence[str] = ()) -> xr.Dataset:
    """Open the coordinates of a group lazily, without its weights; strings become objects.

    Parameters
    ----------
    location : Location
        The store.
    name : str
        The group; ``""`` is the root.
    heavy : sequence of str
        Arrays that are no labels.
    """
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


def open_root(location: Location) -> zarr.Group:
    """Open the root of a stored model; reads metadata only.

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
    _check(location, root.attrs.asdict())
    return root


def stored_recipe(
    kind: type[Recipe], location: Location, attrs: Mapping[str, Any], what: str = "model"
) -> tuple[Recipe, str]:
    """Return the recipe of a stored model and the hash of its weights.

    Parameters
    ----------
    kind : type of pydantic model
        The recipe's.
    location : Location
        The store.
    attrs : mapping
        The attributes of its root.
    what : str
        What it is called in errors.

    Raises
    ------
    ModelError
        If they are absent, or the recipe is not valid.
    """
    try:
        return kind.model_validate(attrs["recipe"]), str(attrs["weights_sha256"])
    except (ValidationError, KeyError) as error:
        raise ModelError(
            f"the recipe of the {what} at {location.url} is not valid: {error}"
        ) from error


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


def _check(location: Location, attrs: Mapping[str, Any]) -> None:
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


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Zarr says of consolidated metadata and of strings that v3 does not specify them yet.
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        yield
