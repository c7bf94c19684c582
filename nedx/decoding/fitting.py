"""Training one network from beginning to end: epochs, the best of them, checkpoints, progress."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.compute.devices import resolve_device
from nedx.compute.training import (
    BEFORE,
    Progress,
    Tensors,
    fingerprint_of,
    read_checkpoint,
    seeded,
    write_checkpoint,
)
from nedx.decoding.batches import Stream, Summary
from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.samples import Samples
from nedx.decoding.settings import TrainingSettings
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.network_storing import State
from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

    from nedx.decoding.training import Training

_log = logging.getLogger(__name__)
_CHOSEN_BY = "val_mrr"
_ALONE = threading.Lock()


@dataclass(frozen=True, eq=False)
class Job:
    """All that the training of one network needs; it can be sent to another machine.

    Attributes
    ----------
    name : str
        Of the network within its decoder.
    network : NetworkRecipe
        What it is.
    settings : TrainingSettings
        How it is trained.
    training, validation : tuple of Samples
        Of each subject; without validation the last epoch is kept.
    image : ndarray (row, feature)
        Targets of unit norm.
    text : ndarray (row, feature), optional
        Others of the same images.
    device : str
        As the user gave it.
    checkpoint : Path, optional
        A folder of its own.
    progress : bool
        Whether to show a bar.
    """

    name: str
    network: NetworkRecipe
    settings: TrainingSettings
    training: tuple[Samples, ...]
    validation: tuple[Samples, ...]
    image: np.ndarray = field(repr=False)
    text: np.ndarray | None = field(repr=False)
    device: str
    checkpoint: Path | None = None
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training has come to.

    Attributes
    ----------
    state : dict of str to ndarray
        The tensors of the network, of the epoch that was chosen.
    history : list of dict
        Of each epoch its number, mean loss, learning rate and validation.
    best_epoch : int
        The epoch that was chosen.
    """

    state: State
    history: list[dict[str, float]]
    best_epoch: int


def check_network(job: Job) -> None:
    """Read what a network would be trained on, and raise as `train_network` would."""
    for stream in _streams(job):
        stream.summary()


def train_network(job: Job) -> Trained:
    """Train a network.

    Raises
    ------
    ModelError
        If responses are NaN or constant, the loss is not finite, or the checkpoint is another
        training's.
    """
    # Torch's random numbers belong to the process: trainings in threads would share them.
    with _ALONE:
        return _train(job)


def _train(job: Job) -> Trained:
    settings = job.settings
    stream, *others = _streams(job)
    held = others[0] if others else None
    summary = stream.summary()
    checksums = [summary.checksum, *(each.summary().checksum for each in others)]
    progress, best = Progress(_fingerprint(job, checksums)), None
    before = read_checkpoint(job.checkpoint, progress.fingerprint) if job.checkpoint else None
    training = _start(job, summary, stream)
    if before is not None:
        progress, state, best = before
        training.restore(state)
    with _bar(job, progress.epochs) as show:
        for epoch in range(progress.epochs, settings.epochs):
            if _stopped(progress, settings.patience):
                break
            found = _epoch(training, stream, held, settings.seed, epoch)
            progress.history.append(found)
            improved = best is None or held is None or _better(progress)
            if improved:
                progress.best_epoch, best = epoch, _on_cpu(training.weights())
            if job.checkpoint is not None:
                write_checkpoint(
                    job.checkpoint, progress, training.state(), best if improved else None
                )
            _log.info("%s, epoch %d: %s", job.name, epoch, _told(found))
            show(found)
    assert best is not None
    weights = {name: value.numpy() for name, value in best.items()}
    return Trained(weights, progress.history, progress.best_epoch)


def _streams(job: Job) -> list[Stream]:
    """Return what is trained on, and what the epoch is chosen by, if anything."""
    size, ahead = job.settings.batch_size, resolve_device(job.device) != "cpu"
    streams = [Stream(job.training, size, job.settings.average_trials, ahead=ahead)]
    if job.validation:
        streams.append(Stream(job.validation, size, average=True, ahead=ahead))
    return streams


def _start(job: Job, summary: Summary, stream: Stream) -> Training:
    import torch

    from nedx.decoding.standardized import Standardized
    from nedx.decoding.training import Training

    device = resolve_device(job.device)
    with seeded(job.settings.seed, BEFORE, torch.device(device)):
        module = Standardized(job.network)
    module.mean.copy_(torch.from_numpy(summary.mean))
    module.scale.copy_(torch.from_numpy(summary.scale))
    return Training(
        module,
        job.settings,
        torch.from_numpy(job.image),
        None if job.text is None else torch.from_numpy(job.text),
        steps=max(1, stream.items // job.settings.batch_size),
        device=device,
    )


def _epoch(
    training: Training, stream: Stream, held: Stream | None, seed: int, epoch: int
) -> dict[str, float]:
    """Train on all samples once; return loss, learning rate and validation."""
    rate = training.rate
    with seeded(seed, epoch, training.device):
        losses = [
            training.step(batch) for batch in stream.epoch(np.random.default_rng((seed, epoch)))
        ]
    loss = float(sum(losses) / len(losses))
    if not np.isfinite(loss):
        raise ModelError(
            f"the loss of epoch {epoch} is not finite: type a smaller lr, or precision='float32'"
        )
    found = {} if held is None else training.validate(held)
    return {"epoch": epoch, "loss": loss, "lr": rate, **found}


def _better(progress: Progress) -> bool:
    """Whether the last epoch is better than the best before it."""
    best = progress.history[progress.best_epoch][_CHOSEN_BY]
    return progress.history[-1][_CHOSEN_BY] > best


def _stopped(progress: Progress, patience: int | None) -> bool:
    if patience is None or not progress.history or _CHOSEN_BY not in progress.history[-1]:
        return False
    return progress.epochs - 1 - progress.best_epoch >= patience


def selection_rule(settings: TrainingSettings, images: int, rule: str) -> str:
    """Say how the epoch was chosen."""
    if not images:
        return f"the last of {settings.epochs} epochs"
    stop = "" if settings.patience is None else f", stopped after {settings.patience} without"
    return (
        f"highest mean reciprocal rank among {images} held-out images ({rule}) of "
        f"{settings.epochs} epochs{stop}"
    )


def _fingerprint(job: Job, checksums: list[str]) -> str:
    targets = {"image": job.image} | ({} if job.text is None else {"text": job.text})
    rows = [
        {
            "subject": each.subject,
            "images": each.image_id.tolist(),
            # The same features under other ids are other targets.
            "targets": each.target.tolist(),
        }
        for each in (*job.training, *job.validation)
    ]
    return fingerprint_of(
        {
            "settings": job.settings.model_dump(mode="json", exclude={"patience"}),
            "network": job.network.model_dump(mode="json"),
            "responses": checksums,
            "targets": hash_arrays(targets),
            "samples": rows,
        }
    )


def _on_cpu(weights: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: value.cpu() for name, value in weights.items()}


def _told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "epoch")


@contextmanager
def _bar(job: Job, done: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Show the epochs and the last metrics, if that is wanted."""
    if not job.progress:
        yield lambda found: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Bar(*columns, TimeRemainingColumn(), TextColumn("{task.fields[found]}")) as bar:
        task = bar.add_task(job.name, total=job.settings.epochs, completed=done, found="")
        yield lambda found: bar.update(task, advance=1, found=_told(found))
