"""Named, exact preprocessing: from uint8 pixels to the float tensors that networks take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from nedx.errors import StimulusError, close_matches

if TYPE_CHECKING:
    import torch

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class ImagePolicy(BaseModel):
    """What happens to an image between its pixels and a network, step by step.

    The steps are, in this order: a centre crop to the shorter side, an antialiased resize that
    gives uint8, a centre crop, the order of the colours, ``(scale * value - mean)
    / std``.

    Parameters
    ----------
    name : str
        What results are labelled with.
    square_crop : bool
        Whether to crop the centre to the shorter side first.
    resize : int, optional
        Side in pixels to resize to; None leaves the size.
    resize_to : {"exact", "shorter"}
        Whether both sides become ``resize``, or the shorter one.
    crop : int, optional
        Side of the centre crop after resizing; None leaves the size.
    interpolation : {"bilinear", "bicubic"}
        Of the resize.
    arithmetic : {"float32", "uint8"}
        Whether the resize works in float32 and rounds once, as torchvision does for tensors, or
        in fixed-point numbers and rounds after each axis, as Pillow does. They differ by at most
        one grey level, and two where the resize is bicubic.
    order : {"rgb", "bgr"}
        Order of the colours that the network takes.
    scale : float
        What the values 0 to 255 are multiplied with; ``1 / 255`` divides by 255.
    mean, std : tuple of 3 floats
        In scaled units and in the order of the network.
    require_square : bool
        Whether images that are not square are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    square_crop: bool = False
    resize: int | None = None
    resize_to: Literal["exact", "shorter"] = "exact"
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    arithmetic: Literal["float32", "uint8"] = "uint8"
    order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    require_square: bool = False

    @model_validator(mode="after")
    def _crop_fits(self) -> ImagePolicy:
        if self.crop is not None and (self.resize is None or self.crop > self.resize):
            raise ValueError(f"crop={self.crop} needs a resize to at least that many pixels")
        return self

    def resized_shape(self, y: int, x: int) -> tuple[int, int]:
        """Return height and width after the resize, for an image of ``y`` by ``x`` pixels."""
        if self.square_crop:
            y = x = min(y, x)
        if self.resize is None:
            return y, x
        if self.resize_to == "exact":
            return self.resize, self.resize
        short, long = sorted((y, x))
        long = int(self.resize * long / short)
        return (self.resize, long) if y <= x else (long, self.resize)

    def output_shape(self, y: int, x: int) -> tuple[int, int]:
        """Return height and width that the network sees, for an image of ``y`` by ``x`` pixels."""
        return (self.crop, self.crop) if self.crop else self.resized_shape(y, x)

    def describe(self) -> dict[str, Any]:
        """Return the policy as JSON types, for the attribute ``image_preprocessing``."""
        resize = self.resize and {
            "side": self.resize,
            "to": self.resize_to,
            "interpolation": self.interpolation,
            "antialias": True,
            "arithmetic": self.arithmetic,
        }
        return {
            "policy": self.name,
            "square_crop": self.square_crop,
            "resize": resize,
            "crop": self.crop,
            "order": self.order,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "require_square": self.require_square,
        }


_IMAGENET: dict[str, Any] = {"mean": _IMAGENET_MEAN, "std": _IMAGENET_STD}
# torchvision's ImageClassification preset on a uint8 tensor: float resize, rounded.
_PRESET: dict[str, Any] = {
    **_IMAGENET,
    "resize": 256,
    "resize_to": "shorter",
    "crop": 224,
    "arithmetic": "float32",
}

_CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
# Pillow's resize, as the networks were published with.
_BICUBIC: dict[str, Any] = {"resize_to": "shorter", "crop": 224, "interpolation": "bicubic"}

POLICIES: dict[str, ImagePolicy] = {
    policy.name: policy
    for policy in (
        ImagePolicy(name="berg", require_square=True, **_PRESET),
        ImagePolicy(name="imagenet", **_PRESET),
        ImagePolicy(name="train", square_crop=True, resize=224, **_IMAGENET),
        ImagePolicy(name="fwrf", resize=227, require_square=True),
        ImagePolicy(
            name="squeezenet_keras",
            resize=227,
            order="bgr",
            scale=1.0,
            mean=(104.0, 117.0, 123.0),
            require_square=True,
        ),
        ImagePolicy(
            name="caffe",
            resize=224,
            order="bgr",
            scale=1.0,
            mean=(104.00698793, 116.66876762, 122.67891434),
        ),
        ImagePolicy(name="raw01"),
        ImagePolicy(name="clip", resize=224, **_BICUBIC, **_CLIP),
        ImagePolicy(name="dinov2", resize=256, **_BICUBIC, **_IMAGENET),
    )
}
"""The policies by name.

- ``berg``: what BERG and NED apply at inference, torchvision's
  ``ViT_B_32_Weights.IMAGENET1K_V1.transforms()`` on a uint8 tensor, for square images.
- ``imagenet``: the same, without asking for a square.
- ``train``: what BERG's linear models were trained on: the whole square image at 224 pixels.
- ``fwrf``: 227 pixels, divided by 255, for square images (the NSD feature-weighted models).
- ``squeezenet_keras``: 227 pixels, BGR minus (104, 117, 123) (SqueezeNet 1.1 of Keras).
- ``caffe``: 224 pixels, BGR minus the mean of ILSVRC 2012 (the published VGG19 of Caffe).
- ``raw01``: divided by 255, the size as it is.
- ``clip``: the shorter side at 224 pixels, its centre: CLIP and OpenCLIP at inference.
- ``dinov2``: the shorter side at 256 pixels, the central 224: DINOv2 at inference.
"""

