"""Run every benchmark, print one table, and write it to ``benchmarks/results``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nedx.compute.cache import models

MODULES = (
    "encode_speed",
    "toolbox",
    "front_end",
    "streaming",
    "synthesis_speed",
    "real_v4",
    "real_haxby",
    "fitted_accuracy",
    "memory",
    "fwrf",
    "berg",
    "eeg_writing",
    "ridge",
    "ridge_wide",
    "ridge_streamed",
    "metrics",
    "nsd_reading",
    "pca",
    "banded",
    "l2lir",
    "rsa",
    "training_speed",
    "eeg_decoding",
    "retrieval",
    "image_metrics",
    "conversion",
    "inversion",
)


def machine() -> dict[str, object]:
    """Describe what the figures were measured on, without naming the host."""
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "cpu_cores": os.cpu_count(),
        "processor": platform.machine(),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(MODULES)} (default: all)")
    names = parser.parse_args().names or list(MODULES)
    console = Console(width=150)
    about = machine()
    rows: list[dict[str, object]] = []
    for name in names:
        console.print(f"[dim]measuring {name} ...[/dim]")
        measured = importlib.import_module(f"benchmarks.{name}").measure()
        rows += [{"benchmark": name, **row.as_dict()} for row in measured]
        # Kept at once: the next may fail, and what the last one loaded is not its business.
        target = _keep(about, rows)
        models.clear()
    table = Table(title=", ".join(f"{key}: {value}" for key, value in about.items()))
    for column in ("benchmark", "figure", "measured", "target", "met", "note"):
        table.add_column(column)
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.4g} {row['unit']}".strip()
        met = {True: "yes", False: "NO", None: "-"}[row["passed"]]
        table.add_row(row["benchmark"], row["name"], value, row["target"], met, row["note"])
    console.print(table)
    console.print(f"written to benchmarks/results/{target.name}")


def _keep(about: dict[str, object], rows: list[dict[str, object]]) -> Path:
    """Write the rows; those of benchmarks that were not run now stay as they were."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    target = folder / ("gpu.json" if about["gpu"] else "cpu.json")
    before = json.loads(target.read_text())["rows"] if target.exists() else []
    measured = {row["benchmark"] for row in rows}
    kept = [row for row in before if row["benchmark"] not in measured]
    merged = sorted(kept + rows, key=lambda row: MODULES.index(row["benchmark"]))
    target.write_text(json.dumps({"machine": about, "rows": merged}, indent=2) + "\n")
    return target


if __name__ == "__main__":
    main()
