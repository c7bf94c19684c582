"""retrieve: which images of a gallery come closest to what was decoded."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from nedx.compute.devices import check_device
from nedx.decoding.searching import BLOCK_BYTES, Search, in_rows
from nedx.errors import ModelError, SchemaError, SelectionError
from nedx.metrics.repeats import labels_of
from nedx.metrics.similarity import SIMILARITIES, Similarity
from nedx.schema import sample_dim

MOST_ASSIGNED = 50_000_000
"""So many scores can be assigned one to one: they are in memory at once."""

_SAID: dict[str, dict[str, str]] = {
    "candidate_id": {"long_name": "rows of the gallery that come closest"},
    "similarity": {"units": "1", "long_name": "similarity of the candidates"},
    "rank": {"units": "1", "long_name": "rank of the true match, 1 = best, ties against it"},
    "ties": {"units": "1", "long_name": "others that score exactly as much as the true match"},
    "similarity_true": {"units": "1", "long_name": "similarity of the true match"},
    "assigned_id": {"long_name": "row of the gallery assigned one to one", "transductive": "true"},
}


def retrieve(
    ds: xr.Dataset,
    gallery: xr.Dataset,
    k: int = 5,
    *,
    similarity: Similarity = "cosine",
    true_match: Literal["required", "ignore"] = "required",
    assignment: Literal["one_to_one"] | None = None,
    block_bytes: int = BLOCK_BYTES,
    device: str = "auto",
) -> xr.Dataset:
    """Find the images of a gallery that come closest to embeddings, lazily and in one pass.

    The gallery may be larger than memory: it is read block by block, and what is kept grows with
    the embeddings and ``k`` alone. Ranks, ties and the order of candidates are decided in float64
    and do not depend on blocks.

    Parameters
    ----------
    ds : Dataset
        ``embedding ([subject,] image | trial, feature)`` with ``image_id``.
    gallery : Dataset
        ``features (image, feature)`` with ``image_id``: the exact image is to be found. Or means
        of concepts, from `class_centres`: the concept is to be found, which ``ds`` names by the
        same coordinate, such as ``category``. These are two tasks, whose scores do not compare.
    k : int
        How many candidates to keep.
    similarity : {"cosine", "dot", "correlation", "euclidean"}
        Euclidean is the negative distance.
    true_match : {"required", "ignore"}
        What of images that the gallery lacks: an error, or a rank of NaN.
    assignment : {"one_to_one"}, optional
        Also assign each embedding of a subject an image of its own, so that the sum of
        similarities is largest. That uses the other test embeddings: it is transductive, and no
        retrieval score.
    block_bytes : int
        How much of the gallery is compared at a time; a larger chunk is not cut.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    Dataset
        The same with

        - ``candidate_id (..., image, candidate)`` str and ``similarity`` float32, best first;
        - ``rank (..., image)`` of the true match: 1 + the number of others that score as much or
          more, so that 1 is best and ties count against it; int64, or float64 with NaN where
          ``true_match="ignore"``, with the coordinate ``in_gallery (image)``;
        - ``ties``, the number of others that score exactly as much, and ``similarity_true``;
        - ``assigned_id (..., image)`` with ``assignment``.

        Each says in its attributes ``task`` ("exact_image" or "class_centre"), ``n_candidates``
        and ``metric``, and the coordinates ``retrieval_task`` and ``n_candidates`` say it too.

    Raises
    ------
    SchemaError
        If ``embedding``, ``features`` or labels are missing, or a label is there twice.
    ModelError
        If the widths differ; when it is computed, if embeddings or features are not finite.
    SelectionError
        If the gallery lacks a true match, or has fewer than ``k`` rows.
    """
    _check_options(similarity, true_match, assignment, device)
    embedding = _embedding(ds)
    features = _features(gallery)
    key, index = _labels(gallery, features)
    ids = index.to_numpy()
    _check_fit(ds, embedding, features, key)
    if k not in range(1, len(ids) + 1):
        raise SelectionError(
            f"k={k} candidates of a gallery of {len(ids)} rows; k is a whole number from 1 to that"
        )
    sample = sample_dim(embedding)
    rows = _true_rows(ds[key], index, key, true_match)
    names = np.asarray(ds["image_id" if "image_id" in ds.coords else key].values, dtype=object)
    search = Search.of(
        embedding,
        features,
        ids,
        _along(rows, sample, embedding),
        _along(names, sample, embedding),
        similarity=similarity,
        device=device,
        block_bytes=block_bytes,
    )
    found = search.matches(k, ranked=true_match == "required")
    if assignment:
        _check_size(embedding, len(ids))
        found["assigned_id"] = search.assigned(embedding.dims.index(sample))
    task = "exact_image" if key == "image_id" else "class_centre"
    said = {"task": task, "joined_by": key, "n_candidates": len(ids), "metric": similarity}
    added = {
        name: ((*embedding.dims[:-1], "candidate")[: array.ndim], array, {**_SAID[name], **said})
        for name, array in found.items()
    }
    # Of results that are concatenated, xarray keeps the attributes of one, but this of each.
    labels = {
        "candidate": ("candidate", np.arange(1, k + 1), {"long_name": "place, 1 = best"}),
        "retrieval_task": np.array(task, dtype=object),
        "n_candidates": len(ids),
    }
    if true_match == "ignore":
        labels["in_gallery"] = (sample, rows >= 0, {"long_name": "has a true match"})
    before = ds.drop_vars([*_SAID, "candidate", "in_gallery"], errors="ignore")
    return before.assign(added).assign_coords(labels)


def class_centres(features: xr.Dataset, by: str = "category") -> xr.Dataset:
    """Average the features of each concept, lazily: a gallery of concepts.

    Parameters
    ----------
    features : Dataset
        ``features (image, feature)`` with the coordinate ``by (image)``. Leave out the images that
        are decoded: a template is made of other images of its concept (Song et al. 2024, NICE).
    by : str
        The coordinate that names the concepts.

    Returns
    -------
    Dataset
        ``features (<by>, feature)`` float32, concepts in alphabetical order, and how many images
        each has, ``n_images (<by>)``.

    Raises
    ------
    SchemaError
        If there are no features, or nothing names the concepts.
    """
    array = _features(features)
    dim = array.dims[0]
    if by not in features.coords or features[by].dims != (dim,):
        fault = f"no coordinate {by!r} ({dim}); name another: class_centres(features, by='...')"
        raise SchemaError("the features", [fault])
    labels, codes, counts = np.unique(
        labels_of(features, by), return_inverse=True, return_counts=True
    )
    data = in_rows(array)
    sums = data.map_blocks(
        _class_sums,
        codes=codes,
        count=len(labels),
        chunks=((1,) * data.numblocks[0], (len(labels),), data.chunks[1]),
        new_axis=1,
        dtype=np.float64,
        meta=np.empty((0, 0, 0)),
    )
    means = (sums.sum(axis=0) / counts[:, np.newaxis]).astype(np.float32)
    attrs = {**array.attrs, "long_name": f"mean features of each {by}"}
    n_images = (by, counts, {"units": "1", "long_name": f"images of each {by}"})
    return xr.Dataset(
        {"features": ((by, "feature"), means, attrs), "n_images": n_images},
        {by: labels.astype(object)},
        dict(features.attrs),
    )


def _class_sums(
    block: np.ndarray, codes: np.ndarray, count: int, block_info: dict | None = None
) -> np.ndarray:
    """Return the sums of a block's rows (1, class, feature)."""
    start, stop = block_info[0]["array-location"][0] if block_info else (0, len(block))
    sums = np.zeros((count, block.shape[1]))
    np.add.at(sums, codes[start:stop], block.astype(np.float64))
    return sums[np.newaxis]


