"""What embeddings are trained towards: contrastive losses and distances, on plain tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

LogitScale = Literal["exp", "softplus", "linear", "fixed"]

INITIAL_SCALE = math.log(1 / 0.07)
"""What the logit scale is made of at the start."""
_LARGEST_SCALE = 100.0


def logit_scale(parameter: torch.Tensor, kind: LogitScale) -> torch.Tensor:
    """Return what similarities are multiplied by.

    Parameters
    ----------
    parameter : tensor ()
        Learnt; `INITIAL_SCALE` at the start.
    kind : {"exp", "softplus", "linear", "fixed"}
        ``exp(s)``, at most 100 (Radford et al. 2021, Learning transferable visual models from
        natural language supervision; 14.29 at the start); ``log(1 + exp(s))``; ``s`` itself, as
        in NECOMIMI; or 1 / 0.07 always.
    """
    if kind == "fixed":
        return torch.full_like(parameter, math.exp(INITIAL_SCALE))
    if kind == "exp":
        return parameter.exp().clamp(max=_LARGEST_SCALE)
    return F.softplus(parameter) if kind == "softplus" else parameter


def compared(embedding: torch.Tensor, kind: LogitScale) -> torch.Tensor:
    """Return embeddings (n, feature) as they are compared with targets of unit norm.

    With ``"exp"`` and ``"fixed"`` they have unit norm too, with the others they stay as the last
    normalisation leaves them, of norm sqrt(feature): so do the systems that use these.
    """
    return F.normalize(embedding, dim=1) if kind in ("exp", "fixed") else embedding


def contrastive_loss(
    embedding: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor | float,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy of finding targets by embeddings, and the other way round.

    With ``S = scale embedding target'``, the mean over rows of ``logsumexp(S) - diag(S)``, of
    ``S`` and of its transpose, halved (Radford et al. 2021, figure 3). Nothing is normalised.

    Parameters
    ----------
    embedding, target : tensor (n, feature)
        Of n pairs.
    scale : tensor () or float
        Of the similarities.
    same : bool tensor (n, n), optional
        Pairs of one target: off the diagonal they are no negatives, and are left out.

    Returns
    -------
    tensor ()
        ln(n) where all are alike.
    """
    logits = scale * embedding @ target.T
    true = torch.arange(len(logits), device=logits.device)
    if same is not None:
        wrong = same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(wrong, -torch.inf)
    return (F.cross_entropy(logits, true) + F.cross_entropy(logits.T, true)) / 2


def distance_loss(embedding: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of embeddings and targets (n, feature) of unit norm.

    ``2 - 2 cos``, from 0 to 4; the MSE of unit vectors times their width, so that its weight
    means the same for targets of any width.
    """
    difference = F.normalize(embedding, dim=1) - F.normalize(target, dim=1)
    return difference.square().sum(1).mean()
