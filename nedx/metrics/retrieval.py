"""Search a gallery in one pass: the best candidates and the rank of the true match, exactly.

Fast products say of most rows that they are too far away, or closer than the true match. What
they cannot decide, because scores differ by no more than the rounding of the product, is computed
again in float64, pair by pair: ranks, ties and the order of candidates do not depend on blocks,
on threads or on the device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nedx.compute.devices import forward_slot, many_tasks, resolve_device
from nedx.metrics.similarity import (
    Queries,
    Similarity,
    Tile,
    Truth,
    multiplies_bfloat16,
    pair_scores,
)

if TYPE_CHECKING:
    import torch

_ROWS, _QUERIES = 2048, 2048
"""A tile: so many rows of the gallery by so many queries at a time."""
_FEW = 4
"""Pairs of a query in a tile that are sooner compared in float64 than by another product."""
_MOST_WAITING = 2**21
"""So many pairs wait for being compared exactly."""


@dataclass(frozen=True)
class Matches:
    """What is known of n queries after some rows of the gallery.

    Parameters
    ----------
    scores : ndarray of float64, (n, k)
        Of the best candidates, best first; -inf where there were fewer than k rows.
    positions : ndarray of int64, (n, k)
        Rows of the gallery; of equal scores the lowest comes first.
    above, tied : ndarray of int64, (n,)
        How many other rows score more than the true match, and exactly as much.
    """

    scores: np.ndarray
    positions: np.ndarray
    above: np.ndarray
    tied: np.ndarray

    @classmethod
    def nothing(cls, count: int, k: int) -> Matches:
        """Return what is known before the first row."""
        nowhere = np.full((count, k), np.iinfo(np.int64).max)
        zeros = np.zeros(count, dtype=np.int64)
        return cls(np.full((count, k), -np.inf), nowhere, zeros, zeros.copy())

    def part(self, part: slice) -> Matches:
        """Return views of some queries."""
        return Matches(self.scores[part], self.positions[part], self.above[part], self.tied[part])


class Floor:
    """The least score of the best of a search so far, which its tasks in one process share.

    What scores less cannot be among the best: knowing it spares a task from looking at its rows
    again, and changes nothing that is found in the end. Where it is pickled to, it begins anew.
    """

    def __init__(self, count: int):
        self._lock = threading.Lock()
        self._scores = np.full(count, -np.inf)

    def __reduce__(self) -> tuple[type[Floor], tuple[int]]:
        return Floor, (len(self._scores),)

    def scores(self) -> np.ndarray:
        """Return the score of each query, float64 (n,)."""
        with self._lock:
            return self._scores.copy()

    def lift(self, scores: np.ndarray) -> None:
        """Take notice of the last of the best that a task found, (n,)."""
        with self._lock:
            np.maximum(self._scores, scores, out=self._scores)


def search(
    queries: np.ndarray,
    truth: Truth,
    blocks: Sequence[Any],
    floor: Floor | None = None,
    *,
    start: int,
    k: int,
    similarity: Similarity,
    device: str = "cpu",
    rough: bool | None = None,
) -> Matches:
    """Search some rows of a gallery.

    Parameters
    ----------
    queries : ndarray of float32, (n, feature)
    truth : (ndarray of float64, ndarray of int64), (n,) both
        See `Truth`; scores as `pair_scores` gives them.
    blocks : sequence of ndarray (row, feature)
        Rows that follow each other, of any float type.
    floor : Floor, optional
        Shared with tasks that search other rows: of what cannot be among the best of all, less is
        found then.
    start : int
        Position of the first in the gallery.
    k : int
        How many candidates to keep.
    similarity : {"cosine", "dot", "correlation", "euclidean"}
    device : str
        Of the products.
    rough : bool, optional
        Whether bfloat16 products come first; where the processor is faster at them by default.
        That changes the time alone.

    Returns
    -------
    Matches

    Raises
    ------
    ModelError
        If a row is not finite, or has no direction where that is compared.
    """
    import torch

    device = resolve_device(device)
    found = Matches.nothing(len(queries), k)
    with many_tasks(device), torch.inference_mode():
        rough = multiplies_bfloat16(device) if rough is None else rough
        asked = Queries.of(queries, truth, similarity, device, rough=rough)
        parts = [slice(at, at + _QUERIES) for at in range(0, len(queries), _QUERIES)]
        least = found.scores[:, -1] if floor is None else floor.scores()
        searches = [
            _Search(asked.part(part), found.part(part), similarity, least[part]) for part in parts
        ]
        for tile in _tiles(blocks, start, similarity, device, rough=rough):
            for one in searches:
                one.scan(tile)
        for one in searches:
            one.settle()
    if floor is not None:
        floor.lift(found.scores[:, -1])
    return found


def merged(parts: Sequence[Matches]) -> Matches:
    """Return what is known after all the rows that several parts were found in."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    positions = np.concatenate([part.positions for part in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=-1)[:, : parts[0].scores.shape[1]]
    return Matches(
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(positions, order, axis=1),
        np.sum([part.above for part in parts], axis=0),
        np.sum([part.tied for part in parts], axis=0),
    )