def _check_options(similarity: str, true_match: str, assignment: str | None, device: str) -> None:
    given = (
        ("similarity", similarity, SIMILARITIES),
        ("true_match", true_match, ("required", "ignore")),
        ("assignment", assignment, (None, "one_to_one")),
    )
    for name, value, options in given:
        if value not in options:
            spelled = ", ".join(map(repr, options))
            raise ValueError(f"{name} is one of {spelled}, not {value!r}")
    check_device(device)


def _embedding(ds: xr.Dataset) -> xr.DataArray:
    if "embedding" not in ds:
        hint = "decode first: ds.ned.decode(decoder).ned.retrieve(gallery)"
        raise SchemaError("what is searched for", ["no variable 'embedding'", hint])
    embedding = ds["embedding"]
    if "feature" not in embedding.dims or embedding.dtype.kind != "f":
        fault = (
            f"'embedding' is {embedding.dtype} {embedding.dims}; expected floats (image, feature)"
        )
        raise SchemaError("what is searched for", [fault])
    if not embedding.size:
        raise SchemaError("what is searched for", [f"nothing is there: {dict(embedding.sizes)}"])
    return embedding.transpose(..., "feature")


def _features(gallery: xr.Dataset) -> xr.DataArray:
    if "features" not in gallery:
        hint = "compute them: nedx.encode_features(images, backbone)"
        raise SchemaError("the gallery", ["no variable 'features'", hint])
    features = gallery["features"]
    if features.ndim != 2 or "feature" not in features.dims or features.dtype.kind != "f":
        fault = f"'features' is {features.dtype} {features.dims}; expected floats (image, feature)"
        raise SchemaError("the gallery", [fault])
    return features.transpose(..., "feature")


