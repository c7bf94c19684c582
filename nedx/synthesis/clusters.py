"""Clusters to run on: one of this machine, or any by address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nedx.errors import StoreError, require

# glibc gives large tensors back to the system after each batch where these are not set, and the
# page faults cost a third of the time. dask's nanny sets the first, so that ours must stand before.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}


@contextmanager
def local_cluster(workers: int = 2, threads: int = 1) -> Iterator[Any]:
    """Run a cluster of processes on this machine while the block lasts.

    Parameters
    ----------
    workers : int
        Processes; torch uses one thread in each.
    threads : int
        Tasks at a time in each.

    Yields
    ------
    distributed.Client

    Raises
    ------
    MissingExtraError
        If distributed is not installed.
    """
    distributed = require("distributed", "distributed")
    with _environment(_MALLOC):
        cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            dashboard_address=None,
            silence_logs=50,
        )
    try:
        with distributed.Client(cluster) as client:
            yield client
    finally:
        cluster.close()


@contextmanager
def connected(address: Any) -> Iterator[Any]:
    """Use a client as it is, or connect to the scheduler at an address while the block lasts.

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
        client = distributed.Client(address, timeout="10s")
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
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {"GPU": 1} if any(w.get("resources", {}).get("GPU") for w in workers) else None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that are not set yet, and take them back."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
