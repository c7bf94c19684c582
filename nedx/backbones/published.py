"""What repositories of transformers publish beside their weights: size and preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nedx.errors import ModelError, require
from nedx.stimuli.preprocessing import ImagePolicy, policy

_BICUBIC = 3
"""Pillow's number of the interpolation, which processors state."""
CLIP_VISION = ("clip", "clip_vision_model")
"""Kinds of models whose seeing half is that of CLIP."""
_KINDS = {
    "clip": (("image_embeds",), "clip"),
    "clip_vision_model": (("image_embeds",), "clip"),
    "dinov2": (("pooler",), "dinov2"),
    "dinov2_with_registers": (("pooler",), "dinov2"),
}
"""Layers and policy of each kind of model; a policy is followed by the side it crops to."""


def hub_options(place: str) -> tuple[str, dict[str, Any]]:
    """Split ``repo@revision``; a folder of this machine is never looked up on the hub."""
    repo, _, revision = place.partition("@")
    return repo, {"revision": revision or None, "local_files_only": Path(repo).is_dir()}


def read_config(place: str) -> Any:
    """Return the config of a folder or repository; no code of it is run.

    Raises
    ------
    ModelError
        If it is neither.
    """
    transformers: Any = require("transformers", "transformers")
    repo, options = hub_options(place)
    try:
        return transformers.AutoConfig.from_pretrained(repo, **options)
    except (OSError, ValueError) as error:
        message = f"{repo} is neither a folder nor a repository with a config.json: {error}"
        raise ModelError(message) from error


def load_trained(kind: Any, place: str, config: Any) -> tuple[Any, bool]:
    """Load a model of a folder or repository with its weights, which must be safetensors.

    Returns
    -------
    model : nn.Module
    pooled : bool
        Whether the pooler has weights: classifiers are often saved without.

    Raises
    ------
    ModelError
        If it holds none, or not those of the whole model.
    """
    repo, options = hub_options(place)
    try:
        model, found = kind.from_pretrained(
            repo, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        message = f"{repo} holds no safetensors weights: {error}"
        raise ModelError(message) from error
    lacking = sorted(found["missing_keys"])
    if missing := [name for name in lacking if not name.startswith("pooler.")]:
        message = f"{repo} lacks {len(missing)} weights of the model, the first is {missing[0]}"
        raise ModelError(message)
    return model, not lacking


def half_of(config: Any, name: str) -> Any:
    """Return the config of the half of CLIP that sees or reads, or the config as it is.

    The halves meet in a space as wide as the whole says, whatever the half says of its own.
    """
    half = getattr(config, name, None)
    if half is None:
        return config
    half.projection_dim = config.projection_dim
    return half


def has_projection(config: Any) -> bool:
    """Whether a CLIP model holds the projection of images into the space shared with text."""
    if config.model_type not in CLIP_VISION:
        return False
    return "CLIPVisionModel" not in (config.architectures or ())


def published_recipe(place: str) -> dict[str, Any]:
    """Return the fields of `BackboneRecipe` that a repository publishes.

    Parameters
    ----------
    place : str
        A folder or a repository of CLIP or DINOv2, with ``@revision`` where that is wanted.

    Returns
    -------
    dict
        ``layers`` (the projected ``image_embeds`` of CLIP, the ``pooler`` of DINOv2, which is its
        class token), ``policy`` and ``image_size``: the preprocessing at inference, never that of
        training.

    Raises
    ------
    ModelError
        If it is of another kind, has no projection, or its preprocessing is none that is known
        here; the message says what to type.
    """
    config = read_config(place)
    kind = config.model_type
    if kind not in _KINDS:
        raise ModelError(
            f"transformers:{place} is a model of the kind {kind!r}, which has no published layers "
            "here: type layers=[...]"
        )
    layers, name = _KINDS[kind]
    if kind in CLIP_VISION and not has_projection(config):
        raise ModelError(
            f"transformers:{place} was saved without the projection that makes image embeddings: "
            "type layers=['pooler'], or save the whole CLIPModel"
        )
    known = (
        int(half_of(config, "vision_config").image_size) if name == "clip" else policy(name).crop
    )
    processor = _processor(place)
    side = _side(processor.get("crop_size", processor.get("size")), known)
    chosen = policy(name if side == policy(name).crop else f"{name}:{side}")
    if faults := _differences(processor, chosen):
        raise ModelError(
            f"transformers:{place} prepares images otherwise than the policy {chosen.name!r}: "
            f"{'; '.join(faults)}. Type policy=..., layers={list(layers)} to choose one yourself"
        )
    return {"layers": layers, "policy": chosen.name, "image_size": side}


def _processor(place: str) -> dict[str, Any]:
    """Return what ``preprocessor_config.json`` says; empty where there is none."""
    transformers: Any = require("transformers", "transformers")
    repo, options = hub_options(place)
    try:
        found, _ = transformers.ImageProcessingMixin.get_image_processor_dict(repo, **options)
    except OSError:
        return {}
    return dict(found)


def _side(size: Any, default: int | None) -> int:
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return int(size or default or 0)


def _differences(processor: dict[str, Any], chosen: ImagePolicy) -> list[str]:
    """Say in what a processor differs from a policy."""
    stated = {
        "image_mean": tuple(processor.get("image_mean") or chosen.mean),
        "image_std": tuple(processor.get("image_std") or chosen.std),
        "resample": processor.get("resample", _BICUBIC),
        "size": _side(processor.get("size"), chosen.resize),
        "do_center_crop": processor.get("do_center_crop", True),
        "do_normalize": processor.get("do_normalize", True),
    }
    wanted = {
        "image_mean": chosen.mean,
        "image_std": chosen.std,
        "resample": _BICUBIC,
        "size": chosen.resize,
        "do_center_crop": True,
        "do_normalize": True,
    }
    return [f"{k} is {stated[k]}, not {wanted[k]}" for k in wanted if stated[k] != wanted[k]]
