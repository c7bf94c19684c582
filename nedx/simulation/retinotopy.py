r"""Where a patch of simulated visual cortex looks, and how large its receptive field is.

Along V1 the distance from the foveal confluence is the integral of the linear magnification of
Horton & Hoyt 1991 (Arch. Ophthalmol. 109:816),

.. math:: M(E) = \frac{17.3\ \mathrm{mm}}{E + 0.75^\circ}, \qquad
   u(E) = 17.3\ \mathrm{mm}\ \ln\frac{E + 0.75^\circ}{0.75^\circ},

and across V1 the same magnification holds: a polar angle :math:`\varphi` lies :math:`M E \varphi`
from the horizontal meridian. V2, V3 and hV4 continue the same eccentricities beyond the vertical
meridian, mirrored at each border; that they share V1's magnification is a simplification.

The size of a population receptive field grows with eccentricity, :math:`\sigma = 0.5 + kE`
degrees, with k = 0.10, 0.15, 0.27 and 0.40 in V1, V2, V3 and hV4: the lines that the standard
observer of the Winawer lab takes from Fig. 4 of Harvey & Dumoulin 2011 (J. Neurosci. 31:13604).
Its compressive exponents, 0.18, 0.13, 0.12 and 0.12, are those of Kay et al. 2013 (PLoS Comput.
Biol. 9:e1003079). A Gaussian of width s whose sum is raised to a power n responds to a point as a
Gaussian of width :math:`s / \sqrt n` (Kay et al. 2013, J. Neurophysiol. 110:481), so that energy
is pooled with :math:`s = \sigma \sqrt n`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAGNIFICATION_MM, MAGNIFICATION_DEG = 17.3, 0.75
AREAS = ("V1", "V2", "V3", "hV4", "FFA-1", "PPA", "EBA")
"""Areas that are simulated; those after hV4 are category-selective."""
SIZE_INTERCEPT = 0.5
SIZE_SLOPES = {"V1": 0.10, "V2": 0.15, "V3": 0.27, "hV4": 0.40}
EXPONENTS = {"V1": 0.18, "V2": 0.13, "V3": 0.12, "hV4": 0.12}
LARGEST_ECCENTRICITY = 4.2

_CENTRES = {"FFA-1": (-32.0, -58.0), "PPA": (2.0, -72.0), "EBA": (-56.0, 4.0)}
_RADII = {"FFA-1": 8.0, "PPA": 9.0, "EBA": 10.0}
# Widths of the bands in units of the magnification's angle; V1 itself spans pi.
_V2, _V3, _V4 = 0.40 * np.pi, 0.30 * np.pi, 0.45 * np.pi

ROIS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    **{
        f"{area}{half}": ("prf-visualrois", (area,), half)
        for area in ("V1", "V2", "V3")
        for half in ("v", "d")
    },
    "V1": ("prf-visualrois", ("V1",), None),
    "V2": ("prf-visualrois", ("V2",), None),
    "V3": ("prf-visualrois", ("V3",), None),
    "hV4": ("prf-visualrois", ("hV4",), None),
    "FFA-1": ("floc-faces", ("FFA-1",), None),
    "PPA": ("floc-places", ("PPA",), None),
    "EBA": ("floc-bodies", ("EBA",), None),
    "early": ("streams", ("V1", "V2", "V3"), None),
    "ventral": ("streams", ("hV4", "FFA-1", "PPA"), None),
}
"""ROI -> its group, its areas, and "v" or "d" where it is the ventral or dorsal half."""


@dataclass(frozen=True)
class Anatomy:
    """How one subject's sheet differs from the mean one.

    Parameters
    ----------
    scale : float
        Linear size of visual cortex.
    shift : (float, float)
        Position of the foveal confluence, mm along (u, v).
    turn : float
        Rotation, radians.
    missing : tuple of (str, str)
        Areas that a hemisphere lacks, as ("FFA-1", "L").
    """

    scale: float
    shift: tuple[float, float]
    turn: float
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Patches:
    """Patches of cortex: arrays of (patch,).

    ``area`` is an index of `AREAS`, or -1 outside visual cortex; x (right) and y (up) are the
    centre of the receptive field and ``size`` its width, degrees; NaN outside.
    """

    area: np.ndarray
    hemisphere: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray

    @property
    def eccentricity(self) -> np.ndarray:
        """Distance of the receptive field from the fovea, degrees."""
        return np.hypot(self.x, self.y)

    def take(self, keep: np.ndarray) -> Patches:
        """Return some of the patches."""
        return Patches(*(getattr(self, n)[keep] for n in ("area", "hemisphere", "x", "y", "size")))

    def roi_mask(self) -> np.ndarray:
        """Return bool (roi, patch) of `ROIS`; the ventral half sees the upper field."""
        rows = []
        for _, areas, half in ROIS.values():
            row = np.isin(self.area, [AREAS.index(area) for area in areas])
            if half is not None:
                row &= (self.y >= 0) if half == "v" else (self.y < 0)
            rows.append(row)
        return np.array(rows)


def magnification(eccentricity: np.ndarray) -> np.ndarray:
    """Linear cortical magnification of V1, mm a degree (Horton & Hoyt 1991)."""
    return MAGNIFICATION_MM / (np.asarray(eccentricity) + MAGNIFICATION_DEG)


def receptive_field_size(area: str, eccentricity: np.ndarray) -> np.ndarray:
    """Width (sigma) of the population receptive field, degrees."""
    return SIZE_INTERCEPT + SIZE_SLOPES[area] * np.asarray(eccentricity)


def look_up(u: np.ndarray, v: np.ndarray, hemisphere: str, anatomy: Anatomy) -> Patches:
    """Say what the points of a flat sheet see.

    Parameters
    ----------
    u, v : arrays (patch,)
        Position on the sheet in mm: u along the horizontal meridian of V1 from the foveal
        confluence, v towards dorsal.
    hemisphere : {"L", "R"}
        The left one sees the right field.
    anatomy : Anatomy
        The subject.

    Returns
    -------
    Patches
    """
    u, v = u - anatomy.shift[0], v - anatomy.shift[1]
    cos, sin = np.cos(anatomy.turn), np.sin(anatomy.turn)
    u, v = (cos * u + sin * v) / anatomy.scale, (cos * v - sin * u) / anatomy.scale
    area = np.full(u.shape, -1)
    x, y, size = (np.full(u.shape, np.nan) for _ in range(3))
    eccentricity = MAGNIFICATION_DEG * np.expm1(np.maximum(u, 0) / MAGNIFICATION_MM)
    # Within a tenth of a degree of the fovea the bands are narrower than any voxel.
    mapped = (eccentricity > 0.1) & (eccentricity <= LARGEST_ECCENTRICITY)
    span = np.where(mapped, magnification(eccentricity) * eccentricity, 1.0)
    band, elevation = _bands(v / span)
    retinotopic = mapped & (band >= 0)
    area[retinotopic] = band[retinotopic]
    side = 1.0 if hemisphere == "L" else -1.0
    x[retinotopic] = (side * eccentricity * np.cos(elevation))[retinotopic]
    y[retinotopic] = (eccentricity * np.sin(elevation))[retinotopic]
    for index, name in enumerate(AREAS[:4]):
        inside = area == index
        size[inside] = receptive_field_size(name, eccentricity[inside])
    for name, (u0, v0) in _CENTRES.items():
        inside = (np.hypot(u - u0, v - v0) < _RADII[name]) & (area < 0)
        if (name, hemisphere) not in anatomy.missing:
            area[inside] = AREAS.index(name)
            # Large fields about the fovea, somewhat towards the opposite side.
            x[inside], y[inside], size[inside] = side * 0.8, 0.0, 2.5
    return Patches(area, np.full(u.shape, hemisphere, dtype=object), x, y, size)


def _bands(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the area (-1 for none) and the elevation above the horizontal of a sheet angle.

    The angle is positive in dorsal cortex, which sees the lower field.
    """
    quarter = np.pi / 2
    away = np.abs(angle)
    field = np.where(angle > 0, -1.0, 1.0)
    in_v1 = away <= quarter
    in_v2 = ~in_v1 & (away <= quarter + _V2)
    in_v3 = (away > quarter + _V2) & (away <= quarter + _V2 + _V3)
    past = -angle - (quarter + _V2 + _V3)
    in_v4 = (past > 0) & (past <= _V4)
    elevation = np.select(
        [in_v1, in_v2, in_v3, in_v4],
        [
            -angle,
            field * quarter * (1 - (away - quarter) / _V2),
            field * quarter * (away - quarter - _V2) / _V3,
            quarter - np.pi * past / _V4,
        ],
        0.0,
    )
    return np.select([in_v1, in_v2, in_v3, in_v4], [0, 1, 2, 3], -1), elevation
