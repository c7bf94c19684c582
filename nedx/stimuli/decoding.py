"""From image files to uint8 RGB, with every conversion on the way stated.

What becomes of files that are not plain RGB:

- grey is repeated over the three colours;
- palettes are looked up;
- CMYK is converted as Pillow does, colour profiles are not applied;
- transparency is laid over mid-grey (128, 128, 128);
- EXIF orientation is applied, so that an image stands as viewers show it;
- of an animation the first frame is taken;
- 16-bit and floating-point grey is refused: its range is not known.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from nedx.errors import StimulusError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""The file names that count as images when a folder is opened."""

BACKGROUND = (128, 128, 128)
"""What shows through transparent pixels, and what pads an image."""

FAULTS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, StimulusError)
"""What decoding a broken file may raise; Pillow says SyntaxError of a broken PNG."""

# What stands at the end of a whole file; some programs add data of their own after it.
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL_BYTES = 4096

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Item = TypeVar("Item")
Result = TypeVar("Result")


def decode_image(source: bytes | str | os.PathLike[str]) -> np.ndarray:
    """Decode one image to RGB; the module says how other kinds are converted.

    JPEG goes through simplejpeg where that is installed (``pip install 'nedx[fast]'``), which
    gives the same pixels as Pillow sooner. Both leave the GIL while they work.

    Parameters
    ----------
    source : bytes or path
        The contents of a file, or where it is.

    Returns
    -------
    numpy.ndarray of uint8, (y, x, rgb)

    Raises
    ------
    StimulusError
        If the image is truncated, empty, of an unknown kind, or grey of more than 8 bits.
    OSError
        If the file cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise StimulusError("the file is empty")
    try:
        pixels = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else None
        return _decode_any(data) if pixels is None else pixels
    except StimulusError:
        raise
    except FAULTS as error:
        raise StimulusError(_short(error)) from error


def read_header(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return height and width that a file will have once decoded, reading its two ends only.

    A file whose end looks cut off is decoded to be sure.

    Raises
    ------
    StimulusError
        If it is empty, cut off, not an image, or of a kind that `decode_image` refuses.
    """
    try:
        if Path(path).stat().st_size == 0:
            raise StimulusError("the file is empty")
        with Image.open(path) as image:
            _refuse_deep(image)
            x, y = image.size
            shape = (x, y) if _orientation(image) >= 5 else (y, x)
            end = _ENDS.get(image.format or "")
        if end is not None and end not in _tail(path):
            decode_image(path)
        return shape
    except StimulusError:
        raise
    except FAULTS as error:
        raise StimulusError(_short(error)) from error


def _tail(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
        return file.read()


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> list[Result]:
    """Apply a function that leaves the GIL (decoding, resizing) to items, in order.

    Parameters
    ----------
    function : callable
        What to do with one item.
    items : iterable
        What to do it with.
    workers : int, optional
        Threads; by default twice the cores, at most 32, since files are waited for.
    """
    workers = workers or min(32, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="nedx-images") as pool:
        return list(pool.map(function, items))


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a grey or colour JPEG that stands upright; None for what Pillow must do."""
    module = _simplejpeg()
    if module is None:
        return None
    if b"Exif\x00" in data[:65536]:
        with Image.open(io.BytesIO(data)) as image:
            if _orientation(image) != 1:
                return None
    colour: str = module.decode_jpeg_header(data)[2]
    if colour not in ("Gray", "RGB", "YCbCr"):
        return None
    pixels: np.ndarray = module.decode_jpeg(data, "RGB")
    return pixels


def _decode_any(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        _refuse_deep(image)
        orientation = _orientation(image)
        flat = _flatten(image)
        if orientation != 1:
            flat = flat.transpose(_TURNS[orientation])
        # A copy, since what Pillow lends is read-only.
        return np.array(flat)


def _flatten(image: Image.Image) -> Image.Image:
    """Convert any 8-bit mode to RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    below = Image.new("RGBA", layered.size, (*BACKGROUND, 255))
    return Image.alpha_composite(below, layered).convert("RGB")


def _refuse_deep(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise StimulusError(
            f"its pixels are {image.mode!r}, more than 8 bits of grey; "
            "save it as 8-bit, for example with Pillow: "
            "Image.fromarray((values / values.max() * 255).astype('uint8')).save(path)"
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, without decoding."""
    # Pillow decodes a PNG when it is asked for EXIF data that do not stand before the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    found: Any = image.getexif().get(_ORIENTATION, 1)
    return found if found in _TURNS else 1


def _short(error: BaseException) -> str:
    """Say in a line what a decoder complained of."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
