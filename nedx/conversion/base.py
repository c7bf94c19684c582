"""What all converters that are a matrix share: scikit-learn's manners, pairs, regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator

from nedx.compute.devices import check_device
from nedx.conversion.model import Converter
from nedx.conversion.recipe import Pair, recipe_of, side_labels
from nedx.conversion.regions import METHODS, Region, merged, regions
from nedx.conversion.storing import State, keep_converter
from nedx.conversion.subjects import Pairs, Responses, named_pairs
from nedx.conversion.training import Material, Work
from nedx.encoding.estimators.base import UnfittedError
from nedx.errors import ModelError, close_matches
from nedx.store.location import Location


@dataclass(frozen=True, eq=False)
class Solved:
    """The map of one region.

    Attributes
    ----------
    weight : ndarray (source, target)
        From z-scores to z-scores.
    bias : ndarray (target,), optional
    alpha : float, optional
        The penalty that was used.
    """

    weight: np.ndarray = field(repr=False)
    bias: np.ndarray | None = None
    alpha: float | None = None


Solver = Callable[[Work, Region], Solved]


class BaseConverter(BaseEstimator):
    """A converter with ``fit``, ``predict``, ``to_zarr``; ``model_`` after it is fitted."""

    model_: Converter
    device: str

    def predict(self, ds: Responses, *, subject: Any = None) -> xr.Dataset | xr.DataTree:
        """Convert responses, lazily, as `nedx.convert` does."""
        from nedx.conversion.convert import convert

        return convert(ds, self._fitted(), subject=subject, device=self.device)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def set_params(self, **params: Any) -> Self:
        """Set parameters; returns itself."""
        known = self.get_params(deep=False)
        for name in params:
            if name not in known:
                raise ModelError(f"no parameter {name!r}; {close_matches(name, known)}")
        changed: Self = super().set_params(**params)
        return changed

    def _fitted(self) -> Converter:
        if not hasattr(self, "model_"):
            raise UnfittedError(
                f"this {type(self).__name__} is not fitted: type .fit(source, target)"
            )
        return self.model_


class LinearConverter(BaseConverter):
    """Converters that are a matrix between z-scores; what they share."""

    citation: ClassVar[str]
    kind: ClassVar[str]
    jointly: ClassVar[bool] = False
    method: Any
    areas: Sequence[str]
    standardize: bool

    def fit(
        self, source: Responses, target: Responses | None = None, *, pairs: Pairs | None = None
    ) -> Self:
        """Fit to the images that subjects share.

        Parameters
        ----------
        source, target : Dataset or DataTree
            ``response (image | trial[, repetition], <neuroid>[, time])`` with ``image_id``, of one
            subject each. Images of the ``partition`` ``"test"`` are left out. Repeats of an image
            are paired in the order recorded, and averaged where the subjects have not equally
            many. Each is a sample, as each time is: neuroids are mapped alike at all times.
        pairs : list of (source, target), or "all", optional
            Instead of a target, where `source` holds several subjects as children or along a
            dimension.

        Returns
        -------
        Self
            Itself.

        Raises
        ------
        ModelError
            If subjects share no images, times differ, regions are missing, responses are NaN or
            neuroids constant.
        """
        check_device(self.device)
        if self.method not in METHODS:
            raise ModelError(f"method is one of {', '.join(METHODS)}, not {self.method!r}")
        subjects, chosen = named_pairs(source, target, pairs)
        parts = {
            pair: tuple(
                regions(pair, subjects[pair[0]], subjects[pair[1]], self.method, self.areas)
            )
            for pair in chosen
        }
        self._check(parts)
        material = Material(subjects, scale=self.standardize)
        groups = [list(subjects) if self.jointly else list(pair) for pair in chosen]
        for names in groups:
            material.shared(names)
        works = []
        for (one, other), names in zip(chosen, groups, strict=True):
            both = material.together(names)
            works.append(Work(both[one], both[other], parts[one, other]))
        solve = self._solver(works)
        self.model_ = model_of(
            subjects,
            (solved(work, solve) for work in works),
            {image for work in works for image in work.source.image.tolist()},
            method=f"{self.kind}, {self.method}",
            citation=self.citation,
            fitted_by=repr(self),
        )
        return self

    def _check(self, parts: Mapping[tuple[str, str], Sequence[Region]]) -> None:
        """Refuse parameters that cannot be, before responses are read."""

    def _solver(self, works: Sequence[Work]) -> Solver:
        """Return what fits one region of one pair."""
        raise NotImplementedError


def solved(work: Work, solve: Solver) -> tuple[Pair, State]:
    """Return a fitted pair and its weights."""
    each = [solve(work, part) for part in work.parts]
    one, other = work.source.values, work.target.values
    shape = (len(one.mean), len(other.mean))
    bias = np.zeros(shape[1], np.float32)
    for part, found in zip(work.parts, each, strict=True):
        if found.bias is not None:
            bias[part.target] = found.bias
    alpha = {
        part.name: found.alpha
        for part, found in zip(work.parts, each, strict=True)
        if found.alpha is not None
    }
    pair = Pair(source=work.source.name, target=work.target.name, n_samples=len(one.z), alpha=alpha)
    state = {
        "weight": merged(work.parts, [found.weight for found in each], shape),
        "bias": bias,
        "source_mean": one.mean,
        "source_deviation": one.deviation,
        "target_mean": other.mean,
        "target_deviation": other.deviation,
    }
    return pair, state


def model_of(
    subjects: Mapping[str, xr.Dataset],
    fitted: Iterable[tuple[Pair, State]],
    images: Iterable[str],
    **fields: Any,
) -> Converter:
    """Return the model of pairs that are fitted one by one, with the labels of their subjects."""
    seen = sorted(images)
    labels = {name: side_labels(ds) for name, ds in subjects.items()}
    recipe = partial(recipe_of, subjects, images=len(seen), **fields)
    return keep_converter(fitted, recipe, labels, seen)
