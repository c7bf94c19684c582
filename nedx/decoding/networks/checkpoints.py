"""Checkpoints of the original repositories: their names of weights, and nedx's.

NECOMIMI and NervformerV2 keep a second, unused copy of the attention layer and an image projection
that is never called; both are left out.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.networks.registry import build
from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

_UNUSED = re.compile(r"attention_model\.(encoder_layer|pos_encoder)\.|proj_img\.")
_SCALE = re.compile(r"(brain\.)?logit_scale")
_COMMON = (
    (r"proj_eeg\.0\.", "projection.linear."),
    (r"proj_eeg\.1\.fn\.1\.", "projection.residual."),
    (r"proj_eeg\.2\.", "projection.norm."),
    (r"attention_model\.transformer_encoder\.layers\.0\.", "attention.layer."),
    (r"subject_wise_linear\.", "subject_linear.layers."),
)
_TOKENS = (
    (r"enc_eeg\.(?:0\.)?(?:tsconv|stconv)\.", "tokens.convolutions."),
    (r"enc_eeg\.(?:0\.)?projection\.0\.", "tokens.mixing."),
)
_CORE = (
    (r"enc_eeg\.(?:0\.)?tsconv\.", "core.temporal_spatial."),
    (r"enc_eeg\.(?:0\.)?stconv\.", "core.spatial_temporal."),
    (r"enc_eeg\.(?:0\.)?self_attn_ts\.", "core.attention_ts."),
    (r"enc_eeg\.(?:0\.)?self_attn_st\.", "core.attention_st."),
    (r"enc_eeg\.(?:0\.)?cross_attn\.", "core.attention."),
    (r"enc_eeg\.(?:0\.)?feed_forward\.1\.", "core.perceptron.0."),
    (r"enc_eeg\.(?:0\.)?feed_forward\.4\.", "core.perceptron.3."),
    (r"enc_eeg\.(?:0\.)?norm1\.", "core.norm_ts."),
    (r"enc_eeg\.(?:0\.)?norm2\.", "core.norm_st."),
    (r"enc_eeg\.(?:0\.)?norm3\.", "core.norm."),
)
# UBP and what followed it keep the network within their model, and the scale of logits beside it.
_PROJECT = (
    (r"(?:brain\.)?model\.0\.", "projection.linear."),
    (r"(?:brain\.)?model\.1\.fn?\.1\.", "projection.residual."),
    (r"(?:brain\.)?model\.2\.", "projection.norm."),
)
_KEYS = {
    "eeg_project": _PROJECT,
    "nice": (*_COMMON, *_TOKENS),
    "muse": (*_COMMON, *_TOKENS),
    "atms_50": (*_COMMON, *_TOKENS),
    "nervformer_v1": (*_COMMON, *_CORE),
    "nervformer_v2": (*_COMMON, *_CORE),
}


def load_checkpoint(path: str | Path, recipe: NetworkRecipe) -> nn.Module:
    """Build a network with the weights of a checkpoint.

    Parameters
    ----------
    path : path
        A ``.pth`` file with a dict of tensors, under nedx's names or those of the original
        repository (known of `nice`, `muse`, `atms_50`, `nervformer_v1`, `nervformer_v2` and
        `eeg_project`). Nothing in it is executed.
    recipe : NetworkRecipe
        What the weights are of.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.

    Raises
    ------
    ModelError
        If the file holds anything else than tensors, or weights of another network or shape.
    """
    network = build(recipe)
    stored = _stored(Path(path))
    expected = network.state_dict()
    found = translated(stored, recipe.name)
    faults = _faults(found, expected)
    if faults:
        alike = [name for name in _KEYS if name != recipe.name and _fits(stored, name, recipe)]
        hint = f". It looks like a checkpoint of {', '.join(alike)}" if alike else ""
        raise ModelError(f"{path} does not fit {recipe.name}: {'; '.join(faults)}{hint}")
    network.load_state_dict(found)
    return network.eval()


def translated(stored: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return weights under nedx's names, without those that the network never uses."""
    found = {}
    for key, value in stored.items():
        key = key.removeprefix("module.")
        if _UNUSED.match(key) or (name == "eeg_project" and _SCALE.fullmatch(key)):
            continue
        for pattern, replacement in _KEYS.get(name, ()):
            key, count = re.subn(rf"^{pattern}", replacement, key)
            if count:
                break
        found[key] = value
    return found


def _stored(path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not path.is_file():
        raise ModelError(f"there is no checkpoint at {path}")
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{path} is not a checkpoint of tensors alone, and nothing else is read: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not isinstance(held, dict) or not all(torch.is_tensor(v) for v in held.values()):
        raise ModelError(
            f"{path} holds {type(held).__name__}, expected a dict of tensors (a state_dict)"
        )
    return held


def _fits(stored: Mapping[str, torch.Tensor], name: str, recipe: NetworkRecipe) -> bool:
    other = recipe.model_copy(update={"name": name, "options": {}})
    try:
        expected = build(other).state_dict()
    except ModelError:
        return False
    return not _faults(translated(stored, name), expected)


def _faults(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    shapes = [
        f"{key} has shape {tuple(found[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} weights are missing ({', '.join(missing[:3])}, ...)")
    if extra:
        faults.append(f"{len(extra)} are unknown ({', '.join(extra[:3])}, ...)")
    return faults + shapes[:3]
