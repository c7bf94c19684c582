"""`EEGDecoder`: train a network that finds images by responses, with scikit-learn's manners."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import ValidationError
from sklearn.base import BaseEstimator

from nedx.compute.devices import check_device
from nedx.decoding.augmentation import Augmentation, Noise
from nedx.decoding.fitting import Job, Trained, check_network, selection_rule, train_network
from nedx.decoding.model import NeuralDecoder
from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.recipe import DecoderRecipe, Member
from nedx.decoding.samples import ANYBODY, Responses, Samples, by_subject, paired
from nedx.decoding.settings import TrainingSettings, checked_settings
from nedx.decoding.splitting import Split, split_concepts
from nedx.decoding.targets import Targets, read_targets
from nedx.encoding.estimators.base import UnfittedError
from nedx.errors import ModelError, close_matches, faults_of
from nedx.metrics.repeats import labels_of
from nedx.store.location import Location

_ELSEWHERE = ("network", "network_options", "device", "progress")
_FROM_RESPONSE = ("normalization", "normalization_scope", "transform")
_FROM_DATASET = ("modality", "species", "dataset", "license", "citation")


class EEGDecoder(BaseEstimator):
    """Train networks whose embeddings of responses find the images that were seen.

    Responses and targets are paired by ``image_id`` and compared by a symmetric contrastive loss
    (Radford et al. 2021, as in NICE: Song et al. 2024, ICLR). Responses are streamed; each channel
    is brought to unit standard deviation by what is trained on. The epoch is chosen by concepts
    that are held out of the training images, never by test images.

    Parameters
    ----------
    network : str
        One of `nedx.decoding.networks.names`, or ``"braindecode:<class>"``.
    image, text, mse : float
        Weights of the terms of the loss: contrastive with images and with texts, where there are
        texts, and the mean squared distance from the target. The published mix is 0.99 and 0.01.
    logit_scale : {"exp", "softplus", "linear", "fixed"}
        How similarities are scaled; see `nedx.decoding.losses`.
    mask_same_image : bool
        Whether responses of a batch to the same image (or text) are left out of the negatives.
    epochs, batch_size : int
        Passes over the responses, and responses in a step.
    lr, weight_decay, betas : float, float, tuple of float
        Of AdamW.
    schedule : {"constant", "cosine"}
        Of the learning rate, after ``warmup`` epochs in which it rises.
    warmup : float
        Epochs.
    ema : float, optional
        How much of the averaged weights is kept in each step, such as 0.999; these then decode.
    precision : {"float32", "bfloat16"}
        Of the network while it trains.
    average_trials : bool or int
        Whether repetitions of an image are averaged; an int averages so many of them, drawn anew
        in each epoch. With False each is a sample of its own.
    augmentation : sequence of Shift, Dropout, Smoothing or Noise, optional
        From `nedx.decoding.augmentation`; ``(Noise(),)`` by default, none with ``()``.
    mode : {"in_subject", "leave_one_subject_out", "joint"}
        A network for each subject, fitted to its own responses; or to those of all others; or one
        for all, with layers of each subject in networks that have such layers.
    validation : float
        Share of the concepts (``category``) that are held out; 0 keeps the last epoch. Where
        ``partition`` names images ``"val"``, these are taken.
    patience : int, optional
        Epochs without a better one after which training stops.
    seed : int
        Of weights, order, augmentation and the draw of concepts.
    network_options : dict, optional
        Arguments that only this network has.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress : bool
        Whether to show a bar.

    Attributes
    ----------
    model_ : NeuralDecoder
        The best epoch of each network; `decode` takes it.
    history_ : Dataset
        ``loss``, ``lr``, ``val_loss``, ``val_top1``, ``val_top5`` and ``val_mrr`` over
        ``([network,] epoch)``, top-k among all held-out images; ``best_epoch ([network])``.

    Examples
    --------
    >>> drawn = nedx.simulate_eeg(400)
    >>> decoder = nedx.EEGDecoder(epochs=5).fit(drawn)
    >>> test = nedx.open("sim-eeg", subject=1)
    >>> found = test.ned.average_repetitions().ned.decode(decoder)
    >>> found["embedding"].dims
    ('subject', 'image', 'feature')
    """

    model_: NeuralDecoder
    history_: xr.Dataset

    def __init__(
        self,
        network: str = "eeg_project",
        *,
        image: float = 0.99,
        text: float = 0.01,
        mse: float = 0.0,
        logit_scale: str = "exp",
        mask_same_image: bool = True,
        epochs: int = 40,
        batch_size: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: str = "cosine",
        warmup: float = 1.0,
        ema: float | None = None,
        precision: str = "float32",
        average_trials: bool | int = True,
        augmentation: Sequence[Augmentation] | None = None,
        mode: str = "in_subject",
        validation: float = 0.1,
        patience: int | None = None,
        seed: int = 0,
        network_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        progress: bool = False,
    ):
        self.network = network
        self.image = image
        self.text = text
        self.mse = mse
        self.logit_scale = logit_scale
        self.mask_same_image = mask_same_image
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.schedule = schedule
        self.warmup = warmup
        self.ema = ema
        self.precision = precision
        self.average_trials = average_trials
        self.augmentation = augmentation
        self.mode = mode
        self.validation = validation
        self.patience = patience
        self.seed = seed
        self.network_options = network_options
        self.device = device
        self.progress = progress

    def fit(
        self,
        responses: Responses,
        targets: xr.Dataset | None = None,
        text: xr.Dataset | None = None,
        *,
        checkpoint: str | Path | None = None,
        client: Any = None,
    ) -> EEGDecoder:
        """Train on responses and the targets of the images.

        Parameters
        ----------
        responses : Dataset or DataTree
            ``response ([subject,] image | trial[, repetition], channel, time)`` with ``image_id``;
            of a tree each child is one subject's. ``category`` tells concepts, and images of the
            ``partition`` ``"test"`` are left out.
        targets : Dataset, optional
            ``features (image, feature)`` with ``image_id``, held in memory; may hold images
            beyond those of the responses. Left out where `responses` holds both.
        text : Dataset, optional
            The same of texts that describe the images, of the same width.
        checkpoint : path, optional
            A folder that is written to after each epoch. A fit of the same data with the same
            parameters goes on from what it finds there.
        client : distributed.Client, optional
            Trains networks of several subjects at a time on its cluster.

        Returns
        -------
        EEGDecoder
            Itself.

        Raises
        ------
        ModelError
            Before training: if responses and targets do not belong together, subjects have other
            channels, times or units, the window is too short for the network, responses are NaN,
            or the checkpoint is another training's.
        """
        settings = self._settings()
        subjects = by_subject(responses)
        split = split_concepts(list(subjects.values()), settings.validation, settings.seed)
        subjects = {name: _needed(ds, split) for name, ds in subjects.items()}
        wanted = [name for name, kind in split.partition.items() if kind != "test"]
        given = responses if targets is None else targets
        if not isinstance(given, xr.Dataset):
            raise ModelError("there are no targets: type .fit(responses, targets)")
        image = read_targets(given, wanted)
        words = None if text is None else _like(read_targets(text, wanted, "texts"), image)
        if words is None and not settings.image and not settings.mse:
            raise ModelError(
                "only texts are to be learnt (image=0, mse=0), and there are none: type "
                ".fit(responses, targets, text)"
            )
        jobs = self._jobs(settings, subjects, split, image, words, checkpoint)
        recipe = self._recipe(settings, subjects, split, image, jobs)
        trained = _run(jobs, client)
        self.history_ = _history(trained)
        states = {name: each.state for name, each in trained.items()}
        self.model_ = NeuralDecoder(recipe, states, _known(split))
        return self

    def predict(self, responses: xr.Dataset) -> xr.Dataset:
        """Make embeddings, lazily, as `decode` does."""
        from nedx.decoding.decode import decode

        return decode(responses, self._fitted(), device=self.device)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def set_params(self, **params: Any) -> EEGDecoder:
        """Set parameters; returns itself."""
        known = self.get_params(deep=False)
        for name in params:
            if name not in known:
                raise ModelError(f"no parameter {name!r}; {close_matches(name, known)}")
        changed: EEGDecoder = super().set_params(**params)
        return changed

    def _fitted(self) -> NeuralDecoder:
        if not hasattr(self, "model_"):
            raise UnfittedError("this EEGDecoder is not fitted: type .fit(responses, targets)")
        return self.model_

    def _settings(self) -> TrainingSettings:
        check_device(self.device)
        given = self.get_params(deep=False)
        given = {name: value for name, value in given.items() if name not in _ELSEWHERE}
        changes = (Noise(),) if self.augmentation is None else self.augmentation
        if not isinstance(changes, list | tuple):
            raise ModelError(f"augmentation is a sequence: type augmentation=({changes!r},)")
        return checked_settings({**given, "augmentation": changes})

    def _jobs(
        self,
        settings: TrainingSettings,
        subjects: Mapping[str, xr.Dataset],
        split: Split,
        image: Targets,
        text: Targets | None,
        checkpoint: str | Path | None,
    ) -> list[Job]:
        """Return what each network is trained on; builds the network once to see that it can be."""
        import torch

        from nedx.decoding.networks.registry import build

        first = next(iter(subjects.values()))
        members = _members(list(subjects), settings.mode)
        network = NetworkRecipe(
            name=self.network,
            n_channels=first.sizes["channel"],
            n_times=first.sizes["time"],
            n_outputs=image.values.shape[1],
            n_subjects=len(next(iter(members.values()))),
            options=dict(self.network_options or {}),
        )
        with torch.device("meta"):
            build(network)
        both = {
            name: paired(name, ds, image.rows, settings.average_trials)
            for name, ds in subjects.items()
        }
        jobs = []
        for name, fitted in members.items():
            training, validation = [], []
            for index, subject in enumerate(fitted):
                every, means = both[subject]
                training.append(_part(every, split, "train", index))
                validation.append(_part(means, split, "val", index))
            _check_enough(name, training, "to train on")
            kept = tuple(each for each in validation if len(each))
            if split.count("val"):
                _check_enough(name, kept, "held out to choose the epoch by")
            folder = None if checkpoint is None else Path(checkpoint) / name
            values = None if text is None else text.values
            job = Job(
                name,
                network,
                settings,
                tuple(each for each in training if len(each)),
                kept,
                image.values,
                values,
                self.device,
                folder,
                self.progress,
            )
            jobs.append(job)
        return jobs

    def _recipe(
        self,
        settings: TrainingSettings,
        subjects: Mapping[str, xr.Dataset],
        split: Split,
        image: Targets,
        jobs: Sequence[Job],
    ) -> DecoderRecipe:
        ds = next(iter(subjects.values()))
        attrs = ds["response"].attrs
        found = {key: attrs[key] for key in _FROM_RESPONSE if key in attrs}
        found |= {key: ds.attrs[key] for key in _FROM_DATASET if key in ds.attrs}
        names = [str(ds.attrs[key]) for key in ("modality", "dataset") if key in ds.attrs]
        times = np.asarray(ds["time"].values, dtype=np.float64)
        words: dict[str, Any] = {
            "network": jobs[0].network,
            "channels": tuple(map(str, ds["channel"].values)),
            "times": tuple(times.tolist()),
            "sampling_frequency": _sampling_frequency(times),
            "units": attrs.get("units", "1"),
            "mode": settings.mode,
            "networks": tuple(job.name for job in jobs),
            "members": _assigned(list(subjects), settings.mode),
            "target": image.name,
            "selection": selection_rule(settings, split.count("val"), split.rule),
            "split": split.rule,
            "model_id": "-".join([*names, re.sub(r"\W", "_", self.network)]),
            "version": "1",
            "training_data": f"{split.count('train')} images, {_counted(len(subjects), 'subject')}",
            "training_source": attrs.get("source", ds.attrs.get("source")),
            "fitted_by": repr(self),
            "seed": settings.seed,
        }
        try:
            return DecoderRecipe.model_validate(words | found)
        except ValidationError as error:
            raise ModelError(
                "attributes of the responses do not fit a decoder: "
                + faults_of(error, "the attributes")
            ) from error


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _check_enough(name: str, parts: Sequence[Samples], purpose: str) -> None:
    """Raise if there are not two images, to be told apart."""
    count = len(set().union(*(each.image_id.tolist() for each in parts)))
    if count < 2:
        raise ModelError(
            f"the network {name!r} has {_counted(count, 'image')} {purpose}, and needs 2 or more. "
            "Give more responses, or another validation= or seed="
        )


def _sampling_frequency(times: np.ndarray) -> float | None:
    if len(times) < 2:
        return None
    return float(np.round(1 / np.median(np.diff(times)), 6))


def _members(subjects: Sequence[str], mode: str) -> dict[str, list[str]]:
    """Return whose responses each network is fitted to."""
    if mode == "in_subject":
        return {name: [name] for name in subjects}
    if mode == "joint":
        return {"all": list(subjects)}
    if len(subjects) < 2:
        raise ModelError(
            f"mode='leave_one_subject_out' needs several subjects, found {', '.join(subjects)}"
        )
    return {f"without-{name}": [each for each in subjects if each != name] for name in subjects}


def _assigned(subjects: Sequence[str], mode: str) -> dict[str, Member]:
    """Return which network decodes each subject; anybody, where nobody is named."""
    if list(subjects) == [ANYBODY]:
        return {}
    if mode == "in_subject":
        return {name: Member(network=name, subject=0) for name in subjects}
    if mode == "joint":
        return {name: Member(network="all", subject=i) for i, name in enumerate(subjects)}
    return {name: Member(network=f"without-{name}") for name in subjects}


def _needed(ds: xr.Dataset, split: Split) -> xr.Dataset:
    """Return the responses to images that are not for testing."""
    kinds = split.of(labels_of(ds, "image_id"))
    dim = ds["image_id"].dims[0]
    return ds if (kinds != "test").all() else ds.isel({dim: np.flatnonzero(kinds != "test")})


def _part(samples: Samples, split: Split, kind: str, index: int) -> Samples:
    return replace(samples.select(split.of(samples.image_id) == kind), index=index)


def _like(text: Targets, image: Targets) -> Targets:
    """Return texts in the order of the images."""
    if text.values.shape[1] != image.values.shape[1]:
        raise ModelError(
            f"texts have {text.values.shape[1]} features, images {image.values.shape[1]}: both are "
            "compared with one embedding, and need one width"
        )
    order = [text.rows[name] for name in image.rows]
    return Targets(text.values[order], image.rows, text.name)


def _run(jobs: Sequence[Job], client: Any) -> dict[str, Trained]:
    """Train all networks, after the responses of all of them have been read."""

    def each(function: Callable[[Job], Any]) -> list[Any]:
        if client is None:
            return [function(job) for job in jobs]
        sent = [_reading_itself(job) for job in jobs]
        found: list[Any] = client.gather([client.submit(function, j, pure=False) for j in sent])
        return found

    if len(jobs) > 1:
        each(check_network)
    return dict(zip((job.name for job in jobs), each(train_network), strict=True))


def _reading_itself(job: Job) -> Job:
    """Return a job whose responses are read where it runs."""
    # A training that left its reading to the cluster would wait for workers, which train.
    training, validation = (
        tuple(replace(each, scheduler="threads") for each in part)
        for part in (job.training, job.validation)
    )
    return replace(job, training=training, validation=validation)


def _history(trained: Mapping[str, Trained]) -> xr.Dataset:
    """Return what each epoch came to; epochs that a network did not see are NaN."""
    parts = []
    for each in trained.values():
        columns = {
            name: ("epoch", np.array([row[name] for row in each.history]))
            for name in each.history[0]
            if name != "epoch"
        }
        best = xr.Dataset(columns, {"epoch": np.arange(len(each.history))})
        parts.append(best.assign_coords(best_epoch=each.best_epoch))
    if len(parts) == 1:
        return parts[0]
    names = xr.Variable("network", np.array(list(trained), dtype=object))
    return xr.concat(parts, names, join="outer", coords="different", compat="equals")


def _known(split: Split) -> xr.Dataset:
    seen = {name: kind for name, kind in split.partition.items() if kind != "test"}
    return xr.Dataset(
        coords={
            "known_image": np.array(list(seen), dtype=object),
            "known_partition": ("known_image", np.array(list(seen.values()), dtype=object)),
        }
    )
