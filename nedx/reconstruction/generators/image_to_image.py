"""SDXL-Turbo from a decoded layout: pictures of embeddings that start from low-level latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from nedx.errors import ModelError
from nedx.reconstruction.generators.autoencoder import LATENT_DIMS, Autoencoder
from nedx.reconstruction.generators.ip_adapter import SdxlTurboIpAdapter
from nedx.reconstruction.generators.pipelines import with_norm
from nedx.reconstruction.rows import over_rows, variable


@dataclass(frozen=True)
class SdxlTurboImageToImage(SdxlTurboIpAdapter):
    """Makes pictures of embeddings that keep the layout of decoded latents, as ATM does.

    It reads ``embedding``, and ``latent`` of the autoencoder of the same pipeline, not scaled, as
    `LowLevelDecoder` makes them. Where only one of the two has subjects or repetitions, the other
    is the same for all.

    Parameters
    ----------
    strength : float
        How far the start is noised, above 0: with 1 next to nothing of the layout is left. Of the
        steps only this share is done.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionXLImg2ImgPipeline"
    strength: float = 0.5

    def reconstruct(self, ds: xr.Dataset, *, seed: int, device: str) -> xr.Dataset:
        """Return the Dataset with ``pixels_reconstructed``, lazily; see `DatasetGenerator`."""
        from nedx.reconstruction.reconstruct import PIXELS, PictureTask, check_size, made_by

        embedding = variable(ds, "embedding", "Type: ds.ned.decode(decoder)")
        latent = variable(ds, "latent", "Type: low_level.predict(responses)")
        for array, dims in ((embedding, self.row_dims), (latent, LATENT_DIMS)):
            if not set(dims) <= set(array.dims) or array.dtype.kind != "f":
                raise ModelError(
                    f"{array.name!r} is {array.dtype} {array.dims}, expected floats over {dims}"
                )
        size = self.check((embedding.sizes["feature"],))
        self._check_start(tuple(latent.sizes[dim] for dim in LATENT_DIMS))
        check_size(ds, size)
        both = _side_by_side(embedding, latent, self.embedding_norm)
        task = PictureTask(replace(self, embedding_norm=None), size, seed, device)
        made = over_rows(both, self.row_dims, task)
        recipe = {"name": type(self).__name__, **self.describe()}
        attrs = made_by(recipe, "embedding, latent", seed)
        return ds.assign({PIXELS: ((*both.dims[:-1], "y", "x", "rgb"), made, attrs)})

    def run(self, pipeline: Any, rows: np.ndarray, generators: list[Any], device: str) -> Any:
        """Return what the pipeline makes of embeddings, each with its latent behind it."""
        import torch

        config = pipeline.vae.config
        side = self.size // pipeline.vae_scale_factor
        shape = (config.latent_channels, side, side)
        width = rows.shape[1] - int(np.prod(shape))
        start = torch.from_numpy(rows[:, width:].copy()).view(-1, *shape)
        return pipeline(
            prompt=[""] * len(rows),
            # Latents are decoded as the autoencoder gives them, and denoised on its scale.
            image=(start * config.scaling_factor).to(device, pipeline.unet.dtype),
            strength=self.strength,
            ip_adapter_image_embeds=[self._embeds(pipeline, rows[:, :width].copy(), device)],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=generators,
            output_type="np",
        )

    def _check_start(self, shape: tuple[int, ...]) -> None:
        if not 0 < self.strength <= 1 or self.steps * self.strength < 1:
            raise ModelError(
                f"strength is {self.strength} of {self.steps} steps; it is above 0, at most 1, and "
                "leaves at least one step"
            )
        channels, factor = 4, 8
        if Path(self.path).is_dir():
            channels, factor = Autoencoder(str(Path(self.path) / "vae")).form(encodes=False)
        side = self.size // factor
        if shape != (channels, side, side):
            raise ModelError(
                f"the latents are {shape}, pictures of {self.size} pixels start from "
                f"{(channels, side, side)}"
            )


def _side_by_side(
    embedding: xr.DataArray, latent: xr.DataArray, norm: float | None
) -> xr.DataArray:
    """Return embeddings with latents behind them, ``(..., feature)`` float32."""
    labels = ["feature", *LATENT_DIMS]
    flat = latent.drop_vars(labels, errors="ignore").stack(feature=LATENT_DIMS, create_index=False)
    rows = embedding.drop_vars(labels, errors="ignore").transpose(..., "feature")
    if norm is not None:
        scaled = xr.apply_ufunc(
            *(with_norm, rows),
            kwargs={"norm": norm},
            input_core_dims=[["feature"]],
            output_core_dims=[["feature"]],
            dask="parallelized",
            dask_gufunc_kwargs={"allow_rechunk": True},
            output_dtypes=[np.float32],
        )
        rows = scaled.transpose(..., "feature")
    rows, flat = xr.broadcast(rows.astype(np.float32), flat.astype(np.float32), exclude=["feature"])
    kept = {"image_id": embedding["image_id"].variable} if "image_id" in embedding.coords else {}
    both = xr.concat(
        [xr.DataArray(one.transpose(..., "feature").variable) for one in (rows, flat)], "feature"
    )
    return both.assign_coords(kept)
