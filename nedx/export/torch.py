"""Responses as a stream of samples for torch: chunks in random order, read once each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
from torch.utils.data import IterableDataset, get_worker_info

from nedx.errors import SelectionError
from nedx.export.pieces import one_group, pick
from nedx.schema import sample_dim


class SampleStream(IterableDataset[dict[str, Any]]):
    """Samples of a Dataset, shuffled by whole chunks and within a few of them at a time.

    Each epoch visits the chunks in another random order. The samples of ``mixed`` chunks are read
    together, shuffled and given; no more is in memory. The workers of a DataLoader take every
    n-th of these groups of the same order, so that no sample comes twice or is lost, whether
    they are forked or spawned. Everything random follows from ``seed`` and the epoch.

    Attributes
    ----------
    n_samples : int
        Samples of an epoch.
    """

    def __init__(self, arrays: dict[str, xr.DataArray], *, shuffle: bool, seed: int, mixed: int):
        self._arrays = arrays
        self._bounds = _chunk_bounds(next(iter(arrays.values())))
        self._shuffle, self._seed, self._mixed = shuffle, seed, mixed
        self.n_samples = int(self._bounds[-1])
        # In shared memory: workers that live on see the epoch that is set here.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; call it before each, as for torch's samplers."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        seeds = [self._seed, int(self._epoch)]
        order = np.arange(len(self._bounds) - 1)
        if self._shuffle:
            order = np.random.default_rng(seeds).permutation(order)
        for number, chunks in enumerate(grouped(order, self._mixed, workers)):
            if number % workers == own:
                yield from self._read(chunks, np.random.default_rng([*seeds, number]))

    def _read(self, chunks: np.ndarray, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Give the samples of some chunks, shuffled among each other."""
        parts = [slice(self._bounds[chunk], self._bounds[chunk + 1]) for chunk in chunks]
        # Threads of dask do not survive a fork; workers are what runs in parallel here.
        with dask.config.set(scheduler="synchronous"):
            read = {
                name: [array[part].to_numpy() for part in parts]
                for name, array in self._arrays.items()
            }
        lengths = [part.stop - part.start for part in parts]
        places = [(i, row) for i, length in enumerate(lengths) for row in range(length)]
        for place in rng.permutation(len(places)) if self._shuffle else range(len(places)):
            i, row = places[place]
            yield {name: _sample(blocks[i][row]) for name, blocks in read.items()}


def grouped(order: np.ndarray, mixed: int, workers: int) -> list[np.ndarray]:
    """Cut the order of chunks into the groups that are read together.

    Parameters
    ----------
    order : ndarray of int, (chunk,)
        The chunks of an epoch.
    mixed : int
        The most chunks of a group.
    workers : int
        Few chunks are shared out among them, rather than read by one while the others wait.

    Returns
    -------
    list of ndarray of int
        Every chunk once.
    """
    size = max(1, min(mixed, len(order) // workers))
    return [order[start : start + size] for start in range(0, len(order), size)]


def to_torch(
    obj: xr.Dataset | xr.DataTree,
    variables: str | Sequence[str] | None = None,
    *,
    labels: Sequence[str] = ("image_id",),
    shuffle: bool = True,
    seed: int = 0,
    mixed: int = 4,
) -> SampleStream:
    """Return the samples of a Dataset as an iterable dataset of torch; lazily.

    Parameters
    ----------
    obj : Dataset or DataTree
        Variables along ``image`` or ``trial``; of a tree, of one subject. Reads from a store (or
        predictions, or pixels) stay lazy, and little is sent to workers.
    variables : str or sequence of str, optional
        What a sample holds: ``response`` by default, or for example ``("pixels", "response")``.
        The chunks of the first are the ones that are shuffled.
    labels : sequence of str
        Coordinates of the samples to give besides; those that are not there are left out.
    shuffle : bool
        Whether in random order; ``set_epoch`` chooses the next.
    seed : int
        Of the order.
    mixed : int
        Chunks that are read and shuffled together: more mix better, and take more memory. How
        large they are is chosen when the data are opened, with ``chunks={"image": 100}``.

    Returns
    -------
    SampleStream
        Gives dicts: a tensor for each variable, of its dims without the sample's and of its
        dtype; strings and numbers for the labels. For example
        ``DataLoader(ds.ned.to_torch(), batch_size=32, num_workers=4)``.

    Raises
    ------
    SelectionError
        If a variable is not there or has no samples.
    """
    ds = one_group(obj)
    names = [variables] if isinstance(variables, str) else variables
    picked = [pick(ds)] if names is None else [pick(ds, name) for name in names]
    if not picked or mixed < 1:
        raise SelectionError("to_torch gives one variable or more, of one chunk or more at a time")
    sample = sample_dim(picked[0])
    arrays = {}
    for array in picked:
        if sample not in array.dims:
            raise SelectionError(f"{array.name!r} of dims {array.dims} has no samples ({sample})")
        arrays[str(array.name)] = array.reset_coords(drop=True).transpose(sample, ...)
    for label in labels:
        if label in ds.coords and ds[label].dims == (sample,):
            arrays[label] = ds[label].load().reset_coords(drop=True)
    plain = {name: array.drop_indexes(list(array.xindexes)) for name, array in arrays.items()}
    return SampleStream(plain, shuffle=shuffle, seed=seed, mixed=mixed)


def _chunk_bounds(array: xr.DataArray) -> np.ndarray:
    """Return where the chunks of the first dim begin, and the end; samples where all is there."""
    chunks = array.chunks[0] if array.chunks is not None else (1,) * array.shape[0]
    return np.concatenate([[0], np.cumsum(chunks)]).astype(np.int64)


def _sample(value: Any) -> Any:
    """Return numbers as tensors that own their memory, anything else as it is."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value
