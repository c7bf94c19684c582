"""What processes that a test interrupts are started with."""

from __future__ import annotations

import signal


def heed_interruptions() -> None:
    """Undo what a shell does to its background jobs, and their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
