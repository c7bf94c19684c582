"""Converters on disk: the weights of each pair, and the labels of each subject."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.compute.references import ModelRef, Positions
from nedx.conversion.recipe import ConverterRecipe, Pair
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.loading import LOADER, Head, group_of, read_array
from nedx.errors import ModelError
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST
from nedx.store.models import ModelWriter, create_array, keep_partial, partial_model, stored_recipe

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


class ConverterWriter:
    """Writes a converter pair by pair, so that all of them need not fit into memory.

    Parameters
    ----------
    location : Location
        Where; nothing may be there.
    """

    def __init__(self, location: Location):
        self._writer = ModelWriter(location)
        self._hashes: dict[str, str] = {}

    def pair(self, name: str, state: State) -> None:
        """Write the arrays of a pair.

        Raises
        ------
        ModelError
            If one is not finite.
        """
        for key, values in state.items():
            if not np.isfinite(values).all():
                raise ModelError(f"{key!r} of {name} is NaN or infinite")
        group = self._writer.root.require_group(f"{PAIRS}/{name}")
        for key, values in state.items():
            chunks = values.shape
            if key == "weight":
                chunks = (*chunks[:-1], min(chunks[-1], _COLUMNS_PER_CHUNK))
            create_array(group, key, values.shape, "float32", chunks=chunks)[...] = values
        self._hashes[name] = hash_arrays(dict(state))

    def finish(
        self, recipe: ConverterRecipe, labels: Mapping[str, xr.Dataset], images: Sequence[str]
    ) -> str:
        """Write recipe, labels of the neuroids and known images; return the hash of the weights."""
        joined = "".join(f"{name}{found}" for name, found in sorted(self._hashes.items()))
        sha256 = hashlib.sha256(joined.encode()).hexdigest()
        known = np.array(list(images), dtype=object)
        self._writer.labels(xr.Dataset(coords={"known_image": known}))
        for name, ds in labels.items():
            self._writer.labels(ds, f"{SUBJECTS}/{name}")
        self._writer.finish(recipe, model_type=MODEL_TYPE, weights_sha256=sha256)
        return sha256


def keep_converter(
    fitted: Iterable[tuple[Pair, State]],
    recipe_of: Callable[[tuple[Pair, ...]], ConverterRecipe],
    labels: Mapping[str, xr.Dataset],
    images: Sequence[str],
) -> Converter:
    """Write a converter to the cache while it is fitted; it stays there until written elsewhere.

    Parameters
    ----------
    fitted : iterable of (Pair, dict)
        Pairs and their arrays, held one at a time.
    recipe_of : callable
        Returns the recipe of all pairs.
    labels : mapping of str to Dataset
        Coordinates of the neuroids of each subject.
    images : sequence of str
        The ``image_id`` of what it was fitted to.
    """
    from nedx.conversion.model import Converter

    with partial_model() as partial:
        writer = ConverterWriter(partial)
        pairs = []
        for pair, state in fitted:
            writer.pair(pair.name, state)
            pairs.append(pair)
        recipe = recipe_of(tuple(pairs))
        sha256 = writer.finish(recipe, labels, images)
        # The manifest tells all that was written: weights, labels and recipe.
        place = keep_partial(partial, partial.read(MANIFEST).decode())
    return Converter(recipe, ModelRef(LOADER, place, recipe.model_dump_json(), sha256))


def open_converter(location: Location, attrs: Mapping[str, Any]) -> Converter:
    """Open a stored converter; only metadata are read.

    Raises
    ------
    ModelError
        If its recipe is not valid.
    """
    from nedx.conversion.model import Converter

    recipe, sha256 = stored_recipe(ConverterRecipe, location, attrs, "converter")
    return Converter(recipe, ModelRef(LOADER, location, recipe.model_dump_json(), sha256))
