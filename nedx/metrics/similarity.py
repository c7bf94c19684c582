"""Similarities of embeddings: fast products and how far they may be off, and exact ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

Similarity = Literal["cosine", "dot", "correlation", "euclidean"]
"""Euclidean is the negative distance."""

SIMILARITIES: tuple[Similarity, ...] = ("cosine", "dot", "correlation", "euclidean")

Truth = tuple[np.ndarray, np.ndarray]
"""The score of each query's true match, float64, and its row in the gallery; NaN, -1 for none."""

_PAIR_VALUES = 2**21
"""Values that are compared in float64 at a time."""
_DEVIATIONS = 4.0
"""So many standard deviations of the rounding of a float32 product are not trusted."""
_PIECE = 256
"""Rows that are rounded at a time."""
_BFLOAT16 = 1.05 * (2.0**-8 + 2.0**-9)
"""The most that rounding both factors and the sum to bfloat16 changes, over the norms."""


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


@dataclass(frozen=True)
class Queries:
    """What is searched for, and where the truth is.

    Parameters
    ----------
    values : ndarray of float32, (n, feature)
    directions : tensor of float32, (n, feature)
        What rows of the gallery are multiplied by.
    rounded : tensor of bfloat16, (n, feature), optional
        The same, for rough products.
    lengths : ndarray of float64, (n,)
    truth : Truth
    """

    values: np.ndarray
    directions: torch.Tensor
    rounded: torch.Tensor | None
    lengths: np.ndarray
    truth: Truth

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        truth: Truth,
        similarity: Similarity,
        device: str,
        *,
        rough: bool = False,
    ) -> Queries:
        """Prepare queries (n, feature) for a device, for rough products too where asked."""
        import torch

        exact = values.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1)
        if similarity == "correlation":
            exact -= exact.mean(axis=1, keepdims=True)
        if similarity in ("cosine", "correlation"):
            exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        directions = torch.from_numpy(exact.astype(np.float32)).to(device)
        rounded = directions.bfloat16() if rough else None
        return cls(values, directions, rounded, lengths, truth)

    def part(self, part: slice) -> Queries:
        """Return some of the queries."""
        rounded = None if self.rounded is None else self.rounded[part]
        truth = self.truth[0][part], self.truth[1][part]
        return Queries(self.values[part], self.directions[part], rounded, self.lengths[part], truth)

    def levels(self, scores: np.ndarray, similarity: Similarity) -> np.ndarray:
        """Return what `Tile.scores` gives where the similarity is ``scores``, (n,)."""
        return self.lengths**2 - scores**2 if similarity == "euclidean" else scores


class Tile:
    """Some rows of a gallery, ready to be multiplied.

    Parameters
    ----------
    rows : ndarray (row, feature)
        Of any float type.
    start : int
        Position of the first in the gallery.
    similarity
        As `nedx.metrics.retrieval.search` takes it.
    scratch : tensor of float32, (at least as many rows, feature)
        On the device of the products; it is overwritten.
    rounded : tensor of bfloat16, (at least as many rows, feature), optional
        The same for rough products.

    Raises
    ------
    ModelError
        If a row is not finite, or has no direction where that is compared.
    """

    def __init__(
        self,
        rows: np.ndarray,
        start: int,
        similarity: Similarity,
        scratch: torch.Tensor,
        rounded: torch.Tensor | None = None,
    ):
        import torch

        # torch takes no bytes in another order, which files may hold.
        rows = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("="), copy=False))
        self.rows, self.start = rows, start
        # Memory of its own for each tile would cost as much as half the product.
        self._scratch, self._centred = scratch, similarity == "correlation"
        self._rounded = None if rounded is None else rounded[: len(rows)]
        directed = similarity in ("cosine", "correlation")
        self._norms = torch.empty(len(rows), device=scratch.device)
        bad = torch.zeros(len(rows), dtype=torch.bool, device=scratch.device)
        # What is kept as bfloat16 alone is made in pieces that stay in the processor's cache.
        step = len(rows) if rounded is None else _PIECE
        for part in (slice(at, at + step) for at in range(0, len(rows), step)):
            values = self._exact(part)
            torch.linalg.vector_norm(values, dim=1, out=self._norms[part])
            if self._centred:
                bad[part] = torch.from_numpy((rows[part] == rows[part, :1]).all(axis=1))
            if self._rounded is not None:
                self._rounded[part].copy_(values)
        bad |= ~torch.isfinite(self._norms) | (directed & (self._norms == 0))
        if bool(bad.any()):
            self._refuse(torch.nonzero(bad)[:, 0].cpu().numpy())
        self._values = values if rounded is None else None
        self._longest = float(self._norms.max())
        self._inverse = 1 / self._norms if directed else None
        self._squares = self._norms * self._norms if similarity == "euclidean" else None

    def _exact(self, part: slice) -> torch.Tensor:
        """Return some rows as they are compared, float32, in the scratch memory."""
        import torch

        rows = torch.from_numpy(self.rows[part])
        values = self._scratch[: len(rows)].copy_(rows)
        if self._centred:
            values -= values.mean(dim=1, keepdim=True)
        return values

    def _refuse(self, bad: np.ndarray) -> None:
        shown = ", ".join(str(self.start + int(row)) for row in bad[:8])
        raise ModelError(
            f"the gallery has {len(bad)} rows here that are NaN, infinite or have no direction "
            f"(zero, or constant for correlations), the first at {shown}: leave them out, for "
            "example gallery.isel(image=...), or compute their features again"
        )

    def scores(
        self, asked: Queries, some: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Compare queries with these rows in float32.

        Parameters
        ----------
        asked : Queries
        some : tensor of int64, optional
            Which of them; all by default.

        Returns
        -------
        tensor of float32, (query, row)
            The similarity, or what grows with it for a query.
        ndarray of float64, (query,)
            How far these may be off.
        """
        if self._values is None:
            self._values = self._exact(slice(None))
        directions = asked.directions if some is None else asked.directions[some]
        lengths = asked.lengths if some is None else asked.lengths[some.cpu().numpy()]
        return self._scaled(directions @ self._values.T), self._doubt(self._unit(), lengths)

    def rough_scores(self, asked: Queries) -> tuple[torch.Tensor, np.ndarray]:
        """Compare queries in bfloat16 where they are prepared for it; see `scores`."""
        if asked.rounded is None or self._rounded is None:
            return self.scores(asked)
        product = (asked.rounded @ self._rounded.T).float()
        return self._scaled(product), self._doubt(_BFLOAT16, asked.lengths)

    def _unit(self) -> float:
        """Return how far a product of unit vectors may be off."""
        import torch

        # Programs may allow torch to round the factors of float32 products.
        if torch.get_float32_matmul_precision() != "highest":
            return _BFLOAT16
        return (_DEVIATIONS * float(np.sqrt(self.rows.shape[1])) + 8) * 2.0**-24

    def _scaled(self, product: torch.Tensor) -> torch.Tensor:
        if self._inverse is not None:
            product *= self._inverse
        elif self._squares is not None:
            product.mul_(2).sub_(self._squares)
        return product

    def _doubt(self, unit: float, lengths: np.ndarray) -> np.ndarray:
        if self._inverse is not None:
            return np.full(len(lengths), unit)
        if self._squares is not None:
            return unit * (2 * lengths * self._longest + self._longest**2)
        return unit * lengths * self._longest


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Say whether the processor multiplies bfloat16 faster than float32; a GPU is fast enough."""
    import torch

    if device != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
