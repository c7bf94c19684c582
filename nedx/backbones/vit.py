"""The vision transformer, with the parameter names of torchvision.

Dosovitskiy et al. 2021, An image is worth 16x16 words (arXiv:2010.11929).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from nedx.backbones.taps import Network
from nedx.errors import ModelError


class _Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend; tokens (n, token, width) to the same shape."""
        n, count, width = tokens.shape
        joint = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        joint = joint.view(n, count, 3, self.heads, width // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, count, width))


class _Block(nn.Module):
    """One encoder block: attention and a two-layer perceptron on the residual stream."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = _Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        # Dropout does nothing here, but its places count in the parameter names.
        widen, narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(widen, nn.GELU(), nn.Identity(), narrow)
        for layer in (widen, narrow):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after the block."""
        tokens = tokens + self.self_attention(self.ln_1(tokens))
        return tokens + self.mlp(self.ln_2(tokens))


class _Encoder(nn.Module):
    """Position embedding, blocks and the last norm."""

    def __init__(self, tokens: int, depth: int, width: int, heads: int, hidden: int):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, width).normal_(std=0.02))
        self.layers = nn.Sequential()
        for index in range(depth):
            self.layers.add_module(f"encoder_layer_{index}", _Block(width, heads, hidden))
        self.ln = nn.LayerNorm(width, eps=1e-6)


class VisionTransformer(Network):
    """A ViT whose layers are its embedding, the residual stream after each block, and the head.

    Layers: ``conv_proj`` (tokens with position), ``encoder.layers.encoder_layer_<i>`` or short
    ``encoder_layer_<i>``, ``encoder.ln`` and ``heads.head``. Token maps are (n, token, width),
    the class token first; flattened they are token-major.

    Parameters
    ----------
    image_size, patch_size : int
        Pixels.
    depth, heads, width, hidden : int
        Blocks, attention heads, width of a token and of the perceptron.
    classes : int
        Outputs of the head.
    """

    # Files from before torchvision 0.14 name the perceptron's layers.
    legacy = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 32,
        depth: int = 12,
        heads: int = 12,
        width: int = 768,
        hidden: int = 3072,
        classes: int = 1000,
    ):
        super().__init__()
        self.image_size = image_size
        self.conv_proj = nn.Conv2d(3, width, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        tokens = (image_size // patch_size) ** 2 + 1
        self.encoder = _Encoder(tokens, depth, width, heads, hidden)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, classes))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (3 * patch_size**2)))
        self.aliases = {
            f"encoder_layer_{i}": f"encoder.layers.encoder_layer_{i}" for i in range(depth)
        }

    def layer_names(self) -> tuple[str, ...]:
        """Return the embedding, the blocks, the last norm and the head."""
        return ("conv_proj", *self.aliases.values(), "encoder.ln", "heads.head")

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise ModelError unless the images are of the size of the position embedding."""
        if shape[2:] != (self.image_size, self.image_size):
            message = (
                f"the vision transformer takes images of {self.image_size} x {self.image_size} "
                f"pixels, not {shape[2]} x {shape[3]}: choose a policy that resizes to that"
            )
            raise ModelError(message)

    def walk(
        self, images: torch.Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield token maps (n, token, width), then the head's (n, class)."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(images), -1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.encoder.pos_embedding
        yield "conv_proj", tokens
        for name, block in self.encoder.layers.named_children():
            tokens = block(tokens)
            yield f"encoder.layers.{name}", tokens
        tokens = self.encoder.ln(tokens)
        yield "encoder.ln", tokens
        yield "heads.head", self.heads(tokens[:, 0])


def vit_b_32() -> VisionTransformer:
    """Return ViT-B/32 at 224 pixels: 50 tokens of width 768 in 12 blocks."""
    return VisionTransformer()
