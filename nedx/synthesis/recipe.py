"""What a batch job computes: a frozen, JSON-able recipe that any machine can carry out."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import xarray as xr
from pydantic import BaseModel, ConfigDict

from nedx.errors import StimulusError, UnknownIdError

Selected = str | int | tuple[str | int, ...] | None


class SynthesisRecipe(BaseModel):
    """Responses of one model to one set of images.

    Parameters
    ----------
    images : str
        What `nedx.open_images` takes (a folder, an HDF5 brick, a Zarr store), or a catalog id.
    open_options : dict
        Further arguments of `nedx.open_images`, such as ``{"fit": "crop", "size": 425}``.
    model : str
        Catalog id, path or URL of an encoding model.
    subject, roi, channel, time
        As in `nedx.encode`; a time window is ``(start, stop)`` in seconds.
    device : str
        Where each worker computes.
    precision, batch_size
        As in `nedx.encode`.
    dtype : {"float32", "float16"}
        Of the stored responses.
    keep_bits : int or None
        Mantissa bits of float32 that are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    open_options: dict[str, Any] = {}
    model: str
    subject: Selected = None
    roi: str | tuple[str, ...] | None = None
    channel: str | tuple[str, ...] | None = None
    time: tuple[float | None, float | None] | None = None
    device: str = "auto"
    precision: Literal["float32", "bf16", "fp16"] | None = None
    batch_size: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    keep_bits: int | None = 10

    def build(self) -> xr.Dataset | xr.DataTree:
        """Return what shall be written, lazily: responses without the pixels behind them."""
        from nedx.encoding import encode

        encoded = encode(
            self.open(),
            self.model,
            subject=list(self.subject) if isinstance(self.subject, tuple) else self.subject,
            roi=list(self.roi) if isinstance(self.roi, tuple) else self.roi,
            channel=list(self.channel) if isinstance(self.channel, tuple) else self.channel,
            time=self.time,
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
        )
        return without_pixels(encoded).assign_attrs(nedx_synthesis=self.model_dump(mode="json"))

    def open(self) -> xr.Dataset:
        """Open the images."""
        from nedx.catalog import open as open_entry
        from nedx.catalog import resolve
        from nedx.stimuli import open_images

        try:
            resolve(self.images)
        except UnknownIdError:
            return open_images(self.images, **self.open_options)
        stimuli = open_entry(self.images)
        if not isinstance(stimuli, xr.Dataset):
            raise StimulusError(f"{self.images!r} holds no images; type: nedx list --kind stimuli")
        return open_images(stimuli, **self.open_options)

    def parts(self, built: xr.Dataset | xr.DataTree) -> dict[str, str]:
        """Return what a resume must find unchanged, by name.

        The device is left out: a store may be begun on one machine and finished on another.
        """
        settings = self.model_dump(
            mode="json", exclude={"images", "open_options", "model", "device"}
        )
        return {**provenance(built), "settings": json.dumps(settings, sort_keys=True)}


def provenance(built: xr.Dataset | xr.DataTree) -> dict[str, str]:
    """Return fingerprints of the images and of the model behind encoded responses."""
    ds = first_dataset(built)
    ids = "\n".join(str(image) for image in ds["image_id"].values)
    return {
        "images": hashlib.sha256(ids.encode()).hexdigest(),
        "model": str(ds.attrs.get("weights_sha256", "")),
        "preprocessing": json.dumps(ds.attrs.get("image_preprocessing"), sort_keys=True),
    }


def first_dataset(built: xr.Dataset | xr.DataTree) -> xr.Dataset:
    """Return a Dataset as it is, and the first of a tree that holds responses."""
    if isinstance(built, xr.Dataset):
        return built
    nodes = (node.to_dataset(inherit=True) for node in built.subtree)
    return next(ds for ds in nodes if "response" in ds)


def without_pixels(built: xr.Dataset | xr.DataTree) -> xr.Dataset | xr.DataTree:
    """Leave out the pixels, which are neither ours to publish nor needed to be kept twice."""
    if isinstance(built, xr.Dataset):
        return built.drop_vars("pixels", errors="ignore")
    return xr.DataTree.from_dict(
        {
            node.path: node.to_dataset(inherit=False).drop_vars("pixels", errors="ignore")
            for node in built.subtree
        }
    )
