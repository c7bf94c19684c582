r"""A pyramid of Gabor wavelets: contrast energy by orientation and spatial frequency, no weights.

A filter is a plane wave under a circular Gaussian (Jones & Palmer 1987, J. Neurophysiol. 58:1233)

.. math:: g(x) = 2\,\frac{1}{2\pi\sigma^2}\, e^{-|x|^2 / 2\sigma^2}\, e^{2\pi i\, u_0 \cdot x},
   \qquad u_0 = f\,(\cos\theta, \sin\theta),

whose real and imaginary parts are a quadrature pair; the energy is the modulus of the response,
the root of the sum of the squares of the pair (Adelson & Bergen 1985; Kay et al. 2008, Nature
452:352). Its transfer function is a Gaussian about :math:`u_0` of width :math:`\sigma_u =
1/(2\pi\sigma)`, set to a bandwidth of one octave at half height as in Kay et al. The gain is such
that a grating of amplitude A at a filter's own frequency and orientation gives energy A.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch

from nedx.backbones.taps import Network
from nedx.errors import ModelError

FREQUENCIES = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Spatial frequency of each scale, cycles an image."""
ORIENTATIONS = 8
"""Directions of the wave vector, ``pi * k / 8``: 0 varies along x (vertical bars)."""
SIGMA_RATIO = 1 / (3 * math.sqrt(2 * math.log(2)))
r"""Width of the transfer function over its frequency.

Half height at :math:`f (1 \pm 1/3)`, a ratio of 2: one octave. :math:`\sigma_u = f / (3
\sqrt{2 \ln 2})`.
"""
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue (ITU-R BT.709)."""

_SMALLEST = 64
_PIXELS_PER_CYCLE = 4


class GaborPyramid(Network):
    """Contrast energy at five scales and eight orientations.

    Layers: ``energy_<scale>``, each (n, orientation, y, x) at four or more samples a cycle. The
    mean luminance of each image is taken away, and beyond its edges lies that mean. Images are
    square, in [0, 1], of at least 64 pixels; a scale needs four pixels a cycle.
    """

    float32_only = True

    def layer_names(self) -> tuple[str, ...]:
        """Return ``energy_0`` (coarsest) and so on."""
        return tuple(f"energy_{scale}" for scale in range(len(FREQUENCIES)))

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise ModelError unless images are square and large enough."""
        height, width = shape[2:]
        if height != width or height < _SMALLEST:
            message = (
                f"the Gabor pyramid takes square images of at least {_SMALLEST} pixels, not "
                f"{height} x {width}: type open_images(..., fit='crop', size=128)"
            )
            raise ModelError(message)

    def walk(
        self, images: torch.Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the energy (n, orientation, y, x) of each scale wanted, coarsest first."""
        size = images.shape[-1]
        # The margin keeps what leaves on one side from coming back on the other.
        span = 1.5 if size % 2 == 0 else 2.0
        padded = int(span * size)
        weights = torch.tensor(LUMINANCE, device=images.device)
        luminance = torch.einsum("ncyx,c->nyx", images.float(), weights)
        luminance = luminance - luminance.mean((1, 2), keepdim=True)
        spectrum = torch.fft.fft2(luminance, s=(padded, padded)) / padded**2
        for scale, frequency in enumerate(FREQUENCIES):
            name = f"energy_{scale}"
            if wanted and name not in wanted:
                continue
            self._check_scale(name, frequency, size)
            side = min(max(int(_PIXELS_PER_CYCLE * frequency), 32), size - size % 2)
            grid = int(span * side)
            transfer = _transfer(frequency, grid, span, images.device)
            low = _crop(spectrum, grid)
            waves = torch.fft.ifft2(low[:, None] * transfer, norm="forward")
            yield name, waves[..., :side, :side].abs()

    @staticmethod
    def _check_scale(name: str, frequency: float, size: int) -> None:
        if size < _PIXELS_PER_CYCLE * frequency:
            message = (
                f"{name} ({frequency:g} cycles an image) needs images of at least "
                f"{_PIXELS_PER_CYCLE * frequency:g} pixels, not {size}"
            )
            raise ModelError(message)


def _frequencies(grid: int, device: torch.device) -> torch.Tensor:
    """Return the signed index of each Fourier coefficient, in FFT order."""
    return torch.fft.fftfreq(grid, d=1 / grid, device=device)


def _transfer(frequency: float, grid: int, span: float, device: torch.device) -> torch.Tensor:
    """Return the transfer functions (orientation, v, u) of one scale; no response to the mean."""
    cycles = _frequencies(grid, device) / span
    angles = torch.arange(ORIENTATIONS, device=device) * (math.pi / ORIENTATIONS)
    along = cycles[None, None, :] - frequency * angles.cos()[:, None, None]
    down = cycles[None, :, None] - frequency * angles.sin()[:, None, None]
    sigma = SIGMA_RATIO * frequency
    transfer = 2 * torch.exp(-(along.square() + down.square()) / (2 * sigma**2))
    transfer[:, 0, 0] = 0
    return transfer


def _crop(spectrum: torch.Tensor, grid: int) -> torch.Tensor:
    """Keep the ``grid`` lowest coefficients of each axis: an ideal reduction in size."""
    if spectrum.shape[-1] == grid:
        return spectrum
    kept = _frequencies(grid, spectrum.device).long() % spectrum.shape[-1]
    return spectrum[:, kept[:, None], kept[None, :]]
