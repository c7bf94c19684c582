"""`ReAlnetEncoder`: train networks of images to EEG, with the manners of scikit-learn."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from pydantic import ValidationError
from sklearn.base import BaseEstimator

from nedx.backbones.recipe import BackboneRecipe, Weights
from nedx.backbones.registry import default_recipe
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
from nedx.decoding.batches import Stream
from nedx.decoding.samples import Responses
from nedx.encoding.estimators.base import UnfittedError
from nedx.encoding.fwrf_samples import described
from nedx.encoding.fwrf_scoring import correlations
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.keeping import keep_model
from nedx.encoding.opening import open_model
from nedx.encoding.realnet_model import NETWORK, ReAlnetModel, placed
from nedx.encoding.realnet_recipe import ReAlnetArchitecture, ReAlnetRecipe
from nedx.encoding.realnet_samples import Trials, image_pairs, pair_trials
from nedx.encoding.realnet_store import write_realnet
from nedx.encoding.recipe import recipe_of
from nedx.errors import ModelError
from nedx.metrics.repeats import labels_of
from nedx.stimuli.preprocessing import policy
from nedx.store.location import Location

if TYPE_CHECKING:
    import torch

    from nedx.encoding.realnet_training import ReAlnetTraining

_log = logging.getLogger(__name__)
_R = "r"
_TRUNK = ("widths", "steps", "classes")
_ELSEWHERE = ("max_epochs", "checkpoint", "device")
_ACCURACY = {"long_name": "encoding accuracy", "units": "1", "metric": "pearson_r"}


@dataclass(frozen=True, eq=False)
class _Job:
    """The training of one network: its responses, and what it begins as."""

    subject: str
    trials: Trials
    training: Stream
    validation: Stream | None
    checksum: str
    architecture: ReAlnetArchitecture
    trunk: Tensors | None


class ReAlnetEncoder(BaseEstimator):
    """Train a CORnet-S, and a head on its four areas, to predict EEG by channel and time.

    ReAlnet (Lu, Wang & Golomb, arXiv:2401.17231) without the leaks of its published training: the
    epoch is chosen by concepts held out of the training images, each subject begins with the same
    trunk, and batch norms count a step once. The loss is ``L_task + beta L_generation``: how far
    the logits of the trunk move away from those that it had, and
    `nedx.encoding.realnet_losses.generation_loss`.

    Parameters
    ----------
    weights : Weights, str or Path, optional
        Of the trunk, as published for CORnet-S; random ones by default.
    beta : float
        Weight of the generation loss.
    contrastive : {"pearson", "monitor"}, optional
        The contrastive term: with a gradient, or as published, without one. None leaves it out.
    max_epochs, batch_size : int
        Passes over the training images, and images in a step.
    learning_rate : float
        Of Adam, which moves trunk and head.
    features : int
        Features that the head makes of each area.
    validation : float
        Share of the concepts (``category``) that are held out; 0 keeps the last epoch. Where
        ``partition`` names images ``"val"``, these are taken.
    seed : int
        Of initial weights, order and the draw of concepts.
    policy : str
        Of the images: ``"train"`` is the published one for square images.
    trunk : dict, optional
        Arguments of `nedx.backbones.cornet_s.CORnetS`, for a smaller one: ``widths``, ``steps``
        and ``classes``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    checkpoint : str or Path, optional
        A folder that is written to after each epoch; a fit of the same data with the same
        parameters goes on from what it finds there, to more epochs if asked for.

    Attributes
    ----------
    model_ : ReAlnetModel
        The best epoch of each subject; `encode` takes it.
    history_ : Dataset
        ``task``, ``generation`` and ``loss`` of training and ``val_task``, ``val_generation`` and
        ``val_loss`` over ``(network, epoch)``; ``best_epoch (network)``, from 0 on.

    See Also
    --------
    nedx.import_realnet : Networks that others have trained.

    Examples
    --------
    >>> encoder = nedx.ReAlnetEncoder(weights="cornet_s.pth").fit(images, train)
    >>> predicted = unseen.ned.encode(encoder)
    """

    model_: ReAlnetModel
    history_: xr.Dataset

    def __init__(
        self,
        weights: Weights | str | Path | None = None,
        *,
        beta: float = 100.0,
        contrastive: str | None = "pearson",
        max_epochs: int = 25,
        batch_size: int = 16,
        learning_rate: float = 2e-6,
        features: int = 128,
        validation: float = 0.1,
        seed: int = 0,
        policy: str = "train",
        trunk: dict[str, Any] | None = None,
        device: str = "auto",
        checkpoint: str | Path | None = None,
    ):
        self.weights = weights
        self.beta = beta
        self.contrastive = contrastive
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.features = features
        self.validation = validation
        self.seed = seed
        self.policy = policy
        self.trunk = trunk
        self.device = device
        self.checkpoint = checkpoint

    def fit(self, stimuli: xr.Dataset, responses: Responses | None = None) -> ReAlnetEncoder:
        """Train a network of each subject, one after the other; all is streamed.

        Parameters
        ----------
        stimuli : Dataset
            ``pixels (image, y, x, rgb)`` uint8; may hold images beyond those of the responses.
        responses : Dataset or DataTree, optional
            ``response ([subject,] image | trial[, repetition], channel, time)``, paired with the
            images by ``image_id``; of a tree each child is one subject's. Left out where `stimuli`
            hold both. Repetitions are averaged. ``category`` and ``partition``, here or among the
            stimuli, say what is held out; images of ``"test"`` are left out.

        Returns
        -------
        ReAlnetEncoder
            Itself.

        Raises
        ------
        StimulusError
            If images do not fit.
        ModelError
            If images and responses do not belong together, responses are not by channel and time,
            NaN or constant, a parameter is out of range, weights are not those of the trunk, or
            the checkpoint is another training's.
        """
        self._check_parameters()
        trials = pair_trials(stimuli, responses, self.validation, self.seed, self.policy)
        architecture = self._architecture(trials)
        recipe, trunk = self._recipe(trials, architecture), self._trunk(architecture)
        jobs = [self._job(trials, name, architecture, trunk) for name in trials.subjects]
        done = {job.subject: self._train(job) for job in jobs}
        self.history_ = _history({name: progress for name, (progress, _) in done.items()})
        best = {name: tensors for name, (_, tensors) in done.items()}
        self.model_ = self._stored(trials, recipe, best)
        return self

    def predict(self, stimuli: xr.Dataset) -> xr.Dataset | xr.DataTree:
        """Predict responses, lazily, as `encode` does."""
        from nedx.encoding.encode import encode

        return encode(stimuli, self._fitted(), device=self.device)

    def evaluate(
        self, stimuli: xr.Dataset, responses: Responses, **options: Any
    ) -> xr.Dataset | xr.DataTree:
        """Compare predicted with given responses, beside the noise ceiling; lazily.

        Parameters
        ----------
        stimuli, responses
            As `fit` takes them; repetitions are kept for the ceiling.
        **options
            Of `nedx.score`, such as ``method=``.

        Returns
        -------
        Dataset or DataTree
            The responses with ``response_predicted``, ``accuracy`` and, where there are repeats,
            ``noise_ceiling`` and ``accuracy_normalized``, by channel and time.
        """
        from nedx.encoding.evaluating import evaluate

        return evaluate(self._fitted(), stimuli, responses, device=self.device, **options)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def _fitted(self) -> ReAlnetModel:
        if not hasattr(self, "model_"):
            raise UnfittedError("this ReAlnetEncoder is not fitted: type .fit(stimuli, responses)")
        return self.model_

    def _check_parameters(self) -> None:
        check_device(self.device)
        for name, least in (("max_epochs", 1), ("batch_size", 2), ("features", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ModelError(f"{name} is {getattr(self, name)}; it is at least {least}")
        if not 0 < self.learning_rate < np.inf:
            raise ModelError(f"learning_rate is {self.learning_rate}; it is above 0")
        if not 0 <= self.beta < np.inf:
            raise ModelError(f"beta is {self.beta}; it is at least 0")
        if not 0 <= self.validation < 1:
            raise ModelError(f"validation is {self.validation}; it is from 0 to below 1")
        if self.contrastive not in ("pearson", "monitor", None):
            raise ModelError(
                f"unknown contrastive {self.contrastive!r}; type 'pearson', 'monitor' or None"
            )
        foreign = sorted(set(self.trunk or ()) - set(_TRUNK))
        if foreign:
            raise ModelError(f"trunk takes {', '.join(_TRUNK)}, not {', '.join(foreign)}")

    def _architecture(self, trials: Trials) -> ReAlnetArchitecture:
        """Say what the network of each subject is: all have the same channels and times."""
        ds = next(iter(trials.subjects.values()))
        try:
            return ReAlnetArchitecture(
                **(self.trunk or {}),
                features=self.features,
                image_size=policy(self.policy).output_shape(*trials.pixels.shape[1:3])[0],
                n_channels=ds.sizes["channel"],
                n_times=ds.sizes["time"],
            )
        except ValidationError as error:
            raise ModelError(f"trunk={self.trunk} is no CORnet-S: {error}") from error

    def _trunk(self, architecture: ReAlnetArchitecture) -> Tensors | None:
        """Read the weights that all trunks begin with, and see that they fit."""
        import torch

        from nedx.backbones.cornet_s import CORnetS
        from nedx.backbones.taps import fill
        from nedx.backbones.weights import read_state

        backbone = self._backbone(architecture)
        if backbone.weights is None:
            return None
        state = read_state(backbone.weights)
        for old, new in CORnetS.legacy.items():
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
        with torch.device("meta"):
            trunk = CORnetS(architecture.widths, architecture.steps, architecture.classes)
        fill(trunk, state, backbone)
        return state

    def _job(
        self,
        trials: Trials,
        subject: str,
        architecture: ReAlnetArchitecture,
        trunk: Tensors | None,
    ) -> _Job:
        """Read all responses of a subject once, and say what its network is."""
        streams = [trials.stream(subject, kind, self.batch_size) for kind in ("train", "val")]
        training, validation = streams
        if training is None or training.samples < 2:
            raise ModelError(f"{subject!r} has no two training images: see 'partition'")
        checksum = "".join(each.summary().checksum for each in streams if each is not None)
        return _Job(subject, trials, training, validation, checksum, architecture, trunk)

    def _train(self, job: _Job) -> tuple[Progress, Tensors]:
        """Train what epochs are left; return how it went, and weights and r of the best."""
        return train_epochs(
            lambda _: self._start(job),
            lambda training, epoch: self._epoch(training, job, epoch),
            lower("val_loss"),
            epochs=self.max_epochs,
            fingerprint=self._fingerprint(job),
            folder=None if self.checkpoint is None else Path(self.checkpoint) / job.subject,
        )

    def _start(self, job: _Job) -> ReAlnetTraining:
        """Return what is trained: of each subject the same trunk, and a new head."""
        import torch

        from nedx.encoding.realnet_network import ReAlnet
        from nedx.encoding.realnet_training import ReAlnetTraining

        device = resolve_device(self.device)
        with seeded(self.seed, BEFORE, torch.device(device)):
            network = ReAlnet(job.architecture)
        if job.trunk is not None:
            # Copied into the network: what is trained must not be what others begin with.
            network.realnet.load_state_dict(job.trunk)
        return ReAlnetTraining(
            network,
            learning_rate=self.learning_rate,
            beta=self.beta,
            contrastive=self.contrastive,  # type: ignore[arg-type]
            device=device,
        )

    def _epoch(self, training: ReAlnetTraining, job: _Job, epoch: int) -> tuple[Epoch, Tensors]:
        """Train on all images once; return the losses, and r of each output."""
        with seeded(self.seed, epoch, training.device):
            found, r = self._losses(training, job, epoch)
        _log.info("%s, epoch %d: loss %.4g", job.subject, epoch, found["loss"])
        return found, {_R: r}

    def _losses(
        self, training: ReAlnetTraining, job: _Job, epoch: int
    ) -> tuple[Epoch, torch.Tensor]:
        """Train, then validate; as `_epoch`."""
        import torch

        from nedx.encoding.realnet_training import TERMS

        rng = np.random.default_rng((self.seed, epoch))
        steps = [
            training.step(*pair) for pair in image_pairs(job.trials, job.training, self.policy, rng)
        ]
        means = np.mean(steps, axis=0)
        held, r = [float("nan")] * len(TERMS), torch.full((job.architecture.outputs,), torch.nan)
        if job.validation is not None:
            pairs = image_pairs(job.trials, job.validation, self.policy)
            terms, predicted, measured = training.validate(pairs)
            held = list(terms)
            r = torch.from_numpy(correlations(predicted.numpy(), measured.numpy()))
        if not np.isfinite([*means, *(held if job.validation is not None else [])]).all():
            raise ModelError(
                f"the loss of epoch {epoch} is not finite: type a smaller learning_rate"
            )
        found = {"epoch": epoch, **dict(zip(TERMS, map(float, means), strict=True))}
        return found | {f"val_{name}": value for name, value in zip(TERMS, held, strict=True)}, r

    def _backbone(self, architecture: ReAlnetArchitecture) -> BackboneRecipe:
        weights = self.weights
        if isinstance(weights, str | Path):
            weights = Weights(source=str(weights))
        return default_recipe(
            "cornet_s",
            weights=weights,
            seed=self.seed if weights is None else None,
            policy=self.policy,
            image_size=architecture.image_size,
            batch_size=self.batch_size,
        )

    def _fingerprint(self, job: _Job) -> str:
        """Return the hash of all that decides what is learnt."""
        given = {k: v for k, v in self.get_params(deep=False).items() if k not in _ELSEWHERE}
        backbone = self._backbone(job.architecture)
        ids = labels_of(job.trials.subjects[job.subject], "image_id")
        return fingerprint_of(
            {
                "parameters": {**given, "weights": backbone.model_dump(mode="json")},
                "architecture": job.architecture.model_dump(mode="json"),
                # Another file of the same name is another trunk.
                "trunk": job.trunk and hash_arrays({k: v.numpy() for k, v in job.trunk.items()}),
                "responses": job.checksum,
                "images": [[name, job.trials.split.partition[name]] for name in ids.tolist()],
                "pixels": list(job.trials.pixels.shape),
            }
        )

    def _stored(
        self, trials: Trials, recipe: ReAlnetRecipe, best: dict[str, Tensors]
    ) -> ReAlnetModel:
        """Put the weights where models are read from, and open them."""
        arrays = {
            name: {key: values.numpy() for key, values in tensors.items()}
            for name, tensors in best.items()
        }
        r = {name: state.pop(_R) for name, state in arrays.items()}
        labels = _labels(trials, np.stack(list(r.values())))
        every = {f"{n}/{k}": v for n, state in arrays.items() for k, v in state.items()}
        place = keep_model(
            recipe,
            {"": labels},
            every,
            lambda place: write_realnet(place, recipe, labels, arrays),
        )
        return cast(ReAlnetModel, open_model(place))

    def _recipe(self, trials: Trials, architecture: ReAlnetArchitecture) -> ReAlnetRecipe:
        ds = next(iter(trials.subjects.values()))
        return recipe_of(
            ReAlnetRecipe,
            ds["response"].attrs,
            ds.attrs,
            "realnet",
            architecture=architecture,
            backbone=self._backbone(architecture),
            training_data=f"{trials.split.count('train')} images, {len(trials.subjects)} subjects",
            split=trials.split.rule,
            fitted_by=described(self),
        )


def _labels(trials: Trials, r: np.ndarray) -> xr.Dataset:
    """Return what the model says of its outputs; ``r`` is (subject, channel * time)."""
    ds = next(iter(trials.subjects.values()))
    # Strings that numpy casts to no others are what xarray reads from Zarr.
    kept = {
        name: coord.variable.astype(object) if coord.dtype.kind == "T" else coord.variable
        for name, coord in ds.coords.items()
        if coord.dims and set(coord.dims) <= {"channel", "time"}
    }
    known = trials.split.partition
    labels = xr.Dataset(coords=kept).assign_coords(
        known_image=np.array(list(known), dtype=object),
        known_partition=("known_image", np.array(list(known.values()), dtype=object)),
    )
    names = np.array(list(trials.subjects), dtype=object)
    accuracy = r.reshape(len(names), ds.sizes["channel"], ds.sizes["time"]).astype(np.float32)
    said = {**_ACCURACY, "test_set": f"validation images: {trials.split.rule}"}
    if not trials.subject_axis:
        labels = labels.assign_coords(
            {NETWORK: names[0], "encoding_accuracy": (("channel", "time"), accuracy[0], said)}
        )
        told = "subject" in ds.coords
        return placed(labels.assign_coords(subject=names[0]) if told else labels)
    dims = ("subject", "channel", "time")
    return placed(
        labels.assign_coords(
            {
                "subject": ("subject", names, {"nedx_role": "subject"}),
                "encoding_accuracy": (dims, accuracy, said),
                NETWORK: ("subject", names),
            }
        )
    )


def _history(progress: dict[str, Progress]) -> xr.Dataset:
    """Return the losses of all networks over their epochs."""
    names = np.array(list(progress), dtype=object)
    first = next(iter(progress.values())).history[0]
    terms = [name for name in first if name != "epoch"]
    count = max(each.epochs for each in progress.values())
    # A network whose checkpoint had come further has more epochs than others.
    found = {term: np.full((len(names), count), np.nan) for term in terms}
    for row, each in enumerate(progress.values()):
        for entry in each.history:
            for term in terms:
                found[term][row, int(entry["epoch"])] = entry[term]
    best = [each.best_epoch for each in progress.values()]
    coords = {"network": names, "epoch": np.arange(count)}
    losses = {term: (("network", "epoch"), values) for term, values in found.items()}
    return xr.Dataset({**losses, "best_epoch": ("network", best)}, coords)
