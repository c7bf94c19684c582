"""Converters on disk: the weights of each pair, and the labels of each subject."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from pydantic import ValidationError

from nedx.compute.references import ModelRef, Positions
from nedx.conversion.recipe import ConverterRecipe
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.loading import LOADER, Head, group_of, read_array
from nedx.encoding.storing import COMPRESSORS, storable_labels, write_whole
from nedx.errors import ModelError
from nedx.schema import SCHEMA_VERSION
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, RecordingStore

if TYPE_CHECKING:
    import torch

    from nedx.conversion.model import Converter

MODEL_TYPE = "converter"
State = Mapping[str, np.ndarray]
"""The arrays of a pair by name."""
PAIRS, SUBJECTS = "pairs", "subjects"
_COLUMNS_PER_CHUNK = 256


@dataclass(frozen=True)
class LoadedPair:
    """The arrays of a pair, on a device.

    Attributes
    ----------
    arrays : dict of str to tensor
        Of a matrix: ``weight (source, target)``, ``bias (target)``; of a network its state. Always
        ``source_mean``, ``source_deviation (source)``, ``target_mean`` and ``target_deviation
        (target)``.
    """

    arrays: dict[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.arrays.values())


@dataclass(frozen=True)
class PairPart:
    """The arrays of a pair, or what they have of some targets.

    Parameters
    ----------
    name : str
        The pair's.
    columns : Positions, optional
        Which targets of a matrix; all by default.
    """

    name: str
    columns: Positions | None = None

    def read(self, ref: ModelRef, device: str) -> LoadedPair:
        """Read these targets and no others."""
        import torch

        state = read_state(ref, self.name, None if self.columns is None else self.columns.array)
        return LoadedPair({k: torch.from_numpy(v).to(device) for k, v in state.items()})


def read_state(
    ref: ModelRef, name: str, columns: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of a pair, float32.

    Raises
    ------
    CorruptStoreError
        If bytes differ from what was written.
    """
    group = group_of(ref, Head(f"{PAIRS}/{name}"))
    unique, inverse = (None, None) if columns is None else np.unique(columns, return_inverse=True)
    found = {}
    for key, array in group.arrays():
        lead = (slice(None),) * (array.ndim - 1)
        if unique is None or key.startswith("source_"):
            found[key] = read_array(array, None, *lead, slice(None))
        else:
            found[key] = read_array(array, None, *lead, unique)[..., inverse]
    return found


def write_converter(
    place: str | Path | Location,
    recipe: ConverterRecipe,
    states: Mapping[str, State],
    labels: Mapping[str, xr.Dataset],
    known: xr.Dataset,
) -> Location:
    """Write a converter, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    recipe : ConverterRecipe
    states : mapping of str to dict
        The arrays of each pair, by its name.
    labels : mapping of str to Dataset
        Coordinates of the neuroids of each subject.
    known : Dataset
        ``known_image``, the images that it was fitted to.

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """

    def write(location: Location) -> None:
        store = RecordingStore(location.zarr_store(read_only=False))
        with warnings.catch_warnings():
            # Zarr says of consolidated metadata and of strings that v3 does not specify them yet.
            warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
            root = zarr.create_group(store, zarr_format=3)
            for name, state in states.items():
                _write_state(root.require_group(f"{PAIRS}/{name}"), state)
            for name, ds in labels.items():
                stored = storable_labels(ds, heavy=())
                stored.to_zarr(
                    store, group=f"{SUBJECTS}/{name}", mode="a", zarr_format=3, consolidated=False
                )
            storable_labels(known).to_zarr(store, mode="a", zarr_format=3, consolidated=False)
            root.attrs.put(
                {
                    "nedx_kind": "model",
                    "nedx_schema_version": SCHEMA_VERSION,
                    "nedx_status": "complete",
                    "model_type": MODEL_TYPE,
                    "recipe": json.loads(recipe.model_dump_json()),
                    "weights_sha256": hash_states(states),
                }
            )
            zarr.consolidate_metadata(store, zarr_format=3)
        location.write(MANIFEST, Manifest(store.written).to_bytes())

    return write_whole(place, write)


def hash_states(states: Mapping[str, State]) -> str:
    """Return the sha256 of the arrays of some pairs."""
    return hash_arrays({f"{n}/{k}": v for n, state in states.items() for k, v in state.items()})


def _write_state(group: zarr.Group, state: State) -> None:
    for key, values in state.items():
        chunks = tuple(max(1, size) for size in values.shape)
        if key == "weight":
            chunks = (*chunks[:-1], min(chunks[-1], _COLUMNS_PER_CHUNK))
        array = group.create_array(
            key,
            shape=values.shape,
            dtype="float32",
            chunks=chunks,
            compressors=COMPRESSORS,
            config={"write_empty_chunks": True},
        )
        array[...] = values


def open_converter(location: Location, attrs: Mapping[str, Any]) -> Converter:
    """Open a stored converter; only metadata are read.

    Raises
    ------
    ModelError
        If its recipe is not valid.
    """
    from nedx.conversion.model import Converter

    try:
        recipe = ConverterRecipe.model_validate(attrs["recipe"])
        sha256 = str(attrs["weights_sha256"])
    except (ValidationError, KeyError) as error:
        raise ModelError(
            f"the recipe of the converter at {location.url} is not valid: {error}"
        ) from error
    return Converter._opened(recipe, ModelRef(LOADER, location, recipe.model_dump_json(), sha256))