def _labels(gallery: xr.Dataset, features: xr.DataArray) -> tuple[str, pd.Index]:
    """Return what the rows of a gallery are joined by, and their labels."""
    dim = str(features.dims[0])
    key = "image_id" if "image_id" in gallery.coords else dim
    if key not in gallery.coords or gallery[key].dims != (dim,):
        fault = f"no coordinate 'image_id' ({dim}): nothing is joined by position"
        raise SchemaError("the gallery", [fault])
    index = pd.Index(np.asarray(gallery[key].values, dtype=object), dtype=object)
    # One table of a million labels: it also finds the true matches.
    if not index.is_unique:
        fault = f"{key!r} must be unique; {index[index.duplicated()][0]!r} is there more than once"
        raise SchemaError("the gallery", [fault])
    return key, index


def _check_fit(ds: xr.Dataset, embedding: xr.DataArray, features: xr.DataArray, key: str) -> None:
    widths = embedding.sizes["feature"], features.sizes["feature"]
    if widths[0] != widths[1]:
        raise ModelError(
            f"the embeddings have {widths[0]} features, those of the gallery {widths[1]}: make the "
            "gallery with the network and transform that the decoder was trained towards"
        )
    sample = sample_dim(embedding)
    if key not in ds.coords or ds[key].dims != (sample,):
        fault = f"no coordinate {key!r} ({sample}), which names the true match in the gallery"
        raise SchemaError("what is searched for", [fault])


def _true_rows(labels: xr.DataArray, index: pd.Index, key: str, true_match: str) -> np.ndarray:
    """Return the row of each true match, int64, -1 where the gallery lacks it."""
    wanted = np.asarray(labels.values, dtype=object)
    rows = index.get_indexer(wanted).astype(np.int64)
    absent = np.unique(wanted[rows < 0].astype(str))
    if absent.size and true_match == "required":
        shown = ", ".join(absent[:5]) + (", ..." if absent.size > 5 else "")
        raise SelectionError(
            f"the gallery of {len(index)} has no true match of {absent.size} of "
            f"{len(pd.unique(wanted))} {key}s: {shown}. Add them to the gallery, or type "
            "true_match='ignore'"
        )
    return rows


def _along(values: np.ndarray, dim: str, embedding: xr.DataArray) -> np.ndarray:
    """Repeat what samples have for every embedding, (embedding,)."""
    shape = tuple(embedding.sizes[d] if d == dim else 1 for d in embedding.dims[:-1])
    return np.broadcast_to(values.reshape(shape), embedding.shape[:-1]).ravel()


def _check_size(embedding: xr.DataArray, count: int) -> None:
    sample = embedding.sizes[sample_dim(embedding)]
    scores = embedding.size // embedding.sizes["feature"] * count
    if scores > MOST_ASSIGNED:
        raise SelectionError(
            f"one-to-one assignment holds all {scores:,} scores in memory; at most "
            f"{MOST_ASSIGNED:,}: select subjects, or a smaller gallery"
        )
    if sample > count:
        raise SelectionError(
            f"{sample} embeddings cannot each have an image of their own of a gallery of {count}"
        )
