"""Batch synthesis on two worker processes against a bare torch loop, and what a kill costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio

IMAGES, SIDE, BLOCK, WORKERS = 256, 256, 64, 2
COMPONENTS, VERTICES = 100, 5000
ROUNDS = 3


def measure() -> list[Row]:
    """Return the rows of this benchmark; about three minutes on two cores."""
    from nedx.backbones import default_recipe

    recipe = default_recipe("vit_b_32", seed=0)
    with tempfile.TemporaryDirectory(prefix="nedx-bench-") as name:
        folder = Path(name)
        images = folder / "images.h5"
        pixels = _write_images(images)
        model = folder / "model.zarr"
        weights = _write_model(model, recipe)
        return [*_speed(folder, images, model, pixels, weights, recipe), *_kill(folder, model)]


def _speed(
    folder: Path,
    images: Path,
    model: Path,
    pixels: np.ndarray,
    weights: xr.Dataset,
    recipe: Any,
) -> list[Row]:
    """Time planned jobs on a cluster that is warm, and the loop, in turn."""
    import torch

    from nedx.synthesis import init, local_cluster, run

    loop = _bare_loop(recipe, pixels, weights)
    fresh = (folder / f"speed-{i}.zarr" for i in count())
    planned = []
    for _ in range(ROUNDS + 2):
        planned.append(next(fresh))
        init(images, model, planned[-1], block=BLOCK)
    waiting = iter(planned)
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with local_cluster(WORKERS) as client:
            # Both workers load torch and the model.
            run(next(waiting), client=client, progress=False)
            spent = -sum(client.run(time.process_time).values())
            seconds = interleave(
                {"loop": loop, "job": lambda: run(next(waiting), client=client, progress=False)},
                rounds=ROUNDS,
            )
            spent += sum(client.run(time.process_time).values())
        torch.set_num_threads(1)
        bare = -time.process_time()
        loop()
        bare += time.process_time()
    finally:
        torch.set_num_threads(before)
    speed = IMAGES / float(np.median(seconds["job"]))
    wall = at_least(
        "job on 2 workers / bare loop on all cores, images a second",
        ratio(seconds["loop"], seconds["job"]),
        0.85,
        note=f"ViT-B/32 with random weights, 12 layers, {IMAGES} images of {SIDE} px, "
        f"{COMPONENTS} components, {VERTICES} vertices; {speed:.0f} images a second; "
        f"{ROUNDS} rounds",
    )
    processor = Row(
        "processor time of the loop on one thread / of the workers",
        bare * (ROUNDS + 1) / spent,
        "x",
        note="depends less than the figure above on what else the machine does",
    )
    return [wall, processor]


def _write_images(place: Path) -> np.ndarray:
    import h5py

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    with h5py.File(place, "w") as file:
        file["imgBrick"] = pixels
    return pixels


def _write_model(place: Path, recipe: Any) -> xr.Dataset:
    """Write a model of repetitive weights, since only the time matters here."""
    from nedx.encoding import EncoderRecipe, LinearEncoder

    rng = np.random.default_rng(1)
    width = len(recipe.layers) * 50 * 768
    pattern = rng.normal(size=(64, COMPONENTS)).astype(np.float32) * np.float32(1e-3)
    weights = xr.Dataset(
        {
            "projection": (("feature", "component"), np.tile(pattern, (width // 64, 1))),
            "projection_offset": ("component", np.zeros(COMPONENTS, np.float32)),
            "readout": (
                ("vertex", "component"),
                rng.standard_normal((VERTICES, COMPONENTS), dtype=np.float32),
            ),
            "intercept": ("vertex", np.zeros(VERTICES, np.float32)),
        },
        coords={"vertex": np.arange(VERTICES)},
    )
    widths = dict.fromkeys(recipe.layers, 50 * 768)
    made_by = EncoderRecipe(backbone=recipe, units="1")
    LinearEncoder(weights, made_by, layer_widths=widths).to_zarr(place)
    return weights


def _bare_loop(recipe: Any, pixels: np.ndarray, weights: xr.Dataset) -> Callable[[], None]:
    """Return the loop that a person would write: batches in, responses out, nothing kept."""
    import torch

    from nedx.backbones import load_backbone
    from nedx.stimuli.preprocessing import preprocess

    backbone = load_backbone(recipe)
    projection = torch.from_numpy(weights["projection"].values)
    layers = dict(zip(recipe.layers, projection.split(50 * 768), strict=True))
    readout = torch.from_numpy(weights["readout"].values)

    def loop() -> None:
        for start in range(0, len(pixels), recipe.batch_size):
            batch = preprocess(pixels[start : start + recipe.batch_size], recipe.policy)
            with torch.inference_mode():
                sums = torch.zeros(len(batch), COMPONENTS)
                backbone.run(batch, lambda name, tap, sums=sums: sums.addmm_(tap, layers[name]))
                (sums @ readout.T).numpy()

    return loop


def _kill(folder: Path, model: Path) -> list[Row]:
    """Kill a job with its workers, resume it, and count what was computed twice."""
    from nedx.synthesis import init, run

    place, block = folder / "killed.zarr", 16
    init(folder / "images.h5", model, place, block=block)
    command = [sys.executable, "-m", "nedx.cli", "synth", "run", str(place), "--quiet"]
    job = subprocess.Popen([*command, "--workers", str(WORKERS)], start_new_session=True)
    ledger, claims = place / "_nedx/ledger", place / "_nedx/claims"
    while len(_noted(ledger)) < 3 and job.poll() is None:
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(2)
    finished = _noted(ledger)
    in_flight = set(_noted(claims)) - set(finished)
    run(place, part="1/1", progress=False)
    after = _noted(ledger)
    again = sum(after[name] != noted for name, noted in finished.items())
    total = IMAGES // block
    note = f"{len(finished)} of {total} blocks were finished at the kill, 2 workers"
    return [
        at_most("finished blocks that a resume writes again", again, 0, "blocks", note),
        at_most("blocks in flight that a resume redoes", len(in_flight), WORKERS, "blocks", note),
    ]


def _noted(folder: Path) -> dict[str, int]:
    """Return the notes in a folder of the build state, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
