"""Sets of images as distributions of features: what FID and KID compare."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute.batches import checked
from nedx.errors import SchemaError
from nedx.metrics.images.pairing import features_of
from nedx.schema import sample_dim


@dataclass(frozen=True)
class Groups:
    """The true images, and groups of reconstructions of them.

    Parameters
    ----------
    true : dask array (image, feature)
    reconstructed : dict of tuple of int to dask array (image, feature)
        The groups, by their positions along the leading dims.
    dims : tuple
        The leading dims.
    shape : tuple of int
        Their sizes.
    coords : mapping of str to DataArray
        Their labels.
    """

    true: da.Array
    reconstructed: Mapping[tuple[int, ...], da.Array]
    dims: tuple[Hashable, ...]
    shape: tuple[int, ...]
    coords: Mapping[Hashable, Any]

    @property
    def counts(self) -> dict[str, Any]:
        """Number of true images, and of reconstructions in each group; a list where it differs."""
        sizes = [group.shape[0] for group in self.reconstructed.values()]
        same = len(set(sizes)) == 1
        return {"n_true": self.true.shape[0], "n_reconstructed": sizes[0] if same else sizes}

    @property
    def smallest(self) -> int:
        """Number of images of the smallest set."""
        return min(len(group) for group in (self.true, *self.reconstructed.values()))

    def compared(
        self, compare: Callable[[Any, Any], Any], prepare: Callable[[da.Array], Any], width: int
    ) -> da.Array:
        """Compare each group with the true images, lazily: float64 (*lead, width)."""
        true = prepare(self.true)
        rows = [
            da.from_delayed(compare(true, prepare(group)), (width,), np.float64)
            for group in self.reconstructed.values()
        ]
        found: da.Array = da.stack(rows).reshape(*self.shape, width)
        return found


def groups(true: Any, reconstructed: Any, *, equal: bool) -> Groups:
    """Arrange features as sets of images, lazily.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, feature)``.
    reconstructed : DataArray, Dataset or mapping of str to either
        ``features (..., image | trial, feature)``; several by name become a dim ``model``.
    equal : bool
        Whether sets of unequal size are refused.

    Raises
    ------
    SchemaError
        If features differ in width or labels, there are fewer than two images, or counts differ.
    """
    # A Dataset is a mapping too.
    several = isinstance(reconstructed, Mapping) and not isinstance(reconstructed, xr.Dataset)
    named = reconstructed if several else None
    arrays = [features_of(item) for item in (named.values() if named else [reconstructed])]
    reference, first = features_of(true), arrays[0]
    labels = [str(name) for name in named] if named else [str(first.name or "reconstructed")]
    _check(reference, dict(zip(labels, arrays, strict=True)), equal=equal)
    lead = [dim for dim in first.dims if dim not in (sample_dim(first), "feature")]
    found: dict[tuple[int, ...], da.Array] = {}
    for model, array in enumerate(arrays):
        ordered = array.transpose(*lead, sample_dim(array), "feature")
        for index in product(*(range(ordered.sizes[dim]) for dim in lead)):
            key = (model, *index) if named else index
            found[key] = _rows(ordered[index].data)
    coords = {k: v for k, v in first.coords.items() if set(v.dims) <= set(lead)}
    dims, shape = tuple(lead), tuple(first.sizes[dim] for dim in lead)
    if named:
        dims, shape = ("model", *dims), (len(arrays), *shape)
        coords["model"] = xr.DataArray(np.array(labels, dtype=object), dims="model")
    return Groups(_rows(reference.transpose(..., "feature").data), found, dims, shape, coords)


@dask.delayed(pure=False)
def whole(blocks: list[np.ndarray]) -> np.ndarray:
    """Put blocks (image, feature) below each other, float64, finite."""
    rows = np.concatenate(blocks).astype(np.float64)
    return checked(rows, rows.shape, np.float64, "the features of images")


def row_blocks(array: da.Array) -> list[Any]:
    """Return the blocks of rows (image, feature) as delayed arrays."""
    return list(array.to_delayed().ravel())


def _check(true: xr.DataArray, named: Mapping[str, xr.DataArray], *, equal: bool) -> None:
    """Refuse what cannot be compared; every fault in one message."""
    faults = []
    if set(true.dims) != {sample_dim(true), "feature"}:
        faults.append(f"those of the true images have dims {true.dims}, expected image and feature")
    counts = {"true": true.sizes[sample_dim(true)]}
    first = next(iter(named.values()))
    for name, array in named.items():
        counts[name] = array.sizes[sample_dim(array)]
        if array.sizes.get("feature") != true.sizes.get("feature"):
            faults.append(
                f"{name} has {array.sizes.get('feature')} features, the true images "
                f"{true.sizes.get('feature')}: compute both with the same network and layer"
            )
        others = [{d: a.sizes[d] for d in a.dims if d != sample_dim(a)} for a in (array, first)]
        if others[0] != others[1]:
            faults.append(f"{name} has {others[0]}, others {others[1]}")
        elif not _same_labels(array, first):
            faults.append(f"{name} has other labels than {next(iter(named))}: select the same")
    if min(counts.values()) < 2:
        faults.append(f"a distribution takes two images or more, found {counts}")
    if equal and len(set(counts.values())) > 1:
        faults.append(
            f"unequal counts {counts}: FID falls with the number of images, so that groups of "
            "different size cannot be compared; select as many of each, or use kid"
        )
    if faults:
        raise SchemaError("the features", faults)


def _same_labels(array: xr.DataArray, other: xr.DataArray) -> bool:
    """Say whether leading dims, such as subjects, are labelled alike, in one order."""
    lead = {dim for dim in array.dims if dim not in (sample_dim(array), "feature")}
    both = [{d: a[d].values.tolist() for d in lead if d in a.coords} for a in (array, other)]
    return both[0] == both[1]


def _rows(data: Any) -> da.Array:
    """Return lazy (image, feature) with all features in one block."""
    if isinstance(data, da.Array):
        found: da.Array = data.rechunk({1: -1})
        return found
    return da.from_array(data, chunks=("auto", -1), name=False)