def score_matrix(
    queries: np.ndarray, blocks: Sequence[Any], *, similarity: Similarity, device: str = "cpu"
) -> np.ndarray:
    """Compare all queries with all rows of a small gallery.

    Parameters
    ----------
    queries, blocks, similarity, device
        As `search` takes them.

    Returns
    -------
    ndarray of float32, (query, row)
        Within float32 rounding of the similarity.
    """
    import torch

    device = resolve_device(device)
    nothing = np.full(len(queries), np.nan), np.full(len(queries), -1)
    with forward_slot(device), torch.inference_mode():
        asked = Queries.of(queries, nothing, similarity, device)
        tiles = _tiles(blocks, 0, similarity, device)
        scores = np.concatenate([tile.scores(asked)[0].cpu().numpy() for tile in tiles], axis=1)
    if similarity == "euclidean":
        squares = np.square(asked.lengths)[:, np.newaxis] - scores
        return -np.sqrt(np.maximum(squares, 0)).astype(np.float32)
    return scores


def assign_one_to_one(scores: np.ndarray) -> np.ndarray:
    """Give each query a row of its own so that the sum of scores is largest.

    Parameters
    ----------
    scores : ndarray, (query, row)
        No fewer rows than queries.

    Returns
    -------
    ndarray of int64, (query,)
        Kuhn 1955, Naval Research Logistics Quarterly 2:83, as scipy computes it.
    """
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(scores, maximize=True)[1].astype(np.int64)


class _Pairs(NamedTuple):
    """Pairs that wait for being compared exactly: rows of a tile, and rough scores (pair,)."""

    rows: np.ndarray
    start: int
    query: torch.Tensor
    row: torch.Tensor
    rough: torch.Tensor


