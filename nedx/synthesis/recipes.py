"""Recipes of image sets: what anyone needs to synthesise responses to them with any model.

A recipe is data-only YAML. It says which images there must be and in which order, and how their
ids are made, so that responses of different models, and those published before, join by
``image_id``.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import xarray as xr
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from nedx.errors import CatalogError, StimulusError, UnknownIdError, close_matches
from nedx.stimuli import open_images
from nedx.stimuli.decoding import SUFFIXES
from nedx.stimuli.fitting import FitMode

_PLACEHOLDER = re.compile(r"\{(?:row(?::0\d{1,2}d)?|stem)\}")
_STRICT = ConfigDict(frozen=True, extra="forbid")


class BrickFile(BaseModel):
    """Images in one HDF5 dataset, uint8 (image, y, x, rgb).

    Parameters
    ----------
    dataset : str
        Its name in the file.
    file : str
        What the file is called, where a folder is given.
    """

    model_config = _STRICT

    kind: Literal["hdf5"]
    dataset: str
    file: str


class ClassFolders(BaseModel):
    """Image files in one folder for each class, in the order of folders, then of file names.

    Parameters
    ----------
    folder : str, optional
        What the folder of the folders is called, where its parent is given.
    folders : int, optional
        How many there must be.
    names : str, optional
        A regular expression that the names of all folders match.
    paths_files : tuple of str
        Names under which a table may lie beside the images, or above them, whose last column is
        the path of each image (``<class>/<file>`` at its end). It is the order, where it is there.
    """

    model_config = _STRICT

    kind: Literal["folders"]
    folder: str | None = None
    folders: PositiveInt | None = None
    names: str | None = None
    paths_files: tuple[str, ...] = ()

    @field_validator("names")
    @classmethod
    def _compiles(cls, names: str | None) -> str | None:
        try:
            re.compile(names or "")
        except re.error as error:
            raise ValueError(f"{names!r} is no regular expression: {error}") from error
        return names


class ImageSetRecipe(BaseModel):
    """Which images a set has, where their ids come from, and how they get one size.

    Parameters
    ----------
    nedx_recipe : 1
        Version of this format.
    id, title : str
        Name and meaning.
    images : str
        What the user must have, and how to get it.
    source : BrickFile or ClassFolders
        The form that the images have on disk.
    count : int
        How many there must be.
    stimulus_set : str
        First part of every ``image_id``.
    image_id : str
        The ids; ``{row:05d}`` is the position in the set from 0, ``{stem}`` the name of the file
        without its suffix.
    labels : dict of str to {"row", "folder", "folder_index"}
        Further coordinates of the images: the position in the set (int32), the folder of a file
        (str), the position of that folder among all (int16).
    fit : {"error", "crop", "resize", "pad"}
        How images get one size; see `nedx.stimuli.fitting.Fit`.
    size : int
        Height and width in pixels.
    license, terms_url, citation : str
        Of the images.
    """

    model_config = _STRICT

    nedx_recipe: Literal[1]
    id: str
    title: str
    images: str
    source: Annotated[BrickFile | ClassFolders, Field(discriminator="kind")]
    count: PositiveInt
    stimulus_set: str
    image_id: str
    labels: dict[str, Literal["row", "folder", "folder_index"]] = {}
    fit: FitMode = "error"
    size: PositiveInt
    license: str
    terms_url: str
    citation: str

    @field_validator("image_id")
    @classmethod
    def _tells_apart(cls, template: str) -> str:
        rest = _PLACEHOLDER.sub("", template)
        if rest == template or "{" in rest or "}" in rest:
            raise ValueError(f"{template!r} must hold {{row:05d}} or {{stem}}, and no other braces")
        return template

    @model_validator(mode="after")
    def _has_what_it_takes(self) -> ImageSetRecipe:
        if isinstance(self.source, BrickFile):
            if "{row" not in self.image_id:
                raise ValueError("images in an HDF5 file have rows only: image_id needs {row:05d}")
            if set(self.labels.values()) - {"row"}:
                raise ValueError("images in an HDF5 file have rows only: labels can be 'row'")
        return self


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with nedx."""
    return sorted(_packaged())


