"""Models loaded in this process: each once, the least recently used dropped first."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from nedx.compute.references import ModelRef

logger = logging.getLogger(__name__)

Key = tuple[ModelRef, str, Hashable]


class ModelCache:
    """Keeps what was loaded, up to a number of bytes.

    Parameters
    ----------
    limit : int
        Bytes to keep, as told by ``nbytes`` of what is loaded. One thing larger than the limit
        is kept until the next is loaded.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.loads = 0
        self._held: OrderedDict[Key, Any] = OrderedDict()
        self._loading: dict[Key, threading.Lock] = {}
        self._guard = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(_nbytes(value) for value in self._held.values())

    def get(self, ref: ModelRef, device: str = "cpu", part: Hashable = None) -> Any:
        """Return a model or a part of it; threads that ask at the same time wait for one load.

        Parameters
        ----------
        ref : ModelRef
            Which model.
        device : str
            Where its tensors shall lie.
        part : hashable, optional
            Which part, in terms of the loader.
        """
        key = (ref, device, part)
        with self._guard:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            lock = self._loading.setdefault(key, threading.Lock())
        with lock:
            with self._guard:
                if key in self._held:
                    return self._held[key]
            value = ref.load(device, part)
            with self._guard:
                self.loads += 1
                self._held[key] = value
                self._loading.pop(key, None)
                self._make_room()
        return value

    def clear(self) -> None:
        """Forget everything."""
        with self._guard:
            self._held.clear()

    def _make_room(self) -> None:
        while len(self._held) > 1 and self.nbytes > self.limit:
            (_, device, part), _ = self._held.popitem(last=False)
            logger.debug("dropped %s on %s from the model cache", part or "a model", device)


def _nbytes(value: Any) -> int:
    return int(getattr(value, "nbytes", 0))


def _limit() -> int:
    """Return ``NEDX_MODEL_CACHE_GB`` in bytes, or else a quarter of the memory, 4 GB at least."""
    given = os.environ.get("NEDX_MODEL_CACHE_GB")
    if given:
        return int(float(given) * 1e9)
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        memory = 0
    return max(4 * 10**9, memory // 4)


models = ModelCache(_limit())
"""The cache of this process; ``NEDX_MODEL_CACHE_GB`` sets how much it keeps."""


def get(ref: ModelRef, device: str = "cpu", part: Hashable = None) -> Any:
    """Return a model or a part of it from the cache of this process, loading it if need be."""
    return models.get(ref, device, part)
