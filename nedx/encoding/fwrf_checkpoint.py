"""Checkpoints of fwRF training: after each epoch all that the next one begins with.

A folder holds ``progress.json`` and the two safetensors files that it names. Files are written
under other names and moved into place, the JSON last: whenever a run is killed, what the JSON
names is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nedx.errors import CorruptStoreError, ModelError, StoreError

if TYPE_CHECKING:
    import torch

_PROGRESS = "progress.json"
_OURS = ("state-*.safetensors", "best-*.safetensors", "*.partial")

Tensors = dict[str, "torch.Tensor"]


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    fingerprint : str
        Of what is trained, on what and how.
    history : list of dict
        Of each epoch its number ``epoch``, mean ``loss`` of a batch and ``validation_r``.
    best_epoch : int
        The epoch of the highest ``validation_r``; -1 before the first.
    files : dict of str to str
        sha256 of each file, by name.
    """

    fingerprint: str
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    files: dict[str, str] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.history)


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