def load_recipe(name_or_path: str | Path) -> ImageSetRecipe:
    """Read the recipe of an image set.

    Parameters
    ----------
    name_or_path : str or Path
        ``"nsd-73k"``, ``"imagenet-val"``, ``"things"``, or the path of a YAML file.

    Returns
    -------
    ImageSetRecipe

    Raises
    ------
    UnknownIdError
        If there is no such recipe; names those that there are.
    CatalogError
        If the file is no recipe; names every fault.
    """
    text = os.fspath(name_or_path)
    packaged = _packaged()
    is_path = isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml"))
    path = Path(text).expanduser() if is_path else packaged.get(text)
    if path is None or not path.is_file():
        hint = close_matches(text, packaged)
        raise UnknownIdError(
            f"there is no recipe {text!r}; {hint} Or give the path of a YAML file of your own"
        )
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        return ImageSetRecipe.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path} is not a data-only YAML file: {error}") from error
    except ValidationError as error:
        faults = "\n".join(
            f"  - {'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise CatalogError(f"{path} is no recipe of an image set:\n{faults}") from error


def _packaged() -> dict[str, Path]:
    package = Path(__file__).resolve().parent.parent
    for root in (package, package.parent):
        found = {path.stem: path for path in (root / "catalogs/recipes").glob("*.yaml")}
        if found:
            return found
    return {}


def open_image_set(
    recipe: ImageSetRecipe | str | Path, source: str | Path, **options: Any
) -> xr.Dataset:
    """Open the images of a recipe, lazily, in the order and with the ids that it says.

    Parameters
    ----------
    recipe : ImageSetRecipe, str or Path
        A recipe, its name, or the path of its YAML file.
    source : str or Path
        A local HDF5 file or folder, as ``recipe.images`` describes it.
    **options
        Arguments of `nedx.open_images` to use instead of the recipe's: ``fit``, ``size``,
        ``chunks``. The result says what was done.

    Returns
    -------
    Dataset
        ``pixels (image, y, x, rgb)`` uint8, lazy, with ``image_id``, ``stimulus_set``, the
        recipe's labels, and of files ``filename`` (``<folder>/<file>``). Of an HDF5 file only
        the images asked for are read, as ranges of it.

        Images of ImageNet are called ``imagenet-val:row-00000`` by their position in
        torchvision's order, as the published responses are, whose files name no images;
        ``filename`` says ``n01440764/ILSVRC2012_val_00000293.JPEG``.

    Raises
    ------
    UnknownIdError, CatalogError
        If there is no such recipe, or it has faults.
    StimulusError
        If images are missing, of another kind, or more than there should be.
    """
    if not isinstance(recipe, ImageSetRecipe):
        recipe = load_recipe(recipe)
    place = Path(source).expanduser().absolute()
    if "://" in str(source) or not place.exists():
        where = "is no path of this machine" if "://" in str(source) else "does not exist"
        raise StimulusError(f"{source} {where}. {_needed(recipe)}")
    unknown = sorted(set(options) - {"fit", "size", "chunks"})
    if unknown:
        raise StimulusError(
            f"a recipe of images takes no option {unknown[0]!r}; "
            f"{close_matches(unknown[0], ['fit', 'size', 'chunks'])}"
        )
    options = {"fit": recipe.fit, "size": recipe.size, **options}
    if isinstance(recipe.source, BrickFile):
        return _open_brick(recipe, recipe.source, place, options)
    return _open_folders(recipe, _find_files(recipe, recipe.source, place), options)


def _open_brick(
    recipe: ImageSetRecipe, source: BrickFile, place: Path, options: dict[str, Any]
) -> xr.Dataset:
    file = place / source.file if place.is_dir() else place
    if not file.is_file():
        raise StimulusError(f"there is no {source.file} in {place}. {_needed(recipe)}")
    images = open_images(file, key=source.dataset, **options)
    count = images.sizes["image"]
    _check_count(recipe, file, count, f"images in {source.dataset!r} of")
    ids = [_image_id(recipe, row, "") for row in range(count)]
    return _labelled(recipe, images, ids, {"row": np.arange(count, dtype=np.int32)})


class _Files(NamedTuple):
    """Image files below a folder: ``<class>/<file>`` of each, in order."""

    root: Path
    below: list[PurePosixPath]


def _open_folders(recipe: ImageSetRecipe, files: _Files, options: dict[str, Any]) -> xr.Dataset:
    folders = sorted({path.parent.name for path in files.below})
    where = {name: number for number, name in enumerate(folders)}
    own = [path.parent.name for path in files.below]
    labels = {
        "row": np.arange(len(own), dtype=np.int32),
        "folder": np.array(own, dtype=object),
        "folder_index": np.array([where[name] for name in own], dtype=np.int16),
    }
    ids = [_image_id(recipe, row, path.stem) for row, path in enumerate(files.below)]
    images = open_images([files.root / path for path in files.below], image_ids=ids, **options)
    names = np.array([path.as_posix() for path in files.below], dtype=object)
    return _labelled(recipe, images.assign_coords(filename=("image", names)), ids, labels)


def _find_files(recipe: ImageSetRecipe, source: ClassFolders, place: Path) -> _Files:
    """Return the files of the set, checked against what there must be."""
    inner = place / source.folder if source.folder else place
    root = inner if inner.is_dir() else place
    if not root.is_dir():
        raise StimulusError(f"{place} is no folder. {_needed(recipe)}")
    found = (entry for entry in os.scandir(root) if not entry.name.startswith("."))
    folders = sorted(entry.name for entry in found if entry.is_dir())
    below = [PurePosixPath(folder, name) for folder in folders for name in _images_in(root, folder)]
    flat = len(_images_in(root, "."))
    if flat and not below:
        raise StimulusError(
            f"{root} holds {flat:,} images and no folder for each class. {_needed(recipe)}"
        )
    _check_count(recipe, root, len(below), "images in the folders of")
    used = sorted({path.parent.name for path in below})
    if source.folders is not None and len(used) != source.folders:
        raise StimulusError(
            f"the images of {root} are in {len(used):,} folders, expected {source.folders:,}. "
            f"{_needed(recipe)}"
        )
    odd = [name for name in used if source.names and not re.fullmatch(source.names, name)]
    if odd:
        raise StimulusError(
            f"{len(odd):,} folders of {root} have unexpected names, the first is {odd[0]!r}, "
            f"so that the order of the images is not known. {_needed(recipe)}"
        )
    return _Files(root, _in_order(source, root, below))


def _images_in(root: Path, folder: str) -> list[str]:
    """Return the names of the images in a folder, as plain strings are sorted."""
    return sorted(
        entry.name
        for entry in os.scandir(root / folder)
        if entry.name.lower().endswith(SUFFIXES)
        and not entry.name.startswith(".")
        and entry.is_file()
    )


def _in_order(source: ClassFolders, root: Path, below: list[PurePosixPath]) -> list[PurePosixPath]:
    """Put files in the order of the table of paths, where there is one."""
    tables = [base / name for base in (root, root.parent) for name in source.paths_files]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        return below
    with table.open(newline="", encoding="utf-8") as file:
        rows = [
            PurePosixPath(row[-1].strip().replace("\\", "/")) for row in csv.reader(file) if row
        ]
    listed = [PurePosixPath(*path.parts[-2:]) for path in rows if path.suffix.lower() in SUFFIXES]
    lacking = sorted(set(below) ^ set(listed))
    if lacking or len(listed) != len(below):
        first = f", the first is {lacking[0]}" if lacking else ""
        raise StimulusError(
            f"{table} lists {len(listed):,} images, {root} holds {len(below):,}; "
            f"{len(lacking):,} are in one of them only{first}. Fetch both again, or move the "
            "table away: the order is then that of the names"
        )
    return listed


def _image_id(recipe: ImageSetRecipe, row: int, stem: str) -> str:
    return recipe.image_id.format(row=row, stem=stem)


def _labelled(
    recipe: ImageSetRecipe, images: xr.Dataset, ids: Iterable[str], labels: dict[str, Any]
) -> xr.Dataset:
    """Give images their ids, the labels that the recipe names, and where they come from."""
    attrs = dict(images["image_id"].attrs)
    coords = {
        "image_id": ("image", np.array(list(ids), dtype=object), attrs),
        "stimulus_set": ("image", np.array([recipe.stimulus_set] * images.sizes["image"], object)),
        **{name: ("image", labels[kind]) for name, kind in recipe.labels.items()},
    }
    about = {
        "stimulus_recipe": recipe.id,
        "stimulus_license": recipe.license,
        "stimulus_terms": recipe.terms_url,
        "stimulus_references": recipe.citation,
    }
    return (
        images.drop_vars("image_id")
        .assign_coords(coords)
        .set_xindex("image_id")
        .assign_attrs(about)
    )


def _check_count(recipe: ImageSetRecipe, place: Path, found: int, what: str) -> None:
    if found != recipe.count:
        raise StimulusError(
            f"found {found:,} {what} {place}, expected {recipe.count:,}. {_needed(recipe)} To "
            "take other images, type: nedx.open_images(...), or write a recipe of your own"
        )


def _needed(recipe: ImageSetRecipe) -> str:
    return f"The recipe {recipe.id!r} needs: {recipe.images.strip().rstrip('.')}."
