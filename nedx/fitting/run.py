"""Carry out a fit recipe: prepare, features, fit, test, figures, card, model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from nedx.encoding.estimators.measured import measured, members, row_positions
from nedx.encoding.evaluating import evaluate
from nedx.encoding.model import LinearEncoder, result_labels
from nedx.encoding.opening import open_linear
from nedx.encoding.weights import ROOT
from nedx.errors import StoreExistsError, require
from nedx.fitting.card import accuracy_lines, as_markdown
from nedx.fitting.figures import draw
from nedx.fitting.recipe import FitRecipe, load_fit_recipe
from nedx.fitting.splitting import split
from nedx.store.location import Location

MODEL, CARD, RECIPE, FIGURES = "model.zarr", "model_card.md", "recipe.yaml", "figures"
"""What lies in the folder of a fit."""

_SCORES = {"accuracy": "encoding_accuracy", "noise_ceiling": "noise_ceiling"}


@dataclass(frozen=True)
class FitResult:
    """What a recipe led to.

    Attributes
    ----------
    model : LinearEncoder
        As stored; its labels hold ``encoding_accuracy`` and ``noise_ceiling``.
    place : Path
        The store of the model: `nedx.encode`, `nedx.synthesize` and ``nedx synth`` take it.
    card : str
        The model card, Markdown.
    figures : tuple of Path
        PNG files.
    """

    model: LinearEncoder
    place: Path
    card: str
    figures: tuple[Path, ...]

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.model.recipe.model_id}: {self.place}", *accuracy_lines(self.model)]
        )


def fit(
    recipe: FitRecipe | Mapping[str, Any] | str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> FitResult:
    """Fit an encoding model as a recipe says, test it on held-out images, and store it.

    The folder of the recipe's ``output`` then holds ``model.zarr``, which `nedx.synthesize` and
    ``nedx synth`` take; ``model_card.md``; ``recipe.yaml``; and ``figures``.

    Parameters
    ----------
    recipe : FitRecipe, mapping, str or Path
        The recipe, or the path of a YAML file.
    overwrite : bool
        Replace what an earlier fit left in the folder.
    progress : callable (str), optional
        Is told what is done now.

    Returns
    -------
    FitResult

    Raises
    ------
    ModelError
        If the recipe is not valid, or data do not fit it: overlapping parts, missing images,
        responses of other units.
    StoreExistsError
        If the folder holds a model already; nothing is changed.

    Examples
    --------
    >>> result = nedx.fit(
    ...     {
    ...         "name": "mine",
    ...         "stimuli": "sim-images",
    ...         "responses": "sim-fmri",
    ...         "backbone": "gabor",
    ...         "output": "mine",
    ...     }
    ... )
    >>> print(result.card)
    """
    tell = progress or (lambda _: None)
    done = load_fit_recipe(recipe)
    folder = Path(done.output)
    _check_output(done, folder, overwrite=overwrite)
    tell("reading labels")
    stimuli = done.stimuli.open()
    train, test = split(done.responses.open(), done.split)
    # Of the images held out too, before the fit and not after it.
    row_positions(stimuli, {name: measured(ds) for name, ds in members(test).items()})
    tell("computing features and fitting")
    estimator = done.estimator.build(done.backbone).fit(stimuli, train)
    tell("testing on held-out images")
    scored = evaluate(estimator.model_, stimuli, test, method=done.evaluation.ceiling)
    model = _described(estimator.model_, done, scored, test)
    tell("writing model, figures and card")
    return _written(model, done, folder)


def _check_output(recipe: FitRecipe, folder: Path, *, overwrite: bool) -> None:
    if (folder / MODEL).exists() and not overwrite:
        raise StoreExistsError(
            f"{folder / MODEL} exists already and was not changed. Choose another output, or "
            "type overwrite=True (--overwrite)"
        )
    if recipe.figures:
        require("matplotlib.figure", "plot")


def _described(
    model: LinearEncoder,
    recipe: FitRecipe,
    scored: xr.Dataset | xr.DataTree,
    test: xr.Dataset | xr.DataTree,
) -> LinearEncoder:
    """Say in the model how good it is, and which images were held out."""
    given = {"license": recipe.license, "citation": recipe.citation}
    changes = {key: value for key, value in given.items() if value is not None}
    about = model.recipe.model_copy(
        update={
            "model_id": recipe.name,
            "version": recipe.version,
            "split": _split_said(recipe),
            **changes,
        }
    )
    results, held = members(scored), members(test)
    groups = {
        name: _with_scores(ds, results[name], held[name], recipe)
        for name, ds in model.members.items()
    }
    if set(groups) == {ROOT}:
        weights: xr.Dataset | xr.DataTree = groups[ROOT]
    else:
        tree: Any = model.weights
        nodes = {f"/{name}": ds for name, ds in groups.items()}
        weights = xr.DataTree.from_dict({"/": tree.to_dataset(inherit=False), **nodes})
    widths = model.layer_widths
    card = as_markdown(LinearEncoder(weights, about, layer_widths=widths))
    return LinearEncoder(weights, about.model_copy(update={"card": card}), layer_widths=widths)


def _with_scores(
    member: xr.Dataset, scored: xr.Dataset, test: xr.Dataset, recipe: FitRecipe
) -> xr.Dataset:
    """Add accuracy, ceiling and the ids of held-out images to the labels of a member."""
    added = {}
    for name, label in _SCORES.items():
        if name in scored:
            values = scored[name].reset_coords(drop=True).compute()
            attrs = {**values.attrs, "test_set": f"{_count(test)} held-out images"}
            added[label] = (values.dims, values.values.astype(np.float32), attrs)
    ids = np.unique(test["image_id"].values.astype(str)).astype(object)
    known = np.concatenate([member["known_image"].values, ids])
    kinds = np.concatenate([member["known_partition"].values, np.full(len(ids), "test", object)])
    kept = result_labels(member).drop_vars(
        ["known_image", "known_partition", *_SCORES.values()], errors="ignore"
    )
    return kept.assign_coords(
        {**added, "known_image": known, "known_partition": ("known_image", kinds)}
    )


def _written(model: LinearEncoder, recipe: FitRecipe, folder: Path) -> FitResult:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, FIGURES):
        shutil.rmtree(folder / name, ignore_errors=True)
    figures = draw(model, folder / FIGURES) if recipe.figures else {}
    card = as_markdown(model, {caption: f"{FIGURES}/{file}" for caption, file in figures.items()})
    (folder / CARD).write_text(card, encoding="utf-8")
    said = recipe.model_dump(mode="json", exclude_none=True)
    (folder / RECIPE).write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    # The model comes last: where it lies, all is there.
    model.to_zarr(folder / MODEL)
    paths = tuple(folder / FIGURES / file for file in figures.values())
    return FitResult(open_linear(Location.of(folder / MODEL)), folder / MODEL, card, paths)


def _split_said(recipe: FitRecipe) -> str:
    how = recipe.split
    if how.test_fraction is None:
        return f"by {how.coordinate}: {', '.join(how.train)} against {', '.join(how.test)}"
    whole = f", whole {how.groups}" if how.groups else ""
    return f"{how.test_fraction:.0%} of the images held out by seed {how.seed}{whole}"


def _count(test: xr.Dataset) -> int:
    return len(np.unique(test["image_id"].values.astype(str)))
