"""SDXL-Turbo with an IP-Adapter: pictures of CLIP image embeddings in a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
class SdxlTurboIpAdapter(PipelineGenerator):
    """Makes pictures of embeddings of OpenCLIP ViT-H-14, 1,024 features, without any text.

    Defaults are those of NECOMIMI and ATM. There every picture has the same seed; here each has
    its own. A GPU of some 12 GB is needed for the published weights.

    Parameters
    ----------
    path : str
        Folder, or repository of the hub, of a Stable Diffusion XL pipeline.
    adapter : str
        Folder, or repository of the hub, of the IP-Adapter.
    subfolder, weight_name : str
        Its file there, safetensors.
    scale : float
        How much the embedding counts.
    steps : int
        Of denoising.
    guidance : float
        Of classifier-free guidance; at most 1 is none, as Turbo wants it.
    size : int
        Height and width, pixels.
    embedding_norm : float, optional
        Embeddings are scaled to this norm; they go in as they are by default, as published.
    batch_size : int
        Pictures at a time.
    precision : {"auto", "float32", "float16"}
        ``"auto"`` is float16 on a GPU.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    path: str = "stabilityai/sdxl-turbo"
    adapter: str = "h94/IP-Adapter"
    subfolder: str = "sdxl_models"
    weight_name: str = "ip-adapter_sdxl_vit-h.safetensors"
    scale: float = 1.0
    steps: int = 4
    guidance: float = 0.0
    size: int = 512
    embedding_norm: float | None = None
    batch_size: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "adapter", str(self.adapter))

    def check(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the size of the pictures; embeddings must have the width of the adapter."""
        if not self.weight_name.endswith(".safetensors"):
            raise ModelError(f"the adapter {self.weight_name} is no .safetensors file")
        check_numbers(self)
        check_place(self.path, "a Stable Diffusion XL pipeline")
        folder = check_place(self.adapter, "an IP-Adapter")
        if folder is not None:
            width = _width(folder / self.subfolder / self.weight_name)
            if shape != (width,):
                raise ModelError(
                    f"the embeddings have {shape[0]} features, the IP-Adapter reads {width}"
                )
        return self.size, self.size

    def read(self, ref: ModelRef, device: str) -> LoadedPipeline:
        """Load pipeline and adapter; see `PipelineGenerator`."""
        pipeline = load_pipeline(self.pipeline_class, self.path)
        pipeline.load_ip_adapter(
            self.adapter,
            subfolder=self.subfolder,
            weight_name=self.weight_name,
            image_encoder_folder=None,
            low_cpu_mem_usage=False,
        )
        pipeline.set_ip_adapter_scale(self.scale)
        return placed(pipeline, self.precision, device)

    def run(self, pipeline: Any, rows: np.ndarray, generators: list[Any], device: str) -> Any:
        """Return what the pipeline makes of some embeddings."""
        return pipeline(
            prompt=[""] * len(rows),
            ip_adapter_image_embeds=[self._embeds(pipeline, rows, device)],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            height=self.size,
            width=self.size,
            generator=generators,
            output_type="np",
        )

    def _embeds(self, pipeline: Any, rows: np.ndarray, device: str) -> Any:
        """Return embeddings as pipelines take them, after those without any where guided."""
        import torch

        embeds = torch.from_numpy(rows)[:, None].to(device, pipeline.unet.dtype)
        if self.guidance > 1:
            embeds = torch.cat([torch.zeros_like(embeds), embeds])
        return embeds


def _width(path: Path) -> int:
    """Return the width of the embeddings that an adapter reads; opens its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return int(file.get_slice("image_proj.proj.weight").get_shape()[1])
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no IP-Adapter for image embeddings: {error}") from error
