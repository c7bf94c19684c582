"""Training steps of decoders: streamed from Zarr, against a bare loop on tensors in memory.

Both take the same network, optimiser, loss, batch size and precision, without augmentation; the
bare loop indexes standardised tensors that lie in memory. What nedx would keep in memory, as these
responses are few, is streamed all the same: each epoch reads the store again.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from benchmarks.measuring import Row, at_least, interleave, ratio
from nedx.decoding import batches
from nedx.decoding.batches import Stream
from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.samples import by_subject, paired
from nedx.decoding.settings import checked_settings
from nedx.decoding.standardized import Standardized
from nedx.decoding.training import Training

FEATURES = 1024
CASES = {
    "EEGProject": ("eeg_project", 17, 16_384, 256, 5),
    "NERV": ("nervformer_v2", 63, 512, 64, 9),
}
"""Network, channels, responses, batch size and rounds; windows have 250 samples. EEGProject has an
epoch of nearly as many responses as THINGS-EEG2 has images; NERV takes too long for that, and with
few steps an epoch more rounds are needed for a steady median."""


def measure() -> list[Row]:
    """Report samples a second over those of the bare loop, and on a GPU the share of its rate."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    precisions = ("float32", "bfloat16") if device != "cpu" else ("float32",)
    rows = []
    for title, (name, channels, count, size, rounds) in CASES.items():
        count = count if device == "cpu" else 16 * count
        with tempfile.TemporaryDirectory() as folder:
            ds, targets = written(Path(folder) / "eeg.zarr", count, channels)
            for precision in precisions:
                network = NetworkRecipe(
                    name=name, n_channels=channels, n_times=250, n_outputs=FEATURES
                )
                case = Case(network, ds, targets, size, precision, device)
                rows += case.rows(title, rounds)
    return rows


def written(place: Path, count: int, channels: int) -> tuple[xr.Dataset, torch.Tensor]:
    """Write single trials as float16; return them lazily, and targets of unit norm."""
    import nedx

    values = da.random.default_rng(0).normal(size=(count, channels, 250), chunks=(256, -1, -1))
    ds = xr.Dataset(
        {"response": (("image", "channel", "time"), values.astype("f2"), {"units": "uV"})},
        {
            "image_id": ("image", np.array([f"drawn:{i}" for i in range(count)], dtype=object)),
            "channel": np.array([f"E{i}" for i in range(channels)], dtype=object),
            "time": np.arange(250) / 250,
        },
        {"modality": "eeg"},
    )
    nedx.to_zarr(ds, place, dtype="float16")
    targets = torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(0))
    return nedx.open_store(place), F.normalize(targets, dim=1)


class Case:
    """One network, trained in both ways for an epoch."""

    def __init__(
        self,
        network: NetworkRecipe,
        ds: xr.Dataset,
        targets: torch.Tensor,
        size: int,
        precision: str,
        device: str,
    ):
        self.size, self.precision, self.device = size, precision, torch.device(device)
        rows = {str(name): i for i, name in enumerate(ds["image_id"].values)}
        ((name, one),) = by_subject(ds).items()
        samples = paired(name, one, rows, average=True)[0]
        self.stream = Stream([samples], size, average=True, ahead=device != "cpu")
        self.count = self.stream.items // size * size
        settings = checked_settings({**SETTINGS, "batch_size": size, "precision": precision})
        self.training = Training(
            Standardized(network), settings, targets, None, steps=self.count // size, device=device
        )
        self.bare = Standardized(network).to(device)
        self.scale = torch.nn.Parameter(torch.tensor(2.659, device=device))
        learnt = [*self.bare.network.parameters(), self.scale]
        self.optimiser = torch.optim.AdamW(learnt, lr=1e-4, weight_decay=0.01)
        self.x = torch.from_numpy(ds["response"].values.astype(np.float32)).to(device)
        self.targets = targets.to(device)

    def rows(self, title: str, rounds: int) -> list[Row]:
        """Return the figures of both ways."""
        held, batches.HELD_BYTES = batches.HELD_BYTES, 0
        try:
            seconds = interleave({"bare": self.in_memory, "nedx": self.streamed}, rounds)
        finally:
            batches.HELD_BYTES = held
        rates = {name: self.count / np.median(each) for name, each in seconds.items()}
        note = f"{rates['nedx']:,.0f} samples/s, bare {rates['bare']:,.0f}; {self.count:,} an epoch"
        where = "" if self.device.type == "cpu" else f", {self.device.type} {self.precision}"
        name = f"training {title}{where}: samples/s streamed from Zarr over a bare loop"
        found = [at_least(name, ratio(seconds["bare"], seconds["nedx"]), 0.9, "x", note)]
        if self.device.type == "cuda":
            share = rates["nedx"] * self.work() / rate(self.device, self.precision)
            name = f"training {title}{where}: share of the measured rate of products"
            found.append(Row(name, float(share), "", note=f"{rates['nedx']:,.0f} samples/s"))
        return found

    def streamed(self) -> None:
        """One epoch of nedx."""
        for batch in self.stream.epoch(np.random.default_rng(0)):
            loss = self.training.step(batch)
        float(loss)

    def in_memory(self) -> None:
        """One epoch of a bare loop."""
        self.bare.train()
        order = torch.randperm(len(self.x), device=self.device)
        for start in range(0, self.count, self.size):
            rows = order[start : start + self.size]
            loss = self._loss(self.x[rows], self.targets[rows])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
        float(loss.detach())

    def _loss(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        half = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            embedding = self.bare.network(x, None)
        logits = self.scale.exp() * F.normalize(embedding.float(), dim=1) @ target.T
        true = torch.arange(len(x), device=self.device)
        return (F.cross_entropy(logits, true) + F.cross_entropy(logits.T, true)) / 2

    def work(self) -> float:
        """Return the floating point operations of training on one sample."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self._loss(self.x[: self.size], self.targets[: self.size]).backward()
        return counter.get_total_flops() / self.size


def rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(8192, 8192, device=device, dtype=dtype)
    a @ a
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(10):
        a @ a
    torch.cuda.synchronize(device)
    return 10 * 2 * 8192**3 / (time.perf_counter() - start)


SETTINGS: dict[str, Any] = {
    "image": 1.0,
    "text": 0.0,
    "mse": 0.0,
    "logit_scale": "exp",
    "mask_same_image": False,
    "epochs": 1000,
    "lr": 1e-4,
    "weight_decay": 0.01,
    "betas": (0.9, 0.999),
    "schedule": "constant",
    "warmup": 0.0,
    "ema": None,
    "average_trials": True,
    "augmentation": (),
    "mode": "in_subject",
    "validation": 0.0,
    "patience": None,
    "seed": 0,
}