_ANY_SIDE = ("clip", "dinov2")
"""Policies that networks of other sizes share: ``"clip:336"`` gives them 336 pixels."""


def policy(name: str | ImagePolicy) -> ImagePolicy:
    """Return a policy by name; a policy passes through.

    ``"clip"`` and ``"dinov2"`` may be followed by the side of the images that the network takes,
    as in ``"clip:336"``.

    Raises
    ------
    StimulusError
        If no policy has that name.
    """
    if isinstance(name, ImagePolicy):
        return name
    base, _, side = name.partition(":")
    if base in _ANY_SIDE and side.isdecimal() and int(side):
        found = POLICIES[base]
        resize = round(int(side) * (found.resize or 0) / (found.crop or 1))
        changes = {"name": name, "resize": resize, "crop": int(side)}
        return found.model_copy(update=changes)
    if name not in POLICIES:
        raise StimulusError(
            f"unknown preprocessing policy {name!r}; {close_matches(name, POLICIES)} "
            "An ImagePolicy of your own is accepted too."
        )
    return POLICIES[name]


# `policy` is also the name of an argument below.
_find = policy


def check_pixels(dtype: Any, shape: tuple[int, ...], policy: str | ImagePolicy) -> None:
    """Refuse pixels that a policy cannot take, from dtype and shape alone.

    Parameters
    ----------
    dtype : dtype-like
        Must be uint8.
    shape : tuple of int
        ``(image, y, x, rgb)``.
    policy : str or ImagePolicy
        The policy they are meant for.

    Raises
    ------
    StimulusError
        If dtype or axes are wrong, or images are not square under a policy that needs it.
    """
    chosen = _find(policy)
    check_layout(dtype, shape)
    y, x = shape[1:3]
    if chosen.require_square and y != x:
        raise StimulusError(
            f"the policy {chosen.name!r} takes square images; these are {y} x {x} pixels (y, x). "
            f'Type: nedx.open_images(source, fit="crop", size={min(y, x)}), '
            "or choose a policy that crops ('train', 'imagenet')"
        )


def check_layout(dtype: Any, shape: tuple[int, ...], sample: np.ndarray | None = None) -> None:
    """Refuse what is not uint8 of shape ``(image, y, x, rgb)``.

    Parameters
    ----------
    dtype : dtype-like
        Must be uint8.
    shape : tuple of int
        Must have 4 axes, the last of size 3.
    sample : numpy.ndarray, optional
        A few of the values, so that the error can say what to do with their range.

    Raises
    ------
    StimulusError
        Saying what to type instead.
    """
    dtype = np.dtype(dtype)
    if dtype != np.uint8:
        raise StimulusError(f"pixels must be uint8, these are {dtype}{_cast_advice(dtype, sample)}")
    if len(shape) == 4 and shape[-1] == 3 and min(shape[1:3]) > 0:
        return
    found = f"pixels must have axes (image, y, x, rgb), these have shape {tuple(shape)}"
    if len(shape) == 4 and shape[1] == 3:
        raise StimulusError(f"{found}: colour comes second. Type: images.transpose(0, 2, 3, 1)")
    if len(shape) == 3 and shape[-1] == 3:
        raise StimulusError(f"{found}: a single image. Type: images[None]")
    if len(shape) == 3:
        raise StimulusError(f"{found}: grey. Type: np.repeat(images[..., None], 3, axis=-1)")
    if len(shape) == 4 and shape[-1] == 4:
        raise StimulusError(f"{found}: with transparency. Type: images[..., :3]")
    if len(shape) == 4 and shape[-1] == 1:
        raise StimulusError(f"{found}: grey. Type: np.repeat(images, 3, axis=-1)")
    raise StimulusError(found)


def _cast_advice(dtype: np.dtype, sample: np.ndarray | None) -> str:
    """Say how to make uint8 of another type; never guess where the range does not tell."""
    unit = "(255 * images).round().astype(np.uint8)"
    bytes_ = "images.round().astype(np.uint8)" if dtype.kind == "f" else "images.astype(np.uint8)"
    if dtype.kind == "b":
        return ". Type: images.astype(np.uint8) * 255"
    if dtype.kind not in "fiu":
        return ". Type: [np.asarray(image) for image in images] if they are images of several sizes"
    if sample is None or not sample.size:
        if dtype.kind == "f":
            return f". Type: {unit} if they are 0 to 1, or {bytes_} if they are 0 to 255"
        return f". Type: {bytes_}, after checking that they are 0 to 255"
    low, high = sample.min(), sample.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return (
            ", with NaN or infinite values among them; those cannot be pixels. To find them, type: "
            "np.argwhere(~np.isfinite(images))"
        )
    found = f", {low:g} to {high:g}"
    if low < 0 or high > 255:
        return f"{found}, which is no range of pixels. Scale them to 0 to 255 first"
    if dtype.kind == "f" and high <= 1:
        return f"{found}. Type: {unit}"
    return f"{found}. Type: {bytes_}"


