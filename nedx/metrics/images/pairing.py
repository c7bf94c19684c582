"""True images and what was reconstructed of them, joined by ``image_id``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.schema import restore_index, sample_dim
from nedx.stimuli.pixels import CHUNK_BYTES
from nedx.stimuli.preprocessing import check_layout

PIXELS = ("y", "x", "rgb")


@dataclass(frozen=True)
class Pairs:
    """What is compared, one true image for each reconstruction.

    Parameters
    ----------
    gallery : Variable (image, *content)
        The true images, each once, in blocks of images.
    own : ndarray of int64, (sample,)
        Position in the gallery of the image that each reconstruction is of.
    reconstructed : Variable (*lead, sample, *content)
        In blocks of samples; ``content`` lies in one block.
    coords : mapping of str to DataArray
        Labels of the leading dims and the samples.
    """

    gallery: xr.Variable
    own: np.ndarray
    reconstructed: xr.Variable
    coords: Mapping[Hashable, xr.DataArray]

    @property
    def n_content(self) -> int:
        """How many of the last dims an image or its features have."""
        return self.gallery.ndim - 1

    @property
    def lead(self) -> tuple[Hashable, ...]:
        """The leading dims of the reconstructions."""
        return self.reconstructed.dims[: -self.n_content - 1]

    @property
    def sample(self) -> str:
        """The dim of the reconstructions."""
        return str(self.reconstructed.dims[-self.n_content - 1])

    @property
    def true(self) -> xr.Variable:
        """The true image of each reconstruction, (sample, *content)."""
        content = self.gallery.dims[1:]
        rows = self.gallery
        if not np.array_equal(self.own, np.arange(rows.shape[0])):
            rows = rows.isel({rows.dims[0]: self.own})
        return xr.Variable((self.sample, *content), rows.data)

    def labelled(self, data: Any, attrs: Mapping[str, Any]) -> xr.DataArray:
        """Label values (*lead, sample); dimensionless unless ``attrs`` says otherwise."""
        counts = {"n_images": int(np.unique(self.own).size)}
        found = xr.DataArray(
            data,
            dims=(*self.lead, self.sample),
            coords=dict(self.coords),
            attrs={"units": "1", **attrs, **counts},
        )
        return restore_index(found)


def image_pairs(ds: xr.Dataset, stimuli: xr.Dataset | None = None) -> Pairs:
    """Join ``pixels`` with ``pixels_reconstructed``, lazily.

    Parameters
    ----------
    ds : Dataset
        ``pixels_reconstructed (..., image | trial, y, x, rgb)`` uint8, and ``pixels`` where no
        stimuli are given.
    stimuli : Dataset, optional
        ``pixels (image, y, x, rgb)`` uint8, of any size.

    Returns
    -------
    Pairs

    Raises
    ------
    SchemaError, StimulusError
        If one of the two is missing, or is no uint8 RGB.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    source = ds if stimuli is None else stimuli
    faults = [] if "pixels_reconstructed" in ds else ["no variable 'pixels_reconstructed'"]
    if faults:
        faults.append("reconstruct first: ds.ned.reconstruct(generator)")
    if "pixels" not in source:
        faults.append("no variable 'pixels': give the true images as stimuli=")
    if faults:
        raise SchemaError("what is compared", faults)
    both = [_pixels(source["pixels"]), _pixels(ds["pixels_reconstructed"])]
    if extra := [dim for dim in both[0].dims[:-3] if dim != sample_dim(both[0])]:
        raise SchemaError("pixels", [f"true images have no dims {extra}; select one of each"])
    return pairs(*both, n_content=3, together=stimuli is None)


