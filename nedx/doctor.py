"""What nedx finds on this machine: versions, devices, folders, extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from typing import Any

import nedx
from nedx.config import cache_dir, config_dir

_PACKAGES = ("xarray", "zarr", "dask", "numpy", "torch", "fsspec", "scikit-learn", "pydantic")


def examine() -> dict[str, dict[str, Any]]:
    """Examine this machine.

    Returns
    -------
    dict of str to dict
        Facts under the headings ``versions``, ``devices``, ``folders``, ``environment`` and
        ``extras``; plain JSON values.
    """
    return {
        "versions": {
            "nedx": nedx.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: _version(name) or "not installed" for name in _PACKAGES},
        },
        "devices": _devices(),
        "folders": {"cache": _folder(cache_dir()), "config": _folder(config_dir())},
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("NEDX_")
        },
        "extras": _extras(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    if not torch.cuda.is_available():
        devices["cuda"] = "none"
    return devices


def _folder(path: Any) -> str:
    return f"{path}" + ("" if path.exists() else " (not there yet)")


def _extras() -> dict[str, str]:
    """Say of each extra that nedx declares what is installed, or how to install it."""
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("nedx") or []:
        match = re.fullmatch(r"\s*([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w-]+)['\"].*", requirement)
        if match:
            extras.setdefault(match[2], []).append(match[1])
    said = {}
    for extra, packages in extras.items():
        versions = {package: _version(package) for package in packages}
        if all(versions.values()):
            said[extra] = ", ".join(f"{name} {version}" for name, version in versions.items())
        else:
            said[extra] = f"not installed; type: pip install 'nedx[{extra}]'"
    return said