class _Search:
    """The search for some queries, tile by tile.

    Parameters
    ----------
    asked : Queries
    found : Matches
        Where to put what is found.
    similarity
        As `search` takes it.
    least : ndarray of float64, (n,)
        Scores below which nothing is looked for.
    """

    def __init__(self, asked: Queries, found: Matches, similarity: Similarity, least: np.ndarray):
        self._asked, self._found, self._similarity = asked, found, similarity
        shape = found.scores.shape
        # The best rough scores so far: what is far below them cannot be a candidate.
        level = _column(asked.levels(least, similarity), asked.directions)
        self._reached = level.expand(shape).clone()
        self._doubt = np.zeros(shape[0])
        self._waiting: list[_Pairs] = []

    def scan(self, tile: Tile) -> None:
        """Search a tile."""
        rough, doubt = tile.rough_scores(self._asked)
        most = rough.amax(dim=1, keepdim=True)
        self._doubt = np.maximum(self._doubt, doubt)
        self._collect(tile, rough, most)
        self._count(tile, rough, most, doubt)

    def _collect(self, tile: Tile, rough: torch.Tensor, most: torch.Tensor) -> None:
        """Note the rows that may be among the best."""
        import torch

        some = torch.nonzero(most >= self._least())[:, 0]
        if not len(some):
            return
        rough, reached = rough[some], self._reached[some]
        k = reached.shape[1]
        # Later, the best of a tile raises the bar nearly as much as its k best, and costs less.
        first = bool(torch.isneginf(reached[:, -1]).any())
        best = rough.topk(min(k, rough.shape[1]), dim=1).values if first else most[some]
        self._reached[some] = torch.cat([reached, best], dim=1).topk(k, dim=1).values
        query, row = torch.nonzero(rough >= self._least()[some], as_tuple=True)
        pairs = _Pairs(tile.rows, tile.start, some[query], row, rough[query, row])
        self._waiting.append(pairs)
        if sum(len(pairs.row) for pairs in self._waiting) > _MOST_WAITING:
            self.settle()

    def _least(self) -> torch.Tensor:
        """Return the least rough score of a candidate, (query, 1)."""
        return self._reached[:, -1:] - _column(2 * self._doubt, self._reached)

    def settle(self) -> None:
        """Compare exactly what waits, and put the best into ``found``."""
        least = self._least()[:, 0]
        count, k = self._found.scores.shape
        queries = [np.repeat(np.arange(count), k)]
        scores, positions = [self._found.scores.ravel()], [self._found.positions.ravel()]
        for pairs in self._waiting:
            still = pairs.rough >= least[pairs.query]
            query, row = pairs.query[still].cpu().numpy(), pairs.row[still].cpu().numpy()
            queries.append(query)
            scores.append(pair_scores(self._asked.values, pairs.rows, query, row, self._similarity))
            positions.append(pairs.start + row)
        self._waiting.clear()
        self._keep(np.concatenate(queries), np.concatenate(scores), np.concatenate(positions))

    def _keep(self, query: np.ndarray, score: np.ndarray, position: np.ndarray) -> None:
        """Keep the best of pairs, among which are those that were kept before."""
        order = np.lexsort((position, -score, query))
        place = np.arange(order.size) - np.searchsorted(query[order], query[order])
        kept = order[place < self._found.scores.shape[1]]
        self._found.scores[:] = score[kept].reshape(self._found.scores.shape)
        self._found.positions[:] = position[kept].reshape(self._found.scores.shape)

    def _count(
        self, tile: Tile, rough: torch.Tensor, most: torch.Tensor, doubt: np.ndarray
    ) -> None:
        """Add the rows that score as much as the true match, or more."""
        import torch

        true_scores, true_rows = self._asked.truth
        level = self._asked.levels(true_scores, self._similarity)
        some = torch.nonzero(most >= _column(level - doubt, most))[:, 0]
        if not len(some):
            return
        which = some.cpu().numpy()
        own = true_rows[which] - tile.start
        surely, near = _apart(rough[some], level[which], doubt[which], own)
        if int(near.sum()) > _FEW * len(which):
            scores, doubt = tile.scores(self._asked, some)
            surely, near = _apart(scores, level[which], doubt, own)
        self._found.above[which] += surely.sum(dim=1).cpu().numpy()
        query, row = (indices.cpu().numpy() for indices in torch.nonzero(near, as_tuple=True))
        query = which[query]
        exact = pair_scores(self._asked.values, tile.rows, query, row, self._similarity)
        np.add.at(self._found.above, query[exact > true_scores[query]], 1)
        np.add.at(self._found.tied, query[exact == true_scores[query]], 1)


def _apart(
    scores: torch.Tensor, level: np.ndarray, doubt: np.ndarray, own: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Say which rows score surely more than a level, and of which it is in doubt.

    Both (query, row) of bool; ``own`` is the row of the true match, which is neither.
    """
    surely = scores > _column(level + doubt, scores)
    near = (scores >= _column(level - doubt, scores)) & ~surely
    here = np.flatnonzero((own >= 0) & (own < scores.shape[1]))
    surely[here, own[here]] = near[here, own[here]] = False
    return surely, near


def _tiles(
    blocks: Sequence[Any], start: int, similarity: Similarity, device: str, *, rough: bool = False
) -> Iterator[Tile]:
    """Yield the rows a tile at a time, each to be used before the next."""
    import torch

    shape = min(_ROWS, max(map(len, blocks))), blocks[0].shape[1]
    scratch = torch.empty(shape, device=device)
    rounded = torch.empty(shape, dtype=torch.bfloat16, device=device) if rough else None
    for block in blocks:
        for first in range(0, len(block), _ROWS):
            rows = block[first : first + _ROWS]
            yield Tile(rows, start + first, similarity, scratch, rounded)
        start += len(block)


def _column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(values).to(like.device, like.dtype)[:, None]
