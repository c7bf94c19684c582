"""Networks that read EEG and MEG: one file each, built by name."""

from __future__ import annotations

from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.networks.registry import build, names

__all__ = ["NetworkRecipe", "build", "names"]
