"""fwRF models on disk: receptive fields and weights of voxels, and the trunks that they read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

from nedx.compute.references import ModelRef, Positions
from nedx.encoding.loading import Head, group_of, read_array
from nedx.encoding.recipe import EncoderRecipe
from nedx.errors import CorruptStoreError
from nedx.store.location import Location
from nedx.store.models import ModelWriter, create_array, write_whole

if TYPE_CHECKING:
    from nedx.backbones.gnet import GNet
    from nedx.encoding.fwrf import FwrfHead

FIELDS = ("rf0", "rf1", "rf2", "w", "b")
"""Of each voxel: its receptive fields on three maps, weights and intercept."""
TRUNKS = "trunks"
_VOXELS_PER_CHUNK = 64


@dataclass(frozen=True)
class TrunkPart:
    """The trunk of a reference; those with equal weights are loaded once.

    Parameters
    ----------
    sha256 : str
        Of its weights, the name of its group.
    """

    sha256: str

    def read(self, ref: ModelRef, device: str) -> GNet:
        """Read and build it."""
        from nedx.encoding.fwrf import load_trunk

        group = group_of(ref, Head(f"{TRUNKS}/{self.sha256}"))
        state = {name: _whole(array) for name, array in group.arrays()}
        return load_trunk(state).to(device)


@dataclass(frozen=True)
class HeadPart:
    """What some voxels of one subject read out.

    Parameters
    ----------
    subject : str
        The group.
    rows : Positions
        Which voxels, sorted.
    """

    subject: str
    rows: Positions

    def read(self, ref: ModelRef, device: str) -> FwrfHead:
        """Read these voxels and no others."""
        from nedx.encoding.fwrf import head_of

        return head_of(read_voxels(ref, self.subject, self.rows.array)).to(device)


def read_voxels(
    ref: ModelRef, subject: str, rows: np.ndarray, fields: Sequence[str] = FIELDS
) -> dict[str, np.ndarray]:
    """Read what some voxels read out.

    Parameters
    ----------
    ref : ModelRef
        The store.
    subject : str
        The group.
    rows : ndarray of int64
        Which voxels, sorted.
    fields : sequence of str
        What to read.

    Returns
    -------
    dict
        The fields, float32, of these voxels.
    """
    group = group_of(ref, Head(subject))
    size = group["b"].shape[0]
    chosen = slice(None) if len(rows) == size else rows
    return {name: read_array(group[name], None, chosen) for name in fields}


def _whole(array: zarr.Array) -> np.ndarray:
    try:
        return np.asarray(array[...])
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError(
            f"the weights {array.path!r} cannot be read ({error}). Fetch the model again, and "
            f"check it: nedx verify {array.store_path.store}"
        ) from error


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of arrays: names, shapes and values."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name}{np.shape(values)}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def write_fwrf(
    place: str | Path | Location,
    recipe: EncoderRecipe,
    members: Mapping[str, tuple[xr.Dataset, Sequence[Mapping[str, np.ndarray]]]],
    trunks: Sequence[Mapping[str, np.ndarray]],
    *,
    model_type: str = "fwrf",
    about: Mapping[str, Any] | None = None,
) -> Location:
    """Write a fwRF model, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    recipe : EncoderRecipe
        Its recipe.
    members : mapping of str to (Dataset, sequence of dict)
        For each subject the labels of its voxels, with ``nedx_trunk (voxel)``, the trunk that
        each reads; and their `FIELDS`, some voxels after the other.
    trunks : sequence of dict
        State dicts of the trunks; none where the recipe says all of the network.
    model_type : str
        What opens it.
    about : mapping, optional
        Further attributes of the root, JSON values.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """
    names = [hash_arrays(state) for state in trunks]

    def write(location: Location) -> None:
        writer = ModelWriter(location)
        for name, state in zip(names, trunks, strict=True):
            _write_trunk(writer.root.require_group(TRUNKS), name, state)
        hashes = list(names)
        for subject, (labels, heads) in members.items():
            group = writer.root.require_group(subject)
            hashes += _write_heads(group, labels.sizes["voxel"], heads)
            writer.labels(labels, subject, list(heads[0]))
        writer.finish(
            recipe,
            model_type=model_type,
            **(about or {}),
            members=list(members),
            **{TRUNKS: names},
            weights_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        )

    return write_whole(place, write)


def _write_trunk(group: zarr.Group, name: str, state: Mapping[str, np.ndarray]) -> None:
    if name in group:
        return
    trunk = group.create_group(name)
    for key, values in state.items():
        values = np.asarray(values)
        array = trunk.create_array(key, shape=values.shape, dtype=values.dtype)
        array[...] = values


def _write_heads(
    group: zarr.Group, count: int, heads: Sequence[Mapping[str, np.ndarray]]
) -> list[str]:
    """Write voxels some after the other, in chunks that a small ROI fills; return their hashes."""
    arrays = {}
    for name in heads[0]:
        tail = heads[0][name].shape[1:]
        step = max(1, min(_VOXELS_PER_CHUNK if tail else count, count))
        arrays[name] = create_array(
            group,
            name,
            (count, *tail),
            "float32",
            chunks=(step, *tail),
            dims=("voxel", *(f"{name}_{axis}" for axis in range(len(tail)))),
        )
    start = 0
    for head in heads:
        part = slice(start, start + len(head["b"]))
        for name, array in arrays.items():
            array[part] = np.asarray(head[name], np.float32)
        start = part.stop
    return [hash_arrays(head) for head in heads]
