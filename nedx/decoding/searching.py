"""A search as a graph: blocks of a gallery are read and compared one by one, then merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.graph_manipulation import clone
from dask.highlevelgraph import HighLevelGraph

from nedx.compute.planned import PlannedArray
from nedx.errors import ModelError
from nedx.metrics import retrieval as kernels
from nedx.metrics.retrieval import Matches
from nedx.metrics.similarity import Similarity, Truth, pair_scores

BLOCK_BYTES = 2**27
"""What is read of a gallery at a time, where its own chunks are no larger."""

_MERGED_AT_ONCE = 16

_LAST_SHARES = 8
"""No task takes more than this part of what is left of a gallery."""


@dataclass(frozen=True)
class Search:
    """What the results of a search share; nothing is computed here.

    Parameters
    ----------
    name : str
        What is of this search alone in its keys.
    graph : dict
        Tasks: the embeddings (embedding, feature), the truth of each, and labels of the gallery.
    sources : list of dask array
        What the tasks read.
    groups : list of (int, list of key)
        The row at which blocks of the gallery start that are compared in one task, and the blocks.
    shape : tuple of int
        Of the embeddings, without features.
    similarity, device
        As `nedx.metrics.retrieval.search` takes them.
    """

    name: str
    graph: dict[Any, Any]
    sources: list[da.Array]
    groups: list[tuple[int, list[Any]]]
    shape: tuple[int, ...]
    similarity: Similarity
    device: str

    @classmethod
    def of(
        cls,
        embedding: xr.DataArray,
        features: xr.DataArray,
        ids: np.ndarray,
        rows: np.ndarray,
        names: np.ndarray,
        *,
        similarity: Similarity,
        device: str,
        block_bytes: int,
    ) -> Search:
        """Lay out the search.

        Parameters
        ----------
        embedding : DataArray (..., feature)
        features : DataArray (row, feature)
        ids : ndarray of object, (row,)
        rows : ndarray of int64, (embedding,)
            The true match of each embedding, -1 for none.
        names : ndarray of object, (embedding,)
            Image ids, for errors.
        similarity, device, block_bytes
            As `nedx.retrieve` takes them.
        """
        asked, gallery = _one_block(embedding), in_rows(features)
        unique, which = np.unique(rows[rows >= 0], return_inverse=True)
        true = _read_apart(gallery, unique)
        name = tokenize(asked.name, gallery.name, rows, ids, similarity, device, block_bytes)
        queries, truth = f"queries-{name}", f"truth-{name}"
        prepare = partial(_prepared, names=names, similarity=similarity)
        compare = partial(_truth, rows=rows, which=which, similarity=similarity)
        graph = {
            queries: (prepare, _first_key(asked)),
            truth: (compare, queries, _first_key(true)),
            # By a key of their own: a million labels are hashed once.
            f"ids-{name}": ids,
        }
        groups = _groups(gallery, block_bytes)
        sources = [asked, true, gallery]
        return cls(name, graph, sources, groups, embedding.shape[:-1], similarity, device)

    @property
    def ids(self) -> str:
        """The key of the labels of the gallery, ndarray of object (row,)."""
        return f"ids-{self.name}"

    @property
    def asked(self) -> tuple[str, str]:
        """The keys of the embeddings and of their truth."""
        return f"queries-{self.name}", f"truth-{self.name}"

    def matches(self, k: int, *, ranked: bool) -> dict[str, da.Array]:
        """Return the best ``k`` of each embedding, and how its true match did.

        Parameters
        ----------
        k : int
        ranked : bool
            Whether every embedding has a true match, so that ranks are whole numbers.
        """
        graph, last = self._searched(k)
        _, truth = self.asked
        rank = np.dtype(np.int64 if ranked else np.float64)
        f4, words, whole = np.dtype(np.float32), np.dtype(object), np.dtype(np.int64)
        return {
            "candidate_id": self._array(graph, (_labels, last, self.ids), words, k),
            "similarity": self._array(graph, (_scores, last), f4, k),
            "rank": self._array(graph, (partial(_ranks, dtype=rank), last, truth), rank),
            "ties": self._array(graph, (_ties, last), whole),
            "similarity_true": self._array(graph, (_true_scores, truth), f4),
        }

    def assigned(self, axis: int) -> da.Array:
        """Return labels, str (...), assigned one to one along an axis of the embeddings."""
        queries, _ = self.asked
        compare = partial(kernels.score_matrix, similarity=self.similarity, device=self.device)
        every = [key for _, blocks in self.groups for key in blocks]
        scores = f"scores-{self.name}"
        graph = {**self.graph, scores: (compare, queries, every)}
        assign = partial(_assigned, shape=self.shape, axis=axis)
        return self._array(graph, (assign, scores, self.ids), np.dtype(object))

    def _searched(self, k: int) -> tuple[dict[Any, Any], Any]:
        """Return the graph of a search, and the key of what it found."""
        search = partial(kernels.search, k=k, similarity=self.similarity, device=self.device)
        floor = f"floor-{self.name}-{k}"
        count = math.prod(self.shape)
        level: dict[Any, Any] = {
            (f"search-{self.name}-{k}", i): (
                partial(search, start=start),
                *self.asked,
                blocks,
                floor,
            )
            for i, (start, blocks) in enumerate(self.groups)
        }
        # Made when it is computed: a gallery that was changed is another one.
        graph = {**self.graph, floor: (kernels.Floor, count), **level}
        while len(level) > 1:
            keys = list(level)
            level = {
                (f"merge-{self.name}-{k}-{len(keys)}", i): (
                    kernels.merged,
                    keys[first : first + _MERGED_AT_ONCE],
                )
                for i, first in enumerate(range(0, len(keys), _MERGED_AT_ONCE))
            }
            graph |= level
        return graph, next(iter(level))

    def _array(
        self, graph: dict[Any, Any], task: tuple[Any, ...], dtype: np.dtype, *tail: int
    ) -> da.Array:
        """Return what a task makes of the last keys, in the shape of the embeddings."""
        shape = (*self.shape, *tail)
        name = f"retrieved-{tokenize(self.name, task, shape)}"
        key = (name, *(0 for _ in shape))
        graph = {**graph, key: (partial(_shaped, shape=shape, function=task[0]), *task[1:])}
        layered = HighLevelGraph.from_collections(name, graph, dependencies=self.sources)
        return da.Array(layered, name, tuple((size,) for size in shape), dtype=dtype)


def in_rows(features: xr.DataArray) -> da.Array:
    """Return features (row, feature) as a dask array in blocks of whole rows, lazily."""
    if features.chunks is None:
        row = max(1, features.dtype.itemsize * features.shape[1])
        features = features.chunk({features.dims[0]: max(1, BLOCK_BYTES // row)})
    rows: da.Array = features.data.rechunk({1: -1})
    return rows


def _one_block(array: xr.DataArray) -> da.Array:
    if array.chunks is None:
        array = array.chunk()
    whole: da.Array = array.data.rechunk(-1)
    return whole


def _read_apart(gallery: da.Array, rows: np.ndarray) -> da.Array:
    """Return some rows in one block, read under keys of their own.

    Under the same keys, blocks that hold a true match would be kept in memory until all such
    blocks are read.
    """
    # A planned array reads the rows it is narrowed to, and nothing that others read.
    own = gallery if isinstance(gallery, PlannedArray) else clone(gallery, seed="truth")
    return own[rows].rechunk(-1)


def _first_key(array: da.Array) -> tuple[Any, ...]:
    return (array.name, *(0 for _ in array.shape))


def _groups(gallery: da.Array, block_bytes: int) -> list[tuple[int, list[Any]]]:
    """Put neighbouring blocks together until they are as large as they may be.

    Towards the end that is less and less, so that workers finish together.
    """
    row = gallery.dtype.itemsize * gallery.shape[1]
    groups: list[tuple[int, list[Any]]] = []
    start, size, most = 0, 0, block_bytes
    for i, length in enumerate(gallery.chunks[0]):
        if not groups or size + length * row > most:
            most = min(block_bytes, (len(gallery) - start) * row // _LAST_SHARES)
            groups.append((start, []))
            size = 0
        groups[-1][1].append((gallery.name, i, 0))
        start, size = start + length, size + length * row
    return groups


def _prepared(embedding: np.ndarray, names: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Return embeddings as float32 (embedding, feature), all of them fit to be compared."""
    values = np.asarray(embedding, dtype=np.float32).reshape(-1, embedding.shape[-1])
    bad = ~np.isfinite(values).all(axis=1)
    if similarity == "cosine":
        bad |= ~values.any(axis=1)
    elif similarity == "correlation":
        bad |= (values == values[:, :1]).all(axis=1)
    if bad.any():
        shown = ", ".join(dict.fromkeys(str(name) for name in names[bad][:5]))
        raise ModelError(
            f"{int(bad.sum())} of {len(values)} embeddings are NaN, infinite or have no direction: "
            f"{shown}. Leave these out, or look at the responses they were decoded from"
        )
    return values


