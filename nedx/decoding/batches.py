"""Batches of responses, streamed in random order while the batch before is trained on.

Blocks of responses are read in random order, some at a time, and shuffled within these: each epoch
reads each block once, and memory does not grow with the number of trials. Where all responses fit
into what is held anyway, they are read once.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from nedx.compute.batches import batches
from nedx.decoding.samples import Samples
from nedx.errors import ModelError

Made = TypeVar("Made")

HELD_BYTES = 2**29
"""Responses of a fit that take less as float32 are read once."""
WINDOW_BYTES = 2**27
"""Of others so much is shuffled at a time; at first less, so that training need not wait."""
_FIRST = 16
"""The first window is so many times smaller, each that follows twice as large as the one before."""


class Batch(NamedTuple):
    """Responses float32 (n, channel, time), the subject and the row of the target of each (n,)."""

    response: np.ndarray
    subject: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class _Window:
    """Samples that are in memory: (n, repetition, channel, time), subject and target (n,).

    Responses stored as float16 stay so until they are in a batch.
    """

    values: np.ndarray
    subject: np.ndarray
    target: np.ndarray

    def take(self, items: np.ndarray) -> _Window:
        return _Window(self.values[items], self.subject[items], self.target[items])


@dataclass(frozen=True)
class Summary:
    """What one pass over all responses tells.

    Attributes
    ----------
    mean : ndarray of float32, (channel, time)
        Over samples.
    scale : ndarray of float32, (channel, 1)
        Standard deviation around it.
    checksum : str
        Of all responses, whatever their chunks.
    """

    mean: np.ndarray
    scale: np.ndarray
    checksum: str


class Stream:
    """Samples of some subjects, to be gone through again and again.

    Parameters
    ----------
    sources : sequence of Samples
        Of each subject.
    batch_size : int
        Samples in a batch.
    average : bool or int
        Of the repetitions of an image: whether they are averaged, or how many, drawn anew each
        time; with False each is a sample of its own.
    ahead : bool
        Whether to read while the caller computes. That helps where a GPU computes; a processor
        that reads while all its cores multiply is slower than one that does either by turns.
    """

    def __init__(
        self,
        sources: Sequence[Samples],
        batch_size: int,
        average: bool | int,  # noqa: FBT001
        *,
        ahead: bool = True,
    ):
        self._sources, self._batch_size = list(sources), batch_size
        self._made = _ahead if ahead else _by_turns
        fewest, repetitions = (
            f(source.repetitions for source in self._sources) for f in (min, max)
        )
        # To draw all of them is to take their mean.
        fixed = average is True or (average is not False and average >= repetitions)
        if fewest < repetitions and not fixed and average is not False:
            raise ModelError(
                f"average_trials={average} draws from the repetitions of an image, and subjects "
                f"have {fewest} to {repetitions} of them. Type: average_trials=True, or "
                f"ds.isel(repetition=slice({fewest}))"
            )
        self._mean, self._average = fixed, True if fixed else average
        kept = 1 if fixed else repetitions
        self._row_bytes = 4 * kept * int(np.prod(self._sources[0].shape))
        self.samples = sum(map(len, self._sources))
        self._items_of = [s.repetitions if average is False else 1 for s in self._sources]
        self.items = sum(
            len(s) * each for s, each in zip(self._sources, self._items_of, strict=True)
        )
        self._held: _Window | None = None

    def epoch(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield all samples once, as they come, or in random order with ``rng``.

        With it a batch has ``batch_size`` samples; what is left of them in the end is left out,
        unless there are no others.
        """
        yield from self._made(self._drawn(rng), 2)

    def summary(self) -> Summary:
        """Read all samples once.

        Raises
        ------
        ModelError
            If a response is NaN or infinite, or a channel never changes.
        """
        channels, times = self._sources[0].shape
        total, squares, count = np.zeros((channels, times)), np.zeros(channels), 0
        digest = hashlib.sha256()
        for window in self._windows(None):
            values = _single(window.values.reshape(-1, channels, times))
            self._check_finite(window.values, count)
            digest.update(np.ascontiguousarray(values).data)
            total += values.sum(0, dtype=np.float64)
            squares += np.einsum("nct,nct->c", values, values, dtype=np.float64)
            count += len(values)
        mean, power = total / count, squares / (count * times)
        variance = power - (mean**2).mean(1)
        still = np.flatnonzero(variance <= 1e-12 * power.max())
        if still.size:
            raise ModelError(
                f"{still.size} of {channels} channels never change, first number {still[0]}: leave "
                "them out. Type: ds.ned.sel(channel=names)"
            )
        scale = np.sqrt(variance)[:, None].astype(np.float32)
        return Summary(mean.astype(np.float32), scale, digest.hexdigest())

    def _check_finite(self, values: np.ndarray, before: int) -> None:
        """Raise if values (n, repetition, channel, time), after so many others, are not finite."""
        if np.isfinite(values.sum(dtype=np.float64)):
            return
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
        names = np.concatenate(
            [
                np.repeat(s.image_id[np.argsort(s.rows)], each)
                for s, each in zip(self._sources, self._items_of, strict=True)
            ]
        )
        name = names[before // values.shape[1] + bad[0]]
        raise ModelError(
            f"{bad.size} or more responses are NaN or infinite, first one to {name!r}. Leave "
            "these trials out. Type: ds.isel(image=keep) or ds.isel(trial=keep); absent "
            "repetitions are left out by ds.ned.average_repetitions()"
        )

    def _drawn(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        left: _Window | None = None
        # Windows are drawn in a thread of their own, with random numbers of their own.
        for window in self._windows(None if rng is None else rng.spawn(1)[0]):
            count = len(window.values)
            order = np.arange(count) if rng is None else rng.permutation(count)
            if left is not None and len(left.values):
                # Only as much of a window is copied as fills up the batch begun before.
                lacking = self._batch_size - len(left.values)
                left, order = _joined([left, window.take(order[:lacking])]), order[lacking:]
                if len(left.values) < self._batch_size:
                    continue
                yield self._batch(left, np.arange(self._batch_size), rng)
            whole = len(order) // self._batch_size * self._batch_size
            for part in batches(whole, self._batch_size):
                yield self._batch(window, order[part], rng)
            left = window.take(order[whole:])
        if left is not None and len(left.values) and (rng is None or self._few):
            yield self._batch(left, np.arange(len(left.values)), rng)

    @property
    def _few(self) -> bool:
        return self.items < self._batch_size

    def _batch(self, window: _Window, items: np.ndarray, rng: np.random.Generator | None) -> Batch:
        repetitions = window.values.shape[1]
        if repetitions == 1:
            values = _single(window.values[items, 0])
        elif rng is None:
            values = window.values[items].mean(1, dtype=np.float32)
        else:
            drawn = rng.random((len(items), repetitions)).argsort(1)[:, : int(self._average)]
            values = window.values[items[:, None], drawn].mean(1, dtype=np.float32)
        return Batch(values, window.subject[items], window.target[items])

    def _windows(self, rng: np.random.Generator | None) -> Iterator[_Window]:
        if self._row_bytes * self.samples > HELD_BYTES:
            yield from self._made(self._grouped(rng), 1)
            return
        if self._held is None:
            (self._held,) = self._grouped(None, at_once=True)
        yield self._held

    def _grouped(
        self, rng: np.random.Generator | None, *, at_once: bool = False
    ) -> Iterator[_Window]:
        """Yield what is shuffled together: some blocks of any subjects."""
        held: list[_Window] = []
        size, limit = 0, WINDOW_BYTES // _FIRST
        for read in self._read(rng):
            if held and not at_once and size + read.values.nbytes > limit:
                yield _joined(held)
                held, size, limit = [], 0, min(2 * limit, WINDOW_BYTES)
            held.append(read)
            size += read.values.nbytes
        yield _joined(held)

    def _read(self, rng: np.random.Generator | None) -> Iterator[_Window]:
        """Yield the samples of one block of one subject."""
        pieces = [(source, piece) for source in self._sources for piece in source.pieces()]
        most = max(1, WINDOW_BYTES // self._row_bytes)
        cut = [
            (source, piece[part]) for source, piece in pieces for part in batches(len(piece), most)
        ]
        for number in range(len(cut)) if rng is None else rng.permutation(len(cut)):
            source, chosen = cut[number]
            values = source.read(chosen, mean=self._mean)
            target = source.target[chosen]
            if self._average is False:
                target = np.repeat(target, values.shape[1])
                values = values.reshape(-1, 1, *values.shape[2:])
            yield _Window(values, np.full(len(target), source.index, np.int64), target)


def _single(values: np.ndarray) -> np.ndarray:
    """Return float32 of float16 or float32; torch is several times faster at it than numpy."""
    if values.dtype == np.float32:
        return values
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).float().numpy()


def _joined(windows: Sequence[_Window]) -> _Window:
    if len(windows) == 1:
        return windows[0]
    return _Window(
        np.concatenate([window.values for window in windows]),
        np.concatenate([window.subject for window in windows]),
        np.concatenate([window.target for window in windows]),
    )


def _by_turns(items: Iterator[Made], _: int) -> Iterator[Made]:
    return items


def _ahead(items: Iterator[Made], count: int) -> Iterator[Made]:
    """Make the next few items in a thread while the caller works on the one before."""
    waiting: deque[Future[Made | None]] = deque()
    with ThreadPoolExecutor(1, "nedx-batches") as pool:
        try:
            waiting.extend(pool.submit(next, items, None) for _ in range(count))
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in waiting:
                future.cancel()
