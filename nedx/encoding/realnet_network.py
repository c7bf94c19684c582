"""ReAlnet: CORnet-S with a head that reads EEG out of its areas.

Lu, Wang & Golomb, Achieving more human brain-like vision via human EEG representational
alignment (arXiv:2401.17231).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nedx.backbones.cornet_s import AREAS, CORnetS
from nedx.encoding.realnet_recipe import ReAlnetArchitecture
from nedx.errors import ModelError


class ReAlnet(nn.Module):
    """Each area to some features and a rectifier, side by side, to all channels and times.

    ``state_dict`` has the keys of the published files without what `DataParallel` put into them:
    ``realnet.V1.conv1.weight``, ``fc_v1.weight``, ``fc.weight`` and so on.

    Parameters
    ----------
    architecture : ReAlnetArchitecture
        Sizes of all its parts.
    """

    def __init__(self, architecture: ReAlnetArchitecture):
        super().__init__()
        shape = architecture
        self.realnet = CORnetS(shape.widths, shape.steps, shape.classes)
        for name, size in zip(AREAS, shape.area_sizes, strict=True):
            self.add_module(_head(name), nn.Linear(size, shape.features))
        self.fc = nn.Linear(len(AREAS) * shape.features, shape.outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what one pass through the trunk gives.

        Parameters
        ----------
        images : tensor (image, 3, y, x)
            Preprocessed.

        Returns
        -------
        tuple of tensor (image, class) and tensor (image, output)
            Logits of the trunk, and responses, the times of each channel together.
        """
        parts = []
        logits = images
        for name, activation in self.realnet.walk(images, AREAS):
            if name in AREAS:
                parts.append(self._feature(name, activation.flatten(1)))
            else:
                logits = activation
        return logits, self.fc(torch.cat(parts, 1))

    def predict(self, images: torch.Tensor, outputs: torch.Tensor, height: int) -> torch.Tensor:
        """Return some of the outputs (image, output), without gradients.

        Parameters
        ----------
        images : tensor (image, 3, y, x)
            Preprocessed.
        outputs : tensor of int64, (output,)
            Which.
        height : int
            Rows of all products, at least those of the images: products of other heights are
            rounded otherwise, and chunks would show in results.
        """
        filling = (0, 0, 0, height - len(images))
        with torch.inference_mode():
            parts = [
                self._feature(name, F.pad(activation.flatten(1), filling))
                for name, activation in self.realnet.walk(images, AREAS)
                if name in AREAS
            ]
            rows = F.linear(torch.cat(parts, 1), self.fc.weight[outputs], self.fc.bias[outputs])
            return rows[: len(images)]

    def _feature(self, area: str, flat: torch.Tensor) -> torch.Tensor:
        return F.relu(self.get_submodule(_head(area))(flat))


def build(architecture: ReAlnetArchitecture, state: Mapping[str, np.ndarray]) -> ReAlnet:
    """Build a network of stored tensors, as it is used after training.

    Raises
    ------
    ModelError
        If they are not those of the architecture; every fault is named.
    """
    with torch.device("meta"):
        network = ReAlnet(architecture)
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in state.items()}
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelError(f"these are not the weights of this ReAlnet: {error}") from error
    return network.eval().requires_grad_(requires_grad=False)


def _head(area: str) -> str:
    return f"fc_{area.lower()}"
