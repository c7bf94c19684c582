"""Trees of feature files, true or decoded: one MATLAB file an image, a folder a layer.

A layout says what the folders on the way to the files are. Those of which there is only one need
not be named. A file holds ``feat``: ``(1, ...)`` of one image, or its units alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx.compute.planned import Indexer, PlannedArray
from nedx.errors import SelectionError, SourceError, close_matches
from nedx.selection import Names
from nedx.sources.bdata.matlab_arrays import open_array, open_stored, read_stored
from nedx.store.lazy import TARGET_BYTES
from nedx.store.location import Location

LAYOUTS: dict[str, str] = {
    "true": "{layer}",
    "decoded": "{layer}/{subject}/{roi}",
    "decoded-folds": "{layer}/{subject}/{roi}/{fold}/decoded_features",
    "decoded-folder": "{layer}/{subject}/{roi}/decoded_features",
    "shen2019": "{image_type}/{net}/{layer}/{subject}/{roi}",
    "ho2023": "{net}/{layer}/{conversion}/{roi}/{method}/{num_samples}/{alpha}",
    "chunked": "{net}/{layer}/chunk",
}
"""Folders from the root to the files, by name. A word in braces is a choice; of the folds, in
which images differ, all are taken. ``chunked`` has a file a channel with all images in it."""

_EVERY = ("layer", "fold")
_AXES = {1: ("unit",), 3: ("channel", "y", "x")}
_FEATURE = "feat"
_IMAGES_PER_TASK = 64


def open_features(
    root: str | Path | Location,
    *,
    layout: str = "true",
    layers: Names | None = None,
    image_set: str,
    labels: Sequence[str] | None = None,
    by_index: bool = False,
    **choices: str,
) -> xr.Dataset:
    """Open features of all images, lazily; one file of each layer is looked into.

    Parameters
    ----------
    root : str, Path or Location
        What the folders of the layout lie in.
    layout : str
        A name in `LAYOUTS`, or folders in the same form.
    layers : str or sequence of str, optional
        Which, in their order; all by default, sorted by name.
    image_set : str
        What stands before the name of a file in ``image_id``, as in the responses to the images.
    labels : sequence of str, optional
        Names of the images of a ``chunked`` layout, whose files do not tell them.
    by_index : bool
        ``image_id`` has the position of the name among all, from 1, which BData call
        ``image_index``, rather than the name.
    **choices
        What to take where a folder of the layout has several: ``subject="sub-01", roi="ROI_VC"``.

    Returns
    -------
    Dataset
        ``feature_<layer> (image, <layer>_channel, <layer>_y, <layer>_x)`` or ``(image,
        <layer>_unit)``, of the dtype of the files, units ``"1"``; ``image_id``, ``label`` (the
        name of the file) and ``image_index`` (from 1) along ``image``, sorted by name. The
        choices are attributes.

    Raises
    ------
    SelectionError
        If a layout, layer or choice is not there, or several are and none was chosen.
    SourceError
        If there are no files, layers are of different images, or arrays of different shapes.
    StoreError, CorruptStoreError
        If a file is missing, cut short or damaged.
    """
    where = Location.of(root)
    template = LAYOUTS.get(layout, layout)
    if "{layer}" not in template:
        raise SelectionError(f"no layout is called {layout!r}: {close_matches(layout, LAYOUTS)}")
    files, chosen = tree_files(where, template, layers, choices)
    if layout == "chunked":
        opened = {layer: _chunked(where, keys, labels) for layer, keys in files.items()}
    else:
        words = [f"{{{name}}}" for name in chosen]
        prefix = "-".join(p for p in template.split("/") if p in (*words, "{layer}"))
        opened = {
            layer: _per_image(where, keys, prefix.format(**chosen, layer=layer))
            for layer, keys in files.items()
        }
    names = _same_images(where, {layer: names for layer, (names, _) in opened.items()})
    ids = [f"{image_set}:{i if by_index else name}" for i, name in enumerate(names, 1)]
    variables = {
        f"feature_{layer}": (_dims(layer, array.ndim), array, {"units": "1", "layer": layer})
        for layer, (_, array) in opened.items()
    }
    coords = {
        "image_id": ("image", np.array(ids, dtype=object)),
        "label": ("image", np.array(names, dtype=object)),
        "image_index": ("image", np.arange(1, 1 + len(names), dtype=np.int32)),
    }
    return xr.Dataset(variables, coords, chosen).set_xindex("image_id")


def tree_files(
    root: Location, template: str, layers: Names | None, choices: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Find the files of a layout.

    Parameters
    ----------
    root : Location
    template : str
        Folders, as in `LAYOUTS`.
    layers : str or sequence of str, optional
        Which; all by default.
    choices : mapping of str to str
        Folders to take where there are several.

    Returns
    -------
    files : dict of str to list of str
        The ``.mat`` files of each layer, sorted.
    chosen : dict of str to str
        What each word of the template was, but for layers and folds.

    Raises
    ------
    SelectionError
        If a choice is not there, or one is missing.
    SourceError
        If there are no files.
    """
    parts = template.split("/")
    words = [part[1:-1] for part in parts if part.startswith("{")]
    options = [word for word in words if word not in _EVERY]
    for name in choices:
        if name not in options:
            hint = close_matches(name, options) or "it has none"
            raise SelectionError(f"{name!r} is no choice of the layout {template}: {hint}")
    places: list[tuple[str, str]] = [("", "")]
    chosen: dict[str, str] = {}
    for part in parts:
        word = part[1:-1] if part.startswith("{") else ""
        if word == "layer":
            places = [(f"{f}{one}/", one) for f, _ in places for one in _wanted(root, f, layers)]
        elif word == "fold":
            places = [(f"{f}{one}/", layer) for f, layer in places for one in _folders(root, f)]
        else:
            if word:
                chosen[word] = _only(root, places[0][0], word, choices.get(word))
            places = [(f"{f}{chosen.get(word, part)}/", layer) for f, layer in places]
    files: dict[str, list[str]] = {}
    for folder, layer in places:
        names = [name for name, kind in listed(root, folder) if kind == "file"]
        found = [f"{folder}{name}" for name in sorted(names) if name.endswith(".mat")]
        files.setdefault(layer, []).extend(found)
    if not files or not all(files.values()):
        raise SourceError(f"{root.url} has no .mat files where the layout {template} has them")
    return files, chosen


