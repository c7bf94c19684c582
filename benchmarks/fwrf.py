"""The head of the fwRF models at a large ROI: memory, and speed against all voxels at once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio

if TYPE_CHECKING:
    import torch

    from nedx.encoding.fwrf import FwrfHead

VOXELS, IMAGES = 5_917, 100
PEAK_GB = 2.0

# The peak of this process alone: what the one that starts it held is not counted.
SCRIPT = """
import re, sys
from pathlib import Path
from benchmarks import fwrf
maps, head = fwrf.inputs()
getattr(fwrf, sys.argv[1])(maps, head)
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def measure() -> list[Row]:
    """Return peak memory, speed, and how far the two forms are apart."""
    import torch

    peaks = {form: _peak(form) for form in ("blockwise", "all_at_once")}
    maps, head = inputs()
    seconds = interleave(
        {
            "plain": lambda: all_at_once(maps, head),
            "nedx": lambda: blockwise(maps, head),
        },
        rounds=5,
    )
    expected = all_at_once(maps, head)
    apart = (blockwise(maps, head) - expected).abs().max() / expected.abs().max()
    fastest = {name: IMAGES / min(each) for name, each in seconds.items()}
    note = (
        f"{VOXELS:,} voxels, {IMAGES} images, float32, maps given, {torch.get_num_threads()} "
        f"threads; {fastest['nedx']:.1f} against {fastest['plain']:.1f} images a second"
    )
    return [
        at_most(
            "peak memory of the head",
            peaks["blockwise"],
            PEAK_GB,
            "GB",
            f"whole process, maps and head included; all voxels at once: "
            f"{peaks['all_at_once']:.1f} GB",
        ),
        at_least(
            "head, images a second, in blocks / all voxels at once",
            ratio(seconds["plain"], seconds["nedx"]),
            3.0,
            note=note,
        ),
        at_most("largest difference of the two / largest response", float(apart), 1e-4, ""),
    ]


def inputs() -> tuple[list[torch.Tensor], FwrfHead]:
    """Draw maps as a rectifier leaves them, and a head; only their sizes matter."""
    import torch

    from nedx.backbones.gnet import MAPS
    from nedx.encoding.fwrf import FwrfHead

    torch.manual_seed(0)
    maps = [torch.randn(IMAGES, *shape).relu_() for shape in MAPS.values()]
    first, second, third = (torch.randn(VOXELS, *shape[1:]) for shape in MAPS.values())
    return maps, FwrfHead((first, second, third), torch.randn(VOXELS, 768), torch.randn(VOXELS))


def blockwise(maps: list[torch.Tensor], head: FwrfHead) -> torch.Tensor:
    """Read out as nedx does; (image, voxel)."""
    import torch

    from nedx.encoding.fwrf import read_out_fwrf

    with torch.inference_mode():
        return read_out_fwrf(maps, head)


def all_at_once(maps: list[torch.Tensor], head: FwrfHead) -> torch.Tensor:
    """Read out as the formula stands: pool all maps for all voxels, then weight; (image, voxel)."""
    import torch

    def squash(x: torch.Tensor) -> torch.Tensor:
        return torch.log(1 + torch.abs(x)) * torch.tanh(x)

    with torch.inference_mode():
        pooled = [
            torch.einsum("nfs,vs->nvf", squash(each).flatten(2), fields.flatten(1).softmax(1))
            for each, fields in zip(maps, head.rf, strict=True)
        ]
        features = squash(torch.cat(pooled, dim=2))
        return torch.einsum("nvf,vf->nv", features, head.w) + head.b


def _peak(form: str) -> float:
    """Return the peak resident memory, in GB, of a process that does nothing else."""
    command = [sys.executable, "-c", SCRIPT, form]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024 / 1e9
