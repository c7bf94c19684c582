"""The model card: what one should know of a fitted model before trusting it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from nedx.catalog.entries import ModelCard
from nedx.encoding.model import LinearEncoder
from nedx.encoding.storing import target_dims


def model_card(model: LinearEncoder) -> ModelCard:
    """Say what a model was fitted to, what it predicts, and how well.

    Parameters
    ----------
    model : LinearEncoder
        Its labels may hold ``encoding_accuracy``, ``noise_ceiling`` and which images it knows.

    Returns
    -------
    ModelCard
        As catalogs have it.
    """
    recipe = model.recipe
    member = next(iter(model.members.values()))
    dims = ", ".join([*(["subject"] if model.subjects else []), "image", *target_dims(member)])
    return ModelCard(
        training_data=_sentence(recipe.dataset, recipe.training_data, recipe.training_source),
        splits=_splits(model),
        preprocessing=f"images: {recipe.backbone.policy}; backbone: {_backbone(model)}",
        output=f"response ({dims})",
        units=_sentence(recipe.units, recipe.normalization, recipe.normalization_scope),
        accuracy="; ".join(accuracy_lines(model)) or None,
    )


def as_markdown(model: LinearEncoder, figures: Mapping[str, str] | None = None) -> str:
    """Write the card of a model as Markdown.

    Parameters
    ----------
    model : LinearEncoder
        As for `model_card`.
    figures : mapping of str to str, optional
        Captions of figures, and where they lie beside the card.

    Returns
    -------
    str
    """
    recipe, card = model.recipe, model_card(model)
    rows = {
        "Training data": card.training_data,
        "Images": ", ".join(f"{kind}: {count:,}" for kind, count in card.splits.items()),
        "Split": recipe.split,
        "Preprocessing": card.preprocessing,
        "Fitted by": recipe.fitted_by,
        "Output": card.output,
        "Units": card.units,
        "Licence": recipe.license or "not said",
        "Citation": recipe.citation or "not said",
    }
    lines = [f"# {recipe.model_id}, version {recipe.version}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    accuracy = accuracy_lines(model)
    lines += ["", "## Accuracy on held-out images", ""]
    lines += [f"- {line}" for line in accuracy] or ["Not evaluated."]
    if recipe.training_source == "synthetic":
        lines += ["", "Fitted to simulated responses: nothing here was measured."]
    for caption, place in (figures or {}).items():
        lines += ["", f"![{caption}]({place})"]
    return "\n".join(lines) + "\n"


def accuracy_lines(model: LinearEncoder) -> list[str]:
    """Say for each subject how well responses to held-out images are predicted."""
    lines = []
    for name, member in model.members.items():
        if "encoding_accuracy" not in member.coords:
            continue
        labels = [name]
        if "subject" in member.dims:
            labels = [str(label) for label in member["subject"].values]
        for i, label in enumerate(labels):
            one = member.isel(subject=i) if "subject" in member.dims else member
            lines.append(f"{label + ': ' if label else ''}{_accuracy(one)}")
    return lines


def _accuracy(member: xr.Dataset) -> str:
    accuracy = member["encoding_accuracy"].values.reshape(-1).astype(float)
    known = accuracy[np.isfinite(accuracy)]
    if not known.size:
        return "no target has a defined accuracy"
    low, median, high = np.percentile(known, [25, 50, 75])
    what = " x ".join(str(dim) for dim in member["encoding_accuracy"].dims)
    text = f"median r {median:.3f} over {known.size:,} of {accuracy.size:,} targets ({what})"
    text += f", quartiles {low:.3f} to {high:.3f}{_peak(member['encoding_accuracy'])}"
    if "noise_ceiling" not in member.coords:
        return f"{text}; no noise ceiling: images were not repeated"
    ceiling = np.sqrt(np.clip(member["noise_ceiling"].values.reshape(-1).astype(float), 0, None))
    usable = np.isfinite(accuracy) & (ceiling > 0)
    if not usable.any():
        return f"{text}; the noise ceiling is 0"
    share = np.median(accuracy[usable] / ceiling[usable])
    return (
        f"{text}; ceiling of r (square root of the noise ceiling) median "
        f"{np.median(ceiling[usable]):.3f}, r over ceiling median {share:.3f}, of the "
        f"{usable.sum():,} targets with a ceiling above 0"
    )


def _peak(accuracy: xr.DataArray) -> str:
    """Say when the mean over channels is best, where there is a time axis."""
    if "time" not in accuracy.dims:
        return ""
    course = accuracy.mean([dim for dim in accuracy.dims if dim != "time"])
    best = int(course.argmax("time"))
    seconds = float(accuracy["time"].values[best])
    return f", best at {seconds:.3f} s with a mean of {float(course.values[best]):.3f}"


def _splits(model: LinearEncoder) -> dict[str, int]:
    """Count the images of each part, over all subjects."""
    seen: dict[str, set[str]] = {}
    for name in model.members:
        home = model.known_images(name)
        if "known_partition" not in home:
            continue
        ids = home["known_image"].values.astype(str)
        kinds = home["known_partition"].transpose(..., "known_image").values.astype(str)
        for row in kinds.reshape(-1, len(ids)):
            for kind in np.unique(row):
                seen.setdefault(str(kind), set()).update(ids[row == kind].tolist())
    return {kind: len(images) for kind, images in seen.items() if kind != "unseen"}


def _backbone(model: LinearEncoder) -> str:
    backbone = model.recipe.backbone
    return f"{backbone.name}, layers {', '.join(backbone.layers)}, pooling {backbone.pooling}"


def _sentence(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part) or None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
