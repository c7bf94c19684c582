"""Which device computes, and one forward pass at a time on each."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nedx.errors import ModelError

_KNOWN = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_slots: dict[str, threading.Semaphore] = {}
_guard = threading.Lock()
# The number of threads of a product, and of each task that now takes a single one.
_lone: list[int] = []


def check_device(device: str) -> str:
    """Return the device as it was given, if it is spelt as one.

    Whether it exists is for the process that computes to find out: on a cluster that is
    another machine.

    Raises
    ------
    ModelError
        If it is no device.
    """
    if not isinstance(device, str) or not _KNOWN.fullmatch(device):
        raise ModelError(
            f"unknown device {device!r}; type device='auto', 'cpu', 'cuda' or 'cuda:1'"
        )
    return device


def resolve_device(device: str = "auto") -> str:
    """Return the device of this process that a name means.

    Parameters
    ----------
    device : str
        ``"auto"`` is the first GPU if there is one, else the CPU.

    Raises
    ------
    ModelError
        If there is no such device here.
    """
    if check_device(device) == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("this machine has no 'mps' device; type device='auto'")
        return device
    index = int(device.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if index >= count:
        there = f"{count} GPU(s) are visible" if count else "no GPU is visible to torch"
        raise ModelError(f"{device!r} is not here: {there}; type device='auto'")
    return f"cuda:{index}"


def forward_slot(device: str) -> threading.Semaphore:
    """Return what a thread holds while it computes on a device.

    One forward pass uses all of a device; several at once only multiply the activations that
    lie in its memory.
    """
    with _guard:
        return _slots.setdefault(device, threading.Semaphore(1))


@contextmanager
def many_tasks(device: str) -> Iterator[None]:
    """Hold what a task takes that is one of many: a slot of a GPU, or one core of the processor.

    In a thread of dask others work beside it, and read meanwhile: products that take all cores
    wait for those that are read on. Alone, in the main thread, a task takes all of them.
    """
    import torch

    if device != "cpu" or threading.current_thread() is threading.main_thread():
        with forward_slot(device):
            yield
        return
    with _guard:
        # While any such task runs, threads that are new to torch would begin with its one core.
        if not _lone:
            _lone.append(torch.get_num_threads())
        _lone.append(1)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _guard:
            _lone.pop()
            torch.set_num_threads(_lone[0])
            if len(_lone) == 1:
                _lone.clear()
