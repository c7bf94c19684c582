"""How images of several sizes are brought to one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from nedx.errors import StimulusError
from nedx.stimuli.decoding import BACKGROUND

FitMode = Literal["error", "crop", "resize", "pad"]
MODES = ("error", "crop", "resize", "pad")


@dataclass(frozen=True)
class Fit:
    """What is done to an image so that it gets the common size.

    Resizing is bilinear with antialias, within one grey level of Pillow's.

    Parameters
    ----------
    mode : {"error", "crop", "resize", "pad"}
        ``error`` refuses any other size; ``crop`` cuts the largest centred part of the right
        proportions and resizes it; ``resize`` stretches; ``pad`` resizes the whole image to fit
        in, and fills the rest with mid-grey.
    y, x : int
        The common size in pixels.
    """

    mode: FitMode
    y: int
    x: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Bring uint8 (y, x, rgb) to the common size.

        Raises
        ------
        StimulusError
            If the mode is ``error`` and the size differs.
        """
        height, width = image.shape[:2]
        if (height, width) == (self.y, self.x):
            return image
        if self.mode == "error":
            raise StimulusError(
                f"it is {height} x {width} pixels, where {self.y} x {self.x} were found at "
                "opening. Open the images again"
            )
        if self.mode == "resize":
            return _resize(image, self.y, self.x)
        if self.mode == "crop":
            scale = min(height / self.y, width / self.x)
            tall, wide = max(1, round(self.y * scale)), max(1, round(self.x * scale))
            top, left = (height - tall) // 2, (width - wide) // 2
            return _resize(image[top : top + tall, left : left + wide], self.y, self.x)
        scale = max(height / self.y, width / self.x)
        tall, wide = max(1, round(height / scale)), max(1, round(width / scale))
        padded = np.full((self.y, self.x, 3), BACKGROUND, np.uint8)
        top, left = (self.y - tall) // 2, (self.x - wide) // 2
        padded[top : top + tall, left : left + wide] = _resize(image, tall, wide)
        return padded

    def describe(self) -> dict[str, Any]:
        """Return the fit as JSON types, for attributes."""
        return {"fit": self.mode, "size": [self.y, self.x]}


def choose_fit(
    sizes: Sequence[tuple[int, int]], fit: str, size: int | tuple[int, int] | None
) -> Fit:
    """Settle on the common size, from the sizes that there are.

    Parameters
    ----------
    sizes : sequence of (int, int)
        Height and width of each image.
    fit : {"error", "crop", "resize", "pad"}
        What the user wants done.
    size : int or (int, int), optional
        The common size, square if one number. By default the size that all have; for ``crop``
        and ``pad`` of equal images that are not square, a square of the shorter or longer side.

    Returns
    -------
    Fit

    Raises
    ------
    StimulusError
        If sizes differ, or differ from ``size``, and it is not said what to do.
    """
    if fit not in MODES:
        raise StimulusError(f"unknown fit {fit!r}; there are: {', '.join(MODES)}")
    mode = cast(FitMode, fit)
    counts = Counter(sizes)
    wanted = _as_pair(size)
    if mode == "error":
        if len(counts) > 1 or (wanted and set(counts) != {wanted}):
            raise StimulusError(_differing(counts, wanted))
        return Fit(mode, *next(iter(counts)))
    if wanted is None:
        if len(counts) > 1:
            raise StimulusError(_differing(counts, wanted, mode))
        y, x = next(iter(counts))
        side = {"crop": (min(y, x),) * 2, "pad": (max(y, x),) * 2, "resize": (y, x)}
        wanted = side[mode]
    return Fit(mode, *wanted)


def _as_pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    y, x = (size, size) if isinstance(size, int | np.integer) else size
    if min(y, x) < 1:
        raise StimulusError(f"size must be positive, not {size}")
    return int(y), int(x)


def _differing(
    counts: Counter[tuple[int, int]], wanted: tuple[int, int] | None, mode: str | None = None
) -> str:
    """List the sizes found, and what to type."""
    common = counts.most_common(6)
    listed = ", ".join(f"{y} x {x} ({n} image{'s' if n > 1 else ''})" for (y, x), n in common)
    more = f", and {len(counts) - 6} more sizes" if len(counts) > 6 else ""
    found = f"sizes found (y x x): {listed}{more}"
    side = min(min(pair) for pair in counts) if wanted is None else max(wanted)
    if mode is not None:
        return f'fit="{mode}" of images that differ needs a size; {found}. Type: size={side}'
    expected = "one size" if wanted is None else f"{wanted[0]} x {wanted[1]} pixels"
    return (
        f'expected {expected}; {found}. Type one of: fit="crop", size={side} (centre), '
        f'fit="resize", size={side} (stretch), fit="pad", size={side} (whole image on grey)'
    )


def _resize(image: np.ndarray, y: int, x: int) -> np.ndarray:
    if image.shape[:2] == (y, x):
        return image
    from nedx.stimuli.preprocessing import resize_pixels

    return resize_pixels(image, y, x)
