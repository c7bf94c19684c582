"""Where nedx keeps things on this machine: environment variables and XDG folders."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: ``NEDX_CACHE``, or ``nedx`` in the XDG cache folder."""
    given = os.environ.get("NEDX_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "nedx"


def config_dir() -> Path:
    """Return the folder of user settings: ``NEDX_CONFIG``, or ``nedx`` in the XDG one."""
    given = os.environ.get("NEDX_CONFIG")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "nedx"
