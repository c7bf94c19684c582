"""Features that others computed of the images of THINGS, one file each: ``.pt`` and ``.npy``.

What rows mean is said by no file: they are in the order of ``image_metadata.npy``, or named by
paths. A file is refused where their number is not that of the images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx.errors import SelectionError, SourceError, StoreError, close_matches
from nedx.schema import parse, restore_index
from nedx.sources.mapped_pickles import open_arrays
from nedx.sources.things_eeg2.labels import Images, read_images
from nedx.store.location import Location

Of = Literal["image", "text", "eeg"]

_KEYS = {"image": "img_features", "text": "text_features"}
_BLOCK_BYTES = 2**22
_SEPARATOR = re.compile(r"[/\\]")
_PARTITIONS = {"train": "train", "training": "train", "test": "test"}


def open_feature_file(
    path: str | Path | Location,
    *,
    images: str | Path | xr.Dataset | None = None,
    partition: str | None = None,
    of: Of = "image",
    variant: str | int | None = None,
) -> xr.Dataset:
    """Open features of images, text or EEG as a Dataset, lazily, where they lie in their file.

    Parameters
    ----------
    path : str, Path or Location
        A file of this machine. ``ViT-H-14_features_train.pt`` and its like: a dictionary with
        ``img_features`` and ``text_features``, each a tensor, or vectors by path and by name
        (UBP), or such by ``low``, ``medium``, ``high`` and ``avg``; or one tensor.
        ``image_train.npy`` of NeuroBridge: an array (concept, image, feature), or more of them
        (variant, concept, image, feature).
    images : path or Dataset, optional
        Which images the rows are of, in their order: ``image_metadata.npy`` or a folder with it,
        or a Dataset with ``image_id (image)``. Not needed where the file names them.
    partition : {"train", "test"}, optional
        Of the images; found by their number where that tells.
    of : {"image", "text", "eeg"}
        What is wanted. Text has a row for each concept, in the order in which the images come;
        EEG one for each image, or for each of its repetitions, image by image.
    variant : str or int, optional
        Which, where a file holds several.

    Returns
    -------
    Dataset
        ``features (image, feature)`` float32 with ``image_id``; of EEG ``embedding (image,
        feature)``, or ``(trial, feature)`` with ``repetition`` where repetitions have rows of
        their own. Whether rows are of unit length no file says: ``l2_normalized="unknown"``.

    Raises
    ------
    SelectionError
        If there is no such part or variant, or none is chosen of several.
    SourceError
        If rows and images differ in number or name; says both.
    ModelError, CorruptStoreError, StoreError
        If the file holds what could run, is damaged, or is not there.
    """
    if of not in ("image", "text", "eeg"):
        raise SelectionError(f"of is 'image', 'text' or 'eeg', not {of!r}")
    location = Location.of(path)
    if not location.is_local:
        raise StoreError(
            f"features are mapped into memory, so they must lie on this machine, not at "
            f"{location.url}. Copy the file first"
        )
    place = Path(location.url)
    found = _chosen(place, of, variant)
    labels = _Labels.read(images, partition, found, of)
    rows = labels.rows(found, of)
    data = found.lazy()
    if rows is not None:
        data = data[rows]
    dim = "image" if rows is not None or len(labels.ids) == found.count else "trial"
    attrs = {
        "long_name": f"{of} features",
        "units": "1",
        "source_file": place.name,
        "l2_normalized": "unknown",
        **({} if variant is None else {"variant": str(variant)}),
    }
    name = "embedding" if of == "eeg" else "features"
    made = xr.Dataset({name: ((dim, "feature"), data, attrs)}, labels.coords(dim, found.count))
    return restore_index(made) if of == "eeg" else parse(made)


@dataclass(frozen=True)
class _Rows:
    """Rows in a file: what graphs carry of them.

    Parameters
    ----------
    path : str
    changed : int
        When the file was, so that what was read of an older one is not used.
    keys : tuple of str
        The way to the array, or to the dictionary of vectors, within the file.
    names : tuple of str, optional
        Keys of the vectors.
    leading : tuple of int
        Position along the axes in front.
    shape : (int, int)
    dtype : dtype
    """

    path: str
    changed: int
    keys: tuple[str, ...]
    names: tuple[str, ...] | None
    leading: tuple[int, ...]
    shape: tuple[int, int]
    dtype: np.dtype
    ndim: int = 2

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, key: tuple[Any, Any]) -> np.ndarray:
        """Read some of them, as they are in the file."""
        held: Any = _opened(self.path, self.changed)
        for name in self.keys:
            held = held[name]
        if self.names is not None:
            rows = np.arange(self.count)[key[0]]
            part = np.stack([held[self.names[row]] for row in np.atleast_1d(rows)])
            return part.reshape(*rows.shape, -1)[..., key[1]]
        flat = held[self.leading].reshape(self.shape)
        return np.array(flat[key])

    def lazy(self) -> da.Array:
        """Return float32 (row, feature), read block by block."""
        step = max(1, _BLOCK_BYTES // max(1, self.dtype.itemsize * self.shape[1]))
        name = f"features-{tokenize(self)}"
        chunks = (step, self.shape[1])
        return da.from_array(self, chunks=chunks, name=name, asarray=False).astype(np.float32)


@lru_cache(maxsize=4)
def _opened(path: str, changed: int) -> Any:
    return open_arrays(path)


def _chosen(place: Path, of: Of, variant: str | int | None) -> _Rows:
    """Find the rows that are wanted in a file."""
    held: Any = open_arrays(place)
    changed = os.stat(place).st_mtime_ns
    keys: tuple[str, ...] = ()
    if isinstance(held, dict):
        key = _KEYS.get(of, "")
        if key not in held:
            there = ", ".join(map(repr, held)) or "nothing"
            raise SelectionError(f"{place} holds no features of={of!r}; its keys are {there}")
        keys, held = (key,), held[key]
    elif of == "text":
        raise SelectionError(
            f"{place} holds one array, which is of images; type of='image', or give the file that "
            "holds 'text_features', too"
        )
    if isinstance(held, dict) and any(isinstance(value, dict) for value in held.values()):
        level = _variant(place, variant, list(held))
        keys, held, variant = (*keys, level), held[level], None
    if isinstance(held, dict):
        _check_single(place, variant)
        return _named_rows(place, changed, keys, held)
    return _array_rows(place, changed, keys, held, variant)


def _variant(place: Path, variant: str | int | None, there: Sequence[str]) -> str:
    if variant is None:
        raise SelectionError(
            f"{place} holds several variants; type variant= one of {', '.join(map(repr, there))}"
        )
    if variant not in there:
        raise SelectionError(f"no variant {variant!r} in {place}: {close_matches(variant, there)}")
    return str(variant)


def _check_single(place: Path, variant: str | int | None) -> None:
    if variant is not None:
        raise SelectionError(f"{place} holds one variant only; leave out variant={variant!r}")


def _named_rows(place: Path, changed: int, keys: tuple[str, ...], held: dict[str, Any]) -> _Rows:
    vectors = list(held.values())
    if not vectors or not all(isinstance(v, np.ndarray) and v.dtype.kind == "f" for v in vectors):
        raise SourceError(f"{place}: {keys[-1]!r} holds no vectors of floating-point numbers")
    shapes = {v.shape for v in vectors}
    if len(shapes) > 1 or vectors[0].ndim != 1:
        raise SourceError(f"{place}: the vectors of {keys[-1]!r} have the shapes {sorted(shapes)}")
    shape = (len(vectors), vectors[0].size)
    return _Rows(str(place), changed, keys, tuple(held), (), shape, vectors[0].dtype)


def _array_rows(
    place: Path, changed: int, keys: tuple[str, ...], held: Any, variant: str | int | None
) -> _Rows:
    if not isinstance(held, np.ndarray) or held.dtype.kind != "f":
        found = held.dtype if isinstance(held, np.ndarray) else type(held).__name__
        raise SourceError(f"{place} holds no floating-point numbers, but {found}")
    leading: tuple[int, ...] = ()
    if held.ndim == 4:
        count = held.shape[0]
        if str(variant) not in map(str, range(count)):
            raise SelectionError(f"{place} holds {count} variants; type variant=0 to {count - 1}")
        leading = (int(variant or 0),)
    elif held.ndim in (2, 3):
        _check_single(place, variant)
    else:
        raise SourceError(
            f"{place} holds an array {held.shape}; expected (image, feature), (concept, image, "
            "feature) or (variant, concept, image, feature)"
        )
    rows = int(np.prod(held.shape[len(leading) : -1]))
    shape = (rows, int(held.shape[-1]))
    return _Rows(str(place), changed, keys, None, leading, shape, held.dtype)


@dataclass(frozen=True, eq=False)
class _Labels:
    """The images of a file, in their order.

    Parameters
    ----------
    ids : ndarray of object, (image,)
    concepts : ndarray of object, (image,), optional
    others : dict
        More coordinates of images.
    """

    ids: np.ndarray
    concepts: np.ndarray | None
    others: Mapping[str, np.ndarray]

    @classmethod
    def read(
        cls,
        images: str | Path | xr.Dataset | None,
        partition: str | None,
        found: _Rows,
        of: Of,
    ) -> _Labels:
        """Read the images given, or those that a file names."""
        if isinstance(images, xr.Dataset):
            return cls._of_dataset(images, partition)
        if images is not None:
            return cls._of_images(_partition(read_images(images), partition, found, of))
        if found.names is None or of != "image":
            raise SelectionError(
                f"{found.path} does not say which images its rows are of; give images=, the path "
                "of image_metadata.npy or a Dataset with image_id"
            )
        return cls._of_images(_images_of_paths(found, partition))

    @classmethod
    def _of_images(cls, images: Images) -> _Labels:
        labels = images.labels(np.arange(len(images.files)), "image")
        values = {name: coord[1] for name, coord in labels.items()}
        return cls(values.pop("image_id"), values["things_concept"], values)

    @classmethod
    def _of_dataset(cls, images: xr.Dataset, partition: str | None) -> _Labels:
        if "image_id" not in images.coords or images["image_id"].dims != ("image",):
            raise SelectionError("images= has no 'image_id (image)'. Type: nedx.validate(images)")
        if partition is not None:
            if "partition" not in images.coords:
                raise SelectionError("images= has no coordinate 'partition'; leave partition= out")
            images = images.isel(image=images["partition"].values == partition)
        known = [n for n in ("things_concept", "category") if n in images.coords]
        values = {name: images[name].values.astype(object) for name in known}
        concepts = values[known[0]] if known else None
        return cls(images["image_id"].values.astype(object), concepts, values)

    def rows(self, found: _Rows, of: Of) -> np.ndarray | None:
        """Return the row of each image; None where they are in the same order."""
        if of == "text":
            return self._rows_of_text(found)
        if found.names is not None:
            return self._rows_of_paths(found)
        times, rest = divmod(found.count, max(1, len(self.ids)))
        if rest or not times or (times > 1 and of == "image"):
            raise SourceError(
                f"{found.path} has {found.count} rows, there are {len(self.ids)} images: they do "
                "not belong together"
            )
        return None

    def _rows_of_paths(self, found: _Rows) -> np.ndarray:
        where = {_image_id(name): row for row, name in enumerate(found.names or ())}
        missing = [name for name in self.ids if name not in where]
        if missing or len(where) != len(self.ids):
            first = f", the first that is missing is {missing[0]}" if missing else ""
            raise SourceError(
                f"{found.path} names {len(where)} images, there are {len(self.ids)}{first}: they "
                "do not belong together"
            )
        return np.array([where[name] for name in self.ids])

    def _rows_of_text(self, found: _Rows) -> np.ndarray:
        if self.concepts is None:
            raise SelectionError(
                "text has a row for each concept, and images= has no coordinate 'things_concept' "
                "or 'category'"
            )
        concepts = list(dict.fromkeys(self.concepts.tolist()))
        if found.names is not None:
            where = {_concept(name): row for row, name in enumerate(found.names)}
            missing = [name for name in concepts if _concept(name) not in where]
            if missing:
                raise SourceError(
                    f"{found.path} has no text for {len(missing)} concepts, the first is "
                    f"{missing[0]!r}: {close_matches(missing[0], where)}"
                )
            return np.array([where[_concept(name)] for name in self.concepts])
        if found.count != len(concepts):
            raise SourceError(
                f"{found.path} has {found.count} rows of text, the images have {len(concepts)} "
                "concepts: they do not belong together"
            )
        position = {name: row for row, name in enumerate(concepts)}
        return np.array([position[name] for name in self.concepts])

    def coords(self, dim: str, count: int) -> dict[str, Any]:
        """Return the coordinates along images, or along their repetitions."""
        values = {"image_id": self.ids, **self.others}
        if dim == "image":
            return {name: (dim, value) for name, value in values.items()}
        times = count // len(self.ids)
        repetition = np.tile(np.arange(times, dtype=np.int16), len(self.ids))
        spread = {name: (dim, np.repeat(value, times)) for name, value in values.items()}
        return {**spread, "repetition": (dim, repetition)}


def _partition(images: Mapping[str, Images], partition: str | None, found: _Rows, of: Of) -> Images:
    """Return the images of the partition asked for, or of the one that fits."""
    if partition is not None:
        if partition not in images:
            raise SelectionError(f"partition is 'train' or 'test', not {partition!r}")
        return images[partition]
    counts = {
        name: len(set(one.concepts)) if of == "text" else len(one.files)
        for name, one in images.items()
    }
    fitting = [
        name
        for name, count in counts.items()
        if found.count == count or (of == "eeg" and found.count % count == 0)
    ]
    if len(fitting) != 1:
        listed = " and ".join(f"{count} of {name}" for name, count in counts.items())
        what = "concepts" if of == "text" else "images"
        raise SourceError(
            f"{found.path} has {found.count} rows, there are {listed} {what}; give "
            "partition='train' or 'test'"
        )
    return images[fitting[0]]


def _images_of_paths(found: _Rows, partition: str | None) -> Images:
    """Return the images that the paths of a file name, such as test_images/00001_a/a_06s.jpg."""
    parts = [_SEPARATOR.split(name) for name in found.names or ()]
    if short := [part for part in parts if len(part) < 2]:
        raise SourceError(
            f"{found.path} names {short[0][0]!r}, which is no path with the folder of a concept"
        )
    heads = {_PARTITIONS.get(part[0].removesuffix("_images")) for part in parts}
    known = partition or (heads.pop() if len(heads) == 1 else None)
    if known is None:
        raise SelectionError(f"{found.path} does not say of which partition it is; give partition=")
    return Images(known, tuple(part[-1] for part in parts), tuple(part[-2] for part in parts))


def _image_id(path: str) -> str:
    return f"things:{_SEPARATOR.split(path)[-1].rsplit('.', 1)[0]}"


def _concept(name: str) -> str:
    """Spell a concept as THINGS does: 00001_air pump is air_pump."""
    return re.sub(r"^\d+_", "", str(name)).replace(" ", "_")
