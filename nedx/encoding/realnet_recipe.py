"""What a ReAlnet is built from, beside its weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from nedx.encoding.recipe import EncoderRecipe


class ReAlnetArchitecture(BaseModel):
    """A CORnet-S trunk, and a head that reads responses out of its four areas.

    Parameters
    ----------
    widths : tuple of four int
        Channels of V1, V2, V4 and IT.
    steps : tuple of three int
        How often V2, V4 and IT run.
    classes : int
        Logits of the trunk.
    features : int
        Features that the head makes of each area.
    image_size : int
        Side of the images that the network sees, pixels.
    n_channels, n_times : int
        Outputs: their product, the times of each channel together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (64, 128, 256, 512)
    steps: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 4, 2)
    classes: int = Field(default=1000, ge=1)
    features: int = Field(default=128, ge=1)
    image_size: int = Field(default=224, ge=1)
    n_channels: int = Field(ge=1)
    n_times: int = Field(ge=1)

    @property
    def outputs(self) -> int:
        """Channels times times."""
        return self.n_channels * self.n_times

    @property
    def area_sizes(self) -> tuple[int, ...]:
        """Values of the maps of each area: 200,704, 100,352, 50,176 and 25,088 as published."""
        # Each area halves its maps, V1 twice, and rounds halves up.
        sides = (-(-self.image_size // 2**power) for power in (2, 3, 4, 5))
        return tuple(width * side**2 for width, side in zip(self.widths, sides, strict=True))


class ReAlnetRecipe(EncoderRecipe):
    """Where ReAlnets come from, what they take and predict, and what they are.

    Parameters
    ----------
    architecture : ReAlnetArchitecture
        Of each subject's network; the fields of `EncoderRecipe` are said there.
    """

    architecture: ReAlnetArchitecture
