"""Electrodes of the 10-10 system: regions of the scalp, named groups, standard places.

The regions partition the 63 channels of THINGS-EEG2, as the published ablations do: 15 frontal,
14 central, 16 parietal, 10 temporal and 8 occipital ones. Groups overlap with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

ROWS: dict[str, tuple[str, ...]] = {
    "frontal": ("Fp", "AF", "F"),
    "central": ("FC", "C"),
    "parietal": ("CP", "P"),
    "temporal": ("FT", "T", "TP"),
    "occipital": ("PO", "O"),
}
"""Rows of electrodes, the letters of their names, by region."""

GROUPS: dict[str, tuple[str, ...]] = {
    "visual": ("Pz", "PO3", "POz", "PO4", "O1", "Oz", "O2"),
    "posterior": (
        *("P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8"),
        *("PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"),
    ),
}
"""Groups of channels by name.

- ``visual``: what the published perturbation of visual cortex replaces.
- ``posterior``: the 17 channels that many decoders are given.
"""

MONTAGE = "easycap-M1"
"""The montage of MNE that the places are those of."""

_NAME = re.compile(r"([A-Za-z]+?)(z|\d+)")
_REGION = {row: region for region, rows in ROWS.items() for row in rows}
# EASYCAP's M1: inclination from Cz and azimuth from the right ear, degrees, of the right side and
# the midline; on the left both are negative.
_ANGLES = """
Fp2 92 72 AFz 69 90 AF4 74 65 AF8 92 54 F2 50 68 F4 60 51 F6 75 41 F8 92 36 FCz 23 90 FC2 32 45
FC4 53 33 FC6 72 21 FT8 92 18 FT10 115 18 Cz 0 0 C2 23 0 C4 46 0 C6 69 0 T8 92 0 CPz 23 -90
CP2 32 -45 CP4 52 -33 CP6 72 -21 TP8 92 -18 TP10 115 -18 Pz 46 -90 P2 50 -68 P4 60 -51 P6 75 -41
P8 92 -36 POz 69 -90 PO4 74 -65 PO8 92 -54 Oz 92 -90 O2 92 -72
"""
_RADIUS = 0.095
# In the head frame, height is counted from the ears, which are 25 degrees below the equator.
_EARS = _RADIUS * np.sin(np.deg2rad(25))


def region(channel: str) -> str | None:
    """Return the region of a channel, one of five; None for a name of another system."""
    found = _NAME.fullmatch(channel)
    return None if found is None else _REGION.get(found[1])


def hemisphere(channel: str) -> str:
    """Return ``"L"``, ``"R"`` or ``"midline"``: odd numbers are on the left."""
    number = channel.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxy")
    if number == "z":
        return "midline"
    if not number.isdigit():
        return ""
    return "L" if int(number) % 2 else "R"


def labels(channels: Sequence[str]) -> dict[str, Any]:
    """Return region and hemisphere of channels, as coordinates along ``channel``.

    Nothing is returned where one of the channels has a name of another system.
    """
    names = [str(name) for name in channels]
    regions = [region(name) for name in names]
    if None in regions:
        return {}
    return {
        "region": ("channel", np.array(regions, object)),
        "hemisphere": ("channel", np.array([hemisphere(name) for name in names], object)),
    }


def places(channels: Sequence[str]) -> dict[str, Any]:
    """Return the standard places of channels, as coordinates along ``channel``.

    Returns
    -------
    dict
        ``x`` (right), ``y`` (front) and ``z`` (up), float64, m, in the head frame: those of MNE's
        montage `MONTAGE`, a sphere of 95 mm. Empty where one of the channels has none.
    """
    angles = _angles()
    if not channels or any(name not in angles for name in channels):
        return {}
    theta, phi = np.deg2rad([angles[name] for name in channels]).T
    units = (np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta))
    metres = {"units": "m", "coordinate_frame": "head"}
    heights = (0.0, 0.0, _EARS)
    return {
        axis: ("channel", _RADIUS * unit + height, metres)
        for axis, unit, height in zip("xyz", units, heights, strict=True)
    }


def _angles() -> dict[str, tuple[int, int]]:
    words = _ANGLES.split()
    right = {
        name: (int(theta), int(phi))
        for name, theta, phi in zip(words[::3], words[1::3], words[2::3], strict=True)
    }
    found = dict(right)
    for name, (theta, phi) in right.items():
        if hemisphere(name) == "R":
            row, number = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
            found[f"{row}{int(number) - 1}"] = (-theta, -phi)
    return found
