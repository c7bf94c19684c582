"""The DISTS term: features whose means and covariances over space agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_TINY = 1e-6


@dataclass(frozen=True)
class Dists:
    """Rewards features that resemble the targets in texture and in structure.

    Ding et al. 2020, Image quality assessment: unifying structure and texture similarity, applied
    to features as in the content-loss converters (Nat Comput Sci 2025, 5:534).

    Parameters
    ----------
    alpha, beta : mapping of str to float
        What the agreement of means, and that of covariances, counts in each layer. Layers that
        are not named are left out.
    weight : float
        Of the whole term, beside the squared distance.
    """

    alpha: Mapping[str, float]
    beta: Mapping[str, float]
    weight: float = 343639.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            plain = {str(layer): float(value) for layer, value in getattr(self, name).items()}
            object.__setattr__(self, name, plain)

    @property
    def layers(self) -> set[str]:
        """The layers that are named."""
        return {*self.alpha, *self.beta}

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def term(self, layer: str, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return what is added to the objective for one layer, ``(image,)``.

        Parameters
        ----------
        layer : str
        features, target : tensor (image, channel, y, x) or (image, unit)
        """
        means, covariances = similarities(features, target)
        similar = self.alpha.get(layer, 0) * means + self.beta.get(layer, 0) * covariances
        return -self.weight * similar


def similarities(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how similar means and covariances are, averaged over channels.

    Parameters
    ----------
    features, target : tensor (image, channel, y, x) or (image, unit)
        Moments are taken over space, or over units.

    Returns
    -------
    means : tensor (image,)
        ``(2 a b + c) / (a^2 + b^2 + c)`` of the means a and b, with c = 1e-6.
    covariances : tensor (image,)
        ``(2 cov + c) / (var + var + c)``.
    """
    first, second = (_by_channel(values) for values in (features, target))
    a, b = first.mean(2), second.mean(2)
    # Less their means, not means less squares: features far from zero would cancel to nothing.
    ours, theirs = first - a[..., None], second - b[..., None]
    product = (ours * theirs).mean(2)
    squares = (ours**2).mean(2) + (theirs**2).mean(2)
    means = (2 * a * b + _TINY) / (a**2 + b**2 + _TINY)
    covariances = (2 * product + _TINY) / (squares + _TINY)
    return means.mean(1), covariances.mean(1)


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    """Return (image, channel, place); units are places of one channel."""
    return values.flatten(2) if values.ndim > 2 else values[:, None]