def feature_pairs(true: Any, reconstructed: Any) -> Pairs:
    """Join the features of true images with those of their reconstructions, lazily.

    Parameters
    ----------
    true : DataArray or Dataset
        ``features (image, ...)``; all dims but the images are the features.
    reconstructed : DataArray or Dataset
        ``features (..., image | trial, ...)`` with the same dims of features.

    Returns
    -------
    Pairs
        With all features in one dim.

    Raises
    ------
    SchemaError
        If features differ in their dims or sizes, or images have no ``image_id``.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    return pairs(*flat_features(true, reconstructed), n_content=1)


def flat_features(true: Any, reconstructed: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """Put all features into one dim and one block, lazily.

    Parameters
    ----------
    true, reconstructed
        As `feature_pairs` takes them.

    Returns
    -------
    true : DataArray (image, feature)
    reconstructed : DataArray (..., image | trial, feature)

    Raises
    ------
    SchemaError
        If features differ in their dims or sizes.
    """
    true, reconstructed = features_of(true), features_of(reconstructed)
    content = [dim for dim in true.dims if dim != sample_dim(true)]
    wanted = {dim: true.sizes[dim] for dim in content}
    found = {dim: reconstructed.sizes.get(dim) for dim in content}
    if not content or found != wanted:
        fault = f"those of the true images have {wanted}, of the reconstructions {found}"
        raise SchemaError("the features", [fault, "compute both with the same network and layer"])
    sample = sample_dim(reconstructed)
    lead = [dim for dim in reconstructed.dims if dim not in (sample, *content)]
    flat = [
        array.transpose(*dims, *content)
        for array, dims in ((true, [sample_dim(true)]), (reconstructed, [*lead, sample]))
    ]
    first, second = (_flat(array, len(content)) for array in flat)
    return first, second


def wanted_images(true: xr.DataArray, reconstructed: xr.DataArray) -> xr.DataArray:
    """Return the true images that any reconstruction is of, each once.

    Raises
    ------
    SchemaError
        If one of the two has no ``image_id``.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    names = [_ids(array, sample_dim(array)) for array in (true, reconstructed)]
    if names[0] is None or names[1] is None:
        raise _unnamed()
    return _gallery(true, names[0], names[1])[0]


def features_of(data: Any) -> xr.DataArray:
    """Return the features: an array itself, of a Dataset ``features``."""
    if isinstance(data, xr.DataArray):
        return data
    if isinstance(data, xr.Dataset) and "features" in data:
        return data["features"]
    found = f"a {type(data).__name__}" + (f" of {list(data)}" if isinstance(data, dict) else "")
    raise SchemaError(
        "the features", [f"found {found}, expected a DataArray or a Dataset with 'features'"]
    )


def pairs(
    true: xr.DataArray, reconstructed: xr.DataArray, *, n_content: int, together: bool = False
) -> Pairs:
    """Join arrays whose last ``n_content`` dims are what is compared.

    ``together`` says that both are of one Dataset, and so of the same images without any names.
    """
    samples = str(true.dims[0]), str(reconstructed.dims[-n_content - 1])
    if 0 in true.shape or 0 in reconstructed.shape:
        raise SchemaError("what is compared", ["there is nothing: no image was selected"])
    names = [_ids(array, dim) for array, dim in zip((true, reconstructed), samples, strict=True)]
    if names[0] is None or names[1] is None:
        if not together or samples[0] != samples[1]:
            raise _unnamed()
        own = np.arange(true.shape[0])
        gallery = true
    else:
        gallery, own = _gallery(true, names[0], names[1])
    skipped = set(reconstructed.dims[-n_content:])
    kept = {k: v for k, v in reconstructed.coords.items() if not skipped & set(v.dims)}
    return Pairs(
        _in_blocks(gallery.variable, n_content),
        own,
        _in_blocks(reconstructed.variable, n_content),
        kept,
    )


