"""Any network of braindecode (Schirrmeister et al. 2017, Hum. Brain Mapp. 38:5391)."""

from __future__ import annotations

import torch
from torch import nn

from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.errors import ModelError, close_matches, require


class Braindecode(nn.Module):
    """A braindecode network whose outputs are the embedding.

    Parameters
    ----------
    recipe : NetworkRecipe
        Its name is ``"braindecode:<class>"``, for example ``"braindecode:EEGConformer"``; the
        options go to that class, which gets ``n_chans``, ``n_times`` and ``n_outputs`` too.

    Raises
    ------
    ModelError
        If there is no such class, or it cannot be made for responses of this shape.
    """

    def __init__(self, recipe: NetworkRecipe):
        super().__init__()
        models = require("braindecode.models", "braindecode")
        name = recipe.name.partition(":")[2]
        if not hasattr(models, name):
            raise ModelError(f"braindecode has no {name!r}: {close_matches(name, dir(models))}")
        shape = {
            "n_chans": recipe.n_channels,
            "n_times": recipe.n_times,
            "n_outputs": recipe.n_outputs,
        }
        try:
            network = getattr(models, name)(**shape, **recipe.options)
        except (TypeError, ValueError) as error:
            raise ModelError(f"braindecode's {name} cannot be made for {shape}: {error}") from error
        self.network = _without_logarithm(network)

    def forward(self, x: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings (n, n_outputs) of (n, channel, time)."""
        found: torch.Tensor = self.network(x)
        return found.flatten(1)


def _without_logarithm(network: nn.Module) -> nn.Module:
    """Replace a last log-softmax, which is for classes, by nothing."""
    for name, module in network.named_modules():
        if isinstance(module, nn.LogSoftmax):
            network.set_submodule(name, nn.Identity())
    return network
