"""The networks by name: where each is written."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.errors import ModelError, close_matches

if TYPE_CHECKING:
    from torch import nn

_NETWORKS = {
    "atm_e": "atm_e:AtmE",
    "atm_s": "atm_s:AtmS",
    "atms_50": "atms_50:Atms50",
    "eeg_project": "eeg_project:EEGProject",
    "muse": "muse:Muse",
    "nervformer_v1": "nervformer:NervFormerV1",
    "nervformer_v2": "nervformer:NervFormerV2",
    "nice": "nice:Nice",
}
_SHAPE = ("self", "n_channels", "n_times", "n_outputs", "n_subjects")
ADAPTER = "braindecode:"


def names() -> list[str]:
    """Return the names of the networks that nedx holds."""
    return sorted(_NETWORKS)


def build(recipe: NetworkRecipe) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's generator.

    Parameters
    ----------
    recipe : NetworkRecipe

    Returns
    -------
    torch.nn.Module
        Called with ``x``, float32 (batch, channel, time), and ``subject``, int64 (batch,) or
        None, it returns float32 (batch, n_outputs). Subjects that have no layer of their own are
        -1; None is -1 for all.

    Raises
    ------
    ModelError
        If there is no such network or option, or the window is too short for it.
    """
    if recipe.name.startswith(ADAPTER):
        from nedx.decoding.networks.braindecode import Braindecode

        return Braindecode(recipe)
    factory = _factory(recipe.name)
    smallest = getattr(factory, "smallest", 1)
    if recipe.n_times < smallest:
        raise ModelError(
            f"{recipe.name} needs at least {smallest} samples, the responses have "
            f"{recipe.n_times}: take a longer window or a higher sampling frequency"
        )
    known = [name for name in inspect.signature(factory.__init__).parameters if name not in _SHAPE]
    for name in recipe.options:
        if name not in known:
            raise ModelError(f"{recipe.name} has no option {name!r}: {close_matches(name, known)}")
    shape = recipe.model_dump(include=set(_SHAPE))
    try:
        network: nn.Module = factory(**shape, **recipe.options)
    except ModelError:
        raise
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{recipe.name} cannot be made with {dict(recipe.options)}: {error}"
        ) from error
    return network


def _factory(name: str) -> Any:
    if name not in _NETWORKS:
        raise ModelError(f"no network is called {name!r}: {close_matches(name, _NETWORKS)}")
    module, _, attribute = _NETWORKS[name].partition(":")
    return getattr(importlib.import_module(f"nedx.decoding.networks.{module}"), attribute)
