"""Peak memory of a process, for scripts that tests run in one of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")

needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak")


def peak_kib() -> int:
    """Return the most memory this process has held, in KiB.

    Not ``ru_maxrss``: a child begins with its parent's, which hides what it takes itself.
    """
    found = re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())
    assert found is not None
    return int(found[1])
