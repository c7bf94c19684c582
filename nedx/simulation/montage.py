"""The 63 channels of the simulated EEG, placed on a sphere by the 10-10 system.

The rule is that of Oostenveld & Praamstra 2001 (Clin. Neurophysiol. 112:713) on a sphere, where a
tenth of the way over the head is 23 degrees, as in BESA's spherical coordinates: the ring through
Fpz, T7, Oz and T8 lies 92 degrees from Cz and is divided in steps of 18 degrees; each coronal row
is the circle through its outer electrodes on the ring and its electrode on the midline, divided
evenly between them. FT9, FT10, TP9 and TP10 lie 23 degrees below the ring.
"""

from __future__ import annotations

import re

import numpy as np

from nedx import scalp

RADIUS = 0.095
"""Radius of the head, m."""
_NAMES = """
Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 FC6 FC2
F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz CP4 TP8
C6 C2 FC4 FT8 F6 F2 AF4 AF8
"""
CHANNELS = tuple(_NAMES.split())
"""Names in the order of the data, that of THINGS-EEG2 and of BERG's models of it."""

_STEP = 23.0
_RING = 4 * _STEP
# Row -> inclination of its midline electrode from Cz towards the front, and azimuth of its
# outermost electrodes on the ring from the front, degrees.
_ROWS = {
    "Fp": (4 * _STEP, 18.0),
    "AF": (3 * _STEP, 36.0),
    "F": (2 * _STEP, 54.0),
    "FC": (_STEP, 72.0),
    "FT": (_STEP, 72.0),
    "C": (0.0, 90.0),
    "T": (0.0, 90.0),
    "CP": (-_STEP, 108.0),
    "TP": (-_STEP, 108.0),
    "P": (-2 * _STEP, 126.0),
    "PO": (-3 * _STEP, 144.0),
    "O": (-4 * _STEP, 162.0),
}


def positions() -> np.ndarray:
    """Return the place of each channel, float64 (channel, 3): x right, y front, z up, m."""
    return np.array([RADIUS * _direction(name) for name in CHANNELS])


def regions() -> np.ndarray:
    """Return the region of the scalp of each channel, one of five."""
    return np.array([scalp.region(name) for name in CHANNELS], dtype=object)


def hemispheres() -> np.ndarray:
    """Return ``"L"``, ``"R"`` or ``"midline"`` for each channel."""
    return np.array([scalp.hemisphere(name) for name in CHANNELS], dtype=object)


def _split(name: str) -> tuple[str, int]:
    """Return the row and the number (0 on the midline); odd numbers lie on the left."""
    match = re.fullmatch(r"([A-Za-z]+?)(z|\d+)", name)
    if match is None:
        raise ValueError(f"{name!r} is no channel of the 10-10 system")
    row, number = match.groups()
    return row, 0 if number == "z" else int(number)


def _side(number: int) -> int:
    return 0 if number == 0 else 2 - number % 2


def _unit(inclination: float, azimuth: float) -> np.ndarray:
    """Direction at an inclination from Cz, and an azimuth from the front towards the right."""
    theta, phi = np.deg2rad(inclination), np.deg2rad(azimuth)
    return np.array([np.sin(theta) * np.sin(phi), np.sin(theta) * np.cos(phi), np.cos(theta)])


def _direction(name: str) -> np.ndarray:
    row, number = _split(name)
    inclination, azimuth = _ROWS[row]
    if number == 0:
        return _unit(inclination, 0.0)
    right = _side(number) == 2
    azimuth = azimuth if right else -azimuth
    rank = (number + 1) // 2
    if rank == 5:
        return _unit(_RING + _STEP, azimuth)
    if row in ("Fp", "O"):
        return _unit(_RING, azimuth)
    # 8 of the rows AF and PO and 7 of the others lie on the ring; both are the fourth outwards.
    return _along_row(_unit(inclination, 0.0), azimuth, rank / 4)


def _along_row(middle: np.ndarray, azimuth: float, fraction: float) -> np.ndarray:
    """Go a fraction of the way from the midline to the ring, on the circle through both sides."""
    end, other = _unit(_RING, azimuth), _unit(_RING, -azimuth)
    normal = np.cross(end - middle, other - middle)
    normal /= np.linalg.norm(normal)
    centre = (middle @ normal) * normal
    start, stop = middle - centre, end - centre
    full = np.arccos(np.clip(start @ stop / (start @ start), -1, 1))
    sideways = np.cross(normal, start)
    turn = np.sign(sideways @ stop) * full * fraction
    return centre + np.cos(turn) * start + np.sin(turn) * sideways
