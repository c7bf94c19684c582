"""Random traces that are told by their labels, and the kernels that put them in place of others.

Each trace has a stream of its own of numpy's Philox, a counter-based generator (Salmon et al.
2011, SC '11, doi:10.1145/2063384.2063405): the seed is its key, and three words made of the labels
of sample, subject and channel are the upper part of its counter. So no chunk, order or selection
changes the noise of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b

import numpy as np

WORDS = 3
"""Words that name a trace: sample, group (model, subject, repetition), neuroid."""

Kernel = Callable[[np.ndarray, Iterator[np.random.Generator]], np.ndarray]


def word(*labels: object) -> int:
    """Return 64 bits that stand for labels, the same on every machine."""
    text = "\x1f".join(map(str, labels))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def streams(seed: int, words: np.ndarray) -> Iterator[np.random.Generator]:
    """Yield a generator at the start of the stream of each trace.

    It is one generator that is set anew: use each before the next is asked for.

    Parameters
    ----------
    seed : int
        Not negative.
    words : uint64 array (trace, 3)
        What names a trace, see `word`.
    """
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key)
    generator = np.random.Generator(bits)
    state = bits.state
    counter = state["state"]["counter"]
    for row in words:
        counter[0], counter[1:] = 0, row
        bits.state = state
        yield generator


def matched(traces: np.ndarray, generators: Iterator[np.random.Generator]) -> np.ndarray:
    """Return white noise of the mean and the unbiased standard deviation of each trace.

    Samples that are NaN count in neither.

    Parameters
    ----------
    traces : float64 array (trace, time)
    generators : iterator of numpy.random.Generator
        One for each trace.

    Returns
    -------
    float64 array (trace, time)
    """
    here = ~np.isnan(traces)
    count = here.sum(1, keepdims=True)
    # A trace that is absent has neither, and stays so.
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = traces.sum(1, keepdims=True, where=here) / count
        squares = ((traces - mean) ** 2).sum(1, keepdims=True, where=here)
        deviation = np.sqrt(squares / (count - 1))
    return mean + deviation * _normal(traces.shape, generators)


def phase_randomised(traces: np.ndarray, generators: Iterator[np.random.Generator]) -> np.ndarray:
    """Return traces of the same amplitude spectrum and mean, with random phases.

    Theiler et al. 1992, Physica D 58:77: what is kept is all that a linear stationary process
    has; the evoked shape and its latency are lost. Takes and returns what `matched` does.
    """
    times = traces.shape[1]
    spectrum = np.fft.rfft(traces, axis=1)
    # The mean, and the last frequency of an even number of samples, have no phase to turn.
    free = slice(1, (times + 1) // 2)
    turned = spectrum[:, free]
    turns = np.empty(turned.shape)
    for row, generator in zip(turns, generators, strict=True):
        generator.random(out=row)
    spectrum[:, free] = turned * np.exp(2j * np.pi * turns)
    return np.fft.irfft(spectrum, n=times, axis=1)


def gaussian(sd: float) -> Kernel:
    """Return a kernel as `matched` that makes white noise of mean 0 and a standard deviation."""

    def kernel(traces: np.ndarray, generators: Iterator[np.random.Generator]) -> np.ndarray:
        return sd * _normal(traces.shape, generators)

    return kernel


def zero(traces: np.ndarray, generators: Iterator[np.random.Generator]) -> np.ndarray:
    """Return zeros; takes what `matched` does."""
    return np.zeros(traces.shape)


def _normal(shape: tuple[int, ...], generators: Iterator[np.random.Generator]) -> np.ndarray:
    drawn = np.empty(shape)
    for row, generator in zip(drawn, generators, strict=True):
        generator.standard_normal(out=row)
    return drawn


def replaced(
    values: np.ndarray,
    sample: np.ndarray,
    group: np.ndarray,
    neuroid: np.ndarray,
    touched: np.ndarray,
    *,
    kernel: Kernel,
    window: slice,
    seed: int,
) -> np.ndarray:
    """Replace a window of some traces of a block.

    Parameters
    ----------
    values : float array (..., time)
    sample, group, neuroid : uint64 arrays
        Words that name the traces; they broadcast to ``values`` without time.
    touched : bool array
        Which traces to replace; broadcasts as the words do.
    kernel : callable
        For example `matched`.
    window : slice
        The samples of time to replace.
    seed : int
        See `streams`.

    Returns
    -------
    float array (..., time)
        Of the dtype of ``values``; what is not touched is the same to the bit. What is NaN, as
        in a repetition that is absent, stays so.
    """
    chosen = np.broadcast_to(touched, values.shape[:-1])
    if not chosen.any():
        return values
    words = np.stack([np.broadcast_to(w, chosen.shape)[chosen] for w in (sample, group, neuroid)])
    traces = values[chosen]
    before = traces[:, window].astype(np.float64)
    made = kernel(before, streams(seed, words.T))
    traces[:, window] = np.where(np.isnan(before), np.nan, made)
    out = values.copy()
    out[chosen] = traces
    return out


def partners(images: np.ndarray, seed: int) -> np.ndarray:
    """Return the sample whose responses each sample is given when images are shuffled.

    Images are put in an order that the seed and their names give, and each takes the place of the
    next: no image keeps its own, and the order of the samples does not matter.

    Parameters
    ----------
    images : array of str (sample,)
        The image of each sample; of trials, several have the same.
    seed : int
        Not negative.

    Returns
    -------
    int64 array (sample,)
        The n-th trial of an image is given the n-th of its partner, counted round where it has
        fewer.
    """
    names, image = np.unique(images, return_inverse=True)
    order = np.argsort(np.array([word(seed, name) for name in names], np.uint64))
    partner = np.empty(names.size, np.int64)
    partner[order] = np.roll(order, -1)
    rows = np.argsort(image, kind="stable")
    counts = np.bincount(image)
    starts = np.cumsum(counts) - counts
    nth = np.empty(image.size, np.int64)
    nth[rows] = np.arange(image.size) - np.repeat(starts, counts)
    there = partner[image]
    found: np.ndarray = rows[starts[there] + nth % counts[there]]
    return found
