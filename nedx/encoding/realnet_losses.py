"""What a ReAlnet is trained by: responses and the logits of the trunk it began as.

Lu, Wang & Golomb, Achieving more human brain-like vision via human EEG representational
alignment (arXiv:2401.17231).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Contrastive = Literal["pearson", "monitor"]


def generation_loss(
    predicted: torch.Tensor, measured: torch.Tensor, contrastive: Contrastive | None
) -> torch.Tensor:
    """Return how far predicted responses are from those measured.

    With the correlation ``rho`` between predicted responses ``i`` and measured ones ``j``, over
    channels and times::

        L = mean (p - y)^2 + [1 - mean_i rho(p_i, y_i) + mean_{i != j} rho(p_i, y_j)]

    Parameters
    ----------
    predicted, measured : tensor (image, output)
        In the units of the responses.
    contrastive : {"pearson", "monitor"}, optional
        What ``rho`` is. ``"pearson"`` has a gradient; ``"monitor"`` is Spearman's, as published,
        which has none: it shows in the loss and in the choice of the epoch alone. Without it the
        bracket is left out.

    Returns
    -------
    tensor ()
    """
    distance = F.mse_loss(predicted, measured)
    if contrastive is None:
        return distance
    if contrastive == "pearson":
        return distance + contrast(pearson(predicted, measured))
    with torch.no_grad():
        shown = contrast(pearson(ranks(predicted), ranks(measured)))
    return distance + shown


def task_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of logits (image, class) from those of the teacher, ()."""
    return F.mse_loss(logits, teacher)


def contrast(rho: torch.Tensor) -> torch.Tensor:
    """Return 1 - mean on + mean off the diagonal of correlations (image, image), ()."""
    count = len(rho)
    own = rho.diagonal().sum()
    others = (rho.sum() - own) / max(1, count * (count - 1))
    return 1 - own / count + others


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlate the rows of (n, output) with those of (m, output), (n, m); 0 for constant rows."""
    first, second = (F.normalize(each - each.mean(1, keepdim=True), dim=1) for each in (a, b))
    return first @ second.T


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank each row of (n, output), float32; equal values have the mean of their ranks."""
    from scipy.stats import rankdata

    ranked = rankdata(values.detach().cpu().numpy(), axis=1)
    return torch.from_numpy(ranked).to(values.device, torch.float32)
