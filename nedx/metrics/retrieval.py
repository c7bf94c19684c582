"""Search a gallery in one pass: the best candidates and the rank of the true match, exactly.

Products are float32, a tile of the gallery at a time. What a product cannot decide, because two
scores differ by no more than its rounding, is computed again in float64, pair by pair: ranks,
ties and the order of candidates do not depend on blocks, on threads or on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nedx.compute.devices import forward_slot, resolve_device
from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

Similarity = Literal["cosine", "dot", "correlation", "euclidean"]
Truth = tuple[np.ndarray, np.ndarray]
"""The score of each query's true match, float64, and its row in the gallery; NaN, -1 for none."""

SIMILARITIES: tuple[str, ...] = ("cosine", "dot", "correlation", "euclidean")

_ROWS, _QUERIES = 2048, 2048
"""A tile: so many rows of the gallery by so many queries at a time."""
_PAIR_VALUES = 2**21
"""Values that are compared in float64 at a time."""
_CERTAINTY = 4.0
"""Standard deviations of the rounding of a product that are not trusted."""


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


def search(
    queries: np.ndarray,
    truth: Truth,
    blocks: Sequence[Any],
    *,
    start: int,
    k: int,
    similarity: Similarity,
    device: str = "cpu",
) -> Matches:
    """Search some rows of a gallery.

    Parameters
    ----------
    queries : ndarray of float32, (n, feature)
    truth : (ndarray of float64, ndarray of int64), (n,) both
        See `Truth`; scores as `pair_scores` gives them.
    blocks : sequence of ndarray (row, feature)
        Rows that follow each other, of any float type.
    start : int
        Position of the first in the gallery.
    k : int
        How many candidates to keep.
    similarity : {"cosine", "dot", "correlation", "euclidean"}
        Euclidean is the negative distance.
    device : str
        Of the products.

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
    asked = _Queries.of(queries, truth, similarity, device)
    found = Matches.nothing(len(queries), k)
    with forward_slot(device), torch.inference_mode():
        for position, rows in _tiles(blocks, start):
            tile = _Tile(rows, position, similarity, device)
            for first in range(0, len(queries), _QUERIES):
                part = slice(first, first + _QUERIES)
                _scan(asked.part(part), tile, found.part(part))
    return found


def pair_scores(
    queries: np.ndarray,
    rows: np.ndarray,
    query: np.ndarray,
    row: np.ndarray,
    similarity: Similarity,
) -> np.ndarray:
    """Compare pairs in float64.

    Parameters
    ----------
    queries, rows : ndarray, (n, feature) and (m, feature)
    query, row : ndarray of int64, (pair,)
        Which of them.
    similarity : {"cosine", "dot", "correlation", "euclidean"}

    Returns
    -------
    ndarray of float64, (pair,)
        Of a pair the same whatever the others are.
    """
    step = max(1, _PAIR_VALUES // max(1, queries.shape[1]))
    found = np.empty(query.size)
    for first in range(0, query.size, step):
        some = slice(first, first + step)
        found[some] = _compare(
            queries[query[some]].astype(np.float64), rows[row[some]].astype(np.float64), similarity
        )
    return found


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
    asked = _Queries.of(queries, nothing, similarity, device)
    with forward_slot(device), torch.inference_mode():
        tiles = (_Tile(rows, first, similarity, device) for first, rows in _tiles(blocks, 0))
        scores = np.concatenate([tile.scores(asked.fast).cpu().numpy() for tile in tiles], axis=1)
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


@dataclass(frozen=True)
class _Queries:
    """What is searched for, and where the truth is."""

    values: np.ndarray
    fast: torch.Tensor
    lengths: np.ndarray
    true_scores: np.ndarray
    true_rows: np.ndarray

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        truth: Truth,
        similarity: Similarity,
        device: str,
    ) -> _Queries:
        import torch

        fast = torch.from_numpy(_directions(values, similarity)).to(device)
        lengths = np.linalg.norm(values.astype(np.float64), axis=1)
        return cls(values, fast, lengths, *truth)

    def part(self, part: slice) -> _Queries:
        return _Queries(
            self.values[part],
            self.fast[part],
            self.lengths[part],
            self.true_scores[part],
            self.true_rows[part],
        )


class _Tile:
    """Some rows of the gallery, ready to be multiplied."""

    def __init__(self, rows: np.ndarray, start: int, similarity: Similarity, device: str):
        import torch

        self.rows, self.start, self.similarity = rows, start, similarity
        values = torch.from_numpy(np.ascontiguousarray(rows)).to(device).float()
        if similarity == "correlation":
            values = values - values.mean(dim=1, keepdim=True)
        norms = torch.linalg.vector_norm(values, dim=1)
        self.longest = float(norms.max())
        directed = similarity in ("cosine", "correlation")
        bad = ~torch.isfinite(norms) | (directed & (norms == 0))
        if bool(bad.any()):
            self._refuse(torch.nonzero(bad)[:, 0].cpu().numpy())
        self.values = values
        self.inverse = 1 / norms if directed else None
        self.squares = norms * norms if similarity == "euclidean" else None

    def _refuse(self, bad: np.ndarray) -> None:
        shown = ", ".join(str(self.start + int(row)) for row in bad[:8])
        raise ModelError(
            f"the gallery has {len(bad)} rows here that are NaN, infinite or have no direction "
            f"(zero, or constant for correlations), the first at {shown}: leave them out, for "
            "example gallery.isel(image=...), or compute their features again"
        )

    def scores(self, fast: torch.Tensor) -> torch.Tensor:
        """Return (query, row): the similarity, or what grows with it for a query."""
        found = fast @ self.values.T
        if self.inverse is not None:
            found *= self.inverse
        elif self.squares is not None:
            found.mul_(2).sub_(self.squares)
        return found

    def rounding(self, lengths: np.ndarray) -> np.ndarray:
        """Return how far scores of queries of these lengths may be off, (query,)."""
        unit = _CERTAINTY * np.sqrt(self.values.shape[1]) * 2.0**-24
        if self.inverse is not None:
            return np.full(len(lengths), unit)
        if self.squares is not None:
            return unit * (2 * lengths * self.longest + self.longest**2)
        return unit * lengths * self.longest


def _scan(asked: _Queries, tile: _Tile, found: Matches) -> None:
    """Search a tile for some queries, and put what is found into ``found``."""
    scores = tile.scores(asked.fast)
    doubt = tile.rounding(asked.lengths)
    _keep_best(asked, tile, scores, doubt, found)
    _count(asked, tile, scores, doubt, found)


def _keep_best(
    asked: _Queries, tile: _Tile, scores: torch.Tensor, doubt: np.ndarray, found: Matches
) -> None:
    """Put the rows that are among the best so far into ``found``."""
    count, k = found.scores.shape
    least = _grown(found.scores[:, -1], asked.lengths, tile.similarity)
    if scores.shape[1] >= k:
        least = np.maximum(least, scores.topk(k, dim=1).values[:, -1].double().cpu().numpy())
    query, row = _pairs(scores >= _column(least - 2 * doubt, scores))
    if not query.size:
        return
    score = np.concatenate([found.scores.ravel(), _exact(asked, tile, query, row)])
    position = np.concatenate([found.positions.ravel(), tile.start + row])
    query = np.concatenate([np.repeat(np.arange(count), k), query])
    order = np.lexsort((position, -score, query))
    place = np.arange(order.size) - np.searchsorted(query[order], query[order])
    kept = order[place < k]
    found.scores[:] = score[kept].reshape(count, k)
    found.positions[:] = position[kept].reshape(count, k)


def _count(
    asked: _Queries, tile: _Tile, scores: torch.Tensor, doubt: np.ndarray, found: Matches
) -> None:
    """Add the rows that score as much as the true match, or more."""
    own = asked.true_rows - tile.start
    here = np.flatnonzero((own >= 0) & (own < len(tile.rows)))
    scores[here, own[here]] = -np.inf
    level = _grown(asked.true_scores, asked.lengths, tile.similarity)
    above = scores > _column(level + doubt, scores)
    found.above[:] += above.sum(dim=1).cpu().numpy()
    query, row = _pairs((scores >= _column(level - doubt, scores)) & ~above)
    exact = _exact(asked, tile, query, row)
    np.add.at(found.above, query[exact > asked.true_scores[query]], 1)
    np.add.at(found.tied, query[exact == asked.true_scores[query]], 1)


def _exact(asked: _Queries, tile: _Tile, query: np.ndarray, row: np.ndarray) -> np.ndarray:
    return pair_scores(asked.values, tile.rows, query, row, tile.similarity)


def _compare(queries: np.ndarray, rows: np.ndarray, similarity: Similarity) -> np.ndarray:
    if similarity == "euclidean":
        distance: np.ndarray = -np.sqrt(np.square(queries - rows).sum(axis=1))
        return distance
    if similarity == "correlation":
        queries = queries - queries.mean(axis=1, keepdims=True)
        rows = rows - rows.mean(axis=1, keepdims=True)
    product: np.ndarray = (queries * rows).sum(axis=1)
    if similarity == "dot":
        return product
    squares = np.square(queries).sum(axis=1) * np.square(rows).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return product / np.sqrt(squares)


def _directions(queries: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Return what the rows of the gallery are multiplied by, float32 (n, feature)."""
    values = queries.astype(np.float64)
    if similarity == "correlation":
        values -= values.mean(axis=1, keepdims=True)
    if similarity in ("cosine", "correlation"):
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float32)


def _grown(scores: np.ndarray, lengths: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Return what `_Tile.scores` gives where the similarity is ``scores``, (query,)."""
    if similarity != "euclidean":
        return scores
    with np.errstate(over="ignore"):
        return lengths**2 - scores**2


def _tiles(blocks: Sequence[Any], start: int) -> Iterator[tuple[int, np.ndarray]]:
    for block in blocks:
        for first in range(0, len(block), _ROWS):
            rows = np.asarray(block[first : first + _ROWS])
            yield start + first, rows
        start += len(block)


def _pairs(mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    import torch

    query, row = torch.nonzero(mask, as_tuple=True)
    return query.cpu().numpy(), row.cpu().numpy()


def _column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(values).to(like.device, like.dtype)[:, None]
