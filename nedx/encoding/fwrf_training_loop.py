"""Training of fwRF models: one trunk, a head for each subject, two optimisers in turn.

The recipe is that of the published models of NSD: St-Yves et al. 2023 (Nature Communications
14:3329), as in the Brain Encoding Response Generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from nedx.backbones.gnet import MAPS, GNet
from nedx.compute.batches import batches
from nedx.compute.training import ADAM, Tensors, below, copied, moments_of, restore_moments
from nedx.encoding.fwrf import FwrfHead, read_out_fwrf

Precision = Literal["float32", "bf16"]

_DROPPED = 0.5
_SPREAD = 0.01
# What the backward pass holds of a block of voxels: some copies of (image, voxel, feature).
_BLOCK_BYTES = 2**28


class TrainedHead(nn.Module):
    """What the voxels of one subject read out, as parameters; `FwrfHead` has their meaning.

    Receptive fields begin flat, weights and intercepts at a standard deviation of 0.01.

    Parameters
    ----------
    voxels : int
        How many.
    """

    def __init__(self, voxels: int):
        super().__init__()
        fields = [nn.Parameter(torch.ones(voxels, y, x)) for _, y, x in MAPS.values()]
        self.rf0, self.rf1, self.rf2 = fields
        features = sum(channels for channels, _, _ in MAPS.values())
        self.w = nn.Parameter(_SPREAD * torch.randn(voxels, features))
        self.b = nn.Parameter(_SPREAD * torch.randn(voxels))

    @property
    def fitted(self) -> FwrfHead:
        """The head as inference takes it, sharing memory."""
        first, second, third = (each.detach() for each in (self.rf0, self.rf1, self.rf2))
        return FwrfHead((first, second, third), self.w.detach(), self.b.detach())

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return responses (image, voxel); as `read_out_fwrf`, with gradients.

        Where there are many voxels, the pooled features of a block are computed again in the
        backward pass rather than kept.
        """
        features = [squash(each.float().flatten(2).transpose(1, 2)) for each in maps]
        row = 4 * len(features[0]) * self.w.shape[1]
        parts = batches(len(self.b), max(1, _BLOCK_BYTES // row))
        if len(parts) == 1:
            return _read_out(*features, self.rf0, self.rf1, self.rf2, self.w, self.b)
        blocks = [
            checkpoint(
                _read_out,
                *features,
                *(each[part] for each in (self.rf0, self.rf1, self.rf2, self.w, self.b)),
                use_reentrant=False,
            )
            for part in parts
        ]
        return torch.cat(blocks, 1)


def _read_out(*tensors: torch.Tensor) -> torch.Tensor:
    """Read three squashed maps (image, position, feature) by three fields, weights, intercepts."""
    features, fields, (w, b) = tensors[:3], tensors[3:6], tensors[6:]
    pooled = [
        torch.matmul(field.flatten(1).softmax(1), flat)
        for field, flat in zip(fields, features, strict=True)
    ]
    return (squash(torch.cat(pooled, 2)) * w).sum(2) + b


def squash(x: torch.Tensor) -> torch.Tensor:
    """Compress without losing the sign, ``log(1 + |x|) tanh(x)``, with gradients."""
    return torch.log1p(x.abs()) * torch.tanh(x)


def fwrf_loss(
    predicted: torch.Tensor, measured: torch.Tensor, w: torch.Tensor, penalty: float = 0.1
) -> torch.Tensor:
    """Return the published loss: squared errors that weigh more where voxels are predicted well.

    With ``e_v`` the sum over images of squared errors of voxel ``v`` and ``r_v`` its correlation
    within the batch::

        q_v = clamp(cov_v^2 / (var_v var'_v + 1e-6), 0.1, 1)
        L = sum_v q_v e_v / mean(q) + penalty sum |w|

    Parameters
    ----------
    predicted, measured : tensor (image, voxel)
        Responses, in units of the measured ones.
    w : tensor (voxel, feature)
        Weights of the features.
    penalty : float
        Of the sum of their absolute values.

    Returns
    -------
    tensor ()
        No gradient goes through ``q``.
    """
    with torch.no_grad():
        a, b = predicted - predicted.mean(0), measured - measured.mean(0)
        explained = (a * b).mean(0) ** 2 / ((a * a).mean(0) * (b * b).mean(0) + 1e-6)
        q = explained.clamp(0.1, 1)
    errors = ((predicted - measured) ** 2).sum(0)
    return (q * errors).sum() / q.mean() + penalty * w.abs().sum()


def new_trunk(mean: np.ndarray) -> GNet:
    """Return a trunk to train: Xavier's weights for rectifiers, intercepts of zero, dropout.

    Parameters
    ----------
    mean : ndarray (3,)
        Mean of each colour over the training images, from 0 to 1.

    Returns
    -------
    GNet
        Half of the maps after each batch norm are dropped while it trains.
    """
    trunk = GNet()
    gain = nn.init.calculate_gain("relu")
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(_drop)
    trunk.mu.requires_grad = False
    trunk.mu.data = torch.as_tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
    return trunk


def _drop(module: nn.Module, _: object, normed: torch.Tensor) -> torch.Tensor:
    return F.dropout2d(normed, _DROPPED, training=module.training)


class FwrfTraining:
    """A trunk and the heads on it while they are trained.

    Parameters
    ----------
    trunk : GNet
        From `new_trunk`.
    heads : mapping of str to TrainedHead
        Of each subject.
    learning_rate, penalty : float
        Of both Adams; of the weights' absolute values.
    precision : {"float32", "bf16"}
        Of the trunk; heads are read out in float32.
    device : str
        A torch device.
    """

    def __init__(
        self,
        trunk: GNet,
        heads: Mapping[str, TrainedHead],
        *,
        learning_rate: float = 1e-3,
        penalty: float = 0.1,
        precision: Precision = "float32",
        device: str = "cpu",
    ):
        self.trunk = trunk.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heads = nn.ModuleDict({name: head.to(device) for name, head in heads.items()})
        self.device = torch.device(device)
        self._penalty = penalty
        self._half = precision == "bf16"
        self._learnt = [each for each in self.trunk.parameters() if each.requires_grad]
        self.optimisers = {
            "trunk": torch.optim.Adam(self._learnt, learning_rate, betas=(0.9, 0.999)),
            "heads": torch.optim.Adam(self.heads.parameters(), learning_rate, betas=(0.9, 0.999)),
        }

    def step(self, subject: str, images: torch.Tensor, measured: torch.Tensor) -> float:
        """Move the trunk, then the head, each after a pass of its own; return the first loss.

        Parameters
        ----------
        subject : str
            Whose head; no other is moved.
        images : tensor (image, 3, 227, 227)
            By the policy ``"fwrf"``.
        measured : tensor (image, voxel)
            Responses to them.
        """
        images = self._placed(images)
        measured = measured.to(self.device)
        head: TrainedHead = self.heads[subject]  # type: ignore[assignment]
        self.trunk.train()
        first = self._loss(head, self._maps(images), measured)
        self._move("trunk", first, self._learnt)
        with torch.no_grad():
            maps = self._maps(images)
        self._move("heads", self._loss(head, maps, measured), list(head.parameters()))
        return float(first.detach())

    def predict(self, subject: str, images: torch.Tensor) -> torch.Tensor:
        """Return responses (image, voxel) of the trunk as it is used after training."""
        self.trunk.eval()
        head: TrainedHead = self.heads[subject]  # type: ignore[assignment]
        with torch.inference_mode():
            maps = [each.float() for each in self._maps(self._placed(images))]
            return read_out_fwrf(maps, head.fitted).cpu()

    def weights(self) -> Tensors:
        """Return copies of what inference takes: ``trunk.<key>`` and ``heads.<subject>.<key>``."""
        trunk, heads = self.trunk.state_dict(), self.heads.state_dict()
        return copied(trunk, "trunk.") | copied(heads, "heads.")

    def state(self) -> Tensors:
        """Return copies of all that the next step depends on: weights and moments."""
        found = self.weights()
        for name, optimiser in self.optimisers.items():
            found |= moments_of(optimiser, f"{ADAM}{name}.")
        return found

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state`."""
        self.trunk.load_state_dict(below("trunk.", state))
        self.heads.load_state_dict(below("heads.", state))
        for name, optimiser in self.optimisers.items():
            restore_moments(optimiser, state, f"{ADAM}{name}.")

    def _loss(
        self, head: TrainedHead, maps: Sequence[torch.Tensor], measured: torch.Tensor
    ) -> torch.Tensor:
        return fwrf_loss(head(maps), measured, head.w, self._penalty)

    def _move(self, which: str, loss: torch.Tensor, moved: Sequence[torch.Tensor]) -> None:
        optimiser = self.optimisers[which]
        loss.backward(inputs=list(moved))
        optimiser.step()
        # Without gradients Adam leaves the heads of other subjects where they are.
        optimiser.zero_grad(set_to_none=True)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            return [each for _, each in self.trunk.walk(images, tuple(MAPS))]

    def _placed(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device).contiguous(memory_format=torch.channels_last)
