"""`DiffusionPrior`: train a diffusion prior, with the manners of scikit-learn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator

from nedx.compute.devices import check_device, resolve_device
from nedx.compute.training import (
    BEFORE,
    Epoch,
    Progress,
    Tensors,
    fingerprint_of,
    lower,
    seeded,
    train_epochs,
)
from nedx.decoding.targets import target_name
from nedx.encoding.estimators.base import UnfittedError
from nedx.encoding.fwrf_store import hash_arrays
from nedx.errors import ModelError
from nedx.reconstruction.network_store import arrays_of
from nedx.reconstruction.prior_rows import Labelled, Pairs, pair, unit_norm
from nedx.reconstruction.prior_store import PriorModel, PriorRecipe
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.reconstruction.prior_loop import PriorTraining

_log = logging.getLogger(__name__)
_VALIDATION = BEFORE + 1


class DiffusionPrior(BaseEstimator):
    """Learn to turn decoded embeddings into embeddings of images, by denoising diffusion.

    The network, the schedule and the recipe of NECOMIMI (Chen 2024, arXiv 2410.00712) and ATM (Li
    et al. 2024, NeurIPS), which train 150 epochs with Adam and keep the last. What differs here by
    default: the condition is dropped sample by sample, and the epoch with the lowest loss over
    held-out concepts is kept.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the layers down the U.
    dropout : float
        After each layer.
    steps : int
        Times of the diffusion.
    epochs : int
        Passes over the training rows.
    batch_size : int
        Rows in a step.
    lr : float
        The highest learning rate of Adam; it falls along a cosine.
    warmup : int or float
        Steps in which the rate rises, or their share of all steps; 500 of 9,750 are published.
    guidance_dropout : float
        Probability of training without condition, for classifier-free guidance.
    guidance_dropout_per : {"sample", "batch"}
        Whether each sample or the whole batch goes without; the batch is published.
    scale : {"published", "unit"}
        Targets as they are, held within plus and minus 1; or targets of unit norm, multiplied
        so that their features have mean square 1, which is what the schedule is made for, and
        held within their range. Embeddings that come out have the scale of the targets.
    validation : float
        Share of the concepts that the epoch is chosen by; 0 keeps the last epoch.
    groups : str, optional
        The coordinate that names the concept of an image; None holds out images.
    seed : int
        Of initial weights, order, noise and dropout.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    checkpoint : str or Path, optional
        A folder that is written to after each epoch; a fit of the same data with the same
        parameters goes on from what it finds there.

    Attributes
    ----------
    model_ : PriorModel
        What `apply_prior` takes.
    history_ : list of dict
        Of each epoch ``epoch``, ``loss`` and, of held-out concepts, ``validation_loss``.
    best_epoch_ : int
        The epoch kept, from 0 on.

    Examples
    --------
    >>> prior = nedx.DiffusionPrior(scale="unit").fit(train.ned.decode(decoder), clip)
    >>> test.ned.decode(decoder).ned.apply_prior(prior).ned.retrieve(gallery)
    """

    model_: PriorModel
    history_: list[dict[str, float]]
    best_epoch_: int

    def __init__(
        self,
        hidden: tuple[int, ...] = (1024, 512, 256, 128, 64),
        dropout: float = 0.1,
        steps: int = 1000,
        epochs: int = 150,
        batch_size: int = 1024,
        lr: float = 1e-3,
        warmup: float = 0.05,
        guidance_dropout: float = 0.1,
        guidance_dropout_per: Literal["sample", "batch"] = "sample",
        scale: Literal["published", "unit"] = "published",
        validation: float = 0.1,
        groups: str | None = "category",
        seed: int = 0,
        device: str = "auto",
        checkpoint: str | Path | None = None,
    ):
        self.hidden = hidden
        self.dropout = dropout
        self.steps = steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.warmup = warmup
        self.guidance_dropout = guidance_dropout
        self.guidance_dropout_per = guidance_dropout_per
        self.scale = scale
        self.validation = validation
        self.groups = groups
        self.seed = seed
        self.device = device
        self.checkpoint = checkpoint

    def fit(self, embeddings: Labelled, targets: Labelled | None = None) -> DiffusionPrior:
        """Train on decoded embeddings and the embeddings of the images that were seen.

        Both are held in memory, as float32.

        Parameters
        ----------
        embeddings : Dataset or ndarray (row, feature)
            ``embedding ([subject,] image | trial[, repetition], feature)``: every subject, trial
            and repetition is a row. Images of the partition ``"test"`` are left out.
        targets : Dataset or ndarray (row, feature)
            ``features (image, feature)``, joined by ``image_id``; arrays are paired row by row.
            Left out where `embeddings` holds both.

        Returns
        -------
        DiffusionPrior
            Itself.

        Raises
        ------
        ModelError
            If embeddings have no target, values are not finite, a parameter is out of range, or
            the checkpoint is another training's.
        """
        self._check_parameters()
        targets = embeddings if targets is None else targets
        pairs = pair(
            embeddings, targets, groups=self.groups, validation=self.validation, seed=self.seed
        )
        recipe = self._recipe(pairs, embeddings, targets)
        progress, best = self._train(pairs, recipe)
        self.history_, self.best_epoch_ = progress.history, progress.best_epoch
        self.model_ = PriorModel.kept(recipe, arrays_of(best), pairs.known)
        return self

    def predict(self, embeddings: xr.Dataset, **options: Any) -> xr.Dataset:
        """Apply the prior, lazily, as `nedx.apply_prior` does."""
        from nedx.reconstruction.prior import apply_prior

        return apply_prior(embeddings, self, device=self.device, **options)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self.fitted().to_zarr(place)

    def fitted(self) -> PriorModel:
        """Return `model_`, or say that there is none yet.

        Raises
        ------
        UnfittedError
            If `fit` was not called.
        """
        if not hasattr(self, "model_"):
            raise UnfittedError("this DiffusionPrior is not fitted: type .fit(embeddings, targets)")
        return self.model_

    def _check_parameters(self) -> None:
        check_device(self.device)
        for name, least in (("epochs", 1), ("batch_size", 1), ("steps", 2)):
            if getattr(self, name) < least:
                raise ModelError(f"{name} is {getattr(self, name)}; it is at least {least}")
        for name in ("lr", "warmup", "seed"):
            value = getattr(self, name)
            if not (value > 0 or (value == 0 and name != "lr")):
                bound = "above 0" if name == "lr" else "at least 0"
                raise ModelError(f"{name} is {value}; it is {bound}")
        for name in ("dropout", "guidance_dropout", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}; it is from 0 to below 1")
        if self.guidance_dropout_per not in ("sample", "batch"):
            raise ModelError("guidance_dropout_per is 'sample' or 'batch'")
        if self.scale not in ("published", "unit"):
            raise ModelError(f"scale is 'published' or 'unit', not {self.scale!r}")
        if len(self.hidden) < 2:
            raise ModelError(f"hidden is {self.hidden}; it names at least two widths")

    def _recipe(self, pairs: Pairs, embeddings: Labelled, targets: Labelled) -> PriorRecipe:
        width = pairs.targets.shape[1]
        unit, most = self.scale == "unit", float(np.abs(pairs.targets).max())
        if not unit and most > 1:
            raise ModelError(
                f"targets reach {most:.3g}, and the published prior holds what it makes within 1, "
                "as it was made for embeddings of unit norm. Type scale='unit', or divide the "
                "targets by their norm"
            )
        scale = float(np.sqrt(width)) if unit else 1.0
        range_ = np.abs(unit_norm(pairs.targets)).max() * scale if unit else 1.0
        rule = "the lowest loss over held-out concepts" if self.validation else "the last epoch"
        ignored = ("checkpoint", "device")
        parameters = {k: v for k, v in self.get_params().items() if k not in ignored}
        return PriorRecipe(
            width=width,
            condition_width=pairs.conditions.shape[1],
            hidden=tuple(self.hidden),
            dropout=self.dropout,
            train_steps=self.steps,
            scale=scale,
            clip=float(range_),
            normalized=unit,
            selection=rule,
            fitted_by=f"DiffusionPrior {json.dumps(parameters)}",
            **_described(embeddings, targets),
        )

    def _train(self, pairs: Pairs, recipe: PriorRecipe) -> tuple[Progress, Tensors]:
        """Train what epochs are left; return how it went, and the weights that are kept."""
        return train_epochs(
            lambda _: self._start(pairs, recipe),
            lambda training, epoch: (self._epoch(training, pairs, epoch), {}),
            lower("validation_loss"),
            epochs=self.epochs,
            fingerprint=self._fingerprint(pairs, recipe),
            folder=None if self.checkpoint is None else Path(self.checkpoint),
        )

    def _epoch(self, training: PriorTraining, pairs: Pairs, epoch: int) -> Epoch:
        """Train on all rows once; return the losses."""
        with seeded(self.seed, epoch, training.device):
            found = {"epoch": epoch, "loss": training.epoch()}
        if pairs.held_out.any():
            with seeded(self.seed, _VALIDATION, training.device):
                found["validation_loss"] = training.validate()
        if not np.isfinite(list(found.values())).all():
            raise ModelError(f"the loss of epoch {epoch} is not finite: type a smaller lr")
        _log.info("epoch %d: %s", epoch, found)
        return found

    def _start(self, pairs: Pairs, recipe: PriorRecipe) -> PriorTraining:
        import torch

        from nedx.reconstruction.prior_loop import PriorTraining
        from nedx.reconstruction.prior_store import build

        device = torch.device(resolve_device(self.device))
        with seeded(self.seed, BEFORE, device):
            network = build(recipe)
        return PriorTraining(
            network,
            pairs,
            recipe,
            device=device,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup=self.warmup,
            guidance_dropout=self.guidance_dropout,
            per_batch=self.guidance_dropout_per == "batch",
        )

    def _fingerprint(self, pairs: Pairs, recipe: PriorRecipe) -> str:
        arrays = {
            "conditions": pairs.conditions,
            "targets": pairs.targets,
            "image": pairs.image,
            "held_out": pairs.held_out,
        }
        return fingerprint_of({"recipe": recipe.model_dump(), "values": hash_arrays(arrays)})


def _described(embeddings: Labelled, targets: Labelled) -> dict[str, Any]:
    """Say where data came from, as far as Datasets tell."""
    if not isinstance(embeddings, xr.Dataset) or not isinstance(targets, xr.Dataset):
        return {}
    found = {
        "target": target_name(targets),
        "condition": embeddings["embedding"].attrs.get("model_id"),
        "dataset": embeddings.attrs.get("dataset"),
        "license": embeddings.attrs.get("license"),
        "training_source": embeddings.attrs.get("source"),
    }
    kinds = ("measured", "synthetic")
    if found["training_source"] not in kinds:
        found["training_source"] = None
    return {name: str(value) for name, value in found.items() if value is not None}
