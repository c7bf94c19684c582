"""What generators have in common that run pipelines of diffusers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nedx.compute import cache
from nedx.compute.batches import batches
from nedx.compute.devices import forward_slot
from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.errors import ModelError, require
from nedx.reconstruction.prior_rows import unit_norm

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "float16"]
_COVERED = 8
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline on a device.

    Attributes
    ----------
    pipeline : diffusers.DiffusionPipeline
        Ready to be called.
    """

    pipeline: Any

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        parts = [part for part in self.pipeline.components.values() if hasattr(part, "parameters")]
        return sum(tensor.nbytes for part in parts for tensor in part.parameters())


def check_place(path: str, what: str) -> Path | None:
    """Return the local folder of a pipeline; None where it is a repository of the hub.

    Raises
    ------
    ModelError
        If it is neither.
    MissingExtraError
        If diffusers or transformers are not installed.
    """
    require("diffusers", "generate")
    require("transformers", "generate")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if _HUB.fullmatch(path):
        return None
    raise ModelError(
        f"there is no folder {path} of {what}; give the path of one, or a repository of the "
        "Hugging Face hub as 'owner/name'"
    )


def check_numbers(generator: Any) -> None:
    """Refuse sizes and counts that a pipeline would, before gigabytes are loaded.

    Raises
    ------
    ModelError
        If steps or batches are fewer than 1, or pixels no multiple of what a latent covers.
    """
    for name in ("steps", "batch_size"):
        if getattr(generator, name) < 1:
            raise ModelError(f"{name} is {getattr(generator, name)}; it is at least 1")
    if generator.size < _COVERED or generator.size % _COVERED:
        raise ModelError(f"size is {generator.size}; it is a multiple of {_COVERED} pixels")


def load_pipeline(name: str, path: str) -> Any:
    """Load a pipeline of diffusers by the name of its class, on the CPU; only safetensors."""
    pipeline = getattr(require("diffusers", "generate"), name).from_pretrained(
        path, use_safetensors=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def placed(pipeline: Any, precision: Precision, device: str) -> LoadedPipeline:
    """Move a pipeline to a device, in the precision wanted there."""
    import torch

    half = precision == "float16" or (precision == "auto" and device.startswith("cuda"))
    return LoadedPipeline(pipeline.to(device, torch.float16 if half else torch.float32))


def _by_batch(
    rows: np.ndarray, seeds: Sequence[int], size: int
) -> Iterator[tuple[np.ndarray, list[torch.Generator]]]:
    """Yield some rows at a time, with a generator of random numbers for each.

    Drawn on the CPU, noise is the same on every device.
    """
    import torch

    for part in batches(len(rows), size):
        yield rows[part], [torch.Generator().manual_seed(seed) for seed in seeds[part]]


def with_norm(rows: np.ndarray, norm: float | None) -> np.ndarray:
    """Return embeddings scaled to a norm; None keeps them."""
    if norm is None:
        return rows
    return (unit_norm(rows) * norm).astype(np.float32)


class PipelineGenerator:
    """What a generator adds to a pipeline of diffusers: embeddings in, pictures out.

    A subclass is a frozen dataclass with `embedding_norm` and `batch_size`.
    """

    embedding_norm: float | None
    batch_size: int

    @property
    def reads(self) -> str:
        """Embeddings."""
        return "embedding"

    @property
    def row_dims(self) -> tuple[str, ...]:
        """One embedding."""
        return ("feature",)

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore

    def make(self, rows: np.ndarray, seeds: Sequence[int], device: str) -> np.ndarray:
        """Return the pictures of embeddings, one batch after the other."""
        recipe = json.dumps({"name": type(self).__name__, **self.describe()})
        loaded = cache.get(ModelRef(LOADER, None, recipe, ""), device, self)
        made = []
        for some, generators in _by_batch(
            with_norm(rows, self.embedding_norm), seeds, self.batch_size
        ):
            with forward_slot(device):
                found = self.run(loaded.pipeline, some, generators, device).images
            made.append((np.clip(found, 0, 1) * 255).round().astype(np.uint8))
        return np.concatenate(made)

    def read(self, ref: ModelRef, device: str) -> LoadedPipeline:
        """Load the pipeline; what `make` asks the cache for."""
        raise NotImplementedError

    def run(self, pipeline: Any, rows: np.ndarray, generators: list[Any], device: str) -> Any:
        """Return what the pipeline makes of some embeddings, with ``images`` within [0, 1]."""
        raise NotImplementedError
