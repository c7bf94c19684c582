"""Threads that preprocess keep to one core, and nobody else's threads are changed by that."""

from __future__ import annotations

import threading

import torch

from nedx.compute.batches import batches, prefetch


def test_threads_of_the_pool_keep_to_one_core_and_others_do_not():
    def count(part: slice) -> int:
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(prefetch(count, batches(8, 2))) == {1}
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
