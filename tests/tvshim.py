"""Lets torchvision be imported where its compiled operators do not load (CPU torch, CUDA wheel).

Import this before torchvision. It declares the two operators whose absence stops the import, and
only where they are absent; they stay unusable, and no test uses them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _load_operators() -> bool:
    """Load torchvision's own library as it would itself; say whether that gave operators."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in Path(folder).glob("_C*"):
            try:
                torch.ops.load_library(str(library))
            except OSError:
                continue
    return hasattr(torch.ops.torchvision, "nms")


def _missing() -> bool:
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return False
    return not _load_operators()


LIBRARY = None
if _missing():
    # The library object must outlive the import: dropping it takes the operators away again.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for _schema in _SCHEMAS:
        LIBRARY.define(_schema)
