"""The network of the diffusion prior: a U of linear layers that reads time and condition.

The embeddings of one brain are its condition, those of images are what it denoises. Its names of
weights are those of published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from nedx.backbones.recipe import Weights
from nedx.backbones.weights import read_state
from nedx.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

TIME_WIDTH = 512
_LONGEST = 10_000.0
_NEEDED = ("input_layer.0.weight", "encode_cond_embedding.0.weight", "output_layer.weight")
"""What tells a checkpoint of this network, and its widths."""


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoids of a time.

    Parameters
    ----------
    width : int
        Of the layer that it is added to.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIME_WIDTH, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        """Return float32 (sample, width) of `sinusoids`."""
        embedded: torch.Tensor = self.linear_2(nn.functional.silu(self.linear_1(waves)))
        return embedded


class PriorNetwork(nn.Module):
    """Predicts the noise in an embedding; 9,675,648 parameters at the published widths.

    Parameters
    ----------
    width, condition_width : int
        Of the embeddings denoised, and of the condition.
    hidden : sequence of int
        Widths of the layers down the U; up again they are the same.
    dropout : float
        After each layer.
    """

    def __init__(
        self,
        width: int = 1024,
        condition_width: int = 1024,
        hidden: Sequence[int] = (1024, 512, 256, 128, 64),
        dropout: float = 0.1,
    ):
        super().__init__()
        down, up = list(hidden[:-1]), list(hidden[:0:-1])
        self.input_layer = nn.Sequential(
            nn.Linear(width, hidden[0]), nn.LayerNorm(hidden[0]), nn.SiLU()
        )
        self.encode_time_embedding = nn.ModuleList(TimeEmbedding(size) for size in down)
        self.encode_cond_embedding = nn.ModuleList(nn.Linear(condition_width, n) for n in down)
        self.encode_layers = nn.ModuleList(
            _layer(a, b, dropout) for a, b in zip(hidden, hidden[1:], strict=False)
        )
        self.decode_time_embedding = nn.ModuleList(TimeEmbedding(size) for size in up)
        self.decode_cond_embedding = nn.ModuleList(nn.Linear(condition_width, n) for n in up)
        self.decode_layers = nn.ModuleList(
            _layer(a, b, dropout) for a, b in zip(up, hidden[-2::-1], strict=True)
        )
        self.output_layer = nn.Linear(hidden[0], width)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.parameters())

    def forward(
        self,
        noisy: torch.Tensor,
        time: torch.Tensor,
        condition: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the predicted noise, float32 (sample, width).

        Parameters
        ----------
        noisy : tensor (sample, width)
            Embeddings with noise.
        time : tensor (sample,)
            The time of each.
        condition : tensor (sample, condition_width), optional
            What to be guided by.
        keep : tensor (sample, 1), optional
            1 where the condition is read, 0 where the sample has none.
        """
        waves = sinusoids(time)

        def read(layer: nn.Module) -> torch.Tensor | float:
            if condition is None:
                return 0.0
            given: torch.Tensor = layer(condition)
            return given if keep is None else given * keep

        x = self.input_layer(noisy)
        passed = []
        for when, what, layer in zip(
            self.encode_time_embedding, self.encode_cond_embedding, self.encode_layers, strict=True
        ):
            passed.append(x)
            x = layer(x + when(waves) + read(what))
        for when, what, layer in zip(
            self.decode_time_embedding, self.decode_cond_embedding, self.decode_layers, strict=True
        ):
            x = layer(x + when(waves) + read(what)) + passed.pop()
        noise: torch.Tensor = self.output_layer(x)
        return noise


def sinusoids(time: torch.Tensor) -> torch.Tensor:
    """Return cosines, then sines, of falling frequencies, float32 (sample, 512)."""
    half = TIME_WIDTH // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time[:, None].float() * torch.exp(-math.log(_LONGEST) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read published weights of a diffusion prior; nothing in the file is executed.

    Parameters
    ----------
    path : path
        ``.pt`` or ``.pth`` with a state dict, or ``.safetensors``.

    Returns
    -------
    dict of str to tensor
        Float32.

    Raises
    ------
    ModelError
        If it is not the checkpoint of such a network.
    """
    stored = read_state(Weights(source=str(path)))
    state = {name.removeprefix("module."): value.float() for name, value in stored.items()}
    lacking = [name for name in _NEEDED if name not in state]
    if lacking:
        raise ModelError(
            f"{path} is no checkpoint of a diffusion prior: it lacks {' and '.join(lacking)}; it "
            f"has {', '.join(list(state)[:4])}, ..."
        )
    return state


def widths_of(state: dict[str, torch.Tensor]) -> dict[str, int | tuple[int, ...]]:
    """Return `width`, `condition_width` and `hidden` of the network that weights are of."""
    layers = [state[f"encode_layers.{i}.0.weight"] for i in range(_count(state))]
    first = state["input_layer.0.weight"]
    return {
        "width": first.shape[1],
        "condition_width": state["encode_cond_embedding.0.weight"].shape[1],
        "hidden": (first.shape[0], *(layer.shape[0] for layer in layers)),
    }


def _count(state: dict[str, torch.Tensor]) -> int:
    return sum(name.startswith("encode_layers.") and name.endswith(".0.weight") for name in state)


def _layer(before: int, after: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, after), nn.LayerNorm(after), nn.SiLU(), nn.Dropout(dropout)
    )
