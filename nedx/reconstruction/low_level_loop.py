"""The training loop of the low-level decoder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nedx.compute.batches import batches
from nedx.errors import ModelError
from nedx.reconstruction.low_level_network import LowLevelNetwork

if TYPE_CHECKING:
    from nedx.reconstruction.low_level import LowLevelDecoder, LowLevelRecipe
    from nedx.reconstruction.prior_rows import Pairs

_log = logging.getLogger(__name__)


def build(recipe: LowLevelRecipe) -> LowLevelNetwork:
    """Build the network of a recipe with fresh weights, drawn from torch's generator."""
    network = recipe.takes.network
    return LowLevelNetwork(
        network.n_channels,
        network.n_times,
        recipe.latent_shape,
        **network.options,  # type: ignore[arg-type]
    )


def train(
    pairs: Pairs, recipe: LowLevelRecipe, settings: LowLevelDecoder, device: str
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train on all rows, epoch by epoch.

    Parameters
    ----------
    pairs : Pairs
        Responses and latents, both flat.
    recipe : LowLevelRecipe
        Their shapes.
    settings : LowLevelDecoder
        Its parameters.
    device : str
        Where to compute.

    Returns
    -------
    dict and list
        The weights that are kept, on the CPU, and the history.
    """
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        torch.manual_seed(settings.seed)
        network = build(recipe).to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
        history: list[dict[str, float]] = []
        best: dict[str, torch.Tensor] = {}
        trained, held_out = pairs.rows(held_out=False), pairs.rows(held_out=True)
        for epoch in range(settings.epochs):
            order = trained[torch.randperm(len(trained)).numpy()]
            network.train()
            loss = _pass(network, pairs, recipe, order, settings.batch_size, device, optimizer)
            found = {"epoch": float(epoch), "loss": loss}
            improved = True
            if len(held_out):
                network.eval()
                with torch.inference_mode():
                    own = _pass(network, pairs, recipe, held_out, settings.batch_size, device, None)
                improved = own < min((h["validation_loss"] for h in history), default=np.inf)
                found["validation_loss"] = own
            if not np.isfinite(list(found.values())).all():
                raise ModelError(f"the loss of epoch {epoch} is not finite: type a smaller lr")
            scheduler.step()
            history.append(found)
            _log.info("epoch %d: %s", epoch, found)
            if improved:
                best = {name: value.cpu().clone() for name, value in network.state_dict().items()}
    return best, history


def _pass(
    network: LowLevelNetwork,
    pairs: Pairs,
    recipe: LowLevelRecipe,
    rows: np.ndarray,
    size: int,
    device: str,
    optimizer: torch.optim.Optimizer | None,
) -> float:
    """Return the mean absolute error of some rows; with an optimizer, train on them."""
    shape = recipe.takes.network.n_channels, recipe.takes.network.n_times
    total = 0.0
    for part in batches(len(rows), size):
        chosen = rows[part]
        given = torch.from_numpy(pairs.conditions[chosen]).view(-1, *shape)
        wanted = torch.from_numpy(pairs.targets[pairs.image[chosen]]).view(-1, *recipe.latent_shape)
        loss = nn.functional.l1_loss(network(given.to(device)), wanted.to(device))
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(rows)
