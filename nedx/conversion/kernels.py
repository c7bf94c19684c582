"""How a converter turns arrays into arrays; nothing here knows of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nedx.compute.batches import batches
from nedx.compute.devices import forward_slot
from nedx.conversion.recipe import Kernel
from nedx.conversion.storing import LoadedPair

if TYPE_CHECKING:
    import torch

_ROWS = 1024


def converted(kernel: Kernel, pair: LoadedPair, x: np.ndarray, device: str) -> np.ndarray:
    """Convert rows.

    ``((x - source_mean) / source_deviation)`` goes through the kernel; what comes out is
    multiplied by ``target_deviation`` and ``target_mean`` is added.

    Parameters
    ----------
    kernel : {"linear", "content_network", "unet"}
    pair : LoadedPair
        On the device.
    x : ndarray of float32, (row, source) or, of a U-Net, (row, channel, time)
    device : str
        A torch device.

    Returns
    -------
    ndarray of float32, (row, target) or (row, channel, time)
    """
    import torch

    arrays = pair.arrays
    parts = []
    with torch.inference_mode(), forward_slot(device):
        # Of no rows the shape is asked for all the same.
        for part in batches(len(x), _ROWS) or [slice(0)]:
            rows = torch.from_numpy(np.ascontiguousarray(x[part])).to(device)
            z = (rows - arrays["source_mean"]) / arrays["source_deviation"]
            found = _through(kernel, arrays, z)
            parts.append((found * arrays["target_deviation"] + arrays["target_mean"]).cpu())
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def _through(kernel: Kernel, arrays: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    if kernel == "linear":
        return z @ arrays["weight"] + arrays["bias"]
    if kernel == "content_network":
        from nedx.conversion.content_network import content_network

        return content_network(arrays)(z)
    from nedx.conversion.unet import unet

    return unet(arrays)(z)
