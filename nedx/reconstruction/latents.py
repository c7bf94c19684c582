"""encode_latents: the latents of images, lazily, which low-level decoders are trained to make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.compute.batches import batches, checked
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.errors import ModelError
from nedx.reconstruction.generators.autoencoder import LATENT_DIMS, Autoencoder
from nedx.reconstruction.rows import over_rows, variable

if TYPE_CHECKING:
    import torch

_PIXELS = ("y", "x", "rgb")


def encode_latents(
    ds: xr.Dataset,
    autoencoder: str | Path | Autoencoder,
    *,
    size: int | None = None,
    batch_size: int = 4,
    device: str = "auto",
) -> xr.Dataset:
    """Encode images with an autoencoder.

    Parameters
    ----------
    ds : Dataset
        ``pixels (image, y, x, rgb)`` uint8, with ``image_id``.
    autoencoder : path or Autoencoder
        The encoder of TAESD or TAEF2, or a folder of diffusers; of a variational one the mean is
        taken, not scaled.
    size : int, optional
        Images are resized (bicubic) so that the shorter side has so many pixels, and the centre
        is cut out; 512 for the latents of Stable Diffusion XL. By default they stay as they are.
    batch_size : int
        Images at a time.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    Dataset
        What was given, with ``latent (image, latent_channel, latent_y, latent_x)`` float32, lazily.

    Raises
    ------
    ModelError
        If there are no pixels, or their number is no multiple of what a latent covers.
    """
    check_device(device)
    pixels = variable(ds, "pixels", "Type: nedx.open_images('folder')")
    lacking = [dim for dim in _PIXELS if dim not in pixels.dims]
    if lacking or pixels.dtype != np.uint8:
        raise ModelError(f"'pixels' is {pixels.dtype} {pixels.dims}, expected uint8 over {_PIXELS}")
    one = autoencoder if isinstance(autoencoder, Autoencoder) else Autoencoder(str(autoencoder))
    channels, factor = one.form(encodes=True)
    if batch_size < 1 or (size is not None and size < 1):
        raise ModelError(f"batch_size ({batch_size}) and size ({size}) are at least 1")
    height, width = (size, size) if size else (pixels.sizes["y"], pixels.sizes["x"])
    if height % factor or width % factor:
        raise ModelError(
            f"images of {height} x {width} pixels have no whole latents, each covers {factor} x "
            f"{factor}; type size={max(factor, min(height, width) // factor * factor)}"
        )
    shape = (channels, height // factor, width // factor)
    made = over_rows(pixels, _PIXELS, LatentTask(one, shape, size, batch_size, device))
    attrs = {
        "long_name": "latent of an autoencoder",
        "units": "1",
        "model": json.dumps(asdict(one)),
        "size": size or "as given",
        "batch_size": batch_size,
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    lead = [dim for dim in pixels.dims if dim not in _PIXELS]
    return ds.assign(latent=((*lead, *LATENT_DIMS), made, attrs))


@dataclass(frozen=True)
class LatentTask:
    """Encodes one block of images.

    Parameters
    ----------
    autoencoder : Autoencoder
        What encodes.
    shape : (int, int, int)
        Of a latent.
    size, batch_size, device
        As `encode_latents` takes them.
    """

    autoencoder: Autoencoder
    shape: tuple[int, ...]
    size: int | None
    batch_size: int
    device: str

    @property
    def dtype(self) -> np.dtype:
        """Of latents."""
        return np.dtype(np.float32)

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return latents float32 (image, *shape) of images uint8 (image, y, x, rgb)."""
        import torch

        device = resolve_device(self.device)
        loaded = self.autoencoder.load(device)
        made = []
        with forward_slot(device), torch.inference_mode():
            for part in batches(len(rows), self.batch_size):
                pixels = torch.from_numpy(rows[part].copy()).to(device).permute(0, 3, 1, 2).float()
                found = loaded.encode(_centre(pixels / 255, self.size))
                made.append(found.float().cpu().numpy())
        return checked(
            np.concatenate(made), (len(rows), *self.shape), np.float32, "latents", names=names
        )


def _centre(pixels: torch.Tensor, size: int | None) -> torch.Tensor:
    """Return the resized centre of images (batch, 3, y, x)."""
    import torch

    if size is None:
        return pixels
    height, width = pixels.shape[-2:]
    scale = size / min(height, width)
    shape = max(size, round(height * scale)), max(size, round(width * scale))
    resized = torch.nn.functional.interpolate(
        pixels, shape, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return resized[..., top : top + size, left : left + size]
