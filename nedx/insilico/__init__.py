"""What responses carry: noise in place of channels, regions and times, and what is lost by it."""

from __future__ import annotations

from nedx.insilico.ablation import (
    Piece,
    ablate,
    ablation_experiment,
    growing_windows,
    region_pieces,
    sliding_windows,
)
from nedx.insilico.experiment import channel_experiment
from nedx.insilico.importance import channel_importance, importance_map, time_importance

__all__ = [
    "Piece",
    "ablate",
    "ablation_experiment",
    "channel_experiment",
    "channel_importance",
    "growing_windows",
    "importance_map",
    "region_pieces",
    "sliding_windows",
    "time_importance",
]