def _truth(
    queries: np.ndarray,
    true: np.ndarray,
    rows: np.ndarray,
    which: np.ndarray,
    similarity: Similarity,
) -> Truth:
    """Return the score and the row of each true match."""
    scores = np.full(len(queries), np.nan)
    there = np.flatnonzero(rows >= 0)
    scores[there] = pair_scores(queries, true, there, which, similarity)
    return scores, rows


def _shaped(*found: Any, shape: tuple[int, ...], function: Callable[..., Any]) -> np.ndarray:
    made: np.ndarray = function(*found)
    return made.reshape(shape)


def _labels(found: Matches, ids: np.ndarray) -> np.ndarray:
    labels: np.ndarray = ids[found.positions]
    return labels


def _scores(found: Matches) -> np.ndarray:
    return found.scores.astype(np.float32)


def _ties(found: Matches) -> np.ndarray:
    return found.tied


def _ranks(found: Matches, truth: Truth, dtype: np.dtype) -> np.ndarray:
    ranks = (1 + found.above + found.tied).astype(dtype)
    if dtype.kind == "f":
        ranks[truth[1] < 0] = np.nan
    return ranks


def _true_scores(truth: Truth) -> np.ndarray:
    return truth[0].astype(np.float32)


def _assigned(scores: np.ndarray, ids: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Assign along an axis of embeddings, each of the others by itself."""
    apart = np.moveaxis(scores.reshape(*shape, -1), axis, -2)
    rows = np.empty(apart.shape[:-1], dtype=np.int64)
    for place in np.ndindex(apart.shape[:-2]):
        rows[place] = kernels.assign_one_to_one(apart[place])
    labels: np.ndarray = ids[np.moveaxis(rows, -1, axis)]
    return labels
