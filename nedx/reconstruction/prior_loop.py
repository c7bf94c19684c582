"""The training loop of the diffusion prior: one network, one Adam, what an epoch does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nedx.compute.batches import batches
from nedx.compute.training import Tensors, below, copied, moments_of, restore_moments
from nedx.reconstruction.prior_rows import unit_norm
from nedx.reconstruction.schedule import add_noise, kept_signal

if TYPE_CHECKING:
    from nedx.reconstruction.prior_network import PriorNetwork
    from nedx.reconstruction.prior_rows import Pairs
    from nedx.reconstruction.prior_store import PriorRecipe

GRADIENT_NORM = 1.0
_NETWORK = "network."


class PriorTraining:
    """What is trained, and the state of the training.

    Parameters
    ----------
    network : PriorNetwork
        With fresh weights.
    pairs : Pairs
        What to train on.
    recipe : PriorRecipe
        Scale of the targets, times of the diffusion.
    device : torch.device
        Where to compute.
    epochs, batch_size, lr, warmup, guidance_dropout
        As `DiffusionPrior` takes them.
    per_batch : bool
        Whether the condition is dropped for whole batches.
    """

    def __init__(
        self,
        network: PriorNetwork,
        pairs: Pairs,
        recipe: PriorRecipe,
        *,
        device: torch.device,
        epochs: int,
        batch_size: int,
        lr: float,
        warmup: float,
        guidance_dropout: float,
        per_batch: bool,
    ):
        self.network = network.to(device)
        self.device = device
        self._optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        self._conditions = torch.from_numpy(pairs.conditions.copy())
        self._targets = torch.from_numpy(scaled(pairs.targets, recipe))
        self._image = torch.from_numpy(pairs.image.copy())
        self._rows = {held: torch.from_numpy(pairs.rows(held_out=held)) for held in (False, True)}
        self._kept = torch.from_numpy(kept_signal(recipe.train_steps)).float().to(device)
        self._batch_size, self._lr = batch_size, lr
        self._drop, self._per_batch = guidance_dropout, per_batch
        self._steps = epochs * len(batches(len(self._rows[False]), batch_size))
        self._warmup = int(warmup * self._steps) if warmup < 1 else int(warmup)
        self._step = 0

    def epoch(self) -> float:
        """Train on each row once, in random order; return the mean loss."""
        self.network.train()
        rows = self._rows[False][torch.randperm(len(self._rows[False]))]
        losses = []
        for part in batches(len(rows), self._batch_size):
            loss = self._loss(rows[part], drop=self._drop)
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
            self._step += 1
            for group in self._optimizer.param_groups:
                # The published loop moves the schedule before the weights.
                group["lr"] = self._lr * cosine(self._step, self._warmup, self._steps)
            self._optimizer.step()
            losses.append(loss.item() * (part.stop - part.start))
        return float(sum(losses) / len(rows))

    def validate(self) -> float:
        """Return the mean loss of held-out rows, with noise and times from torch's generator."""
        self.network.eval()
        rows = self._rows[True]
        with torch.inference_mode():
            losses = [
                self._loss(rows[part], drop=0.0).item() * (part.stop - part.start)
                for part in batches(len(rows), self._batch_size)
            ]
        return float(sum(losses) / len(rows))

    def weights(self) -> Tensors:
        """Return a copy of the network's weights, on the CPU."""
        return copied(self.network.state_dict())

    def state(self) -> Tensors:
        """Return all that the next epoch begins with."""
        network = copied(self.network.state_dict(), _NETWORK)
        return {**network, **moments_of(self._optimizer), "step": torch.tensor(self._step)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        self.network.load_state_dict(below(_NETWORK, state))
        restore_moments(self._optimizer, state)
        self._step = int(state["step"])

    def _loss(self, rows: torch.Tensor, drop: float) -> torch.Tensor:
        """Return the mean square error of the predicted noise (Ho et al. 2020, equation 14)."""
        condition = self._conditions[rows].to(self.device)
        start = self._targets[self._image[rows]].to(self.device)
        time = torch.randint(len(self._kept), (len(rows),)).to(self.device)
        noise = torch.randn(start.shape).to(self.device)
        dropped = torch.rand(1 if self._per_batch else len(rows), 1) < drop
        keep = (~dropped).float().expand(len(rows), 1).to(self.device)
        noisy = add_noise(start, noise, self._kept[time][:, None])
        return nn.functional.mse_loss(self.network(noisy, time, condition, keep), noise)


def scaled(targets: np.ndarray, recipe: PriorRecipe) -> np.ndarray:
    """Return targets as the network sees them, float32 (image, width)."""
    if recipe.normalized:
        targets = unit_norm(targets)
    return (targets * recipe.scale).astype(np.float32)


def cosine(step: int, warmup: int, steps: int) -> float:
    """Return the share of the learning rate: it rises in `warmup` steps, then falls to 0."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