def _wanted(root: Location, folder: str, layers: Names | None) -> list[str]:
    there = _folders(root, folder)
    wanted = there if layers is None else [layers] if isinstance(layers, str) else list(layers)
    for layer in wanted:
        if layer not in there:
            raise SelectionError(f"no layer is called {layer!r}: {close_matches(layer, there)}")
    return wanted


def _only(root: Location, folder: str, word: str, choice: str | None) -> str:
    """Return the folder that is chosen, or the only one."""
    there = _folders(root, folder)
    if choice is not None:
        if choice not in there:
            hint = close_matches(choice, there)
            raise SelectionError(f"no {word} is called {choice!r} in {root.url}/{folder}: {hint}")
        return choice
    if len(there) != 1:
        raise SelectionError(
            f"{root.url}/{folder} has {len(there)} folders for {word}"
            + (f"; give {word}=, one of: {', '.join(there)}" if there else ", expected one")
        )
    return there[0]


def _folders(root: Location, folder: str) -> list[str]:
    return sorted(name for name, kind in listed(root, folder) if kind == "directory")


def listed(root: Location, folder: str) -> list[tuple[str, str]]:
    """Return the names in a folder, and of each whether it is a ``file`` or a ``directory``.

    Raises
    ------
    SourceError
        If there is no such folder.
    """
    filesystem, base = root.filesystem()
    path = f"{base}/{folder}".rstrip("/")
    try:
        found = root.patiently(folder, lambda: filesystem.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"there is no folder {root.url}/{folder}") from error
    pairs = [(str(one["name"]).rstrip("/").rpartition("/")[2], str(one["type"])) for one in found]
    return [(name, kind) for name, kind in pairs if not name.startswith(".")]


def _dims(layer: str, ndim: int) -> tuple[str, ...]:
    axes = _AXES.get(ndim - 1, tuple(f"axis{n}" for n in range(ndim - 1)))
    return ("image", *(f"{layer}_{axis}" for axis in axes))


def _same_images(root: Location, names: Mapping[str, list[str]]) -> list[str]:
    """Return the images of all layers, which must be the same."""
    first, *others = names
    for layer in others:
        if names[layer] != names[first]:
            odd = sorted(set(names[layer]) ^ set(names[first]))
            raise SourceError(
                f"in {root.url} the layers {first} and {layer} are not of the same images: "
                f"{len(odd)} are of one of them only, the first is {odd[0] if odd else 'none'!r}"
            )
    return names[first]


