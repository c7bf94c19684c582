"""A scheduler that counts: proves that nothing was computed."""

from __future__ import annotations

from contextlib import contextmanager

import dask


class CountingScheduler:
    """Runs graphs synchronously and counts how many were run."""

    def __init__(self, most: int):
        self.most = most
        self.computed = 0

    def __call__(self, graph, keys, **kwargs):
        self.computed += 1
        if self.computed > self.most:
            raise AssertionError(f"computed {self.computed} times, at most {self.most} allowed")
        return dask.get(graph, keys, **kwargs)


@contextmanager
def computes_at_most(times: int = 0):
    """Fail when dask computes more often than ``times`` inside the block."""
    scheduler = CountingScheduler(times)
    with dask.config.set(scheduler=scheduler):
        yield scheduler
