"""One ReAlnet while it is trained: loss, step, weights, and what the next step begins with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch

from nedx.compute.training import Tensors, below, copied, moments_of, restore_moments
from nedx.encoding.realnet_losses import Contrastive, generation_loss, task_loss
from nedx.encoding.realnet_network import ReAlnet

Pairs = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images (n, 3, y, x) and responses (n, output)."""
TERMS = ("task", "generation", "loss")
_WEIGHTS = "weights."


class ReAlnetTraining:
    """A ReAlnet, and the trunk it began as, whose logits it is to keep.

    Parameters
    ----------
    network : ReAlnet
        With the trunk that it begins as.
    learning_rate : float
        Of Adam, which moves everything.
    beta : float
        Weight of the generation loss beside the task loss.
    contrastive : {"pearson", "monitor"}, optional
        See `nedx.encoding.realnet_losses.generation_loss`.
    device : str
        A torch device.
    """

    def __init__(
        self,
        network: ReAlnet,
        *,
        learning_rate: float = 2e-6,
        beta: float = 100.0,
        contrastive: Contrastive | None = "pearson",
        device: str = "cpu",
    ):
        self.network = network.to(device)
        self.teacher = copy.deepcopy(network.realnet).eval().requires_grad_(requires_grad=False)
        self.device = torch.device(device)
        self.optimiser = torch.optim.Adam(network.parameters(), learning_rate)
        self._beta, self._contrastive = beta, contrastive

    def step(self, images: torch.Tensor, measured: torch.Tensor) -> tuple[float, ...]:
        """Move all weights once, after one pass through the trunk; return the `TERMS`.

        Parameters
        ----------
        images : tensor (n, 3, y, x)
            Preprocessed.
        measured : tensor (n, output)
            Responses to them.
        """
        self.network.train()
        terms, _ = self._terms(images, measured)
        self.optimiser.zero_grad(set_to_none=True)
        terms[-1].backward()
        self.optimiser.step()
        return tuple(float(term.detach()) for term in terms)

    def validate(self, pairs: Pairs) -> tuple[tuple[float, ...], torch.Tensor, torch.Tensor]:
        """Return the `TERMS`, means over images, and responses predicted and measured.

        Images are taken as they come, and none is kept; both responses are (image, output), on
        the CPU.
        """
        self.network.eval()
        sums, both = [0.0] * len(TERMS), []
        with torch.no_grad():
            for images, measured in pairs:
                terms, made = self._terms(images, measured)
                sums = [total + float(t) * len(made) for total, t in zip(sums, terms, strict=True)]
                both.append((made.cpu(), measured.cpu()))
        predicted, given = (torch.cat(parts) for parts in zip(*both, strict=True))
        return tuple(total / len(given) for total in sums), predicted, given

    def weights(self) -> Tensors:
        """Return copies of the weights, on the CPU."""
        return copied(self.network.state_dict())

    def state(self) -> Tensors:
        """Return copies of all that the next step depends on: weights and moments."""
        return copied(self.network.state_dict(), _WEIGHTS) | moments_of(self.optimiser)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state`; the teacher stays the trunk that training began with."""
        self.network.load_state_dict(below(_WEIGHTS, state))
        restore_moments(self.optimiser, state)

    def _terms(
        self, images: torch.Tensor, measured: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        images, measured = images.to(self.device), measured.to(self.device)
        logits, predicted = self.network(images)
        with torch.no_grad():
            wanted = self.teacher(images)
        task = task_loss(logits, wanted)
        made = generation_loss(predicted, measured, self._contrastive)
        return (task, made, task + self._beta * made), predicted
