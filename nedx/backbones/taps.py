"""Networks that hand out their layers one by one, each pooled, flattened and then freed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from nedx.backbones import registry
from nedx.backbones.recipe import BackboneRecipe
from nedx.errors import ModelError, close_matches

OnTap = Callable[[str, torch.Tensor], None]

_ANY_SIZE = 224


class Enough(Exception):
    """The last layer wanted has been handed out; the rest of the network need not run."""


class Network(nn.Module):
    """A network that names its layers and yields them as it computes them.

    Subclasses write `walk` and list `layer_names`.
    """

    channels_last: ClassVar[bool] = False
    """Whether convolutions run faster with channels last."""
    float32_only: ClassVar[bool] = False
    """Whether the network has no reduced precision."""
    prefix_tokens: int = 1
    """Tokens before the patches, for pooling token maps to a grid."""
    aliases: Mapping[str, str] = {}
    """Short layer names, and the full ones they stand for."""
    legacy: Mapping[str, str] = {}
    """Parts of parameter names in older weight files, and what they became."""

    @property
    def bare(self) -> nn.Module:
        """The module whose parameter names the weight files use."""
        return self

    def layer_names(self) -> tuple[str, ...]:
        """Return the full names of all layers that can be tapped."""
        raise NotImplementedError

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise ModelError if images (n, 3, h, w) of this shape do not fit."""

    def walk(
        self, images: torch.Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, activation) of each layer as it is computed.

        Parameters
        ----------
        images : tensor (n, 3, h, w)
            Preprocessed images.
        wanted : collection of str
            Full names of the layers that will be looked at; others may be skipped or reused.
        """
        raise NotImplementedError

    def stream(self, images: torch.Tensor, wanted: Collection[str], take: OnTap) -> None:
        """Hand the layers wanted to `take`, which raises `Enough` after the last."""
        for name, activation in self.walk(images, wanted):
            if name in wanted:
                take(name, activation)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last layer."""
        last = images
        for _name, activation in self.walk(images, ()):
            last = activation
        return last


def pool(activation: torch.Tensor, pooling: str, prefix_tokens: int = 1) -> torch.Tensor:
    """Reduce one layer's activation to one row an image.

    Parameters
    ----------
    activation : tensor (n, channel, y, x), (n, token, width) or (n, width)
        What a layer computed. Rows of two axes are left as they are.
    pooling : str
        ``"flatten"`` (C order), ``"mean"`` over space or tokens, ``"avg<k>"`` to k x k (token
        maps without their prefix tokens, on their square grid), ``"token"`` (the first).
    prefix_tokens : int
        Tokens before the patches.

    Returns
    -------
    tensor (n, width)

    Raises
    ------
    ModelError
        If the pooling does not fit the shape.
    """
    if activation.ndim == 2 or pooling == "flatten":
        return activation.flatten(1)
    if activation.ndim == 4:
        if pooling == "mean":
            return activation.mean((2, 3))
        if pooling != "token":
            return F.adaptive_avg_pool2d(activation, int(pooling[3:])).flatten(1)
    if activation.ndim == 3:
        if pooling == "mean":
            return activation.mean(1)
        if pooling == "token":
            return activation[:, 0]
        patches = activation[:, prefix_tokens:]
        side = math.isqrt(patches.shape[1])
        if side * side == patches.shape[1]:
            grid = patches.transpose(1, 2).unflatten(2, (side, side))
            return F.adaptive_avg_pool2d(grid, int(pooling[3:])).flatten(1)
    message = (
        f"pooling {pooling!r} does not fit an activation of shape "
        f"(n, {', '.join(map(str, activation.shape[1:]))}); type pooling='flatten' or 'mean'"
    )
    raise ModelError(message)


class _Emitter:
    """Pools what the network yields and passes it on in the order of the recipe."""

    def __init__(self, order: Mapping[str, str], pooling: str, prefix_tokens: int, on_tap: OnTap):
        self._names = {full: given for given, full in order.items()}
        self._due = list(order)
        self._early: dict[str, torch.Tensor] = {}
        self._pooling, self._prefix_tokens, self._on_tap = pooling, prefix_tokens, on_tap

    def __call__(self, name: str, activation: torch.Tensor) -> None:
        given = self._names.pop(name, None)
        if given is None:
            return
        self._early[given] = pool(activation, self._pooling, self._prefix_tokens)
        while self._due and self._due[0] in self._early:
            due = self._due.pop(0)
            self._on_tap(due, self._early.pop(due))
        if not self._names:
            raise Enough


