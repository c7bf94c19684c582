"""`open_images`: image sets of any usual form as one lazy, labelled Dataset."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import StimulusError, close_matches, require
from nedx.stimuli.decoding import SUFFIXES, decode_image, in_threads, read_header
from nedx.stimuli.fitting import Fit, choose_fit
from nedx.stimuli.pixels import chunk_images, plan_pixels
from nedx.stimuli.preprocessing import check_layout
from nedx.stimuli.sources import (
    ArraySource,
    BrickSource,
    FileSource,
    PixelSource,
    StoredSource,
    broken_files,
    stamp_of,
)
from nedx.store.lazy import StoredPlan
from nedx.store.location import Location

logger = logging.getLogger(__name__)

Place = str | os.PathLike[str]
Size = int | tuple[int, int]

_HDF5 = (".h5", ".hdf5", ".hdf", ".he5", ".h5py")
_NSD_COUNT = 73_000


def open_images(
    source: Place | Location | Sequence[Place] | np.ndarray | Sequence[np.ndarray] | xr.Dataset,
    *,
    size: Size | None = None,
    fit: str = "error",
    errors: Literal["raise", "skip"] = "raise",
    chunks: int | Mapping[str, int] | None = None,
    image_set: str | None = None,
    image_ids: Sequence[str] | None = None,
    key: str | None = None,
) -> xr.Dataset:
    """Open images as lazy ``pixels (image, y, x, rgb)``, uint8.

    Nothing is decoded: of files the headers are read, in threads. Images of a folder come in
    natural order of their paths (``img2`` before ``img10``), of a list in the order given, of
    arrays, bricks and stores in theirs. Hidden files are passed over, links to folders are not
    followed. How files that are not plain RGB are converted is said
    in `nedx.stimuli.decoding`.

    Parameters
    ----------
    source : path, Location, list, numpy.ndarray or Dataset
        A folder of PNG, JPEG and WebP files, nested or not; an image file, or a list of them; an
        array uint8 (image, y, x, rgb), or a list of arrays (y, x, rgb); an HDF5 file in the
        layout of NSD's stimuli; a Zarr store, or a Dataset, with ``pixels``.
    size : int or (int, int), optional
        Height and width in pixels; one number for a square.
    fit : {"error", "crop", "resize", "pad"}
        What to do with images of another size; see `nedx.stimuli.fitting.Fit`.
    errors : {"raise", "skip"}
        Whether a file that cannot be read is an error, or left out and logged. Left out it must
        be found first, so that ``"skip"`` decodes every file once at opening.
    chunks : int or {"image": int}, optional
        Images in a block; by default about 32 MB.
    image_set : str, optional
        First part of ``image_id``; by default the name of the folder or file.
    image_ids : sequence of str, optional
        Whole ids, in order, instead of those made of names or positions.
    key : str, optional
        The dataset in an HDF5 file or Zarr store; by default ``imgBrick`` or the only one that
        fits, and ``pixels``.

    Returns
    -------
    Dataset
        ``pixels`` with the coordinates ``image_id`` (``"<set>:<path without suffix>"``, the
        index), ``stimulus_set``, for files ``filename`` and, where there are sub-folders,
        ``category``, for NSD ``nsd_id`` (0-based).

    Raises
    ------
    StimulusError
        If there are no images, they cannot be read, sizes differ and ``fit`` does not say what
        to do, their type is not uint8, or ids are not unique.

    Examples
    --------
    >>> photos = nedx.open_images("photos/", fit="crop", size=256)
    >>> photos.sel(image_id="photos:zoo/lion").pixels.plot.imshow(rgb="rgb")
    """
    if errors not in ("raise", "skip"):
        raise StimulusError(f"unknown errors={errors!r}; there are: 'raise', 'skip'")
    chunk = _chunk(chunks)
    opened: _Opened
    if isinstance(source, xr.Dataset):
        return _open_dataset(source, size, fit, chunk, key or "pixels")
    if isinstance(source, np.ndarray):
        opened = _open_array(source, size, fit)
    elif isinstance(source, Location | str | os.PathLike):
        if not _text(source):
            raise StimulusError("the path is empty. Type the name of a folder, such as 'photos/'")
        if _text(source).lower().endswith((*SUFFIXES, *_HDF5)):
            _refuse_remote(_text(source))
        if _is_zarr(source):
            return _open_zarr(Location.of(_text(source)), size, fit, chunk, key or "pixels")
        opened = _open_path(Path(_text(source)).expanduser(), size, fit, errors, key)
    else:
        opened = _open_sequence(list(source), size, fit, errors)
    return opened.dataset(chunk, image_set, image_ids)


class _Opened:
    """A source with what is known of its images."""

    def __init__(
        self,
        source: PixelSource,
        names: Sequence[str] | None,
        image_set: str,
        attrs: Mapping[str, Any] | None = None,
        **coords: Sequence[str] | None,
    ):
        self.source = source
        self.names = names
        self.image_set = image_set
        self.attrs = dict(attrs or {})
        self.coords = coords

    def dataset(
        self, chunk: int | None, image_set: str | None, image_ids: Sequence[str] | None
    ) -> xr.Dataset:
        """Label the pixels."""
        name = image_set or self.image_set
        count = self.source.shape[0]
        digits = max(5, len(str(count - 1)))
        names = self.names or [f"{i:0{digits}d}" for i in range(count)]
        ids = list(image_ids) if image_ids is not None else [f"{name}:{n}" for n in names]
        if len(ids) != count:
            raise StimulusError(f"there are {count} images, and {len(ids)} image_ids")
        _refuse_duplicates(ids)
        coords: dict[str, Any] = {
            "image_id": ("image", _objects(ids), {"nedx_role": "stimulus"}),
            "stimulus_set": ("image", _objects([name] * count)),
        }
        for label, values in self.coords.items():
            if values is not None:
                coords[label] = ("image", _objects(values))
        if name == "nsd" and image_ids is None and self.names is None:
            coords["nsd_id"] = (
                "image",
                np.arange(count, dtype=np.int32),
                {"long_name": "NSD image number, 0-based"},
            )
        pixels = xr.Variable(
            ("image", "y", "x", "rgb"), plan_pixels(self.source, chunk), _PIXEL_ATTRS
        )
        ds = xr.Dataset({"pixels": pixels}, coords, {"stimulus_type": "image", **self.attrs})
        return _parse(ds)


_PIXEL_ATTRS = {"units": "1", "long_name": "stimulus pixels, sRGB", "valid_range": [0, 255]}


def image_sha256(image: np.ndarray) -> str:
    """Return the SHA-256 of an image: of its height and width as text, then its RGB bytes.

    Parameters
    ----------
    image : numpy.ndarray of uint8, (y, x, rgb)
        The pixels.
    """
    y, x = image.shape[:2]
    digest = hashlib.sha256(f"{y}x{x}:".encode())
    digest.update(np.asarray(image, np.uint8).tobytes())
    return digest.hexdigest()


def add_sha256(ds: xr.Dataset) -> xr.Dataset:
    """Add the coordinate ``sha256 (image)``, lazily: computing it reads every image."""
    import dask.array as da

    pixels = da.asarray(ds["pixels"].data).rechunk({1: -1, 2: -1, 3: -1})
    hashes = pixels.map_blocks(
        _hash_block, drop_axis=[1, 2, 3], dtype=object, meta=np.empty(0, object)
    )
    attrs = {"long_name": "SHA-256 of size and RGB bytes"}
    return ds.assign_coords(sha256=("image", hashes, attrs))


def _hash_block(block: np.ndarray) -> np.ndarray:
    return _objects([image_sha256(image) for image in block])


def _open_path(path: Path, size: Size | None, fit: str, errors: str, key: str | None) -> _Opened:
    if path.is_dir():
        return _open_folder(path, size, fit, errors)
    if not path.exists():
        near = close_matches(path.name, [p.name for p in path.parent.glob("*")][:1000])
        raise StimulusError(f"there is no file or folder {path}; {near}".rstrip("; "))
    if path.suffix.lower() in _HDF5:
        return _open_brick(path, size, fit, key)
    if path.suffix.lower() in (".npy", ".npz"):
        raise StimulusError(
            f"{path} is a numpy file. Type: "
            f"nedx.open_images(np.load({str(path)!r}, mmap_mode='r'), image_set={path.stem!r})"
        )
    return _open_files([path], size, fit, errors)


def _open_sequence(items: list[Any], size: Size | None, fit: str, errors: str) -> _Opened:
    if not items:
        raise StimulusError("the list of images is empty")
    if all(isinstance(item, str | os.PathLike) for item in items):
        for item in items:
            _refuse_remote(os.fspath(item))
        return _open_files([Path(item).expanduser() for item in items], size, fit, errors)
    if all(isinstance(item, np.ndarray) for item in items):
        return _open_arrays(items, size, fit)
    kinds = sorted({type(item).__name__ for item in items})
    raise StimulusError(
        f"a list of images holds paths or numpy arrays, this one holds {', '.join(kinds)}. "
        "Type: nedx.open_images([np.asarray(image) for image in images])"
    )


def _refuse_remote(place: str) -> None:
    if "://" in place:
        raise StimulusError(
            f"{place!r} is no path of this machine; images are read from local files, and from "
            "Zarr stores anywhere. Copy the files first, for example: fsspec.filesystem("
            f"{place.partition('://')[0]!r}).get({place!r}, 'images/')"
        )


def _open_folder(folder: Path, size: Size | None, fit: str, errors: str) -> _Opened:
    folder = folder.absolute()
    paths = sorted(
        (
            Path(base, name)
            for base, _, names in os.walk(folder)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ),
        key=lambda path: natural_key(path.relative_to(folder).as_posix()),
    )
    if not paths:
        others = sorted({p.suffix or p.name for p in folder.rglob("*") if p.is_file()})
        holds = f"it holds {', '.join(others[:8])}" if others else "it is empty"
        raise StimulusError(
            f"there are no images in {folder}; {holds}. nedx reads {', '.join(SUFFIXES)}"
        )
    return _open_files(paths, size, fit, errors, folder)


def _open_files(
    paths: list[Path], size: Size | None, fit: str, errors: str, folder: Path | None = None
) -> _Opened:
    paths = [path.absolute() for path in paths]
    sizes, faults = _measure(paths, decode=errors == "skip")
    if faults and errors == "raise":
        raise StimulusError(broken_files(faults))
    broken = {path for path, _ in faults}
    for path, reason in faults:
        logger.warning("left out %s: %s", path, reason)
    good = [path for path in paths if str(path) not in broken]
    if not good:
        raise StimulusError(f"none of the {len(paths)} images can be read: {faults[0][1]}")
    chosen = choose_fit([sizes[str(path)] for path in good], fit, size)
    stamps = tuple(stamp_of(str(path)) for path in good)
    source = FileSource(tuple(map(str, good)), stamps, chosen)
    below = [path.relative_to(folder) if folder else Path(path.name) for path in good]
    nested = any(len(path.parts) > 1 for path in below)
    parents = [path.parent.as_posix() if len(path.parts) > 1 else "" for path in below]
    return _Opened(
        source,
        [path.with_suffix("").as_posix() for path in below],
        (folder or Path(os.path.commonpath([path.parent for path in good]))).name or "images",
        _fit_attrs(chosen, [Path(path).name for path in sorted(broken)]),
        filename=[path.as_posix() for path in below],
        category=parents if nested else None,
    )


def _measure(
    paths: list[Path], *, decode: bool
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]]]:
    """Return the size of each file, and the faults of those that have none."""

    def measure(path: Path) -> tuple[int, int] | str:
        try:
            return decode_image(path).shape[:2] if decode else read_header(path)
        except StimulusError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    found = dict(zip(map(str, paths), in_threads(measure, paths), strict=True))
    sizes = {path: size for path, size in found.items() if not isinstance(size, str)}
    faults = [(path, fault) for path, fault in found.items() if isinstance(fault, str)]
    return sizes, faults


def _open_array(images: np.ndarray, size: Size | None, fit: str) -> _Opened:
    from dask.base import tokenize

    if images.dtype == object:
        return _open_arrays(list(images), size, fit)
    check_layout(images.dtype, images.shape, images[:8])
    if not len(images):
        raise StimulusError(f"the array holds no images: its shape is {images.shape}")
    chosen = choose_fit([images.shape[1:3]], fit, size)
    source = ArraySource(images, chosen, tokenize(images))
    return _Opened(source, None, "images", _fit_attrs(chosen))


def _open_arrays(images: list[np.ndarray], size: Size | None, fit: str) -> _Opened:
    from dask.base import tokenize

    for position, image in enumerate(images):
        try:
            check_layout(image.dtype, (1, *image.shape), image)
        except StimulusError as error:
            raise StimulusError(f"image {position} of the list: {error}") from error
    chosen = choose_fit([image.shape[:2] for image in images], fit, size)
    source = ArraySource(tuple(images), chosen, tokenize(images))
    return _Opened(source, None, "images", _fit_attrs(chosen))


def _open_brick(path: Path, size: Size | None, fit: str, key: str | None) -> _Opened:
    path = path.absolute()
    h5py = require("h5py", "hdf5")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StimulusError(f"{path} is not an HDF5 file that can be read: {error}") from error
    with file:
        key = key or _find_brick(file, h5py, path)
        if key not in file:
            raise StimulusError(f"{path} has no {key!r}; {close_matches(key, file)}")
        dtype, shape = file[key].dtype, file[key].shape
    try:
        check_layout(dtype, shape)
    except StimulusError as error:
        raise StimulusError(f"{path}, {key!r}: {error}") from error
    if not shape[0]:
        raise StimulusError(f"{path}, {key!r} holds no images")
    chosen = choose_fit([shape[1:3]], fit, size)
    source = BrickSource(str(path), key, shape[0], stamp_of(str(path)), chosen)
    is_nsd = key == "imgBrick" and shape[0] == _NSD_COUNT
    return _Opened(source, None, "nsd" if is_nsd else path.stem, _fit_attrs(chosen))


def _find_brick(file: Any, h5py: Any, path: Path) -> str:
    """Return the name of the dataset that holds images."""
    if "imgBrick" in file:
        return "imgBrick"
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item}))
    sets = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}
    bricks = [name for name, item in sets.items() if item.ndim == 4 and item.dtype == np.uint8]
    if len(bricks) == 1:
        return bricks[0]
    listed = ", ".join(f"{name} {item.dtype} {item.shape}" for name, item in sets.items())
    raise StimulusError(
        f"{path} holds {len(bricks)} datasets uint8 (image, y, x, rgb), one was expected; "
        f"there are: {listed or 'none'}. Type: key=<name>"
    )


def _is_zarr(source: Any) -> bool:
    if isinstance(source, Location):
        return True
    text = _text(source)
    if "://" in text or text.rstrip("/").endswith(".zarr"):
        return True
    return any((Path(text).expanduser() / name).is_file() for name in ("zarr.json", ".zgroup"))


def _open_zarr(
    location: Location, size: Size | None, fit: str, chunk: int | None, key: str
) -> xr.Dataset:
    from nedx.store.opening import open_store

    ds = open_store(location)
    if not isinstance(ds, xr.Dataset):
        groups = ", ".join(ds.children)
        raise StimulusError(f"{location.url} holds responses of several subjects: {groups}")
    return _open_dataset(ds, size, fit, chunk, key, location.url)


def _open_dataset(
    ds: xr.Dataset,
    size: Size | None,
    fit: str,
    chunk: int | None,
    key: str,
    name: str = "the Dataset",
) -> xr.Dataset:
    import dask.array as da
    from dask.base import tokenize

    if key not in ds:
        raise StimulusError(
            f"{name} has no {key!r}; {close_matches(key, ds.data_vars)} Type: key=<name>"
        )
    data = ds[key].data
    check_layout(data.dtype, data.shape)
    y, x = data.shape[1:3]
    chosen = choose_fit([(y, x)], fit, size)
    plan = getattr(data, "plan", None)
    if isinstance(plan, StoredPlan):
        stored = StoredSource(plan, chosen)
        # Whole stored chunks, so that none is fetched by two tasks.
        per_chunk = stored.stored_chunk
        default = max(1, round(chunk_images(stored.shape) / per_chunk)) * per_chunk
        return _replace_pixels(ds, key, stored, chunk or default)
    if not isinstance(data, da.Array):
        source = ArraySource(np.asarray(data), chosen, tokenize(data))
        return _replace_pixels(ds, key, source, chunk)
    if (chosen.y, chosen.x) != (y, x):
        raise StimulusError(
            "pixels that are lazy already cannot be fitted to another size. "
            "Type: nedx.open_images(<the folder or store itself>, fit=..., size=...)"
        )
    ds = ds.rename({key: "pixels"}) if key != "pixels" else ds
    return _parse(ds.chunk(image=chunk) if chunk else ds)


def _replace_pixels(ds: xr.Dataset, key: str, source: PixelSource, chunk: int | None) -> xr.Dataset:
    dim = ds[key].dims[0]
    attrs = {**_PIXEL_ATTRS, **ds[key].attrs}
    pixels = xr.Variable((dim, "y", "x", "rgb"), plan_pixels(source, chunk), attrs)
    return _parse(ds.drop_vars(key).assign(pixels=pixels))


def _fit_attrs(fit: Fit, skipped: Sequence[str] = ()) -> dict[str, Any]:
    attrs: dict[str, Any] = {} if fit.mode == "error" else {"image_fit": fit.describe()}
    if skipped:
        attrs["skipped_images"] = list(skipped)
    return attrs


def _refuse_duplicates(ids: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        shown = ", ".join(repr(name) for name in twice[:5])
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise StimulusError(
            f"image ids must be unique; found several times: {shown}{more} (an id is the name "
            "without its suffix). Rename the files, open their common folder, or type: "
            "image_ids=[...]"
        )


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a key that sorts numbers in names by value: ``img2`` before ``img10``."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(p), p) if p.isdecimal() else (-1, p) for p in parts), name


def _chunk(chunks: int | Mapping[str, int] | None) -> int | None:
    chunk = chunks.get("image") if isinstance(chunks, Mapping) else chunks
    if chunk is not None and chunk < 1:
        raise StimulusError(f"chunks must be a positive number of images, not {chunk}")
    return chunk


def _objects(values: Sequence[str]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _text(place: Any) -> str:
    return place.url if isinstance(place, Location) else os.fspath(place)


def _parse(ds: xr.Dataset) -> xr.Dataset:
    from nedx.schema import parse

    return parse(ds, "stimuli")
