"""The network of the low-level branch: from responses to the latents of an autoencoder."""

from __future__ import annotations

import torch
from torch import nn

from nedx.errors import ModelError

TIME_WIDTH = 128
_NARROWEST = 8


class LowLevelNetwork(nn.Module):
    """Doubles one pixel with many channels until it is a latent.

    The low-level branch of ATM (Li et al. 2024, NeurIPS): a linear layer over time, dropout, and
    transposed convolutions of 1,024, 512, ..., 32 channels, six for latents of 64 x 64, each with
    batch normalisation and ReLU; a 1 x 1 convolution makes the channels of the latent. The paper
    has one linear layer a subject; here a network is of one subject.

    Parameters
    ----------
    n_channels, n_times : int
        Shape of the responses to one image.
    latent_shape : (int, int, int)
        Channels, height and width of a latent; height and width are the same power of two.
    dropout : float
        After the linear layer.
    width : int
        Channels of the first transposed convolution, halved in each that follows.

    Raises
    ------
    ModelError
        If the latent has another shape.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        latent_shape: tuple[int, int, int],
        dropout: float = 0.5,
        width: int = 1024,
    ):
        super().__init__()
        channels, height, across = latent_shape
        doublings = height.bit_length() - 1
        if height != across or 2**doublings != height or doublings < 1:
            raise ModelError(
                f"latents are {height} x {across}; the network makes square ones whose side is a "
                "power of two"
            )
        self.time = nn.Linear(n_times, TIME_WIDTH)
        self.dropout = nn.Dropout(dropout)
        layers: list[nn.Module] = []
        before = n_channels * TIME_WIDTH
        for doubling in range(doublings):
            after = max(_NARROWEST, width >> doubling)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            before = after
        self.grow = nn.Sequential(*layers)
        self.mix = nn.Conv2d(before, channels, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.parameters())

    def forward(self, responses: torch.Tensor) -> torch.Tensor:
        """Return latents (sample, channel, y, x) of responses (sample, channel, time)."""
        x = self.dropout(self.time(responses)).flatten(1)
        latent: torch.Tensor = self.mix(self.grow(x[:, :, None, None]))
        return latent
