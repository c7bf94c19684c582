"""Training that can be killed: epochs, the best of them, and after each all the next begins with.

The folder of a checkpoint holds ``progress.json`` and the two safetensors files that it names.
Files are written under other names and moved into place, the JSON last: whenever a run is killed,
what the JSON names is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from nedx.errors import CorruptStoreError, ModelError, StoreError

if TYPE_CHECKING:
    import torch

_PROGRESS = "progress.json"
_OURS = ("state-*.safetensors", "best-*.safetensors", "*.partial")

ADAM = "adam."
"""Before the names of moments in a state."""
BEFORE = 2**31
"""Epochs count from 0; what comes before them has random numbers of its own."""

Tensors = dict[str, "torch.Tensor"]
Epoch = dict[str, float]
"""The number ``epoch``, and what was measured."""


class Trained(Protocol):
    """What is trained, as `train_epochs` takes it."""

    def weights(self) -> Tensors:
        """Return copies of the weights that are kept, on the CPU."""

    def state(self) -> Tensors:
        """Return copies, on the CPU, of all that the next epoch depends on."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state`."""


Kind = TypeVar("Kind", bound=Trained)


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    fingerprint : str
        Of what is trained, on what and how.
    history : list of dict
        Of each epoch its number ``epoch``, and what was measured.
    best_epoch : int
        The epoch that is kept; -1 before the first.
    files : dict of str to str
        sha256 of each file, by name.
    """

    fingerprint: str
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = -1
    files: dict[str, str] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.history)


def train_epochs(
    start: Callable[[bool], Kind],
    epoch: Callable[[Kind, int], tuple[Epoch, Tensors]],
    better: Callable[[Epoch, Epoch], bool],
    *,
    epochs: int,
    fingerprint: str,
    folder: Path | None,
) -> tuple[Progress, Tensors]:
    """Train what epochs are left, and keep the best.

    Parameters
    ----------
    start : callable (bool) -> what is trained
        Makes it; told whether a training goes on, whose weights are put in afterwards.
    epoch : callable (what is trained, int) -> (dict, dict)
        Trains one, by its number; returns what was measured, and what is kept beside the weights.
    better : callable (dict, dict) -> bool
        Whether an epoch is to be kept rather than the best one before.
    epochs : int
        How many there are.
    fingerprint : str
        Of what is trained, on what and how.
    folder : Path, optional
        The checkpoint, which is written to after each epoch.

    Returns
    -------
    tuple of Progress and dict
        How it went, and what was kept of the best epoch.

    Raises
    ------
    ModelError, CorruptStoreError, StoreError
        As `read_checkpoint`, before anything is made.
    """
    held = read_checkpoint(folder, fingerprint) if folder else None
    progress, best = Progress(fingerprint), None
    training = start(held is not None)
    if held is not None:
        progress, state, best = held
        training.restore(state)
    for number in range(progress.epochs, epochs):
        found, beside = epoch(training, number)
        improved = best is None or better(found, progress.history[progress.best_epoch])
        progress.history.append(found)
        if improved:
            progress.best_epoch, best = number, {**training.weights(), **beside}
        if folder is not None:
            write_checkpoint(folder, progress, training.state(), best if improved else None)
    assert best is not None
    return progress, best


def write_checkpoint(
    folder: Path, progress: Progress, state: Mapping[str, torch.Tensor], best: Tensors | None
) -> None:
    """Write the state after an epoch, and drop that of the epoch before.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    progress : Progress
        With this epoch in its history; `files` is set here.
    state : mapping of str to tensor
        What the next epoch begins with.
    best : dict of str to tensor, optional
        Weights of the best epoch, if it is this one.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    kept = {n: digest for n, digest in progress.files.items() if n.startswith("best") and not best}
    written = {f"state-{progress.epochs:04d}.safetensors": save(dict(state))}
    if best:
        written[f"best-{progress.epochs:04d}.safetensors"] = save(best)
    for name, content in written.items():
        _replace(folder / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    progress.files = {**kept, **digests}
    _replace(folder / _PROGRESS, json.dumps(asdict(progress), indent=1).encode())
    for pattern in _OURS:
        for path in folder.glob(pattern):
            if path.name not in progress.files:
                path.unlink(missing_ok=True)


def read_checkpoint(folder: Path, fingerprint: str) -> tuple[Progress, Tensors, Tensors] | None:
    """Read where a training stands.

    Parameters
    ----------
    folder : Path
        From `write_checkpoint`.
    fingerprint : str
        Of the training that wants to go on.

    Returns
    -------
    tuple of Progress, state and best weights, or None
        None where nothing was written yet.

    Raises
    ------
    ModelError
        If another training is checkpointed there.
    CorruptStoreError
        If a file is not what was written.
    StoreError
        If there is a folder of other things.
    """
    path = folder / _PROGRESS
    if not path.exists():
        ours = {found for pattern in _OURS for found in folder.glob(pattern)}
        if folder.exists() and set(folder.iterdir()) - ours:
            raise StoreError(
                f"{folder} holds other files and no checkpoint: choose a folder of its own"
            )
        return None
    try:
        progress = Progress(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CorruptStoreError(f"{path} is no checkpoint ({error}): delete {folder}") from error
    if progress.fingerprint != fingerprint:
        raise ModelError(
            f"{folder} holds the checkpoint of another training: images, responses or parameters "
            "differ. Give checkpoint= another folder, or delete this one to begin anew"
        )
    tensors = {
        name.partition("-")[0]: _read(folder / name, digest)
        for name, digest in progress.files.items()
    }
    return progress, tensors["state"], tensors["best"]


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """Return the sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def lower(name: str) -> Callable[[Epoch, Epoch], bool]:
    """Say that the epoch of the lowest loss is kept; the last, where that was not measured."""

    def better(found: Epoch, best: Epoch) -> bool:
        # Nothing is lower than NaN, nor at least as high.
        return not found.get(name, np.nan) >= best.get(name, np.nan)

    return better


@contextmanager
def seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Make torch's random numbers those of an epoch, and leave the caller's as they were."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        yield


def copied(tensors: Mapping[str, torch.Tensor], prefix: str = "") -> Tensors:
    """Return copies on the CPU, as files take them, with something before each name."""
    return {
        f"{prefix}{name}": value.detach().cpu().contiguous().clone()
        for name, value in tensors.items()
    }


def below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return what has something before its name, without that."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def moments_of(optimiser: torch.optim.Optimizer, prefix: str = ADAM) -> Tensors:
    """Return copies, on the CPU, of what an Adam has gathered."""
    return {
        name: value
        for number, moments in optimiser.state_dict()["state"].items()
        for name, value in copied(moments, f"{prefix}{number}.").items()
    }


def restore_moments(
    optimiser: torch.optim.Optimizer, state: Mapping[str, torch.Tensor], prefix: str = ADAM
) -> None:
    """Give an Adam the `moments_of` another, found in a state; the rest of that is ignored."""
    moments: dict[int, Tensors] = {}
    for name, value in below(prefix, state).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})


def _read(path: Path, digest: str) -> Tensors:
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptStoreError(f"{path} is missing: delete its folder to begin anew") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptStoreError(
            f"{path} differs from what was written: delete its folder to begin anew"
        )
    loaded: Tensors = load(content)
    return loaded


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
