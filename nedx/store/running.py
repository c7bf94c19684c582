"""Running the blocks of a writer: here, in threads, or on a cluster, a few at a time."""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import ExitStack, closing, contextmanager
from itertools import accumulate, islice
from typing import Any

import dask
import xarray as xr

from nedx.errors import StoreError
from nedx.store import ledger
from nedx.store.building import dataset_groups
from nedx.store.layout import Block, by_range
from nedx.store.writing import BlockWriter

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of blocks done and their total."""

Pieces = Sequence[tuple[Block, xr.Dataset]]
"""What one task writes: blocks of the same samples, and what is computed for each."""


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
        Submit one task a block to its cluster, two for each of its threads at a time; only a
        count comes back. Blocks of the same samples in several groups are one task.
    workers : int
        Blocks at a time without ``client``; of one, the threads of dask compute it, and it is
        written while they compute the next.
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
    tasks = (
        [(block, _block_dataset(writer, groups[block.group], block)) for block in unit]
        for unit in by_range(pending)
    )
    with _resumable(writer), ledger.alive(writer.location, writer.run), _report(progress) as report:
        report(0, total)
        if client is not None:
            finished = _on_cluster(writer, tasks, client, retries, resources)
        elif workers > 1:
            finished = _in_threads(writer, tasks, workers)
        else:
            finished = _written_behind(writer, tasks)
        # Closed before the run ends, so that no thread outlives its claims.
        with closing(finished):
            for done in accumulate(finished):
                report(done, total)
    return total


def write_blocks(writer: BlockWriter, pieces: Pieces, scheduler: str | None = None) -> int:
    """Compute some blocks and write them: the task that runs on a worker.

    All variables of all blocks are computed in one go, so that what they share is computed once.

    Returns
    -------
    int
        The number of blocks.
    """
    with ExitStack() as claims:
        mine = _claimed(claims, writer, pieces)
        _write(writer, mine, _computed(writer, mine, scheduler))
    return len(pieces)


def _claimed(claims: ExitStack, writer: BlockWriter, pieces: Pieces) -> Pieces:
    """Claim blocks until the stack is left, and return those that are not done yet."""
    free = [claims.enter_context(writer.claimed(block)) for block, _ in pieces]
    return [piece for piece, is_free in zip(pieces, free, strict=True) if is_free]


def _computed(
    writer: BlockWriter, pieces: Pieces, scheduler: str | None = None
) -> list[dict[str, Any]]:
    lazy = [
        {name: ds[name].data for name in writer.plan.streamed[block.group]} for block, ds in pieces
    ]
    given = {} if scheduler is None else {"scheduler": scheduler}
    found: list[dict[str, Any]] = dask.compute(lazy, **given)[0]
    return found


def _write(writer: BlockWriter, pieces: Pieces, computed: Sequence[dict[str, Any]]) -> None:
    for (block, ds), values in zip(pieces, computed, strict=True):
        variables = {name: (ds[name].dims, value) for name, value in values.items()}
        writer.write(block, xr.Dataset(variables))


def _written_behind(writer: BlockWriter, tasks: Iterator[Pieces]) -> Generator[int, None, None]:
    """Compute block after block here, where Ctrl-C reaches it, and write each meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="nedx-write") as pool:
        behind: Future[int] | None = None
        for pieces in tasks:
            with ExitStack() as claims:
                mine = _claimed(claims, writer, pieces)
                computed = _computed(writer, mine)
                if behind is not None:
                    yield behind.result()
                args = (writer, mine, computed, len(pieces), claims.pop_all())
                behind = pool.submit(_finish, *args)
        if behind is not None:
            yield behind.result()


def _finish(
    writer: BlockWriter,
    pieces: Pieces,
    computed: Sequence[dict[str, Any]],
    count: int,
    claims: ExitStack,
) -> int:
    with claims:
        _write(writer, pieces, computed)
    return count


def _block_dataset(writer: BlockWriter, ds: xr.Dataset, block: Block) -> xr.Dataset:
    """Narrow to streamed variables and samples of a block; the coordinates are stored already."""
    names = list(writer.plan.streamed[block.group])
    bare = xr.Dataset({name: ds[name].variable for name in names})
    return bare.isel({writer.plan.dims[block.group]: slice(block.start, block.stop)})


def _in_threads(
    writer: BlockWriter, tasks: Iterator[Pieces], workers: int
) -> Generator[int, None, None]:
    with ThreadPoolExecutor(workers, thread_name_prefix="nedx-block") as pool:

        def submit(pieces: Pieces) -> Future[int]:
            return pool.submit(write_blocks, writer, pieces, "synchronous")

        running = {submit(task) for task in islice(tasks, workers)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {submit(task) for task in islice(tasks, len(done))}
        except BaseException as error:
            # A block that fails stops no other that was begun; an interruption stops those in line.
            if not isinstance(error, Exception):
                for future in running:
                    future.cancel()
            raise


def _on_cluster(
    writer: BlockWriter,
    tasks: Iterator[Pieces],
    client: Any,
    retries: int,
    resources: Mapping[str, float] | None,
) -> Generator[int, None, None]:
    from distributed import KilledWorker, as_completed
    from distributed.comm import CommClosedError

    def submit(pieces: Pieces) -> Any:
        blocks, lazy = zip(*pieces, strict=True)
        culled = dask.optimize(*lazy)
        return client.submit(
            write_blocks,
            writer,
            list(zip(blocks, culled, strict=True)),
            "synchronous",
            key=f"nedx-write-{blocks[0].name}-{uuid.uuid4().hex}",
            pure=False,
            retries=retries,
            resources=dict(resources) if resources else None,
        )

    def window() -> int:
        # Workers come and go where a cluster adapts.
        return max(2, 2 * sum(client.nthreads().values()))

    completed = as_completed([submit(task) for task in islice(tasks, window())])
    try:
        for future in completed:
            yield future.result()
            future.release()
            for task in islice(tasks, max(0, window() - completed.count())):
                completed.add(submit(task))
    except (CancelledError, CommClosedError, KilledWorker) as error:
        raise StoreError(
            f"the cluster was lost, or its workers died at the same block again and again: "
            f"{str(error).splitlines()[0]}\nWhat was finished at {writer.location.url} is kept; "
            f"to go on, type: {writer.plan.resume}"
        ) from error
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
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        # Bars are no result: stdout is for those.
        columns = ("writing", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("writing", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
