"""Latents to pixels: a small decoder of its own, or the autoencoder of a published pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.backbones.recipe import Weights
from nedx.backbones.weights import fetch, read_state
from nedx.compute import cache
from nedx.compute.batches import batches
from nedx.compute.devices import forward_slot
from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.errors import ModelError, require

if TYPE_CHECKING:
    import torch

LATENT_DIMS = ("latent_channel", "latent_y", "latent_x")
CLASSES = ("AutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True)
class Autoencoder:
    """One half of an autoencoder, or the whole of it in a folder of diffusers.

    Parameters
    ----------
    path : str
        Path or URL of a checkpoint in the layout of TAESD or TAEF2 (its encoder or its decoder),
        or a folder of diffusers that holds an ``AutoencoderKL`` or ``AutoencoderTiny``.
    sha256 : str, optional
        Of the checkpoint file.
    """

    path: str
    sha256: str | None = None

    @property
    def config(self) -> dict[str, Any] | None:
        """What a folder of diffusers says of itself; None for a file."""
        if not Path(self.path).is_dir():
            return None
        try:
            config: dict[str, Any] = json.loads((Path(self.path) / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path} is no folder of an autoencoder: {error}") from error
        if config.get("_class_name") not in CLASSES:
            raise ModelError(
                f"{self.path} holds {config.get('_class_name')!r}, expected {' or '.join(CLASSES)}"
            )
        return config

    def form(self, *, encodes: bool) -> tuple[int, int]:
        """Return the channels of latents, and how many pixels one covers along each axis.

        Raises
        ------
        ModelError
            If there is no autoencoder, or the other half of one.
        """
        config = self.config
        if config is not None:
            require("diffusers", "generate")
            return int(config["latent_channels"]), 2 ** (len(config["block_out_channels"]) - 1)
        from nedx.reconstruction.latent_network import latent_channels, scaling, tiny_autoencoder

        state = read_state(self._weights())
        if ("0.weight" in state) != encodes:
            halves = ("the decoder", "the encoder")[:: 1 if encodes else -1]
            raise ModelError(f"{self.path} holds {halves[0]} of an autoencoder, not {halves[1]}")
        network = tiny_autoencoder(state)
        return latent_channels(network, encodes=encodes), scaling(network)

    def load(self, device: str) -> LoadedAutoencoder:
        """Return it on a device, once in a process."""
        recipe = json.dumps(asdict(self))
        loaded: LoadedAutoencoder = cache.get(ModelRef(LOADER, None, recipe, ""), device, self)
        return loaded

    def read(self, ref: ModelRef, device: str) -> LoadedAutoencoder:
        """Load it; what `load` asks the cache for."""
        if self.config is None:
            from nedx.reconstruction.latent_network import tiny_autoencoder

            network = tiny_autoencoder(read_state(self._weights())).to(device)
            return LoadedAutoencoder(network, network, network)
        diffusers = require("diffusers", "generate")
        model = getattr(diffusers, self.config["_class_name"]).from_pretrained(
            self.path, use_safetensors=True, low_cpu_mem_usage=False
        )
        model = model.eval().to(device)

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            found = model.encode(pixels * 2 - 1)
            # A variational one is read at its mean.
            latent = found.latents if hasattr(found, "latents") else found.latent_dist.mean
            return latent

        def decode(latents: torch.Tensor) -> torch.Tensor:
            return (model.decode(latents).sample + 1) / 2

        return LoadedAutoencoder(model, encode, decode)

    def _weights(self) -> Weights:
        weights = Weights(source=self.path, sha256=self.sha256)
        fetch(weights)
        return weights


@dataclass(frozen=True)
class LoadedAutoencoder:
    """An autoencoder ready to use.

    Attributes
    ----------
    module : torch.nn.Module
        What holds the weights.
    encode, decode : callable
        Pixels within [0, 1], float32 (batch, 3, y, x), to latents (batch, latent, y, x) and back.
    """

    module: torch.nn.Module
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.module.parameters())


@dataclass(frozen=True)
class LatentDecoder:
    """Decodes latents to pictures with any small autoencoder.

    Parameters
    ----------
    path : str
        As `Autoencoder` takes it.
    sha256 : str, optional
        Of the checkpoint file.
    batch_size : int
        Pictures at a time.
    """

    path: str
    sha256: str | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))

    @property
    def reads(self) -> str:
        """Latents."""
        return "latent"

    @property
    def row_dims(self) -> tuple[str, ...]:
        """One latent."""
        return LATENT_DIMS

    def check(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the size of the pictures; the channels of latents must be the decoder's."""
        channels, factor = self._autoencoder().form(encodes=False)
        if shape[0] != channels:
            raise ModelError(
                f"the latents have {shape[0]} channels, the decoder at {self.path} reads {channels}"
            )
        return shape[1] * factor, shape[2] * factor

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def make(self, rows: np.ndarray, seeds: Sequence[int], device: str) -> np.ndarray:
        """Return the decoded pictures; nothing is random."""
        import torch

        loaded = self._autoencoder().load(device)
        made = []
        with forward_slot(device), torch.inference_mode():
            for part in batches(len(rows), self.batch_size):
                pixels = loaded.decode(torch.from_numpy(rows[part]).to(device))
                made.append(as_uint8(pixels))
        return np.concatenate(made)

    def _autoencoder(self) -> Autoencoder:
        return Autoencoder(self.path, self.sha256)


def as_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Return uint8 (batch, y, x, rgb) of floats (batch, 3, y, x), cut to [0, 1]."""
    scaled = pixels.float().clamp(0, 1).mul(255).round()
    return scaled.permute(0, 2, 3, 1).byte().cpu().numpy()
