"""Changes of responses that leave what was seen: applied anew in each step of training.

Those of NeuroBridge (time shift, smoothing, channel dropout, noise) with its numbers as defaults,
but for the noise. Responses are those that the network sees, of unit standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    import torch


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shift(_Recipe):
    """Moves each response in time, around the ends of its window.

    Parameters
    ----------
    samples : int
        The most, in either direction.
    """

    kind: Literal["shift"] = "shift"
    samples: int = Field(default=5, ge=1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return changed responses (n, channel, time)."""
        import torch

        n, channels, times = x.shape
        by = torch.randint(-self.samples, self.samples + 1, (n, 1), device=x.device)
        where = (torch.arange(times, device=x.device) - by) % times
        return x.gather(2, where[:, None].expand(n, channels, times))


class Dropout(_Recipe):
    """Sets whole channels to their mean over images.

    Parameters
    ----------
    probability : float
        Of each channel of each response.
    """

    kind: Literal["dropout"] = "dropout"
    probability: float = Field(default=0.1, gt=0, lt=1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return changed responses (n, channel, time)."""
        import torch

        return x * (torch.rand(*x.shape[:2], 1, device=x.device) >= self.probability)


class Smoothing(_Recipe):
    """Replaces channels by their moving average in time.

    Parameters
    ----------
    width : int
        Samples, an odd number.
    probability : float
        Of each channel of each response.
    """

    kind: Literal["smoothing"] = "smoothing"
    width: int = Field(default=5, ge=3)
    probability: float = Field(default=0.3, gt=0, le=1)

    @field_validator("width")
    @classmethod
    def _centred(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("an even width would shift responses in time: type an odd number")
        return value

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return changed responses (n, channel, time)."""
        import torch

        half = self.width // 2
        # Beyond its ends a response goes on as it ends.
        padded = torch.nn.functional.pad(x, (half, self.width - 1 - half), mode="replicate")
        smooth = torch.nn.functional.avg_pool1d(padded, self.width, 1)
        chosen = torch.rand(*x.shape[:2], 1, device=x.device) < self.probability
        return torch.where(chosen, smooth, x)


class Noise(_Recipe):
    """Adds white noise.

    Parameters
    ----------
    sd : float
        Its standard deviation, in those of the responses. Of this order it keeps linear
        networks from fitting the noise of their training trials.
    """

    kind: Literal["noise"] = "noise"
    sd: float = Field(default=2.0, gt=0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return changed responses (n, channel, time)."""
        import torch

        return x + self.sd * torch.randn_like(x)


Augmentation = Annotated[Shift | Dropout | Smoothing | Noise, Field(discriminator="kind")]