def _per_image(root: Location, keys: list[str], prefix: str) -> tuple[list[str], PlannedArray]:
    """Return the images of one layer, sorted by name, and their features."""
    by_name: dict[str, str] = {}
    for key in keys:
        # Some name their files by all that the folders say, too.
        name = Path(key).stem.removeprefix(f"{prefix}-")
        if name in by_name:
            raise SourceError(f"{root.url} has {name!r} twice: {by_name[name]} and {key}")
        by_name[name] = key
    names = sorted(by_name)
    first = open_stored(root, by_name[names[0]], _FEATURE)
    files = tuple(by_name[name] for name in names)
    shape = _unit_shape(first.shape)
    window = tuple(np.arange(size) for size in shape)
    plan = FeaturePlan(root, files, shape, first.dtype.str, np.arange(len(files)), window)
    return names, PlannedArray(plan)


def _unit_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the units of an image, without an axis of images."""
    if len(shape) < 2 or (len(shape) == 2 and 1 in shape):
        return (int(np.prod(shape)),)
    return shape[1:] if len(shape) == 4 and shape[0] == 1 else shape


def _chunked(
    root: Location, keys: list[str], labels: Sequence[str] | None
) -> tuple[list[str], da.Array]:
    """Return the images of one layer, and their features joined along channels."""
    parts = [open_array(root.child(key), "chunk") for key in keys]
    counts = {part.shape[0] for part in parts}
    if labels is None or counts != {len(labels)}:
        given = "none" if labels is None else f"{len(labels):,}"
        raise SourceError(
            f"files such as {root.url}/{keys[0]} hold {', '.join(map(str, sorted(counts)))} images "
            f"and do not name them; {given} were named: give labels=, sorted as the images were"
        )
    return list(labels), da.concatenate([da.rechunk(p, p.shape) for p in parts], axis=1)


@dataclass(frozen=True, eq=False)
class FeatureBlock:
    """Features of some images; what a dask task calls."""

    root: Location
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    window: tuple[np.ndarray, ...] = field(repr=False)

    def __call__(self) -> np.ndarray:
        """Read ``(image, ...)``, one file an image, and keep the units that are wanted."""
        values = np.empty((len(self.keys), *map(len, self.window)), self.dtype)
        for row, key in enumerate(self.keys):
            found = read_stored(self.root, key, _FEATURE)
            if _unit_shape(found.shape) != self.shape:
                raise SourceError(
                    f"{self.root.url}/{key} holds features of the shape {found.shape}, others of "
                    f"the layer have {self.shape}: it is of another network, or damaged"
                )
            values[row] = found.reshape(self.shape)[np.ix_(*self.window)]
        return values


@dataclass(frozen=True, eq=False)
class FeaturePlan:
    """Lazy ``(image, ...)`` of one layer, a file an image; selecting images reads theirs only.

    Parameters
    ----------
    root : Location
    keys : tuple of str
        The file of each image.
    shape : tuple of int
        Of the units of one image.
    dtype : str
        Of the values.
    images : numpy.ndarray of int64, (image,)
        Which of the files, in the order wanted.
    window : tuple of numpy.ndarray of int64
        Positions along each axis of the units.
    """

    root: Location
    keys: tuple[str, ...] = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    images: np.ndarray = field(repr=False)
    window: tuple[np.ndarray, ...] = field(repr=False)

    def __dask_tokenize__(self) -> str:
        # dask only prints what it gets here, and a printed array leaves out its middle.
        parts = (self.root, self.keys, self.shape, self.dtype, self.images, self.window)
        return tokenize("nedx.FeaturePlan", *parts)

    def build(self) -> da.Array:
        """Return the dask array, one task a group of images, without reading anything."""
        size = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        step = max(1, min(_IMAGES_PER_TASK, TARGET_BYTES // max(1, size)))
        parts = [self.images[i : i + step] for i in range(0, len(self.images), step)]
        parts = parts or [self.images]
        name = f"features-{tokenize(self)}"
        zeros = (0,) * len(self.window)
        graph = {
            (name, i, *zeros): (
                FeatureBlock(
                    self.root,
                    tuple(self.keys[n] for n in part.tolist()),
                    self.shape,
                    self.dtype,
                    self.window,
                ),
            )
            for i, part in enumerate(parts)
        }
        chunks = (tuple(len(part) for part in parts), *((len(keep),) for keep in self.window))
        return da.Array(graph, name, chunks, dtype=np.dtype(self.dtype))

    def narrow(self, indexers: Sequence[Indexer]) -> FeaturePlan:
        """Return the plan of what remains."""
        images, *others = indexers
        window = tuple(keep[one] for keep, one in zip(self.window, others, strict=True))
        return replace(self, images=self.images[images], window=window)
