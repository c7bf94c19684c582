"""One network while it is trained: loss, step, weights, and what the next step begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nedx.compute.training import Tensors, below, copied, moments_of, restore_moments
from nedx.decoding.batches import Batch, Stream
from nedx.decoding.losses import (
    INITIAL_SCALE,
    compared,
    contrastive_loss,
    distance_loss,
    logit_scale,
)
from nedx.decoding.settings import TrainingSettings
from nedx.decoding.standardized import Standardized

_AVERAGE, _WEIGHTS, _SCALE = "average.", "weights.", "logit_scale"


class Training:
    """A network and its targets while it is trained.

    Parameters
    ----------
    module : Standardized
        The network.
    settings : TrainingSettings
        How.
    image : tensor (row, feature)
        Targets of unit norm.
    text : tensor (row, feature), optional
        Others of the same images.
    steps : int
        Steps in an epoch.
    device : str
        A torch device.
    """

    def __init__(
        self,
        module: Standardized,
        settings: TrainingSettings,
        image: torch.Tensor,
        text: torch.Tensor | None,
        *,
        steps: int,
        device: str,
    ):
        self.module = module.to(device)
        self.device = torch.device(device)
        own = getattr(module.network, _SCALE, None)
        start = torch.tensor(INITIAL_SCALE, device=self.device)
        self.scale: nn.Parameter = nn.Parameter(start) if own is None else own
        self.scale.requires_grad = settings.logit_scale != "fixed"
        self._settings, self._steps = settings, steps
        self._image, self._text = image.to(device), None if text is None else text.to(device)
        self._judged, self._judged_row = self._image, torch.arange(len(image), device=device)
        if self._text is not None:
            # Images of one text are one target.
            texts, self._text_row = torch.unique(self._text, dim=0, return_inverse=True)
            if not settings.image and not settings.mse:
                self._judged, self._judged_row = texts, self._text_row
        learnt = [p for p in module.parameters() if p.requires_grad and p is not self.scale]
        groups: list[dict[str, Any]] = [
            {"params": learnt},
            {"params": [self.scale], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self._done = 0
        self._averaged: Tensors | None = None
        if settings.ema is not None:
            self._averaged = self.weights()

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        settings = self._settings
        warm = settings.warmup * self._steps
        if self._done < warm:
            return settings.lr * (self._done + 1) / math.ceil(warm)
        if settings.schedule == "constant":
            return settings.lr
        left = (self._done - warm) / max(1.0, settings.epochs * self._steps - warm)
        return settings.lr * (1 + math.cos(math.pi * min(1.0, left))) / 2

    def step(self, batch: Batch) -> torch.Tensor:
        """Move the weights once; return the loss ()."""
        self.module.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        loss = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self._done += 1
        if self._averaged is not None:
            self._average(self._averaged)
        return loss.detach()

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch with gradients, augmented anew."""
        settings = self._settings
        x, subject, target = (self._placed(each) for each in batch)
        x = self.module.standardize(x)
        for change in settings.augmentation:
            x = change(x)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
        ):
            embedding = self.module.network(x, subject)
        embedding = embedding.float()
        return self._mixed(embedding, target)

    def _mixed(self, embedding: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the terms, for embeddings (n, feature) and rows (n,)."""
        settings = self._settings
        image = self._image[target]
        scale = logit_scale(self.scale, settings.logit_scale)
        seen = compared(embedding, settings.logit_scale)
        total = embedding.new_zeros(())
        if settings.image:
            total = total + settings.image * contrastive_loss(
                seen, image, scale, self._same(target)
            )
        if settings.text and self._text is not None:
            total = total + settings.text * contrastive_loss(
                seen, self._text[target], scale, self._same(self._text_row[target])
            )
        if settings.mse:
            total = total + settings.mse * distance_loss(embedding, image)
        return total

    def _same(self, row: torch.Tensor) -> torch.Tensor | None:
        return row[:, None] == row if self._settings.mask_same_image else None

    @torch.inference_mode()
    def validate(self, stream: Stream) -> dict[str, float]:
        """Return how well the images of a stream are found among themselves.

        Their texts, where nothing but these is learnt.

        Returns
        -------
        dict
            ``val_loss``, the mean cross-entropy; ``val_top1`` and ``val_top5``; ``val_mrr``, the
            mean reciprocal rank.
        """
        trained = self._swap()
        self.module.eval()
        embeddings, rows = [], []
        for batch in stream.epoch():
            x, subject, target = (self._placed(each) for each in batch)
            embeddings.append(self.module(x, subject).float())
            rows.append(self._judged_row[target])
        scale = logit_scale(self.scale, self._settings.logit_scale)
        seen = compared(torch.cat(embeddings), self._settings.logit_scale)
        there, true = torch.unique(torch.cat(rows), return_inverse=True)
        found = _found(seen, self._judged[there], true, scale)
        if trained is not None:
            self.module.load_state_dict(trained)
        return found

    def _swap(self) -> Tensors | None:
        """Put the averaged weights in place, and return those that are trained."""
        if self._averaged is None:
            return None
        trained = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self._averaged)
        return trained

    def weights(self) -> Tensors:
        """Return copies of the weights that decode: the averaged ones, where they are averaged."""
        source = self.module.state_dict() if self._averaged is None else self._averaged
        return {name: value.detach().clone().contiguous() for name, value in source.items()}

    def state(self) -> Tensors:
        """Return copies, on the CPU, of all that the next step depends on."""
        found = copied(self.module.state_dict(), _WEIGHTS) | moments_of(self.optimiser)
        if self._averaged is not None:
            found |= copied(self._averaged, _AVERAGE)
        return found | copied({_SCALE: self.scale, "done": torch.tensor(self._done)})

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state`."""
        self.module.load_state_dict(below(_WEIGHTS, state))
        self.scale.data = state[_SCALE].to(self.device)
        self._done = int(state["done"])
        if self._averaged is not None:
            self._averaged = {k: v.to(self.device) for k, v in below(_AVERAGE, state).items()}
        restore_moments(self.optimiser, state)

    @torch.no_grad()
    def _average(self, averaged: Tensors) -> None:
        keep = self._settings.ema
        assert keep is not None
        # At the start there is little to average: as in TensorFlow's ExponentialMovingAverage.
        keep = min(keep, (1 + self._done) / (10 + self._done))
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                averaged[name].lerp_(value, 1 - keep)
            else:
                averaged[name].copy_(value)

    def _placed(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _found(
    seen: torch.Tensor, gallery: torch.Tensor, true: torch.Tensor, scale: torch.Tensor
) -> dict[str, float]:
    """Return how well rows ``true`` (n,) of a gallery are found by (n, feature)."""
    ranks, losses = [], []
    for start in range(0, len(seen), 1024):
        part = slice(start, start + 1024)
        logits = scale * seen[part] @ gallery.T
        own = true[part]
        losses.append(F.cross_entropy(logits, own, reduction="none"))
        above = logits >= logits.gather(1, own[:, None])
        ranks.append(above.sum(1))
    rank = torch.cat(ranks).double()
    return {
        "val_loss": float(torch.cat(losses).mean()),
        "val_top1": float((rank <= 1).double().mean()),
        "val_top5": float((rank <= 5).double().mean()),
        "val_mrr": float((1 / rank).mean()),
    }
