"""How far the features of images are from those wanted: a sum over layers (Shen et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nedx.errors import ModelError
from nedx.reconstruction.inversion.dists import Dists

if TYPE_CHECKING:
    import torch


def _l2(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (features - target).flatten(1).square().sum(1)


def _l1(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (features - target).flatten(1).abs().sum(1)


def _inner(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(features * target).flatten(1).sum(1)


def _gram(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    channels, places = features.shape[1], features[0, 0].numel()
    ours, wanted = (f.flatten(2) if f.ndim > 2 else f[..., None] for f in (features, target))
    apart = ours @ ours.transpose(1, 2) - wanted @ wanted.transpose(1, 2)
    return apart.flatten(1).square().sum(1) / (4 * channels**2 * places**2)


LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l2": _l2,
    "l1": _l1,
    "inner": _inner,
    "gram": _gram,
}
"""Of one layer: the sum of squared differences or of absolute ones, minus the inner product, or the
squared difference of Gram matrices of N channels at M places over 4 N^2 M^2."""


def layer_weights(norms: np.ndarray, layers: Sequence[str] = ()) -> np.ndarray:
    """Return the weight of each layer: one over its squared norm, summing to 1 over layers.

    Parameters
    ----------
    norms : ndarray of float64 (..., layer)
        Sums of squares of the features wanted, after scaling.
    layers : sequence of str, optional
        What to call them in the error.

    Returns
    -------
    ndarray of float64 (..., layer)

    Raises
    ------
    ModelError
        If a norm is zero: features that are all zero have no weight.
    """
    if not (norms > 0).all():
        fine: list[bool] = np.all(norms.reshape(-1, norms.shape[-1]) > 0, axis=0).tolist()
        names = layers or range(len(fine))
        named = ", ".join(str(name) for name, ok in zip(names, fine, strict=True) if not ok)
        raise ModelError(
            f"the features of a layer are all zero ({named}), and one over their norm is its "
            "weight; leave this layer out of the encoder, or look at the decoder"
        )
    inverse = 1 / norms
    return inverse / inverse.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Objective:
    """The objective of several images, each with features and layer weights of its own.

    Parameters
    ----------
    targets : mapping of str to tensor (image, *unit)
        The features wanted, by layer.
    weights : tensor (image, layer)
        In the order of `targets`.
    loss : str
        One of `LOSSES`.
    dists : Dists, optional
        A term to add.
    """

    targets: Mapping[str, torch.Tensor]
    weights: torch.Tensor
    loss: str = "l2"
    dists: Dists | None = None

    @classmethod
    def of(
        cls,
        targets: Mapping[str, np.ndarray],
        device: str,
        dtype: torch.dtype,
        loss: str = "l2",
        dists: Dists | None = None,
    ) -> Objective:
        """Make it of features (image, *unit); weights are computed in float64."""
        import torch

        flat = (values.reshape(len(values), -1) for values in targets.values())
        norms = np.stack([np.einsum("ij,ij->i", f, f, dtype=np.float64) for f in flat], axis=-1)
        weights = torch.from_numpy(layer_weights(norms, [*targets]))
        on_device = {
            name: torch.from_numpy(values).to(device, dtype) for name, values in targets.items()
        }
        return cls(on_device, weights.to(device, dtype), loss, dists)

    def __call__(self, features: Mapping[str, torch.Tensor], part: slice) -> torch.Tensor:
        """Return the objective (image,) of some of the images.

        Parameters
        ----------
        features : mapping of str to tensor (image, *unit)
            Of these images.
        part : slice
            Which of all images these are.
        """
        import torch

        kernel = LOSSES[self.loss]
        terms = []
        for index, (name, target) in enumerate(self.targets.items()):
            terms.append(self.weights[part, index] * kernel(features[name], target[part]))
            if self.dists is not None and name in self.dists.layers:
                terms.append(self.dists.term(name, features[name], target[part]))
        return torch.stack(terms).sum(0)
