"""Running the blocks of a writer: here, in threads, or on a cluster, a few at a time."""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import dask
import xarray as xr

from nedx.errors import StoreError
from nedx.store import ledger
from nedx.store.building import dataset_groups
from nedx.store.layout import Block
from nedx.store.writing import BlockWriter

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of blocks done and their total."""


def run_blocks(
    writer: BlockWriter,
    ds: xr.Dataset | xr.DataTree,
    *,
    client: Any = None,
    workers: int = 1,
    part: str | tuple[int, int] | None = None,
    progress: bool | Progress = False,
    retries: int = 2,
    resources: Mapping[str, float] | None = None,
) -> int:
    """Compute and write what is pending.

    Parameters
    ----------
    writer : BlockWriter
        Of the store.
    ds : Dataset or DataTree
        What is written, lazy or not.
    client : distributed.Client, optional
        Submit one task a block to its cluster, two for each of its threads at a time; only the
        index of the block comes back.
    workers : int
        Blocks at a time without ``client``; one block is computed by the threads of dask.
    part : "i/n" or (i, n), optional
        Only the blocks of part i of n, counted from 1; other parts may be written meanwhile.
    progress : bool or callable
        Show a bar, or call with (done, total) after each block.
    retries : int
        How often the cluster tries a block again that failed.
    resources : dict, optional
        What a worker must have to be given a block, such as ``{"GPU": 1}``.

    Returns
    -------
    int
        Number of blocks written by this call.

    Raises
    ------
    BlockClaimedError
        If another living run is at one of the blocks.
    StoreError
        If the disk is full. What was finished stays, as after Ctrl-C; the error says how to resume.
    """
    groups = dataset_groups(ds)
    pending = writer.pending(part)
    total = len(pending)
    if not total:
        return 0
    tasks = ((block, _block_dataset(writer, groups[block.group], block)) for block in pending)
    with _resumable(writer), ledger.alive(writer.location, writer.run), _report(progress) as report:
        report(0, total)
        if client is not None:
            finished = _on_cluster(writer, tasks, client, retries, resources)
        elif workers > 1:
            finished = _in_threads(writer, tasks, workers)
        else:
            finished = (write_block(writer, block, piece) for block, piece in tasks)
        # Closed before the run ends, so that no thread outlives its claims.
        with closing(finished):
            for done, _ in enumerate(finished, start=1):
                report(done, total)
    return total


def write_block(
    writer: BlockWriter, block: Block, ds: xr.Dataset, scheduler: str | None = None
) -> int:
    """Compute one block and write it: the task that runs on a worker.

    All variables are computed in one go, so that what they share is computed once.

    Returns
    -------
    int
        The index of the block.
    """
    with writer.claimed(block) as mine:
        if mine:
            names = writer.plan.streamed[block.group]
            given = {} if scheduler is None else {"scheduler": scheduler}
            values = dask.compute(*(ds[name].data for name in names), **given)
            computed = {
                name: (ds[name].dims, value) for name, value in zip(names, values, strict=True)
            }
            writer.write(block, xr.Dataset(computed))
    return block.index


def _block_dataset(writer: BlockWriter, ds: xr.Dataset, block: Block) -> xr.Dataset:
    """Narrow to streamed variables and samples of a block; the coordinates are stored already."""
    names = list(writer.plan.streamed[block.group])
    bare = xr.Dataset({name: ds[name].variable for name in names})
    return bare.isel({writer.plan.dims[block.group]: slice(block.start, block.stop)})


def _in_threads(
    writer: BlockWriter, tasks: Iterator[tuple[Block, xr.Dataset]], workers: int
) -> Generator[int, None, None]:
    with ThreadPoolExecutor(workers, thread_name_prefix="nedx-block") as pool:

        def submit(task: tuple[Block, xr.Dataset]) -> Future[int]:
            return pool.submit(write_block, writer, *task, "synchronous")

        running = {submit(task) for task in islice(tasks, workers)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {submit(task) for task in islice(tasks, len(done))}
        finally:
            for future in running:
                future.cancel()


def _on_cluster(
    writer: BlockWriter,
    tasks: Iterator[tuple[Block, xr.Dataset]],
    client: Any,
    retries: int,
    resources: Mapping[str, float] | None,
) -> Generator[int, None, None]:
    from distributed import as_completed

    def submit(task: tuple[Block, xr.Dataset]) -> Any:
        block, piece = task
        (culled,) = dask.optimize(piece)
        return client.submit(
            write_block,
            writer,
            block,
            culled,
            "synchronous",
            key=f"nedx-write-{block.name}-{uuid.uuid4().hex}",
            pure=False,
            retries=retries,
            resources=dict(resources) if resources else None,
        )

    window = max(2, 2 * sum(client.nthreads().values()))
    running = [submit(task) for task in islice(tasks, window)]
    completed = as_completed(running)
    try:
        for future in completed:
            yield future.result()
            future.release()
            for task in islice(tasks, 1):
                completed.add(submit(task))
    finally:
        client.cancel(list(completed.futures), force=True)


@contextmanager
def _resumable(writer: BlockWriter) -> Iterator[None]:
    """Say how to go on, whatever ends the work early."""
    hint = f"what was finished is kept; to go on, type: {writer.plan.resume}"
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"{writer.location.url}: {hint}")
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StoreError(
            f"{writer.location.url} could not be written further ({error}): make room, and {hint}"
        ) from error


@contextmanager
def _report(progress: Any) -> Iterator[Progress]:
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        with Bar("writing", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task("writing", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
