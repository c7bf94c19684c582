"""Which embedding belongs to which target: pairs for training, and those held out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from nedx.errors import ModelError
from nedx.metrics.repeats import labels_of
from nedx.reconstruction.rows import variable
from nedx.schema import sample_dim

Labelled = xr.Dataset | np.ndarray


@dataclass(frozen=True, eq=False)
class Pairs:
    """Embeddings, the target of each, and what is held out.

    Attributes
    ----------
    conditions : ndarray of float32 (row, condition_width)
        Decoded embeddings.
    targets : ndarray of float32 (image, width)
        Of each image once.
    image : ndarray of int64 (row,)
        The target of each row.
    image_id : ndarray of object (image,)
        Ids of the targets.
    held_out : ndarray of bool (image,)
        Images that the epoch is chosen by.
    """

    conditions: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    image: np.ndarray = field(repr=False)
    image_id: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)

    @property
    def known(self) -> xr.Dataset:
        """What each image was to the training, ``known_partition (known_image)``."""
        kinds = np.where(self.held_out, "val", "train").astype(object)
        return xr.Dataset(
            {"known_partition": ("known_image", kinds)}, coords={"known_image": self.image_id}
        )

    def rows(self, *, held_out: bool) -> np.ndarray:
        """Return the positions of rows to train on, or of those held out."""
        return np.flatnonzero(self.held_out[self.image] == held_out)


def pair(
    embeddings: Labelled,
    targets: Labelled,
    *,
    groups: str | None,
    validation: float,
    seed: int,
) -> Pairs:
    """Pair embeddings with targets by ``image_id``, and hold some concepts out.

    Parameters
    ----------
    embeddings : Dataset or ndarray (row, feature)
        ``embedding ([subject,] image | trial[, repetition], feature)``; images of the partition
        ``"test"`` are left out.
    targets : Dataset or ndarray (row, feature)
        ``features (image, feature)``. Arrays are paired row by row.
    groups : str, optional
        The coordinate that names the concept of an image; None holds images out.
    validation : float
        Share of the concepts that are held out.
    seed : int
        Which.

    Returns
    -------
    Pairs

    Raises
    ------
    ModelError
        If something is missing, not finite or of another width, or nothing is left to train on.
    """
    if targets is embeddings and isinstance(targets, np.ndarray):
        raise ModelError("targets are missing: type .fit(embeddings, targets)")
    if isinstance(embeddings, np.ndarray) != isinstance(targets, np.ndarray):
        raise ModelError("give both as Datasets, paired by image_id, or both as arrays, row by row")
    if isinstance(embeddings, np.ndarray):
        conditions, values, image, ids = _arrays(embeddings, np.asarray(targets))
        concepts = ids
    else:
        conditions, values, image, ids, concepts = _datasets(embeddings, targets, groups)
    _check_finite(conditions, "the embedding", ids[image])
    _check_finite(values, "the target", ids)
    held_out = _held_out(concepts, validation, seed)
    return Pairs(conditions, values, image, ids, held_out)


def unit_norm(values: np.ndarray) -> np.ndarray:
    """Return rows divided by their norm; rows of zeros stay."""
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(norms == 0, 1, norms)


def _arrays(
    embeddings: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    shaped = embeddings.ndim == targets.ndim == 2
    if not shaped or len(embeddings) != len(targets) or not embeddings.size:
        raise ModelError(
            f"the embeddings are {embeddings.shape}, the targets {targets.shape}; expected two "
            "arrays (row, feature) with as many rows, at least one"
        )
    rows = np.arange(len(embeddings))
    ids = np.array([f"row-{row:06d}" for row in rows], object)
    return embeddings.astype(np.float32), targets.astype(np.float32), rows, ids


def _datasets(
    embeddings: xr.Dataset, targets: Labelled, groups: str | None
) -> tuple[np.ndarray, ...]:
    assert isinstance(targets, xr.Dataset)
    given = variable(embeddings, "embedding", "Type: ds.ned.decode(decoder)")
    features = variable(targets, "features", "Type: nedx.encode_features(images, backbone)")
    for name, array in (("embedding", given), ("features", features)):
        if "image_id" not in array.coords:
            raise ModelError(f"{name!r} has no image_id, by which the two are paired")
        if "feature" not in array.dims or (name == "features" and array.ndim != 2):
            layout = "(image, feature)" if name == "features" else "(..., feature)"
            raise ModelError(f"{name!r} lies over {array.dims}, expected {layout}")
    dim = sample_dim(given)
    if not given.size:
        raise ModelError(f"there are no embeddings to train on: {dict(given.sizes)}")
    index = pd.Index(labels_of(features, "image_id"))
    if not index.is_unique:
        raise ModelError("an image_id occurs twice among the targets")
    found = labels_of(given, "image_id")
    kinds = _along(dim, "partition", given, embeddings)
    wanted = np.ones(len(found), bool) if kinds is None else kinds != "test"
    positions = index.get_indexer(found)
    missing = found[(positions < 0) & wanted]
    if len(missing):
        raise ModelError(
            f"{len(missing)} of {int(wanted.sum())} embeddings are of images without a target, "
            f"such as {str(missing[0])!r}; the targets have {str(index[0])!r}, ..."
        )
    if not wanted.any():
        raise ModelError("all embeddings are of the partition 'test': none is left to train on")
    chosen = given.isel({dim: np.flatnonzero(wanted)}).transpose(..., "feature")
    used, image = np.unique(positions[wanted], return_inverse=True)
    lead = chosen.dims[:-1]
    along = image.reshape([-1 if d == dim else 1 for d in lead])
    rows = np.broadcast_to(along, chosen.shape[:-1]).reshape(-1)
    values = features.isel(image=used).transpose("image", "feature").values.astype(np.float32)
    conditions = chosen.values.astype(np.float32).reshape(len(rows), -1)
    ids = index[used].to_numpy(dtype=object)
    return conditions, values, rows, ids, _concepts(ids, used, given, features, groups)


def _concepts(
    ids: np.ndarray, used: np.ndarray, given: xr.DataArray, features: xr.DataArray, name: str | None
) -> np.ndarray:
    if name is None:
        return ids
    if name in features.coords and features[name].dims == ("image",):
        return labels_of(features, name)[used]
    if name in given.coords and given[name].dims == given["image_id"].dims:
        concepts = dict(zip(given["image_id"].values, given[name].values, strict=True))
        return np.array([str(concepts[one]) for one in ids])
    raise ModelError(
        f"no coordinate {name!r} says of which concept an image is, and concepts are held out to "
        "choose the epoch. Name it with groups=, type groups=None to hold out images, or "
        "validation=0"
    )


def _along(dim: str, name: str, array: xr.DataArray, ds: xr.Dataset) -> np.ndarray | None:
    if name in array.coords and array[name].dims == (dim,):
        return labels_of(array, name)
    if name in ds and ds[name].dims == (dim,):
        return labels_of(ds, name)
    return None


def _held_out(concepts: np.ndarray, share: float, seed: int) -> np.ndarray:
    if not share:
        return np.zeros(len(concepts), bool)
    names = np.unique(concepts)
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise ModelError(
            f"there are {len(names)} concepts, of which {count} would be held out; none is left "
            "to train on. Type validation=0"
        )
    drawn = np.random.default_rng((seed, 0)).choice(names, count, replace=False)
    return np.isin(concepts, drawn)


def _check_finite(values: np.ndarray, what: str, names: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ModelError(
            f"{what} of {len(bad)} of {len(values)} rows is NaN or infinite, first that of "
            f"{str(names[bad[0]])!r}"
        )
