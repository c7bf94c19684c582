"""Weight files: fetched, checked by their hash, read without running what is in them."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from nedx.backbones.recipe import Weights
from nedx.config import cache_dir
from nedx.errors import ModelError, require

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+)(@(?P<revision>.+))?")
_PIECE = 2**22


def read_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Fetch a weight file, check it and read its tensors.

    Parameters
    ----------
    weights : Weights
        Where the file lies, its hash and format.

    Returns
    -------
    dict of str to tensor
        The state dict, on the CPU. Keras SqueezeNet kernels come out as torchvision names and
        lays them out (HWIO to OIHW).

    Raises
    ------
    ModelError
        If the file is not there, hashes otherwise, or cannot be read as weights.
    MissingExtraError
        If a package is needed that is not installed.
    """
    path = fetch(weights)
    if weights.kind == "safetensors":
        return _read_safetensors(path)
    if weights.kind == "keras_squeezenet":
        return _read_keras_squeezenet(path)
    return _read_torch(path)


def fetch(weights: Weights) -> Path:
    """Return the local path of a weight file, downloaded if need be, its hash checked.

    Raises
    ------
    ModelError
        If there is no such file, or its sha256 is another.
    """
    source = weights.source
    if source.startswith("hf://"):
        path = _from_hub(source)
    elif "://" in source and not source.startswith("file://"):
        return _from_url(weights)
    else:
        path = Path(source.removeprefix("file://")).expanduser()
        if not path.is_file():
            message = f"there is no weight file at {path}"
            raise ModelError(message)
    if weights.sha256 is not None:
        _check(source, weights.sha256, sha256_of(path))
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(source: str, expected: str, found: str) -> None:
    if found != expected:
        message = (
            f"the weights at {source} hash to sha256 {found}, expected {expected}: they are "
            "damaged or others; fetch them again, or give the hash of these"
        )
        raise ModelError(message)


def _from_url(weights: Weights) -> Path:
    """Download into the cache, once; the file appears there whole and checked, or not at all."""
    source = weights.source
    key = weights.sha256 or hashlib.sha256(source.encode()).hexdigest()
    target = cache_dir() / "weights" / key / Path(source.split("?")[0]).name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    digest = hashlib.sha256()
    try:
        with fsspec.open(source, "rb") as remote, partial.open("wb") as local:
            while piece := remote.read(_PIECE):
                digest.update(piece)
                local.write(piece)
        if weights.sha256 is not None:
            _check(source, weights.sha256, digest.hexdigest())
        else:
            _LOG.warning("%s has no sha256 to check; it is %s", source, digest.hexdigest())
        os.replace(partial, target)
    except OSError as error:
        message = f"the weights at {source} cannot be fetched: {error}"
        raise ModelError(message) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _from_hub(source: str) -> Path:
    """Fetch a file of a Hugging Face repository through its own cache."""
    found = _HUB.fullmatch(source)
    if found is None:
        message = f"{source} is not of the form hf://owner/repo/file[@revision]"
        raise ModelError(message)
    hub: Any = require("huggingface_hub", "hub")
    try:
        return Path(
            hub.hf_hub_download(
                found["repo"],
                found["file"],
                revision=found["revision"],
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )
    # The hub's own errors derive from these two, whichever client it uses underneath.
    except (OSError, ValueError) as error:
        message = f"{source} cannot be fetched from the hub: {error}"
        raise ModelError(message) from error


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict, refusing any pickle that holds more than tensors."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        message = f"{path} is not a state dict of tensors alone, and is not read otherwise: {error}"
        raise ModelError(message) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        message = f"{path} holds no state dict: expected a dict of names to tensors"
        raise ModelError(message)
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        message = f"{path} cannot be read as safetensors: {error}"
        raise ModelError(message) from error


def _read_keras_squeezenet(path: Path) -> dict[str, torch.Tensor]:
    """Read keras-squeezenet's HDF5: kernels (y, x, in, out), named by layer."""
    import torch

    from nedx.backbones.squeezenet import FIRES

    h5py: Any = require("h5py", "hdf5")
    state: dict[str, torch.Tensor] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        parts = name.split("/")
        place = "0" if parts[0] == "conv1" else str(FIRES[int(parts[0].removeprefix("fire"))])
        inner = "" if parts[0] == "conv1" else f".{parts[1].replace('squeeze1x1', 'squeeze')}"
        value = torch.from_numpy(item[()])
        if parts[-1].startswith("kernel"):
            state[f"features.{place}{inner}.weight"] = value.permute(3, 2, 0, 1).contiguous()
        else:
            state[f"features.{place}{inner}.bias"] = value

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, KeyError, ValueError) as error:
        message = f"{path} is not a weight file of keras-squeezenet: {error}"
        raise ModelError(message) from error
    return state
