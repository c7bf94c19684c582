"""References to models: what a dask graph carries in the place of weights."""

from __future__ import annotations

import importlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nedx.errors import ModelError
from nedx.store.location import Location


@dataclass(frozen=True)
class ModelRef:
    """Names a model so that any process can load it; small, hashable and picklable.

    Parameters
    ----------
    loader : str
        ``"nedx.module:function"``; called as ``function(ref, device, part)`` it returns the
        loaded part. Only functions of nedx are called.
    location : Location, optional
        Where the weights lie. Two references to the same weights are equal wherever they lie.
    recipe : str
        JSON of the recipe.
    sha256 : str
        Hash of the weights.
    """

    loader: str
    location: Location | None = field(compare=False)
    recipe: str
    sha256: str

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("nedx.ModelRef", self.loader, self.recipe, self.sha256)

    def load(self, device: str, part: Hashable = None) -> Any:
        """Load the model, or a part of it, afresh; `nedx.compute.cache.get` loads once.

        Raises
        ------
        ModelError
            If the loader is not a function of nedx.
        """
        module, _, name = self.loader.partition(":")
        if not module.startswith("nedx.") or not name:
            raise ModelError(f"a model is loaded by a function of nedx, not {self.loader!r}")
        return getattr(importlib.import_module(module), name)(self, device, part)


@dataclass(frozen=True)
class Positions:
    """Positions along an axis as a value: hashable, so that it can name a part of a model.

    Parameters
    ----------
    packed : bytes
        int64 positions; see `Positions.of`.
    """

    packed: bytes

    @classmethod
    def of(cls, positions: np.ndarray) -> Positions:
        """Pack an array of integers."""
        return cls(np.ascontiguousarray(positions, dtype=np.int64).tobytes())

    @property
    def array(self) -> np.ndarray:
        """The positions, int64."""
        return np.frombuffer(self.packed, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.packed) // 8

    def __dask_tokenize__(self) -> tuple[str, bytes]:
        return ("nedx.Positions", self.packed)
