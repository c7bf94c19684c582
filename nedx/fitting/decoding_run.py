"""Carry out a decoding recipe: train, retrieve, score, perturb, draw, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from nedx.decoding.decode import decode
from nedx.decoding.model import NeuralDecoder
from nedx.decoding.retrieval import retrieve
from nedx.errors import ModelError, StoreExistsError, require
from nedx.fitting.decoding_recipe import DecodingRecipe, load_decoding_recipe
from nedx.fitting.decoding_report import draw, report, score_table
from nedx.fitting.parts import StimuliSource
from nedx.fitting.splitting import split
from nedx.preprocessing.repetitions import average_repetitions
from nedx.schema import role_dim
from nedx.selection import map_nodes, resolve

DECODER, RETRIEVED, SCORES = "decoder.zarr", "retrieved.zarr", "scores.csv"
REPORT, RECIPE, FIGURES = "report.md", "recipe.yaml", "figures"
"""What lies in the folder of a decoding."""


@dataclass(frozen=True)
class DecodingResult:
    """What a recipe led to.

    Attributes
    ----------
    model : NeuralDecoder
        As stored.
    found : Dataset
        ``embedding``, ``candidate_id``, ``similarity`` and ``rank`` of the held-out images.
    scores : Dataset
        As `nedx.retrieval_scores` has them.
    perturbed : Dataset, optional
        As `nedx.channel_experiment` has it.
    importance : Dataset, optional
        As `nedx.channel_importance` has it.
    report : str
        Markdown.
    folder : Path
        Where all of it lies.
    """

    model: NeuralDecoder
    found: xr.Dataset
    scores: xr.Dataset
    perturbed: xr.Dataset | None
    importance: xr.Dataset | None
    report: str
    folder: Path


def run_decoding(
    recipe: DecodingRecipe | Mapping[str, Any] | str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> DecodingResult:
    """Train a decoder, find held-out images again, and see which channels carry them.

    Parameters
    ----------
    recipe : DecodingRecipe, mapping, str or Path
        The recipe, or the path of a YAML file.
    overwrite : bool
        Replace what an earlier run left in the folder.
    progress : callable (str), optional
        Is told what is done now.

    Returns
    -------
    DecodingResult

    Raises
    ------
    ModelError
        If the recipe is not valid, or data do not fit it.
    StoreExistsError
        If the folder holds a decoder already; nothing is changed.

    Examples
    --------
    >>> result = run_decoding(
    ...     {
    ...         "name": "mine",
    ...         "responses": {"place": "sim-eeg", "subject": 1},
    ...         "targets": {"place": "sim-eeg", "group": "truth"},
    ...         "images": "sim-images",
    ...         "output": "decoded",
    ...     }
    ... )
    >>> print(result.report)
    """
    from nedx.decoding.estimator import EEGDecoder
    from nedx.metrics.retrieval_scores import retrieval_scores

    tell = progress or (lambda _: None)
    done = load_decoding_recipe(recipe)
    folder = Path(done.output)
    _check_output(folder, overwrite=overwrite)
    tell("reading labels")
    responses, targets = done.open_responses(), done.open_targets()
    train, test = split(responses, done.split)
    test = _held_out(test)
    gallery = _features_of(targets, test)
    _check_asked(done, test)
    images = None if done.images is None else _images(done.images)
    tell("training")
    model = _named(EEGDecoder(**done.decoder).fit(train, targets).model_, done)
    tell("finding held-out images")
    test = test.load()
    found = retrieve(decode(test, model), gallery, k=done.k).drop_vars("response").compute()
    scores = retrieval_scores(found).compute()
    perturbed, important = _perturbed(done, test, model, gallery, tell)
    tell("writing decoder, figures and report")
    _clear(folder)
    figures = draw(found, images, perturbed, important, folder / FIGURES)
    text = report(model, scores, perturbed, {k: f"{FIGURES}/{v}" for k, v in figures.items()})
    _write(folder, done, model, found, scores, text)
    return DecodingResult(model, found, scores, perturbed, important, text, folder)


def _check_output(folder: Path, *, overwrite: bool) -> None:
    if (folder / DECODER).exists() and not overwrite:
        raise StoreExistsError(
            f"{folder / DECODER} exists already and was not changed. Choose another output, or "
            "type overwrite=True (--overwrite)"
        )
    require("matplotlib.figure", "plot")


def _held_out(test: xr.Dataset | xr.DataTree) -> xr.Dataset:
    """Return one response to each image; those of a tree with a dimension of subjects."""
    from nedx.insilico.chain import checked_test

    def averaged(ds: xr.Dataset) -> xr.Dataset:
        alone = role_dim(ds, "repetition") is None and role_dim(ds, "trial") is None
        return ds if alone or "response" not in ds else average_repetitions(ds)

    return checked_test(
        map_nodes(test, averaged) if isinstance(test, xr.DataTree) else averaged(test)
    )


def _check_asked(recipe: DecodingRecipe, test: xr.Dataset) -> None:
    """Raise, before anything is trained, if what is to be perturbed afterwards is not there."""
    from nedx.insilico.experiment import control_sets

    asked = recipe.perturbation
    if asked is None:
        return
    channels = asked.channels if isinstance(asked.channels, str) else list(asked.channels)
    names = test["channel"].values.astype(str)
    chosen = names[resolve(test, channel=channels)["channel"]]
    others = [str(name) for name in names if name not in chosen]
    control_sets(others, len(chosen), asked.controls)


def _images(source: StimuliSource) -> xr.Dataset:
    found = source.open()
    if "pixels" not in found or "image_id" not in found.coords:
        raise ModelError(
            f"{source.place!r} holds no 'pixels' with 'image_id' to draw, only "
            f"{list(map(str, found.variables))}"
        )
    return found


def _features_of(targets: xr.Dataset, test: xr.Dataset) -> xr.Dataset:
    """Return the features of the held-out images, the gallery to find them in."""
    known = set(targets["image_id"].values)
    missing = [name for name in test["image_id"].values if name not in known]
    if missing:
        raise ModelError(
            f"{len(missing)} held-out images have no features, first {str(missing[0])!r}; encode "
            "them with the same model as the others"
        )
    return targets.isel(image=np.flatnonzero(np.isin(targets["image_id"], test["image_id"])))


def _named(model: NeuralDecoder, recipe: DecodingRecipe) -> NeuralDecoder:
    given = {"license": recipe.license, "citation": recipe.citation}
    changes = {key: value for key, value in given.items() if value is not None}
    about = model.recipe.model_copy(
        update={"model_id": recipe.name, "version": recipe.version, **changes}
    )
    states = {name: model.state(name) for name in about.networks}
    return NeuralDecoder(about, states, model.known)


def _perturbed(
    recipe: DecodingRecipe,
    test: xr.Dataset,
    model: NeuralDecoder,
    gallery: xr.Dataset,
    tell: Callable[[str], None],
) -> tuple[xr.Dataset | None, xr.Dataset | None]:
    """Perturb the channels in question, and each by itself, as far as the recipe asks for it."""
    from nedx.insilico.experiment import channel_experiment
    from nedx.insilico.importance import channel_importance

    gallery = gallery.load()
    asked = recipe.perturbation
    perturbed = important = None
    if asked is not None:
        tell("perturbing channels")
        perturbed = channel_experiment(
            None,
            test,
            model,
            gallery,
            channels=asked.channels if isinstance(asked.channels, str) else list(asked.channels),
            noise=asked.noise,
            controls=asked.controls,
            seeds=range(asked.seeds),
        )
    if recipe.importance:
        tell("perturbing each channel")
        important = channel_importance(test, model, gallery, seeds=(0,))
    return perturbed, important


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (DECODER, RETRIEVED, FIGURES):
        shutil.rmtree(folder / name, ignore_errors=True)


def _write(
    folder: Path,
    recipe: DecodingRecipe,
    model: NeuralDecoder,
    found: xr.Dataset,
    scores: xr.Dataset,
    text: str,
) -> None:
    from nedx.store.writing import to_zarr

    to_zarr(found, folder / RETRIEVED)
    score_table(scores).to_csv(folder / SCORES, index=False)
    (folder / REPORT).write_text(text, encoding="utf-8")
    said = recipe.model_dump(mode="json", exclude_none=True)
    (folder / RECIPE).write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    # The decoder comes last: where it lies, all is there.
    model.to_zarr(folder / DECODER)
