"""Clusters to run on: one of this machine, or any by address."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nedx.errors import StoreError, require

CONNECT_TIMEOUT = "10s"
"""How long a scheduler may take to answer."""

# Where the first is set, as dask does, and the second is not, glibc gives large tensors back to
# the system after each batch, and the page faults cost a third of the time.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def local_cluster(workers: int = 2, threads: int | None = None) -> Iterator[Any]:
    """Run a cluster of processes on this machine while the block lasts.

    Parameters
    ----------
    workers : int
        Processes; each computes one block at a time.
    threads : int, optional
        Threads of torch in each; the cores are shared out by default.

    Yields
    ------
    distributed.Client

    Raises
    ------
    MissingExtraError
        If distributed is not installed.
    """
    distributed = require("distributed", "distributed")
    count = str(threads or max(1, (os.cpu_count() or 1) // workers))
    with (
        _environment({**_MALLOC, **dict.fromkeys(_THREADS, count)}),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set variables for processes that are started while the block lasts, then put them back.

    dask's own setting for them yields to this process's variables, which each cluster before
    this one has left as it had them.
    """
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def connected(address: Any) -> Iterator[Any]:
    """Use a client as it is, or connect to the scheduler at an address while the block lasts.

    Start the workers of such a cluster with ``MALLOC_TRIM_THRESHOLD_=268435456`` and
    ``MALLOC_MMAP_THRESHOLD_=1073741824`` in their environment, as `local_cluster` does, and with
    ``--resources GPU=1`` where they have a GPU.

    Raises
    ------
    StoreError
        If there is no scheduler at the address.
    """
    if not isinstance(address, str):
        yield address
        return
    distributed = require("distributed", "distributed")
    try:
        client = distributed.Client(address, timeout=CONNECT_TIMEOUT)
    except OSError as error:
        raise StoreError(
            f"no dask scheduler answers at {address}; type: dask scheduler, and give its address, "
            "as in tcp://host:8786"
        ) from error
    with client:
        yield client


def worker_resources(client: Any) -> dict[str, float] | None:
    """Return what a task must ask for so that only workers with a GPU get it.

    Asked for when a task is submitted, since annotations made while a graph is built are lost.

    Returns
    -------
    dict or None
        ``{"GPU": 1}`` where any worker was started with ``--resources GPU=1``.
    """
    if client is None:
        return None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {"GPU": 1} if any(w.get("resources", {}).get("GPU") for w in workers) else None
