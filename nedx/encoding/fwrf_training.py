"""`FwrfTrainer`: train a fwRF model, trunk and heads, with the manners of scikit-learn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator

from nedx.backbones.registry import default_recipe
from nedx.compute.devices import check_device, resolve_device
from nedx.compute.training import (
    BEFORE,
    Epoch,
    Progress,
    Tensors,
    fingerprint_of,
    seeded,
    train_epochs,
)
from nedx.encoding.estimators.base import UnfittedError
from nedx.encoding.fwrf import POLICY
from nedx.encoding.fwrf_batches import image_batches, mean_colours, training_batches
from nedx.encoding.fwrf_model import FwrfEncoder
from nedx.encoding.fwrf_samples import (
    Responses,
    Split,
    check_values,
    encoder_recipe,
    result_labels,
    split_samples,
)
from nedx.encoding.fwrf_scoring import correlations, image_correlations
from nedx.encoding.fwrf_store import FIELDS, hash_arrays, write_fwrf
from nedx.encoding.keeping import keep_model
from nedx.encoding.opening import open_model
from nedx.encoding.recipe import EncoderRecipe
from nedx.errors import ModelError
from nedx.store.location import Location

if TYPE_CHECKING:
    import torch

    from nedx.encoding.fwrf_training_loop import FwrfTraining

Targets = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Of each subject the positions of the validation images, and the mean responses to them."""

_log = logging.getLogger(__name__)
_R = "r."
_ACCURACY = {
    "long_name": "encoding accuracy",
    "units": "1",
    "metric": "pearson_r",
    "test_set": "validation images, by which the epoch was chosen",
}


