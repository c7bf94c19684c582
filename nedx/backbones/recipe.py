"""What makes a backbone: a frozen, JSON-able recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_POOLING = re.compile(r"flatten|mean|token|avg[1-9][0-9]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

WeightsFormat = Literal["auto", "torch", "safetensors", "keras_squeezenet"]


class Weights(BaseModel):
    """Where the weights of a backbone lie, and what they must hash to.

    Parameters
    ----------
    source : str
        Path of a local file, ``http(s)://`` or other fsspec URL, or
        ``hf://owner/repo/file[@revision]``.
    sha256 : str, optional
        Hash of the whole file, 64 hexadecimal digits. A file that hashes otherwise is refused.
    format : {"auto", "torch", "safetensors", "keras_squeezenet"}
        ``"auto"`` goes by the ending: ``.pth``, ``.pt``, ``.bin`` hold a torch state dict,
        ``.safetensors`` the same, ``.h5`` and ``.hdf5`` the Keras SqueezeNet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    sha256: str | None = None
    format: WeightsFormat = "auto"

    @field_validator("source", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("sha256")
    @classmethod
    def _as_hash(cls, value: str | None) -> str | None:
        if value is not None and not _SHA256.fullmatch(value.lower()):
            message = f"sha256 is {value!r}, not 64 hexadecimal digits"
            raise ValueError(message)
        return value.lower() if value else None

    @property
    def kind(self) -> WeightsFormat:
        """The format, found from the ending where it is ``"auto"``."""
        if self.format != "auto":
            return self.format
        name = self.source
        if name.startswith("hf://"):
            name = name.split("@")[0]
        ending = Path(name).suffix.lower()
        if ending == ".safetensors":
            return "safetensors"
        return "keras_squeezenet" if ending in (".h5", ".hdf5") else "torch"


class BackboneRecipe(BaseModel):
    """A network, the layers tapped, and how their activations are reduced.

    Two recipes that are equal give the same features. ``model_dump_json`` and
    ``model_validate_json`` carry a recipe to disk and back.

    Parameters
    ----------
    name : str
        One of `nedx.backbones.names`, or ``"timm:<name>"``, ``"transformers:<folder or repo>"``,
        ``"module:<package.module:factory>"``, ``"live:<name>"``.
    layers : tuple of str
        Layers tapped; features are concatenated in this order.
    pooling : str
        ``"flatten"``, ``"mean"`` over space or tokens, ``"avg<k>"`` to a k x k grid,
        ``"token"`` for the class token.
    weights : Weights, optional
        Trained weights.
    seed : int, optional
        Seed of random weights; 0 where neither this nor weights are given.
    policy : str
        Name of the image preprocessing policy.
    batch_size : int
        Images in one forward pass, whatever the chunks are.
    precision : {"float32", "bf16", "fp16"}
        Weights and activations in bfloat16, or float16 autocast on a GPU.
    image_size : int, optional
        Height and width, in pixels, of the images that the network gets; None takes the policy's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layers: tuple[str, ...] = Field(min_length=1)
    pooling: str = "flatten"
    weights: Weights | None = None
    seed: int | None = None
    policy: str = "imagenet"
    batch_size: int = Field(default=32, ge=1)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    image_size: int | None = Field(default=None, ge=1)

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, value: str) -> str:
        if not _POOLING.fullmatch(value):
            message = (
                f"pooling is {value!r}; type 'flatten', 'mean', 'token', or 'avg<k>' as in 'avg7'"
            )
            raise ValueError(message)
        return value

    @field_validator("layers")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({layer for layer in value if value.count(layer) > 1})
        if twice:
            message = f"layers are named more than once: {', '.join(twice)}"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> BackboneRecipe:
        if self.weights is not None and self.seed is not None:
            message = "give weights (trained) or seed (random weights), not both"
            raise ValueError(message)
        return self
