"""The linear encoder: weights with labels, selected like data."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.planned import PlannedArray
from nedx.compute.references import ModelRef
from nedx.config import cache_dir
from nedx.encoding.loading import LOADER, Head
from nedx.encoding.plans import Targets, WeightsPlan
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import (
    HEAVY,
    PREFIX,
    hash_variables,
    stored_rows,
    target_dims,
    write_model,
)
from nedx.encoding.weights import ROOT, as_float32, check_weights, fold, split_groups
from nedx.errors import ModelError, StoreExistsError
from nedx.selection import Names, Subjects, Times, chosen_subjects, resolve, select
from nedx.store.location import Location

_HASHES = {"weights_sha256": HEAVY, "projection_sha256": HEAVY[:2]}


class LinearEncoder:
    """Predicts responses from images: a backbone, one projection, one readout.

    ``response = readout (projection' features - projection_offset) + intercept``

    Parameters
    ----------
    weights : Dataset or DataTree
        ``projection ([subject,] feature, component)``, ``projection_offset ([subject,]
        component)``, ``readout ([subject,] <neuroid>[, time], component)`` and ``intercept
        ([subject,] <neuroid>[, time])``, float32, with the labels of the neuroids as
        coordinates. Subjects with voxels of their own are children ``sub-01``, ... of a
        DataTree, whose root may hold the projection that all share.
    recipe : EncoderRecipe
        Backbone, units, origin.
    layer_widths : mapping of str to int, optional
        Features of each layer, in the order of the recipe; found from the recipe by default.

    Raises
    ------
    ModelError
        If the weights do not fit together; the message names every fault.
    """

    def __init__(
        self,
        weights: xr.Dataset | xr.DataTree,
        recipe: EncoderRecipe,
        *,
        layer_widths: Mapping[str, int] | None = None,
    ):
        self.recipe = recipe
        self._groups = split_groups(weights)
        check_weights(self._groups)
        self._groups = {name: _placed(as_float32(ds)) for name, ds in self._groups.items()}
        self._widths = dict(layer_widths) if layer_widths else None
        self._ref: ModelRef | None = None
        self._hashes: dict[str, str] | None = None
        self._root = self

    @classmethod
    def _opened(
        cls,
        groups: Mapping[str, xr.Dataset],
        recipe: EncoderRecipe,
        ref: ModelRef,
        attrs: Mapping[str, Any],
    ) -> LinearEncoder:
        """Make a model of what lies in a store, whose rows are where it says."""
        self = cls.__new__(cls)
        self.recipe = recipe
        self._groups = dict(groups)
        self._widths = {str(layer): int(width) for layer, width in attrs["layer_widths"].items()}
        self._ref = ref
        self._hashes = {name: str(attrs[name]) for name in _HASHES}
        self._root = self
        return self

    @classmethod
    def from_parts(
        cls,
        scaler_mean: np.ndarray,
        scaler_scale: np.ndarray,
        components: np.ndarray,
        pca_mean: np.ndarray,
        coef: np.ndarray,
        intercept: np.ndarray,
        *,
        recipe: EncoderRecipe,
        dims: Sequence[str] = ("unit",),
        coords: Mapping[str, Any] | xr.Dataset | None = None,
        layer_widths: Mapping[str, int] | None = None,
    ) -> LinearEncoder:
        """Fold standardisation, PCA and regression into one projection and one readout.

        ``A = C / s``, ``a = C (mu / s) + C m``, so that ``C ((f - mu) / s - m) = A f - a``.

        Parameters
        ----------
        scaler_mean, scaler_scale : ndarray ([subject,] feature)
            ``mu`` and ``s`` of scikit-learn's ``StandardScaler``.
        components : ndarray ([subject,] component, feature)
            ``C`` of scikit-learn's ``PCA``.
        pca_mean : ndarray ([subject,] feature)
            ``m``.
        coef : ndarray (*dims, component)
            Regression weights; targets may be flattened in C order if ``coords`` say how many.
        intercept : ndarray (*dims)
            Regression intercepts.
        recipe : EncoderRecipe
            Backbone, units, origin.
        dims : sequence of str
            Dims of the responses, without ``image``: for example ``("subject", "vertex")``.
        coords : mapping or Dataset
            Coordinates, as xarray takes them.
        layer_widths : mapping, optional
            As in `LinearEncoder`.

        Returns
        -------
        LinearEncoder
        """
        size = components.shape[-2]
        projection, offset = fold(scaler_mean, scaler_scale, components, pca_mean)
        lead = ("subject",) if projection.ndim == 3 else ()
        labels = coords if isinstance(coords, xr.Dataset) else xr.Dataset(coords=coords or {})
        shape = [labels.sizes.get(dim, -1) for dim in dims] if len(dims) > 1 else [-1]
        weights = labels.assign(
            projection=((*lead, "feature", "component"), projection),
            projection_offset=((*lead, "component"), offset),
            readout=((*dims, "component"), np.asarray(coef, np.float32).reshape(*shape, size)),
            intercept=(tuple(dims), np.asarray(intercept, np.float32).reshape(shape)),
        )
        return cls(weights, recipe, layer_widths=layer_widths)

    @property
    def weights(self) -> xr.Dataset | xr.DataTree:
        """The weights with their labels; lazy where they lie in a store."""
        shown = {name: result_labels(ds) for name, ds in self._groups.items()}
        return (
            shown[ROOT]
            if set(shown) == {ROOT}
            else xr.DataTree.from_dict({f"/{name}": ds for name, ds in shown.items()})
        )

    @property
    def is_ragged(self) -> bool:
        """Whether subjects have neuroids of their own."""
        return "readout" not in self._groups.get(ROOT, ())

    @property
    def members(self) -> dict[str, xr.Dataset]:
        """The Datasets that hold readouts: by subject if ragged, else one under ``""``."""
        return {name: ds for name, ds in self._groups.items() if "readout" in ds}

    @property
    def subjects(self) -> tuple[str, ...]:
        """Labels of the subjects, empty where the model does not tell."""
        if self.is_ragged:
            return tuple(self.members)
        ds = self._groups[ROOT]
        return tuple(str(s) for s in np.atleast_1d(ds["subject"].values)) if "subject" in ds else ()

    @property
    def layer_widths(self) -> dict[str, int]:
        """Features of each layer tapped, in the order of the recipe."""
        if self._root._widths is None:
            self._root._widths = _find_widths(self)
        return self._root._widths

    @property
    def ref(self) -> ModelRef:
        """What a graph carries; a model that lies in no store yet is written to the cache.

        The cache is addressed by content (``models/<sha256>``), so that equal models are
        written once.
        """
        root = self._root
        if root._ref is None:
            digest = hash_variables(root._groups, tuple(sorted(root._all_variables())))
            content = ModelRef("", None, root.recipe.model_dump_json(), digest)
            place = Location.of(cache_dir() / "models" / _digest(content))
            if not place.exists("zarr.json"):
                os.makedirs(os.path.dirname(place.url), exist_ok=True)
                try:
                    write_model(root, place)
                except (StoreExistsError, OSError):
                    # Another process may have been faster.
                    if not place.exists("zarr.json"):
                        raise
            root._ref = ModelRef(LOADER, place, content.recipe, root.hashes()["weights_sha256"])
        return root._ref

    def groups(self) -> Iterator[tuple[str, xr.Dataset]]:
        """Yield what each group of a store of this model holds, the root first."""
        # A selection is packed afresh: its rows start at the first.
        for name in sorted({ROOT, *self._groups}):
            ds = self._groups.get(name, xr.Dataset())
            packed = self._root is not self or f"{PREFIX}place" in ds
            yield name, _placed(result_labels(ds)) if packed else ds

    def hashes(self) -> dict[str, str]:
        """Return ``weights_sha256``, and ``projection_sha256`` of what makes the components."""
        if self._hashes is None:
            groups = dict(self.groups())
            self._hashes = {name: hash_variables(groups, part) for name, part in _HASHES.items()}
        return self._hashes

    @property
    def weights_sha256(self) -> str:
        """Of the whole model, whatever is selected of it."""
        return self._root.hashes()["weights_sha256"]

    def known_images(self, member: str) -> xr.Dataset:
        """Return the Dataset that says which images a member has seen, if any does."""
        own = self._groups[member]
        return own if "known_partition" in own else self._groups.get(ROOT, own)

    def _all_variables(self) -> set[str]:
        return {str(name) for ds in self._groups.values() for name in ds.variables}

    def sel(
        self,
        *,
        subject: Subjects | None = None,
        roi: Names | None = None,
        channel: Names | None = None,
        time: Times | None = None,
    ) -> LinearEncoder:
        """Select subjects, ROIs, channels and times; what is left out is never read.

        Parameters
        ----------
        subject, roi, channel, time
            As in `nedx.open`.

        Returns
        -------
        LinearEncoder
            No axis is dropped.

        Raises
        ------
        SelectionError
            If something asked for is not there; names the close matches.
        """
        arguments: dict[str, Any] = {"roi": roi, "channel": channel, "time": time}
        if self.is_ragged:
            names = chosen_subjects(subject, self.members)
        else:
            names, arguments["subject"] = [ROOT], subject
        chosen = {name: _select(self._groups[name], **arguments) for name in names}
        return self._with(chosen)

    def isel(self, positions: Mapping[str, np.ndarray]) -> LinearEncoder:
        """Select by positions along dims of the targets; for a model that is not ragged."""
        (name,) = self.members
        return self._with({name: self._groups[name].isel(positions)})

    def _with(self, members: Mapping[str, xr.Dataset]) -> LinearEncoder:
        chosen = copy.copy(self)
        chosen._hashes = None
        shared = {n: ds for n, ds in self._groups.items() if n not in self.members}
        chosen._groups = {**shared, **members}
        return chosen

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model to a Zarr store, sorted so that one ROI is read alone.

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
        return write_model(self, place)

    def __repr__(self) -> str:
        recipe = self.recipe
        lines = [f"<nedx.LinearEncoder {recipe.model_id!r} version {recipe.version}>"]
        lines += [f"    {label + ':':<12} {text}" for label, text in self._summary().items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for label, text in self._summary().items()
        )
        title = escape(f"{self.recipe.model_id} version {self.recipe.version}")
        return f"<table><caption>LinearEncoder <b>{title}</b></caption>{rows}</table>"

    def _summary(self) -> dict[str, str]:
        recipe, backbone = self.recipe, self.recipe.backbone
        first = next(iter(self.members.values()))
        sizes = {
            name or "targets": ", ".join(f"{dim} {ds.sizes[dim]:,}" for dim in ds["intercept"].dims)
            for name, ds in self.members.items()
        }
        summary = {
            "backbone": f"{backbone.name}, {len(backbone.layers)} layers, {backbone.policy}",
            "components": f"{first.sizes['component']:,}",
            **sizes,
            "units": recipe.units,
            "trained on": recipe.training_data or recipe.dataset or "not said",
            "source": recipe.training_source or "not said",
            "licence": recipe.license or "not said",
            "place": self._root._ref.location.url  # type: ignore[union-attr]
            if self._root._ref is not None
            else "in memory",
        }
        return summary


def load_model(
    place: str | Path | Location,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Open a stored model; weights are read when they are used.

    Parameters
    ----------
    place : str, Path or Location
        Catalog id, path or URL.
    subject, roi : optional
        What of it, as in `nedx.open`; of a model of another format, only what they need is
        fetched. Everything by default.
    anonymous : bool, optional
        Read without credentials.
    storage_options : mapping, optional
        Options of fsspec.

    Returns
    -------
    LinearEncoder, FwrfEncoder, ReAlnetModel, NeuralDecoder or PriorModel

    Raises
    ------
    UnknownIdError, StoreError
        If there is no such model, or it cannot be opened.
    SelectionError
        If a subject or ROI is not there.
    """
    from nedx.catalog.resolving import entry_of, mirrors
    from nedx.catalog.resolving import open_model as open_entry
    from nedx.encoding.opening import open_model

    reach: dict[str, Any] = {"anonymous": anonymous, "storage_options": storage_options}
    selection: dict[str, Any] = {"subject": subject, "roi": roi}
    there = isinstance(place, str) and Path(place).exists()
    entry = None if there else entry_of(place, None)
    if entry is not None and entry.kind == "model":
        return open_entry(entry, mirrors(entry, **reach), selection)
    where = Location.of(place, **reach) if entry is None else mirrors(entry, **reach)[0]
    model = open_model(where)
    given = {name: value for name, value in selection.items() if value is not None}
    return model.sel(**given) if given else model


def targets_of(group: str, ds: xr.Dataset) -> Targets:
    """Return where the selected targets of a member lie in its store."""
    _, *others = target_dims(ds)
    rows = ds[f"{PREFIX}row"].values
    rest = tuple(ds[f"{PREFIX}{dim}"].values for dim in others)
    if "subject" not in ds["readout"].dims:
        head = Head(group)
        if f"{PREFIX}place" in ds:
            # A store of one subject, whose arrays have a subject axis all the same.
            head = Head("", int(ds[f"{PREFIX}subject"]), str(ds[f"{PREFIX}place"].item()))
        return Targets((head,), np.atleast_2d(rows), rest, subject_axis=False)
    subjects = ds[f"{PREFIX}subject"].values
    rows = np.broadcast_to(rows, (len(subjects), rows.shape[-1]))
    places = ds[f"{PREFIX}place"].values if f"{PREFIX}place" in ds else [""] * len(subjects)
    heads = tuple(Head(group, int(s), str(p)) for s, p in zip(subjects, places, strict=True))
    return Targets(heads, rows, rest)


def lazy_weights(ref: ModelRef, group: str, ds: xr.Dataset, components: int) -> xr.Dataset:
    """Add ``readout`` and ``intercept`` of a stored model, read when they are used."""
    targets = targets_of(group, ds)
    dims = ds["readout"].dims
    planned = {
        "readout": (dims, PlannedArray(WeightsPlan(ref, "readout", targets, components))),
        "intercept": (dims[:-1], PlannedArray(WeightsPlan(ref, "intercept", targets))),
    }
    return ds.drop_vars("readout").assign(planned)


def result_labels(ds: xr.Dataset) -> xr.Dataset:
    """Return a Dataset without the coordinates that say where things lie on disk."""
    return ds.drop_vars([name for name in ds.variables if str(name).startswith(PREFIX)])


def _digest(content: ModelRef) -> str:
    import hashlib

    return hashlib.sha256(f"{content.sha256}{content.recipe}".encode()).hexdigest()


def _placed(ds: xr.Dataset) -> xr.Dataset:
    """Add the coordinates that say where neuroids, subjects and times lie on disk."""
    if "readout" not in ds:
        return ds
    neuroid, *others = target_dims(ds)
    rows = stored_rows(ds)
    ds = ds.assign_coords({f"{PREFIX}row": (("subject", neuroid)[-rows.ndim :], rows)})
    axes = [*others, *(["subject"] if "subject" in ds["readout"].dims else [])]
    return ds.assign_coords({f"{PREFIX}{d}": (d, np.arange(ds.sizes[d])) for d in axes})


def _select(ds: xr.Dataset, **arguments: Any) -> xr.Dataset:
    """Select from weights; the labels are searched, the weights only sliced."""
    given = {name: value for name, value in arguments.items() if value is not None}
    if not given:
        return ds
    labels = ds.drop_vars([name for name in HEAVY if name in ds])
    positions = resolve(labels, **given)
    sliced = ds.drop_vars(list(labels.variables)).isel(positions, missing_dims="ignore")
    return sliced.assign_coords(select(labels, **given).coords)


def _find_widths(model: LinearEncoder) -> dict[str, int]:
    layers = model.recipe.backbone.layers
    home = next(ds for ds in model._groups.values() if "projection" in ds)
    total = home.sizes["feature"]
    if len(layers) == 1:
        return {layers[0]: total}
    from nedx.backbones import feature_layout

    widths = feature_layout(model.recipe.backbone)
    if sum(widths.values()) != total:
        raise ModelError(
            f"the projection has {total} features, the layers of the backbone "
            f"{sum(widths.values())}: {widths}. Give layer_widths="
        )
    return widths
