"""Networks together with the scale of the responses that they take."""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.networks.registry import build


class Standardized(nn.Module):
    """A network of responses in their own units.

    Parameters
    ----------
    recipe : NetworkRecipe
        Of the network, which sees ``(x - mean) / scale``.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, recipe: NetworkRecipe):
        super().__init__()
        self.register_buffer("mean", torch.zeros(recipe.n_channels, recipe.n_times))
        self.register_buffer("scale", torch.ones(recipe.n_channels, 1))
        self.network = build(recipe)

    def standardize(self, x: torch.Tensor) -> torch.Tensor:
        """Return responses (n, channel, time) as the network takes them."""
        return (x - self.mean).div_(self.scale)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, feature) of (n, channel, time) and subjects (n,)."""
        found: torch.Tensor = self.network(self.standardize(x), subject)
        return found
