"""The converter: matrices or networks from one subject's neuroids to another's."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import xarray as xr

from nedx.compute.references import ModelRef
from nedx.conversion.recipe import ConverterRecipe, Pair
from nedx.conversion.storing import SUBJECTS, ConverterWriter, State, read_state
from nedx.errors import SelectionError, close_matches
from nedx.schema import subject_label
from nedx.selection import Subjects, listed_subjects
from nedx.store.location import Location
from nedx.store.models import open_labels, write_whole


class Converter:
    """Turns responses of one subject into those of another: what `nedx.convert` applies.

    Parameters
    ----------
    recipe : ConverterRecipe
        What it takes, what it gives, where it comes from.
    ref : ModelRef
        Where its weights lie.
    """

    def __init__(self, recipe: ConverterRecipe, ref: ModelRef):
        self.recipe, self.ref = recipe, ref

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """From whom to whom."""
        return tuple((pair.source, pair.target) for pair in self.recipe.pairs)

    @property
    def weights_sha256(self) -> str:
        """Of the whole model, whatever is selected of it."""
        return self.ref.sha256

    @property
    def known_images(self) -> np.ndarray:
        """The ``image_id`` of what it was fitted to, object (image,)."""
        names: np.ndarray = open_labels(self._location, "")["known_image"].values
        return names

    def sel(self, *, source: Subjects | None = None, subject: Subjects | None = None) -> Converter:
        """Select pairs; the weights of the others are never read.

        Parameters
        ----------
        source, subject : str, int or list of these, optional
            Whose responses are converted, and into whose.

        Raises
        ------
        SelectionError
            If there is no such pair.
        """
        kept = self.recipe.pairs
        for role, wanted in (("source", source), ("target", subject)):
            if wanted is None:
                continue
            labels = listed_subjects(wanted)
            there = {getattr(pair, role) for pair in kept}
            for label in labels:
                if label not in there:
                    raise SelectionError(
                        f"no {role} {label!r} here: {close_matches(label, sorted(there))}"
                    )
            kept = tuple(pair for pair in kept if getattr(pair, role) in labels)
        names = {name for pair in kept for name in (pair.source, pair.target)}
        sides = {name: side for name, side in self.recipe.sides.items() if name in names}
        chosen = copy.copy(self)
        chosen.recipe = self.recipe.model_copy(update={"pairs": kept, "sides": sides})
        return chosen

    def pair(self, source: str | int, target: str | int) -> Pair:
        """Return one pair.

        Raises
        ------
        SelectionError
            If it is not there.
        """
        wanted = (subject_label(source), subject_label(target))
        for pair in self.recipe.pairs:
            if (pair.source, pair.target) == wanted:
                return pair
        there = ", ".join(f"{a} to {b}" for a, b in self.pairs)
        raise SelectionError(f"nothing converts {wanted[0]} to {wanted[1]}; there are: {there}")

    def weights(self, source: str | int, target: str | int) -> xr.Dataset:
        """Return the weights of one pair, read.

        Returns
        -------
        Dataset
            Of a matrix ``weight (source, target)`` and ``bias (target)`` between z-scores; means
            and deviations of both. Of a network its tensors.
        """
        state = self.state(self.pair(source, target).name)
        if self.recipe.kernel != "linear":
            return xr.Dataset(
                {
                    name: ([f"{name}_{axis}" for axis in range(values.ndim)], values)
                    for name, values in state.items()
                }
            )
        dims = {"weight": ("source", "target")}
        return xr.Dataset(
            {
                name: (dims.get(name, ("source" if name.startswith("source") else "target",)), v)
                for name, v in state.items()
            }
        )

    def state(self, name: str) -> State:
        """Return the arrays of a pair by its name."""
        return read_state(self.ref, name)

    def labels(self, subject: str) -> xr.Dataset:
        """Return the coordinates of a subject's neuroids."""
        return open_labels(self._location, f"{SUBJECTS}/{subject}").load()

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model to a Zarr store; `nedx.load_model` opens it.

        Parameters
        ----------
        place : path, URL or Location
            Must not exist.

        Returns
        -------
        Location

        Raises
        ------
        StoreExistsError
            If something is there; nothing is changed.
        """

        def write(location: Location) -> None:
            writer = ConverterWriter(location)
            for pair in self.recipe.pairs:
                writer.pair(pair.name, self.state(pair.name))
            labels = {name: self.labels(name) for name in self.recipe.sides}
            writer.finish(self.recipe, labels, self.known_images.tolist())

        return write_whole(place, write)

    @property
    def _location(self) -> Location:
        assert self.ref.location is not None
        return self.ref.location

    def __repr__(self) -> str:
        recipe = self.recipe
        shown = ", ".join(f"{a} to {b}" for a, b in self.pairs[:4])
        more = f" and {len(self.pairs) - 4} more" if len(self.pairs) > 4 else ""
        lines = {
            "pairs": shown + more,
            "method": recipe.method,
            "neuroids": ", ".join(f"{n} {s.size:,}" for n, s in list(recipe.sides.items())[:6]),
            "trained on": recipe.training_data or "not said",
            "source": recipe.training_source or "not said",
            "licence": recipe.license or "not said",
        }
        head = f"<nedx.Converter {recipe.model_id!r} version {recipe.version}>"
        return "\n".join([head, *(f"    {k + ':':<12} {text}" for k, text in lines.items())])