class Backbone:
    """A network on a device, with the layers of its recipe tapped.

    Made by `load_backbone`.
    """

    def __init__(self, network: Network, recipe: BackboneRecipe, device: str):
        self.recipe = recipe
        self.device = torch.device(device)
        self._network = network
        self._order = _full_names(network, recipe)
        self._wanted = frozenset(self._order.values())
        half = recipe.precision == "bf16" and not network.float32_only
        self._dtype = torch.bfloat16 if half else torch.float32
        network.to(self.device, self._dtype)
        if network.channels_last:
            _lay_out_channels_last(network)
        network.eval()
        network.requires_grad_(requires_grad=False)

    @property
    def network(self) -> Network:
        """The network itself."""
        return self._network

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take."""
        held = [*self._network.parameters(), *self._network.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def run(self, batch: torch.Tensor, on_tap: OnTap) -> None:
        """Run the network as far as the last layer wanted, handing out each on the way.

        Parameters
        ----------
        batch : tensor (n, 3, h, w), float32
            Preprocessed images; moved to the device and precision of the backbone.
        on_tap : callable (name, tensor (n, width))
            Called once a layer, in the order of ``recipe.layers``, as soon as the layer is
            there. The tensor is of the backbone's precision (bfloat16 under ``"bf16"``) and is
            not kept: what the callable does not keep is freed.

        Raises
        ------
        ModelError
            If the batch is not images of a size that the network takes.
        """
        if batch.ndim != 4 or batch.shape[1] != 3:
            message = f"a batch is (n, 3, h, w), not {tuple(batch.shape)}"
            raise ModelError(message)
        self._network.check_input(tuple(batch.shape))
        batch = batch.to(self.device, self._dtype, non_blocking=True)
        if self._network.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        emitter = _Emitter(self._order, self.recipe.pooling, self._network.prefix_tokens, on_tap)
        with torch.inference_mode(), self._autocast(), contextlib.suppress(Enough):
            self._network.stream(batch, self._wanted, emitter)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.recipe.precision == "fp16":
            return torch.autocast(self.device.type, torch.float16)
        return contextlib.nullcontext()


def _lay_out_channels_last(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def load_backbone(recipe: BackboneRecipe, device: str = "cpu") -> Backbone:
    """Build the network of a recipe, with its weights, on a device.

    Parameters
    ----------
    recipe : BackboneRecipe
        What to build. Without weights and seed, random weights are drawn with seed 0.
    device : str
        A torch device such as ``"cpu"`` or ``"cuda:1"``.

    Returns
    -------
    Backbone

    Raises
    ------
    ModelError
        If the network, a layer or the weights cannot be had, or do not fit.
    MissingExtraError
        If a package is needed that is not installed.
    """
    if recipe.precision == "fp16" and not device.startswith("cuda"):
        message = f"fp16 needs a GPU, not {device!r}: type precision='bf16'"
        raise ModelError(message)
    return Backbone(_filled(recipe), recipe, device)


def feature_layout(recipe: BackboneRecipe) -> dict[str, int]:
    """Return the width of each layer of a recipe, without loading or drawing weights.

    Parameters
    ----------
    recipe : BackboneRecipe
        Its ``image_size``, or else its policy, says how large the images are; where neither
        does, any pooling but ``"flatten"`` gives the width all the same.

    Returns
    -------
    dict of str to int
        Features a layer, in the order of ``recipe.layers``.

    Raises
    ------
    ModelError
        If a layer is not there, or the size of the images is not known.
    """
    # What is pooled is as wide at any size, so a policy that keeps sizes needs none here.
    size = image_size(recipe) or (None if recipe.pooling == "flatten" else _ANY_SIZE)
    if size is None:
        message = (
            f"policy {recipe.policy!r} does not resize, so the recipe must say how large the "
            "images are: type image_size=<pixels>"
        )
        raise ModelError(message)
    with torch.device("meta"):
        network = registry.factory(recipe)()
    order = _full_names(network, recipe)
    network.check_input((1, 3, size, size))
    widths: dict[str, int] = {}

    def measure(name: str, features: torch.Tensor) -> None:
        widths[name] = features.shape[1]

    emitter = _Emitter(order, recipe.pooling, network.prefix_tokens, measure)
    device = next((tensor.device for tensor in network.parameters()), torch.device("meta"))
    network.eval()
    with torch.inference_mode(), contextlib.suppress(Enough):
        network.stream(
            torch.zeros(1, 3, size, size, device=device), frozenset(order.values()), emitter
        )
    return {layer: widths[layer] for layer in recipe.layers}


def image_size(recipe: BackboneRecipe) -> int | None:
    """Return the side, in pixels, of the images that the network of a recipe gets.

    None where neither the recipe nor its policy says, because the policy keeps sizes.
    """
    if recipe.image_size is not None:
        return recipe.image_size
    from nedx.stimuli.preprocessing import policy

    chosen = policy(recipe.policy)
    return chosen.crop or (chosen.resize if chosen.resize_to == "exact" else None)


def check_image_size(recipe: BackboneRecipe, size: tuple[int, int]) -> None:
    """Refuse images that are of another size, once preprocessed, than the recipe says.

    Parameters
    ----------
    recipe : BackboneRecipe
    size : (int, int)
        Height and width, pixels.

    Raises
    ------
    ModelError
    """
    if recipe.image_size is not None and size != (recipe.image_size, recipe.image_size):
        message = (
            f"the recipe of {recipe.name} says image_size={recipe.image_size}, but its policy "
            f"{recipe.policy!r} makes these images {size[0]} x {size[1]} pixels large; leave "
            "image_size out, or type policy='raw01', which keeps sizes"
        )
        raise ModelError(message)


def _full_names(network: Network, recipe: BackboneRecipe) -> dict[str, str]:
    """Map the layers of a recipe to full names; all unknown ones in one message."""
    known = network.layer_names()
    full = {layer: network.aliases.get(layer, layer) for layer in recipe.layers}
    unknown = [layer for layer, name in full.items() if name not in known]
    if unknown:
        options = [*network.aliases, *known]
        hints = "; ".join(f"{layer!r}: {close_matches(layer, options)}" for layer in unknown)
        message = f"{recipe.name} has no such layers: {hints}"
        raise ModelError(message)
    if len(set(full.values())) < len(full):
        message = f"layers of {recipe.name} are named twice, once by a short name: {recipe.layers}"
        raise ModelError(message)
    return full


def _filled(recipe: BackboneRecipe) -> Network:
    """Build a network and give it the weights of its recipe."""
    build = registry.factory(recipe, trained=recipe.weights is None and recipe.seed is None)
    if recipe.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed or 0)
            return build()
    from nedx.backbones.weights import read_state

    # Networks of others may hold buffers that no weight file brings: those are built for real.
    with torch.device("meta" if recipe.name in registry.names() else "cpu"):
        network = build()
    if not any(True for _ in network.parameters()):
        message = f"{recipe.name} has no weights: type weights=None"
        raise ModelError(message)
    _full_names(network, recipe)
    state = read_state(recipe.weights)
    for old, new in network.legacy.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    fill(network, state, recipe)
    return network


def fill(network: Network, state: dict[str, torch.Tensor], recipe: BackboneRecipe) -> None:
    """Put a state dict into a network; every key and shape at fault is named at once.

    Raises
    ------
    ModelError
        If the names or shapes differ.
    """
    source = recipe.weights.source if recipe.weights else "the state dict"
    own = network.bare.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        lines = "\n".join(
            f"  {kind} ({len(items)}): {', '.join(items[:8])}{', ...' if len(items) > 8 else ''}"
            for kind, items in faults.items()
            if items
        )
        message = f"{source} does not hold the weights of {recipe.name}:\n{lines}"
        raise ModelError(message)
    network.bare.load_state_dict(state, assign=True)