def preprocess(
    pixels: np.ndarray, policy: str | ImagePolicy, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Apply a policy.

    On the CPU images are taken one by one, which keeps each in the cache; call it from several
    threads on parts of a batch to use several cores (torch releases the GIL). On other devices
    the resize always works in float32, since there is no kernel for uint8.

    Parameters
    ----------
    pixels : numpy.ndarray of uint8, (image, y, x, rgb)
        Images of one size.
    policy : str or ImagePolicy
        What to do with them.
    device : str or torch.device
        Where the work is done and the result lies.

    Returns
    -------
    torch.Tensor of float32, (image, 3, height, width)
        Contiguous.

    Raises
    ------
    StimulusError
        As `check_pixels`.
    """
    import torch

    chosen = _find(policy)
    check_pixels(pixels.dtype, pixels.shape, chosen)
    target = torch.device(device)
    if target.type != "cpu":
        batch = _tensor(pixels).to(target).permute(0, 3, 1, 2)
        floating = chosen.model_copy(update={"arithmetic": "float32"})
        out = torch.empty((len(pixels), 3, *chosen.output_shape(*pixels.shape[1:3])), device=target)
        return _apply(batch, floating, out)
    out = torch.empty((len(pixels), 3, *chosen.output_shape(*pixels.shape[1:3])))
    for image, result in zip(pixels, out, strict=True):
        _apply(_tensor(image)[None].permute(0, 3, 1, 2), chosen, result[None])
    return out


def resize_pixels(image: np.ndarray, y: int, x: int) -> np.ndarray:
    """Resize one image bilinearly with antialias, within one grey level of Pillow.

    Of white noise that is enlarged, a few values in a million are two levels off.

    Parameters
    ----------
    image : numpy.ndarray of uint8, (y, x, rgb)
        The image.
    y, x : int
        The size wanted.

    Returns
    -------
    numpy.ndarray of uint8, (y, x, rgb)
    """
    batch = _tensor(image)[None].permute(0, 3, 1, 2)
    return _resize(batch, (y, x), "uint8")[0].permute(1, 2, 0).numpy()


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """Wrap an array; torch warns of read-only ones and does not take negative strides: copy."""
    import torch

    usable = pixels.flags.writeable and min(pixels.strides, default=0) >= 0
    return torch.from_numpy(pixels if usable else pixels.copy())


def _apply(batch: torch.Tensor, policy: ImagePolicy, out: torch.Tensor) -> torch.Tensor:
    """Carry out the steps on uint8 (n, 3, y, x), into float32 (n, 3, height, width)."""
    y, x = batch.shape[-2:]
    if policy.square_crop:
        batch = _centre_crop(batch, min(y, x))
    shape = policy.resized_shape(y, x)
    batch = _resize(batch, shape, policy.arithmetic, policy.interpolation)
    if policy.crop:
        batch = _centre_crop(batch, policy.crop)
    if policy.order == "bgr":
        batch = batch.flip(1)
    # Planes are laid out while still bytes; casting while transposing is ten times as slow.
    out.copy_(batch if batch.is_floating_point() else batch.contiguous())
    # The order of these four is torchvision's, so that results are equal bit by bit.
    if policy.scale == 1 / 255:
        out.div_(255)
    elif policy.scale != 1:
        out.mul_(policy.scale)
    if any(policy.mean):
        out.sub_(out.new_tensor(policy.mean).view(3, 1, 1))
    if policy.std != (1, 1, 1):
        out.div_(out.new_tensor(policy.std).view(3, 1, 1))
    return out


def _centre_crop(batch: torch.Tensor, side: int) -> torch.Tensor:
    """Cut the centre out of (n, 3, y, x), its corner rounded half to even as torchvision's."""
    y, x = batch.shape[-2:]
    top, left = round((y - side) / 2), round((x - side) / 2)
    return batch[..., top : top + side, left : left + side]


def _resize(
    batch: torch.Tensor, shape: tuple[int, int], arithmetic: str, mode: str = "bilinear"
) -> torch.Tensor:
    """Resize uint8 (n, 3, y, x) with antialias, to whole grey levels.

    They come as float32 from float32 arithmetic, which saves two casts, and else as uint8.
    """
    import torch
    from torch.nn.functional import interpolate

    if tuple(batch.shape[-2:]) == tuple(shape):
        return batch
    if arithmetic == "float32":
        planes = batch.contiguous().to(torch.float32)
        resized = interpolate(planes, size=shape, mode=mode, align_corners=False, antialias=True)
        return resized.round_().clamp_(0, 255)
    # The kernel for bytes is fast on colour-last memory, which a crop is no longer.
    colour_last = batch.contiguous(memory_format=torch.channels_last)
    return interpolate(colour_last, size=shape, mode=mode, align_corners=False, antialias=True)
