"""A simulated cortex and its images, with the truth behind them. Nothing here was measured."""

from nedx.simulation.stores import (
    MODELS,
    SIMULATION_VERSION,
    STORES,
    generate,
    open_simulation,
)

__all__ = ["MODELS", "SIMULATION_VERSION", "STORES", "generate", "open_simulation"]
