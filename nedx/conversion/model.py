"""The converter: matrices or networks from one subject's neuroids to another's."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from nedx.compute.references import ModelRef
from nedx.config import cache_dir
from nedx.conversion.recipe import ConverterRecipe, Pair
from nedx.conversion.storing import (
    LOADER,
    SUBJECTS,
    State,
    hash_states,
    read_state,
    write_converter,
)
from nedx.encoding.opening import open_labels
from nedx.encoding.storing import hash_variables
from nedx.errors import ModelError, SelectionError, StoreExistsError, close_matches
from nedx.schema import subject_label
from nedx.selection import Subjects
from nedx.store.location import Location


class Converter:
    """Turns responses of one subject into those of another: what `nedx.convert` applies.

    Parameters
    ----------
    recipe : ConverterRecipe
        What it takes, what it gives, where it comes from.
    states : mapping of str to dict of str to ndarray
        The arrays of each pair, by its name.
    labels : mapping of str to Dataset
        Coordinates of the neuroids of each subject; without that of the neuroid axis itself,
        neuroids are told by their order.
    images : sequence of str
        The ``image_id`` of what it was fitted to.

    Raises
    ------
    ModelError
        If weights are missing, not finite, or of another size than the recipe says.
    """

    def __init__(
        self,
        recipe: ConverterRecipe,
        states: Mapping[str, State],
        labels: Mapping[str, xr.Dataset],
        images: Sequence[str] = (),
    ):
        _check(recipe, states)
        self.recipe = recipe
        self._states: Mapping[str, State] | None = states
        self._labels: Mapping[str, xr.Dataset] | None = labels
        self._images = np.array(list(images), dtype=object)
        self._ref: ModelRef | None = None
        self._root = self

    @classmethod
    def _opened(cls, recipe: ConverterRecipe, ref: ModelRef) -> Converter:
        """Make a converter of what lies in a store."""
        self = cls.__new__(cls)
        self.recipe, self._ref, self._root = recipe, ref, self
        self._states = self._labels = None
        self._images = np.empty(0, object)
        return self

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
        if self._root._ref is not None and not len(self._root._images):
            location = self._root._ref.location
            assert location is not None
            self._root._images = open_labels(location, "", heavy=())["known_image"].values
        return self._root._images

    @property
    def ref(self) -> ModelRef:
        """What a graph carries; a model that lies in no store yet is written to the cache."""
        root = self._root
        if root._ref is None:
            assert root._states is not None
            assert root._labels is not None
            recipe, sha256 = root.recipe.model_dump_json(), hash_states(root._states)
            seen = "".join(
                hash_variables({"": ds}, tuple(sorted(map(str, ds.variables))))
                for ds in (root._known(), *root._labels.values())
            )
            digest = hashlib.sha256(f"{recipe}{sha256}{seen}".encode()).hexdigest()
            place = Location.of(cache_dir() / "models" / digest)
            if not place.exists("zarr.json"):
                os.makedirs(os.path.dirname(place.url), exist_ok=True)
                try:
                    root.to_zarr(place)
                except (StoreExistsError, OSError):
                    # Another process may have been faster.
                    if not place.exists("zarr.json"):
                        raise
            root._ref = ModelRef(LOADER, place, recipe, sha256)
        return root._ref

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
            one = isinstance(wanted, str | int | np.integer)
            labels = [subject_label(s) for s in ([wanted] if one else wanted)]  # type: ignore
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
        states = self._root._states
        return states[name] if states is not None else read_state(self.ref, name)

    def labels(self, subject: str) -> xr.Dataset:
        """Return the coordinates of a subject's neuroids."""
        held = self._root._labels
        if held is not None:
            return held[subject]
        assert self.ref.location is not None
        return open_labels(self.ref.location, f"{SUBJECTS}/{subject}", heavy=()).load()

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
        states = {pair.name: self.state(pair.name) for pair in self.recipe.pairs}
        labels = {name: self.labels(name) for name in self.recipe.sides}
        return write_converter(place, self.recipe, states, labels, self._known())

    def _known(self) -> xr.Dataset:
        return xr.Dataset(coords={"known_image": self.known_images})

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


def _check(recipe: ConverterRecipe, states: Mapping[str, State]) -> None:
    for pair in recipe.pairs:
        state = states.get(pair.name)
        if state is None:
            raise ModelError(f"the pair {pair.source} to {pair.target} has no weights")
        for key, values in state.items():
            if not np.isfinite(values).all():
                raise ModelError(f"{key!r} of {pair.source} to {pair.target} is not finite")
        if recipe.kernel == "linear":
            sizes = [_width(recipe, name) for name in (pair.source, pair.target)]
            if state["weight"].shape != tuple(sizes):
                raise ModelError(
                    f"the weights of {pair.source} to {pair.target} are {state['weight'].shape}, "
                    f"the recipe says {tuple(sizes)}"
                )


def _width(recipe: ConverterRecipe, name: str) -> int:
    side = recipe.sides[name]
    return side.size * (len(side.times) if side.times is not None else 1)