class FwrfTrainer(BaseEstimator):
    """Train a trunk and what the voxels of all subjects and ROIs read out of it.

    The published recipe (St-Yves et al. 2023, Nature Communications 14:3329): two Adams, of the
    trunk and of the heads, stepped in turn after a forward pass each; the loss of
    `nedx.encoding.fwrf_training_loop.fwrf_loss`; the epoch with the best median correlation over
    held-out images is kept. Each batch is of one subject, whose head it moves, and moves the trunk
    that all share.

    Parameters
    ----------
    max_epochs : int
        Passes over the training samples.
    batch_size : int
        Samples in a step.
    learning_rate : float
        Of both Adams.
    penalty : float
        Of the sum of the absolute values of the weights.
    seed : int
        Of initial weights, order and dropout. The published models took 100 times the subject's
        number plus the sum of the character codes of the ROI's name.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision : {"float32", "bf16"}
        Of the trunk while it trains.
    checkpoint : str or Path, optional
        A folder that is written to after each epoch; a fit of the same data with the same
        parameters goes on from what it finds there, to more epochs if asked for.

    Attributes
    ----------
    model_ : FwrfEncoder
        The best epoch; `encode` takes it.
    history_ : list of dict
        Of each epoch ``epoch``, ``loss`` (mean of the batches) and ``validation_r`` (median over
        the voxels).
    best_epoch_ : int
        The epoch kept, from 0 on.

    Examples
    --------
    >>> trainer = nedx.FwrfTrainer(checkpoint="v1-fwrf").fit(images, trials)
    >>> predicted = unseen.ned.encode(trainer)
    """

    model_: FwrfEncoder
    history_: list[dict[str, float]]
    best_epoch_: int

    def __init__(
        self,
        max_epochs: int = 75,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        penalty: float = 0.1,
        seed: int = 0,
        device: str = "auto",
        precision: str = "float32",
        checkpoint: str | Path | None = None,
    ):
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.penalty = penalty
        self.seed = seed
        self.device = device
        self.precision = precision
        self.checkpoint = checkpoint

    def fit(
        self,
        stimuli: xr.Dataset,
        responses: Responses | None = None,
        validation: Responses | None = None,
    ) -> FwrfTrainer:
        """Train on images and the responses to them.

        Images and responses are streamed: of the training samples only some chunks are in memory
        at a time.

        Parameters
        ----------
        stimuli : Dataset
            ``pixels (image, y, x, rgb)`` uint8, square; may hold images beyond those of the
            responses.
        responses : Dataset or DataTree, optional
            ``response ([subject,] image | trial[, repetition], voxel)``, paired with the images
            by ``image_id``; of a tree each child is one subject's. Left out where `stimuli` hold
            both. Single trials are samples of their own. ``partition (image | trial)``, here or
            among the stimuli, says what is trained on (``"train"``) and what the epoch is chosen
            by (``"val"``); images of ``"test"`` are left out.
        validation : Dataset or DataTree, optional
            Responses of the same voxels to choose the epoch by, instead of ``"val"``.

        Returns
        -------
        FwrfTrainer
            Itself.

        Raises
        ------
        StimulusError
            If images do not fit.
        ModelError
            If images are both trained on and held out, none are held out, responses are missing
            or constant, or the checkpoint is another training's.
        """
        self._check_parameters()
        split = split_samples(stimuli, responses, validation, POLICY)
        if not split.validation:
            raise ModelError(
                "there are no validation images to choose the epoch by: none is of the partition "
                "'val'. Set 'partition (image)', or give validation=responses to other images"
            )
        values = [check_values(samples) for samples in split.training.values()]
        targets = {name: each.finite_means() for name, each in split.validation.items()}
        values += [hash_arrays({name: means}) for name, (_, means) in targets.items()]
        own = stimuli if responses is None else responses
        recipe = encoder_recipe(split, own, default_recipe("gnet"), "fwrf", self)
        progress, best = self._train(split, targets, self._fingerprint(split, values))
        self.history_, self.best_epoch_ = progress.history, progress.best_epoch
        self.model_ = self._stored(split, best, recipe)
        return self

    def predict(self, stimuli: xr.Dataset) -> xr.Dataset | xr.DataTree:
        """Predict responses, lazily, as `encode` does."""
        from nedx.encoding.encode import encode

        return encode(stimuli, self._fitted(), device=self.device)

    def score(self, stimuli: xr.Dataset, responses: Responses | None = None) -> float:
        """Return the mean over voxels of Pearson's r between predicted and given responses.

        Repetitions and trials of an image are averaged; every response counts, of whatever
        partition.
        """
        found = image_correlations(self._fitted(), self.predict, stimuli, responses, POLICY)
        return float(np.concatenate(list(found.values())).mean())

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def _fitted(self) -> FwrfEncoder:
        if not hasattr(self, "model_"):
            raise UnfittedError("this FwrfTrainer is not fitted: type .fit(stimuli, responses)")
        return self.model_

    def _check_parameters(self) -> None:
        check_device(self.device)
        for name, least in (("max_epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ModelError(f"{name} is {getattr(self, name)}; it is at least {least}")
        if self.precision not in ("float32", "bf16"):
            raise ModelError(f"unknown precision {self.precision!r}; type 'float32' or 'bf16'")

    def _train(self, split: Split, targets: Targets, fingerprint: str) -> tuple[Progress, Tensors]:
        """Train what epochs are left; return how it went, and weights and r of the best."""
        return train_epochs(
            lambda begun: self._start(split, begun=begun),
            lambda training, epoch: self._epoch(training, split, targets, epoch),
            lambda found, best: found["validation_r"] > best["validation_r"],
            epochs=self.max_epochs,
            fingerprint=fingerprint,
            folder=None if self.checkpoint is None else Path(self.checkpoint),
        )

    def _start(self, split: Split, *, begun: bool) -> FwrfTraining:
        """Return what is trained; the weights of a training begun before are filled in later."""
        import torch

        from nedx.encoding.fwrf_training_loop import FwrfTraining, TrainedHead, new_trunk

        trained = np.unique(np.concatenate([each.image for each in split.training.values()]))
        mean = np.zeros(3) if begun else mean_colours(split.pixels, trained, POLICY)
        device = resolve_device(self.device)
        with seeded(self.seed, BEFORE, torch.device(device)):
            trunk = new_trunk(mean)
            heads = {name: TrainedHead(each.voxels) for name, each in split.training.items()}
        return FwrfTraining(
            trunk,
            heads,
            learning_rate=self.learning_rate,
            penalty=self.penalty,
            precision=self.precision,  # type: ignore[arg-type]
            device=device,
        )

    def _epoch(
        self, training: FwrfTraining, split: Split, targets: Targets, epoch: int
    ) -> tuple[Epoch, Tensors]:
        """Train on each sample once; return mean loss and median r, and the r of all voxels."""
        with seeded(self.seed, epoch, training.device):
            drawn = training_batches(split, POLICY, self.batch_size, (self.seed, epoch))
            loss = float(np.mean([training.step(*batch) for batch in drawn]))
        if not np.isfinite(loss):
            raise ModelError(
                f"the loss of epoch {epoch} is not finite: type a smaller learning_rate, or "
                "precision='float32'"
            )
        found = _correlations(training, split, targets)
        r = float(np.median(np.concatenate([found[f"{_R}{name}"] for name in targets])))
        _log.info("epoch %d: loss %.4g, median validation r %.4f", epoch, loss, r)
        return {"epoch": epoch, "loss": loss, "validation_r": r}, found

    def _fingerprint(self, split: Split, values: list[str]) -> str:
        ignored = ("max_epochs", "checkpoint", "device")
        parameters = {k: v for k, v in self.get_params().items() if k not in ignored}
        data = {
            kind: {
                name: [each.voxels, split.image_id[each.image].tolist()]
                for name, each in members.items()
            }
            for kind, members in (("train", split.training), ("val", split.validation))
        }
        return fingerprint_of(
            {
                "parameters": parameters,
                "data": data,
                "values": values,
                "pixels": list(split.pixels.shape),
            }
        )

    def _stored(
        self, split: Split, best: Mapping[str, torch.Tensor], recipe: EncoderRecipe
    ) -> FwrfEncoder:
        """Put the weights where models are read from, and open them."""
        arrays = {key: values.numpy() for key, values in best.items()}
        members = {}
        for name in split.training:
            head = _below(f"heads.{name}.", arrays)
            labels = result_labels(split, name).assign_coords(
                nedx_trunk=("voxel", np.zeros(len(head["b"]), np.int16)),
                encoding_accuracy=("voxel", arrays[f"{_R}{name}"], _ACCURACY),
            )
            members[name] = (labels, [{field: head[field] for field in FIELDS}])
        trunk = _below("trunk.", arrays)
        place = keep_model(
            recipe,
            {name: labels for name, (labels, _) in members.items()},
            arrays,
            lambda place: write_fwrf(place, recipe, members, [trunk]),
        )
        return cast(FwrfEncoder, open_model(place))


def _correlations(
    training: FwrfTraining, split: Split, targets: Targets
) -> dict[str, torch.Tensor]:
    """Return r of each subject's voxels over the validation images, ``r.<subject>``.

    NaN for a subject that has none.
    """
    import torch

    found = {}
    for name, (images, means) in targets.items():
        parts = [
            training.predict(name, batch) for batch in image_batches(split.pixels, images, POLICY)
        ]
        found[name] = torch.from_numpy(correlations(torch.cat(parts).numpy(), means))
    none = {name: torch.full((each.voxels,), torch.nan) for name, each in split.training.items()}
    return {f"{_R}{name}": values for name, values in {**none, **found}.items()}


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): values for k, values in arrays.items() if k.startswith(prefix)}