def per_pair(
    found: Pairs, kernel: Callable[..., np.ndarray], attrs: Mapping[str, Any], **options: Any
) -> xr.DataArray:
    """Apply a kernel to blocks of pairs, lazily.

    Parameters
    ----------
    found : Pairs
        What is compared.
    kernel : callable
        From (*lead, sample, *content) and (sample, *content) to float64 (*lead, sample).
    attrs : mapping
        Attributes of the result.
    **options
        Further arguments of the kernel.

    Returns
    -------
    DataArray (*lead, sample)
    """
    content = list(found.gallery.dims[1:])
    renamed = [f"{dim}_reconstructed" for dim in content]
    reconstructed = xr.Variable((*found.lead, found.sample, *renamed), found.reconstructed.data)
    values: xr.Variable = xr.apply_ufunc(
        kernel,
        reconstructed,
        found.true,
        kwargs=options,
        input_core_dims=[renamed, content],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return found.labelled(values.data, attrs)


def lazy_pixels(array: xr.DataArray) -> xr.DataArray:
    """Return pixels (*lead, sample, y, x, rgb) in blocks of whole images, lazily.

    Raises
    ------
    StimulusError
        If they are no uint8 RGB.
    """
    array = _pixels(array)
    return array.copy(data=_in_blocks(array.variable, 3).data)


def _pixels(array: xr.DataArray) -> xr.DataArray:
    """Return pixels (*lead, sample, y, x, rgb)."""
    sample = sample_dim(array)
    content = [d for d in array.dims if str(d).partition("_")[0] in PIXELS]
    content.sort(key=lambda dim: PIXELS.index(str(dim).partition("_")[0]))
    lead = [dim for dim in array.dims if dim not in (sample, *content)]
    shape = (array.sizes[sample], *(array.sizes[dim] for dim in content))
    check_layout(array.dtype, shape)
    return array.transpose(*lead, sample, *content)


def _flat(array: xr.DataArray, n_content: int) -> xr.DataArray:
    """Put the last dims into one, named feature."""
    kept = array.dims[:-n_content]
    coords = {k: v for k, v in array.coords.items() if set(v.dims) <= set(kept)}
    variable = _in_blocks(array.variable, n_content)
    width = int(np.prod(array.shape[-n_content:]))
    data = variable.data.reshape(*array.shape[:-n_content], width)
    return restore_index(xr.DataArray(data, dims=(*kept, "feature"), coords=coords))


def _unnamed() -> SchemaError:
    fault = "no image_id on one of the two: nothing is joined by position"
    advice = 'type array.assign_coords(image_id=("image", names))'
    return SchemaError("what is compared", [fault, advice])


def _ids(array: xr.DataArray, sample: str) -> list[str] | None:
    if "image_id" not in array.coords or array["image_id"].dims != (sample,):
        return None
    return [str(name) for name in array["image_id"].values]


def _gallery(
    true: xr.DataArray, names: Sequence[str], wanted: Sequence[str]
) -> tuple[xr.DataArray, np.ndarray]:
    """Return the true images that are wanted, each once, and whose each reconstruction is."""
    where = {name: position for position, name in enumerate(names)}
    if len(where) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        fault = f"image_id names some more than once, for example {twice}; keep one of each"
        raise SchemaError("the true images", [fault])
    missing = [name for name in dict.fromkeys(wanted) if name not in where]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise SelectionError(
            f"the true images of {len(missing)} reconstructions are not there: {shown}. Select "
            "what both have, or give stimuli that hold them"
        )
    once = {name: position for position, name in enumerate(dict.fromkeys(wanted))}
    own = np.array([once[name] for name in wanted], dtype=np.int64)
    rows = np.array([where[name] for name in once], dtype=np.int64)
    if np.array_equal(rows, np.arange(len(names))):
        return true, own
    return true.isel({sample_dim(true): rows}), own


def _in_blocks(variable: xr.Variable, n_content: int) -> xr.Variable:
    """Make a variable lazy, its content in one block, of about `CHUNK_BYTES` where it is not."""
    content = dict.fromkeys(range(variable.ndim - n_content, variable.ndim), -1)
    if variable.chunks is not None:
        return xr.Variable(variable.dims, variable.data.rechunk(content))
    limit: dict[int, Any] = dict.fromkeys(range(variable.ndim - n_content), 1)
    each = variable.dtype.itemsize * int(np.prod(variable.shape[-n_content:]))
    limit[variable.ndim - n_content - 1] = max(1, CHUNK_BYTES // max(1, each))
    # Without a name from the values: hashing them would take as long as comparing them.
    data = da.from_array(variable.data, chunks={**limit, **content}, name=False)
    return xr.Variable(variable.dims, data)
