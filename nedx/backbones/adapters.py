"""Networks of timm, of transformers, and of users, tapped by hooks."""

from __future__ import annotations

import copy
import importlib
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nedx.backbones.published import (
    CLIP_VISION,
    half_of,
    has_projection,
    load_trained,
    read_config,
)
from nedx.backbones.taps import Network, OnTap
from nedx.errors import ModelError, close_matches, require

TRUSTED = "NEDX_TRUSTED_MODULES"
"""Environment variable: packages, split by commas, whose factories recipes may call."""


_PROJECTED = {"pooler": "vision_model.post_layernorm", "image_embeds": "visual_projection"}
"""Layers of CLIP that are submodules where the projection is part of the model."""


class HookedNetwork(Network):
    """Any `nn.Module`; its layers are its submodules, by their names.

    Parameters
    ----------
    module : nn.Module
        Takes images (n, 3, h, w).
    prefix_tokens : int
        Tokens before the patches.
    aliases : mapping of str to str
        Short names of submodules.
    outputs : mapping of str to callable
        Layers that are taken from what the whole module returns.
    image_size : int, optional
        Height and width of images, in pixels, where it takes no others.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        prefix_tokens: int = 1,
        aliases: Mapping[str, str] | None = None,
        outputs: Mapping[str, Callable[[Any], torch.Tensor]] | None = None,
        image_size: int | None = None,
    ):
        super().__init__()
        self.module = module
        self.prefix_tokens = prefix_tokens
        self.aliases = dict(aliases or {})
        self._outputs = dict(outputs or {})
        self._image_size = image_size
        # Hooks belong to the module, so two threads may not run it at once.
        self._lock = threading.Lock()

    @property
    def bare(self) -> nn.Module:
        """The module whose names the weight files use."""
        return self.module

    def layer_names(self) -> tuple[str, ...]:
        """Return the names of all submodules, and of the outputs."""
        return (*(name for name, _ in self.module.named_modules() if name), *self._outputs)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise ModelError if images (n, 3, h, w) are of another size than the module takes."""
        side = self._image_size
        if side is not None and tuple(shape[2:]) != (side, side):
            message = (
                f"these images are {shape[2]} x {shape[3]} pixels (y, x), the network takes "
                f"{side} x {side}: choose a policy that makes them so, such as 'clip:{side}'"
            )
            raise ModelError(message)

    def stream(self, images: torch.Tensor, wanted: Collection[str], take: OnTap) -> None:
        """Run the module with a hook on each submodule wanted."""

        def hook(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: take(name, _tensor(output))

        with self._lock:
            handles = [
                submodule.register_forward_hook(hook(name))
                for name, submodule in self.module.named_modules()
                if name in wanted
            ]
            try:
                result = self.module(images)
            finally:
                for handle in handles:
                    handle.remove()
        for name, pick in self._outputs.items():
            if name in wanted:
                take(name, pick(result))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tensor that the module returns."""
        return _tensor(self.module(images))


def _tensor(output: Any) -> torch.Tensor:
    """Take the tensor out of what a module returns."""
    while not torch.is_tensor(output):
        output = output[0]
    return output


@dataclass(frozen=True)
class _Live:
    module: nn.Module
    sha256: str


_LIVE: dict[str, _Live] = {}


def register_module(name: str, module: nn.Module, sha256: str) -> str:
    """Make a module of this process usable in recipes.

    Parameters
    ----------
    name : str
        What to call it.
    module : nn.Module
        Takes images (n, 3, h, w). It is put into evaluation mode when it is used.
    sha256 : str
        What identifies its weights: it becomes part of the name, so that results made with
        other weights are never taken for these.

    Returns
    -------
    str
        The name for `BackboneRecipe`: ``"live:<name>@<sha256>"``. It works in this process only;
        for others write a factory and name it ``"module:<package.module:factory>"``.
    """
    _LIVE[name] = _Live(module, sha256)
    return f"live:{name}@{sha256}"


def trust_modules(*packages: str) -> None:
    """Let recipes call factories of these packages, here and in processes started from here.

    A recipe may come from the network with a model, and ``"module:..."`` runs code; so only
    packages that were named here, or in the environment variable ``NEDX_TRUSTED_MODULES``, are
    imported.
    """
    known = [name for name in os.environ.get(TRUSTED, "").split(",") if name]
    os.environ[TRUSTED] = ",".join(dict.fromkeys([*known, *packages]))


def factory(kind: str, rest: str, *, trained: bool) -> Callable[[], Network]:
    """Return what builds an adapted network.

    Parameters
    ----------
    kind : {"timm", "transformers", "module", "live"}
        The adapter.
    rest : str
        What stands behind the colon of the name.
    trained : bool
        Whether the network comes with the weights that its name stands for.

    Raises
    ------
    ModelError
        If it cannot be found, or may not be imported.
    MissingExtraError
        If the package is not installed.
    """
    if kind == "timm":
        return _timm(rest)
    if kind == "transformers":
        return _transformers(rest, trained=trained)
    if kind == "live":
        return _live(rest)
    return _module(rest)


def _timm(name: str) -> Callable[[], Network]:
    try:
        timm: Any = require("timm", "timm")
    except RuntimeError as error:
        message = f"timm cannot be imported, because its torchvision does not fit torch: {error}"
        raise ModelError(message) from error
    if not timm.is_model(name):
        message = f"timm has no model {name!r}; {close_matches(name, timm.list_models())}"
        raise ModelError(message)

    def build() -> Network:
        model = timm.create_model(name, pretrained=False)
        return HookedNetwork(model, prefix_tokens=getattr(model, "num_prefix_tokens", 0))

    return build


def _transformers(place: str, *, trained: bool) -> Callable[[], Network]:
    transformers: Any = require("transformers", "transformers")
    config = read_config(place)
    projected = has_projection(config)
    is_clip = config.model_type in CLIP_VISION
    if is_clip:
        config = half_of(config, "vision_config")
    name = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    kind = getattr(transformers, name if is_clip else "AutoModel")

    def build() -> Network:
        pooled = True
        if not trained:
            model = kind(config) if hasattr(kind, "forward") else kind.from_config(config)
        else:
            model, pooled = load_trained(kind, place, config)
        outputs = {"last_hidden_state": lambda output: output.last_hidden_state}
        if pooled and not projected:
            outputs["pooler"] = lambda output: output.pooler_output
        return HookedNetwork(
            model.float(),
            prefix_tokens=1 + getattr(config, "num_register_tokens", 0),
            aliases=_blocks(model, config.num_hidden_layers) | (_PROJECTED if projected else {}),
            outputs=outputs,
            image_size=config.image_size if is_clip else None,
        )

    return build


def _blocks(model: nn.Module, depth: int) -> dict[str, str]:
    """Name the encoder's blocks ``layer_<i>``, wherever the model keeps them."""
    for name, submodule in model.named_modules():
        if isinstance(submodule, nn.ModuleList) and len(submodule) == depth:
            return {f"layer_{index}": f"{name}.{index}" for index in range(depth)}
    return {}


def _live(rest: str) -> Callable[[], Network]:
    name, _, sha256 = rest.partition("@")
    live = _LIVE.get(name)
    if live is None or live.sha256 != sha256:
        message = (
            f"live:{rest} is not registered in this process ({os.getpid()}): a live module works "
            "only where register_module() was called; for other processes write a factory and "
            "type name='module:<package.module:factory>'"
        )
        raise ModelError(message)
    # A copy: a backbone changes precision and gradients, which a module in training must keep.
    return lambda: HookedNetwork(copy.deepcopy(live.module))


def _module(rest: str) -> Callable[[], Network]:
    path, separator, attribute = rest.partition(":")
    if not (path and separator and attribute):
        message = f"module:{rest} is not of the form module:<package.module:factory>"
        raise ModelError(message)
    trusted = [name for name in os.environ.get(TRUSTED, "").split(",") if name]
    if not any(path == name or path.startswith(f"{name}.") for name in trusted):
        message = (
            f"module:{rest} would import and run code of {path!r}, which is not trusted: if it "
            f"is, type nedx.backbones.trust_modules({path!r}) or set {TRUSTED}={path}"
        )
        raise ModelError(message)
    try:
        build = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        message = f"module:{rest} cannot be imported: {error}"
        raise ModelError(message) from error

    def checked() -> Network:
        made = build()
        if not isinstance(made, nn.Module):
            message = f"module:{rest} made a {type(made).__name__}, expected an nn.Module"
            raise ModelError(message)
        return made if isinstance(made, Network) else HookedNetwork(made)

    return checked
