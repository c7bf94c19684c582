"""`ContentLossConverter`: conversion without shared stimuli, by what a decoder makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import xarray as xr

from nedx.backbones.recipe import BackboneRecipe
from nedx.compute.devices import check_device, resolve_device
from nedx.conversion.base import BaseConverter
from nedx.conversion.content_network import (
    ContentTraining,
    LayerTarget,
    train_content_network,
)
from nedx.conversion.model import Converter
from nedx.conversion.recipe import Pair, Side, recipe_of, side_labels
from nedx.conversion.storing import keep_converter
from nedx.conversion.subjects import checked
from nedx.conversion.training import Material
from nedx.decoding.feature_decoder import FeatureDecoder
from nedx.decoding.feature_decoder_layers import TrueFeatures, needed_images, true_features
from nedx.decoding.feature_decoder_model import FeatureModel
from nedx.decoding.feature_decoder_samples import LABEL
from nedx.decoding.samples import Responses, each_subject
from nedx.errors import ModelError
from nedx.schema import neuroid_dim, role_dim, subject_label

_ALIKE = ("units", "normalization", "normalization_scope", "transform")
_HELD_BYTES = 2**26
"""Weights of a layer up to this size are held; of larger ones a channel is read at each step."""


@dataclass(frozen=True, eq=False)
class _Target:
    """The subject that a decoder reads."""

    name: str
    layers: dict[str, xr.Dataset] = field(repr=False)
    backbone: BackboneRecipe
    neuroid: str = "voxel"
    response_attrs: dict[str, Any] = field(default_factory=dict)
    neuroids: xr.Dataset = field(default_factory=xr.Dataset, repr=False)


class ContentLossConverter(BaseConverter):
    """Convert so that the target's decoder finds the features of what the source saw.

    Needs neither shared stimuli nor responses of the target: only its feature decoder, and the
    features of the images that the source saw. A network of three layers learns to turn z-scores
    (ddof=1) of the source into responses from which the decoder, which stays as it is, makes the
    true features (Wang et al. 2025, Nature Computational Science 5:534).

    Parameters
    ----------
    decoder : fitted FeatureDecoder, FeatureModel, DataTree or mapping of str to Dataset
        Of the target: of one subject and ROI, or the weights of each layer as
        `nedx.sources.bdata.decoders.open_decoders` gives them. Responses are converted into the
        neuroids of this ROI: to decode them with it, it has to be of all that it was given.
    layers : str or sequence of str, optional
        Which of its layers; all by default.
    iterations : int
        Steps, each with all samples.
    learning_rate : float
        Of Adam; falls to 0 over the second half.
    seed : int
        Of weights, and of the channel that is drawn of each layer in each step.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Attributes
    ----------
    model_ : Converter
    history_ : Dataset
        ``loss (iteration)``.

    Examples
    --------
    >>> converter = nedx.ContentLossConverter(decoder).fit(sub_01, features)
    >>> features = test.ned.convert(converter).ned.decode(decoder)
    """

    history_: xr.Dataset

    def __init__(
        self,
        decoder: Any,
        *,
        layers: str | Sequence[str] | None = None,
        iterations: int = 1024,
        learning_rate: float = 5e-5,
        seed: int = 42,
        device: str = "auto",
    ):
        self.decoder = decoder
        self.layers = layers
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.seed = seed
        self.device = device

    def fit(
        self, source: Responses, features: xr.Dataset, *, labels: xr.Dataset | None = None
    ) -> Self:
        """Fit to responses of the source, and the features of what it saw.

        Parameters
        ----------
        source : Dataset or DataTree
            ``response (image | trial[, repetition], <neuroid>)`` with ``image_id``, of one
            subject. Each repeat is a sample; images of the ``partition`` ``"test"`` are left out.
        features : Dataset
            ``feature_<layer> (image, ...)`` or ``features (image, feature)``, with ``image_id``;
            or ``pixels``, of which features are computed with the decoder's network (VGG19, where
            it says none).
        labels : Dataset, optional
            Responses of the target, whose labels of neuroids converted responses then carry; they
            are not read. Without them these are the labels that the decoder knows, or numbers.

        Returns
        -------
        ContentLossConverter
            Itself.

        Raises
        ------
        ModelError
            If images have no features, layers are missing or of other sizes than the decoder's,
            the decoder is of several subjects or ROIs, features are NaN, responses are NaN or
            constant, or the loss does not stay finite.
        """
        self._check()
        name, ds = _source(source)
        target = _target(self.decoder, self.layers)
        if target.name == name:
            raise ModelError(f"the decoder is of {name} itself: nothing is to be converted")
        first = next(iter(target.layers.values()))
        given = _labels(labels, first, target)
        material = Material({name: ds})
        rows = material.rows[name]
        names, where = np.unique(rows.image.astype(str), return_inverse=True)
        images = names.tolist()
        if not images:
            raise ModelError(f"{name} saw no training images: all are of the partition 'test'")
        needed = needed_images(features, {name: images})
        values = material.alone(name, rows).values
        with true_features(needed, target.backbone, list(target.layers), self.device) as truth:
            layers = _weighed(
                {n: _layer(n, own, truth.get(n), images) for n, own in target.layers.items()}
            )
            training = ContentTraining(
                self.iterations, self.learning_rate, self.seed, resolve_device(self.device)
            )
            state, loss = train_content_network(
                values.z, where, first.sizes["voxel"], layers, training
            )
        state |= {"source_mean": values.mean, "source_deviation": values.deviation}
        self.history_ = xr.Dataset({"loss": ("iteration", loss)})
        self.model_ = self._model(name, ds, target, state, images, given)
        return self

    def _check(self) -> None:
        check_device(self.device)
        steps, rate = self.iterations, self.learning_rate
        if not isinstance(steps, Integral) or steps < 1:
            raise ModelError(f"iterations is {steps!r}; type a whole number from 1")
        if not isinstance(rate, Real) or not 0 < rate < np.inf:
            raise ModelError(f"learning_rate is {rate!r}; type a positive number, such as 5e-5")

    def _model(
        self,
        name: str,
        ds: xr.Dataset,
        target: _Target,
        state: dict[str, np.ndarray],
        images: list[str],
        labels: xr.Dataset,
    ) -> Converter:
        first = next(iter(target.layers.values()))
        size = first.sizes["voxel"]
        for part in ("mean", "deviation"):
            state[f"target_{part}"] = first[f"response_{part}"].values.astype(np.float32)
        pair = Pair(source=name, target=target.name, n_samples=len(images))
        recipe = recipe_of(
            {name: ds},
            (pair,),
            method="content loss",
            images=len(images),
            citation="https://doi.org/10.1038/s43588-025-00826-5",
            fitted_by=repr(self),
            kernel="content_network",
            seed=self.seed,
        )
        side = Side(neuroid=target.neuroid, size=size, response_attrs=target.response_attrs)
        recipe = recipe.model_copy(update={"sides": {**recipe.sides, target.name: side}})
        both = {name: side_labels(ds), target.name: labels}
        return keep_converter([(pair, state)], lambda _: recipe, both, images)


def _source(source: Responses) -> tuple[str, xr.Dataset]:
    """Return the label and responses of the one subject that is given."""
    (name, ds), *more = each_subject(source)
    if more:
        raise ModelError(f"the source holds {1 + len(more)} subjects; select one")
    ds = checked(name, ds)
    time = role_dim(ds["response"], "time")
    if time is not None:
        raise ModelError(
            "ContentLossConverter takes responses without time, as decoders of features do; type: "
            f"ds.mean({time!r}, keep_attrs=True)"
        )
    return name, ds


def _target(decoder: Any, layers: str | Sequence[str] | None) -> _Target:
    """Return the weights of each layer of a decoder, in whatever form it is given."""
    if isinstance(decoder, FeatureDecoder) and not hasattr(decoder, "model_"):
        raise ModelError("this FeatureDecoder is not fitted yet; type: .fit(features, responses)")
    decoder = getattr(decoder, "model_", decoder)
    layers = [layers] if isinstance(layers, str) else layers
    if layers is not None and not len(layers):
        raise ModelError("layers= names none; leave it out for all layers of the decoder")
    usual = FeatureDecoder().recipe
    if isinstance(decoder, FeatureModel):
        wanted = decoder.layers if layers is None else tuple(layers)
        found = {layer: decoder.weights(layer) for layer in wanted}
        recipe = decoder.recipe
        attrs = {k: getattr(recipe, k) for k in _ALIKE if getattr(recipe, k) is not None}
        return _checked(
            _Target(
                decoder.subjects[0],
                found,
                recipe.backbone or usual,
                recipe.neuroid,
                attrs,
                decoder.neuroids(decoder.subjects[0]),
            )
        )
    if isinstance(decoder, xr.DataTree):
        decoder = {str(k): child.to_dataset() for k, child in decoder.children.items()}
    if not isinstance(decoder, Mapping) or not decoder:
        raise ModelError(
            f"a decoder is a fitted FeatureDecoder, or Datasets of weights by layer, not "
            f"{type(decoder).__name__}"
        )
    lacking = [layer for layer in layers or () if layer not in decoder]
    if lacking:
        raise ModelError(f"the decoder has no layer {lacking[0]!r}, only {', '.join(decoder)}")
    found = {layer: decoder[layer] for layer in layers or decoder}
    name = next(iter(found.values())).attrs.get("subject", "target")
    return _checked(_Target(subject_label(str(name)), found, usual))


def _checked(target: _Target) -> _Target:
    """Refuse decoders whose layers do not read the same responses."""
    (first, reference), *others = target.layers.items()
    for layer, ds in others:
        for name in ("response_mean", "response_deviation"):
            if not np.array_equal(ds[name].values, reference[name].values):
                raise ModelError(
                    f"the decoders of {first!r} and {layer!r} standardise responses differently: "
                    "they are not of one ROI of one subject"
                )
    return target


def _layer(
    layer: str, decoder: xr.Dataset, truth: TrueFeatures | None, images: Sequence[str]
) -> LayerTarget:
    if truth is None:
        raise ModelError(f"there are no features of the layer {layer!r} that the decoder has")
    values = truth.of_images(images)
    units = decoder.sizes["unit"]
    if values.shape[1] != units:
        raise ModelError(
            f"the features of {layer!r} have {values.shape[1]:,} units, the decoder {units:,}: "
            "they are of another network"
        )
    shape = tuple(decoder.attrs.get("unit_shape", (units,)))
    small = sum(decoder[name].nbytes for name in ("index", "weight")) <= _HELD_BYTES
    index, weight = (
        decoder[name].values if small else decoder[name].data for name in ("index", "weight")
    )
    return LayerTarget(
        index,
        weight,
        decoder["bias"].values.astype(np.float32),
        decoder["feature_mean"].values.astype(np.float32),
        decoder["feature_deviation"].values.astype(np.float32),
        values,
        shape[0] if len(shape) > 1 else 1,
        1.0,
    )


def _weighed(layers: Mapping[str, LayerTarget]) -> list[LayerTarget]:
    """Weigh layers by one over the squares of their features, to a sum of 1.

    Raises
    ------
    ModelError
        If features are NaN or infinite.
    """
    squares = np.array([float((layer.features**2).sum()) for layer in layers.values()])
    bad = [name for name, found in zip(layers, squares, strict=True) if not np.isfinite(found)]
    if bad:
        raise ModelError(f"the features of {', '.join(bad)} are NaN or infinite for some images")
    weights = 1 / np.maximum(squares, np.finfo(np.float32).tiny)
    weights /= weights.sum()
    return [
        replace(layer, weight_of_layer=float(weight))
        for layer, weight in zip(layers.values(), weights, strict=True)
    ]


def _labels(labels: xr.Dataset | None, decoder: xr.Dataset, target: _Target) -> xr.Dataset:
    """Return labels of the neuroids that a decoder reads."""
    size = decoder.sizes["voxel"]
    if labels is None:
        numbers = np.arange(size, dtype=np.int32)
        if LABEL in target.neuroids:
            numbers = target.neuroids[LABEL].values[decoder["position"].values]
        return xr.Dataset(coords={target.neuroid: numbers})
    labels = checked(target.name, labels, paired=False)
    dim = str(neuroid_dim(labels["response"]))
    where = decoder["position"].values if "position" in decoder else np.arange(size)
    fits = (
        labels.sizes[dim] > int(where.max()) if "position" in decoder else labels.sizes[dim] == size
    )
    if not fits:
        raise ModelError(
            f"labels= has {labels.sizes[dim]:,} {dim}s, the decoder reads {size:,} others"
        )
    return side_labels(labels.isel({dim: where}))
