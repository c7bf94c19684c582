"""Make the simulated stores and the encoders fitted to them, and print how good these are.

Usage: python scripts/build_embedded_models.py [NAME ...]

They go to the cache folder (``NEDX_CACHE``), where nedx makes them anyway on first use.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import nedx
from nedx.simulation import MODELS, STORES, generate


def main(names: list[str]) -> None:
    """Build what is named, by default all of it."""
    console = Console()
    for name in STORES + MODELS:
        if names and name not in names:
            continue
        started = time.perf_counter()
        location = generate(name)
        seconds = time.perf_counter() - started
        console.print(f"{name}: {location.url} ({seconds:.1f} s)", highlight=False)
    table = Table(
        "model", "subject", "median r", "sqrt(noise ceiling)", title="where that is > 0.55"
    )
    for name in MODELS:
        if names and name not in names:
            continue
        for key, ds in nedx.load_model(str(generate(name).url)).members.items():
            inside = ds["noise_ceiling"] > 0.3
            accuracy = ds["encoding_accuracy"].where(inside)
            best = np.sqrt(ds["noise_ceiling"].where(inside))
            table.add_row(
                name, key or "all", f"{float(accuracy.median()):.2f}", f"{float(best.median()):.2f}"
            )
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
