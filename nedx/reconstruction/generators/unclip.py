"""Stable unCLIP: a diffusion model that was trained to undo CLIP image embeddings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nedx.compute.references import ModelRef
from nedx.errors import ModelError
from nedx.reconstruction.generators.pipelines import (
    LoadedPipeline,
    PipelineGenerator,
    Precision,
    check_numbers,
    check_place,
    load_pipeline,
    placed,
)


@dataclass(frozen=True)
class Unclip(PipelineGenerator):
    """Makes pictures of CLIP image embeddings with Stable unCLIP, without any text.

    Ramesh et al. 2022, Hierarchical text-conditional image generation with CLIP latents. The
    published Stable Diffusion 2.1 unCLIP reads OpenCLIP ViT-H-14, 1,024 features.

    Parameters
    ----------
    path : str
        Folder, or repository of the hub, of a ``StableUnCLIPImg2ImgPipeline``.
    steps : int
        Of denoising.
    guidance : float
        Of classifier-free guidance.
    noise_level : int
        How much noise the embedding itself is given.
    size : int
        Height and width, pixels.
    embedding_norm : float, optional
        Embeddings are scaled to this norm; they go in as they are by default. The pipeline was
        trained on CLIP's own, which are not of unit norm: for targets that were normalised give
        the mean norm before.
    batch_size : int
        Pictures at a time.
    precision : {"auto", "float32", "float16"}
        ``"auto"`` is float16 on a GPU.
    """

    path: str = "stabilityai/stable-diffusion-2-1-unclip"
    steps: int = 20
    guidance: float = 10.0
    noise_level: int = 0
    size: int = 768
    embedding_norm: float | None = None
    batch_size: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))

    def check(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the size of the pictures; embeddings must have the width of the pipeline."""
        check_numbers(self)
        folder = check_place(self.path, "a Stable unCLIP pipeline")
        if folder is not None:
            width = _width(folder)
            if shape != (width,):
                raise ModelError(
                    f"the embeddings have {shape[0]} features, the pipeline reads {width}"
                )
        return self.size, self.size

    def read(self, ref: ModelRef, device: str) -> LoadedPipeline:
        """Load the pipeline; see `PipelineGenerator`."""
        pipeline = load_pipeline("StableUnCLIPImg2ImgPipeline", self.path)
        return placed(pipeline, self.precision, device)

    def run(self, pipeline: Any, rows: np.ndarray, generators: list[Any], device: str) -> Any:
        """Return what the pipeline makes of some embeddings."""
        import torch

        return pipeline(
            prompt=[""] * len(rows),
            image_embeds=torch.from_numpy(rows).to(device, pipeline.unet.dtype),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            noise_level=self.noise_level,
            height=self.size,
            width=self.size,
            generator=generators,
            output_type="np",
        )


def _width(folder: Path) -> int:
    """Return the width of the embeddings that a pipeline reads, from its metadata."""
    try:
        config = json.loads((folder / "image_normalizer" / "config.json").read_bytes())
        return int(config["embedding_dim"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} is no Stable unCLIP pipeline: {error}") from error
