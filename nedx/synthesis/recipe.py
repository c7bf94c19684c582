"""What a batch job computes: a frozen, JSON-able recipe that any machine can carry out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import xarray as xr
from dask.base import tokenize
from pydantic import BaseModel, ConfigDict

from nedx.errors import StimulusError, StoreError, UnknownIdError
from nedx.stimuli.sources import BrickSource, FileSource
from nedx.store.building import dataset_groups, plan_groups, prepared_groups
from nedx.store.layout import Layout
from nedx.synthesis.recipes import ImageSetRecipe, open_image_set

Selected = str | int | tuple[str | int, ...] | None


class SynthesisRecipe(BaseModel):
    """Responses of one model to one set of images.

    Parameters
    ----------
    images : str
        What `nedx.open_images` takes (a folder, an HDF5 brick, a Zarr store), or a catalog id.
    image_set : ImageSetRecipe, optional
        The recipe that ``images`` are opened by, whole, so that a store says how it was made
        whatever becomes of the file.
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
    block : int or None
        Images that one task computes and writes; chosen if None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    image_set: ImageSetRecipe | None = None
    open_options: dict[str, Any] = {}
    model: str
    subject: Selected = None
    roi: str | tuple[str, ...] | None = None
    channel: str | tuple[str, ...] | None = None
    time: tuple[float | None, float | None] | float | None = None
    device: str = "auto"
    precision: Literal["float32", "bf16", "fp16"] | None = None
    batch_size: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    keep_bits: int | None = 10
    block: int | None = None

    def build(self) -> Built:
        """Return what shall be written, lazily: responses without the pixels behind them."""
        options = {
            "subject": _listed(self.subject),
            "roi": _listed(self.roi),
            "channel": _listed(self.channel),
            "time": self.time,
            "device": self.device,
            "precision": self.precision,
            "batch_size": self.batch_size,
        }
        storage = {"dtype": self.dtype, "keep_bits": self.keep_bits}
        built = build(self.open(), self.model, options, storage, block=self.block)
        built.data.attrs["nedx_synthesis"] = self.model_dump(mode="json")
        return built

    def open(self) -> xr.Dataset:
        """Open the images."""
        if self.image_set is not None:
            return open_image_set(self.image_set, self.images, **self.open_options)
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


class Built(NamedTuple):
    """Responses to be written.

    Parameters
    ----------
    data : Dataset or DataTree
        The responses, lazily, without pixels.
    layouts : dict of str to Layout
        How each group is stored.
    parts : dict of str to str
        What a resume must find unchanged, by name.
    """

    data: xr.Dataset | xr.DataTree
    layouts: dict[str, Layout]
    parts: dict[str, str]


def build(
    stimuli: xr.Dataset,
    model: Any,
    options: Mapping[str, Any],
    storage: Mapping[str, Any],
    *,
    block: int | None = None,
) -> Built:
    """Encode lazily, and say what the result depends on.

    Parameters
    ----------
    stimuli : Dataset
        Pixels, features or components.
    model : str or LinearEncoder
        As in `nedx.encode`.
    options : dict
        Of `nedx.encode`.
    storage : dict
        ``dtype`` and ``keep_bits``.
    block : int, optional
        Images that one task computes and writes.

    Returns
    -------
    Built
    """
    from nedx.encoding.encode import encode

    data = without_pixels(encode(stimuli, model, **options))
    # The device is left out: a store may be begun on one machine and finished on another.
    made = _response_attrs(data)
    parts = {
        "images": image_identity(stimuli),
        "model": str(made["weights_sha256"]),
        "backbone": str(made["backbone"]),
        "preprocessing": str(made["image_preprocessing"]),
        "selection": tokenize([_labels(ds) for ds in dataset_groups(data).items()]),
        "storage": json.dumps({**storage, "block": block}, sort_keys=True),
    }
    return Built(data, plan_groups(prepared_groups(data), block=block), parts)


def image_identity(stimuli: xr.Dataset) -> str:
    """Return a fingerprint of images: their ids, and as much of their content as costs nothing.

    Of a file that is its size and its end, where PNG keeps a checksum of all pixels, and JPEG the
    last of what it is coded to. The time of change would differ where files were copied.
    """
    name = next(n for n in ("components", "features", "pixels") if n in stimuli)
    variable: Any = stimuli[name].variable
    plan = getattr(variable._data, "plan", None)
    source = getattr(plan, "source", None)
    content: Any = variable._data
    if plan is not None and isinstance(source, FileSource):
        files = [(source.stamps[i][0], _end_of(source.paths[i])) for i in plan.indices]
        content = files, source.fit, plan.window
    elif plan is not None and isinstance(source, BrickSource):
        ends = source.read(plan.indices[[0, -1]])
        content = source.stamp[0], source.key, plan.indices, ends, source.fit, plan.window
    ids = [str(image) for image in stimuli["image_id"].values]
    return tokenize(ids, content)


def _end_of(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(1024, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read()


def _labels(item: tuple[str, xr.Dataset]) -> tuple[str, dict[str, Any]]:
    """Return the labels of a group along all dimensions but the images."""
    group, ds = item
    dims = sorted(str(dim) for dim in ds.dims if dim != "image")
    return group, {d: [str(v) for v in ds[d].values] if d in ds.coords else None for d in dims}


def _response_attrs(data: xr.Dataset | xr.DataTree) -> Mapping[Any, Any]:
    """Return the attributes that `nedx.encode` gave a response: what made it."""
    for ds in dataset_groups(data).values():
        for variable in ds.data_vars.values():
            if "weights_sha256" in variable.attrs:
                return variable.attrs
    raise StoreError("there is no response to write; give images and a model")


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


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
