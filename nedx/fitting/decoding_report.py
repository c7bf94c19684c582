"""What a decoding led to, as tables, figures and a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nedx.decoding.model import NeuralDecoder
from nedx.plot.conditions import plot_conditions

SHOWN = 6
"""Images of a figure of what was retrieved."""


def score_table(scores: xr.Dataset) -> pd.DataFrame:
    """Return scores as rows: subject, measure, way, value, chance.

    Parameters
    ----------
    scores : Dataset
        As `nedx.retrieval_scores` has them.

    Returns
    -------
    DataFrame
        One row for each subject, measure and number of candidates.
    """
    rows = []
    for measure in ("top1", "top5", "mean_average_precision", "median_rank", "mean_similarity"):
        if measure not in scores:
            continue
        values = scores[measure]
        chance = scores.get(f"{measure}_chance")
        for where in np.ndindex(*values.shape):
            at = {str(d): values[d].values[i] for d, i in zip(values.dims, where, strict=True)}
            row: dict[str, Any] = {"subject": "", "measure": measure, "way": None, **at}
            row["value"] = float(values.values[where])
            if chance is not None:
                row["chance"] = float(chance.sel(way=at["way"]) if "way" in at else chance)
            rows.append(row)
    return pd.DataFrame(rows)


def draw(
    found: xr.Dataset,
    images: xr.Dataset | None,
    perturbed: xr.Dataset | None,
    important: xr.Dataset | None,
    folder: Path,
) -> dict[str, str]:
    """Draw what was retrieved, what was lost with channels, and which of them matter.

    Parameters
    ----------
    found : Dataset
        As `nedx.retrieve` has it.
    images : Dataset, optional
        ``pixels`` of the images.
    perturbed, important : Dataset, optional
        As `nedx.channel_experiment` and `nedx.channel_importance` have them.
    folder : Path
        Where the PNG files go; made if it is not there.

    Returns
    -------
    dict of str to str
        The name of each file, by its caption.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    if images is not None:
        some = _first_subject(found).isel(image=slice(SHOWN))
        figures["Seen images and what was retrieved"] = some.ned.plot.retrieved(images).figure
    if perturbed is not None:
        figures["What is lost with channels"] = plot_conditions(perturbed).figure
    if important is not None:
        figures["Which channels matter"] = _first_subject(important).ned.plot.importance().figure
    files = {}
    for caption, figure in figures.items():
        files[caption] = "_".join(caption.lower().split()) + ".png"
        figure.savefig(folder / files[caption], dpi=150)
    return files


def report(
    model: NeuralDecoder,
    scores: xr.Dataset,
    perturbed: xr.Dataset | None,
    figures: Mapping[str, str],
) -> str:
    """Write down what a decoder reached.

    Parameters
    ----------
    model : NeuralDecoder
        The decoder.
    scores, perturbed : Dataset
        As for `draw`.
    figures : mapping of str to str
        Captions of figures, and where they lie beside the report.

    Returns
    -------
    str
        Markdown.
    """
    recipe = model.recipe
    window = f"{recipe.times[0]:g} to {recipe.times[-1]:g} s"
    if recipe.sampling_frequency is not None:
        window += f" at {recipe.sampling_frequency:g} Hz"
    rows = {
        "Network": f"{recipe.network.name}, {recipe.network.n_outputs:,} features",
        "Takes": f"{len(recipe.channels)} channels, {window}, in {recipe.units}",
        "Target": recipe.target,
        "Training data": recipe.training_data or recipe.dataset,
        "Epoch chosen by": recipe.selection,
        "Split": recipe.split,
        "Licence": recipe.license or "not said",
        "Citation": recipe.citation or "not said",
    }
    lines = [f"# {recipe.model_id}, version {recipe.version}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    lines += ["", "## Held-out images found again", "", *_scored(scores)]
    if perturbed is not None:
        lines += ["", "## What is lost with channels", "", *_lost(perturbed)]
    if recipe.training_source == "synthetic":
        lines += ["", "Trained on simulated responses: nothing here was measured."]
    for caption, place in figures.items():
        lines += ["", f"![{caption}]({place})"]
    return "\n".join(lines) + "\n"


def _scored(scores: xr.Dataset) -> list[str]:
    """Write accuracies by number of candidates, with their intervals, beside chance."""
    task = str(scores.attrs["task"]).replace("_", " ")
    lines = [
        f"Task: {task}, {scores.attrs['n_candidates']} candidates, {scores.attrs['n_queries']} "
        f"images. Expected over all draws of candidates; {scores.attrs['level']:.0%} intervals: "
        f"{scores.attrs['interval']}.",
        "",
        "| candidates | top-1 | chance | top-5 | chance |",
        "|---|---|---|---|---|",
    ]
    for way in scores["way"].values:
        cells = [f"{way}"]
        for measure in ("top1", "top5"):
            chance = float(scores[f"{measure}_chance"].sel(way=way))
            certain = chance >= 1
            cells += (
                ["-"] * 2
                if certain
                else [
                    _with_interval(scores, measure, way=way),
                    f"{chance:.3f}",
                ]
            )
        lines.append(f"| {' | '.join(cells)} |")
    rank = float(_over_subjects(scores, "median_rank").values)
    precision = float(_over_subjects(scores, "mean_average_precision").values)
    return [*lines, "", f"Median rank {rank:g}, mean average precision {precision:.3f}."]


def _lost(perturbed: xr.Dataset) -> list[str]:
    """Write the change of each measure against the clean responses and against controls."""
    asked = str(perturbed["channels"].sel(condition="perturbed").values)
    lines = [
        f"Perturbed: {asked}.",
        "",
        "| | against clean | p | against other channels | p |",
        "|---|---|---|---|---|",
    ]
    for measure in ("top1", "top5", "median_rank"):
        cells = [measure]
        for contrast in ("clean", "controls"):
            change = perturbed[f"{measure}_difference"].sel(contrast=contrast).mean("subject")
            p = perturbed[f"{measure}_p"].sel(contrast=contrast).max("subject")
            cells += [f"{float(change):+.3g}", f"{float(p):.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "Means over subjects; p is the largest of any subject."]


def _with_interval(scores: xr.Dataset, measure: str, **where: Any) -> str:
    mean = float(_over_subjects(scores, measure).sel(where))
    interval = scores[f"{measure}_interval"].sel(where)
    low, high = interval.values.reshape(-1, 2)[0]
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _over_subjects(scores: xr.Dataset, measure: str) -> xr.DataArray:
    values = scores.get(f"{measure}_mean", scores[measure])
    return values.mean("subject") if "subject" in values.dims else values


def _first_subject(ds: xr.Dataset) -> xr.Dataset:
    return ds.isel(subject=0) if "subject" in ds.dims else ds


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
