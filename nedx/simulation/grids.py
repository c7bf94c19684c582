"""The two grids: a sphere with as many vertices as fsaverage5, and a subject's own voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nedx.simulation.retinotopy import Anatomy, Patches, look_up

N_VERTICES = 10_242
"""Vertices of a hemisphere of fsaverage5: an icosahedron divided five times."""
VOXEL_MM = 3.0
SPHERE_MM = 100.0

_LOBE_MM = 45.0
_LOBE_CENTRE_MM = 48.0


def icosphere(levels: int = 5) -> np.ndarray:
    """Return the vertices of an icosahedron whose edges are halved ``levels`` times.

    Each level keeps the vertices that there were and appends the new ones.

    Returns
    -------
    float64 array (10 * 4**levels + 2, 3)
        Unit vectors.
    """
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    vertices = np.array([np.roll(c, shift) for shift in range(3) for c in corners])
    distance = np.linalg.norm(vertices[:, None] - vertices, axis=-1)
    edges = np.argwhere(np.triu(np.isclose(distance, 2)))
    near = np.isclose(distance, 2)
    faces = np.array(
        [(a, b, c) for a, b in edges for c in range(b + 1, 12) if near[a, c] and near[b, c]]
    )
    for _ in range(levels):
        pairs = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        middle = len(vertices) + inverse.reshape(-1, 3)
        vertices = np.concatenate([vertices, vertices[unique].mean(1)])
        a, b, c = faces.T
        ab, bc, ca = middle.T
        parts = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = np.concatenate([np.stack(part, axis=1) for part in parts])
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True)


def surface(anatomy: Anatomy) -> Patches:
    """Return what each vertex of both hemispheres sees, left first."""
    sphere = icosphere()
    halves = []
    for hemisphere in ("L", "R"):
        u, v = _flatten(sphere, hemisphere)
        halves.append(look_up(u, v, hemisphere, anatomy))
    return _join(halves)


def _medial(hemisphere: str) -> float:
    return 1.0 if hemisphere == "L" else -1.0


def _flatten(unit: np.ndarray, hemisphere: str) -> tuple[np.ndarray, np.ndarray]:
    """Azimuthal equidistant map about the occipital pole: u to medial, v to dorsal, mm."""
    arc = np.arccos(np.clip(-unit[:, 1], -1, 1)) * SPHERE_MM
    radius = np.maximum(np.hypot(unit[:, 0], unit[:, 2]), 1e-12)
    return arc * _medial(hemisphere) * unit[:, 0] / radius, arc * unit[:, 2] / radius


@dataclass(frozen=True)
class Voxels:
    """A subject's own voxels: what they see, and where they lie.

    ``index`` int32 (voxel, 3) counts from 0 along i, j, k; ``position`` float32 (voxel, 3) is in
    mm, RAS+; ``affine`` float64 (4, 4) takes one to the other.
    """

    patches: Patches
    index: np.ndarray
    position: np.ndarray
    affine: np.ndarray
    shape: tuple[int, int, int]


def native_voxels(anatomy: Anatomy) -> Voxels:
    """Cut both hemispheres of a subject into voxels of 3 mm.

    Each hemisphere is a smooth ball of 45 mm radius, which is no anatomy: distances along it are
    those of the sheet. A voxel takes the sheet position nearest its middle.
    """
    u, v = (a.ravel() for a in np.meshgrid(np.arange(-80, 50.0), np.arange(-95, 95.0)))
    shape = (70, 36, 36)
    corner = np.array([-VOXEL_MM * 35, -48.0, -54.0])
    halves, cells = [], []
    for hemisphere in ("L", "R"):
        patches = look_up(u, v, hemisphere, anatomy)
        visual = np.flatnonzero(patches.area >= 0)
        position = _fold(u[visual], v[visual], hemisphere)
        cell = np.floor((position - corner) / VOXEL_MM).astype(np.int64)
        off = np.linalg.norm(position - (corner + (cell + 0.5) * VOXEL_MM), axis=1)
        order = np.argsort(off, kind="stable")
        flat = np.ravel_multi_index(tuple(cell[order].T), shape)
        _, first = np.unique(flat, return_index=True)
        kept = order[first]
        halves.append(patches.take(visual[kept]))
        cells.append(cell[kept])
    index = np.concatenate(cells)
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = corner + VOXEL_MM / 2
    position = index * VOXEL_MM + affine[:3, 3]
    return Voxels(_join(halves), index.astype(np.int32), position.astype(np.float32), affine, shape)


def _fold(u: np.ndarray, v: np.ndarray, hemisphere: str) -> np.ndarray:
    """Wrap the sheet about a ball from its occipital pole, mm (patch, 3)."""
    arc = np.maximum(np.hypot(u, v), 1e-12)
    out = np.sin(arc / _LOBE_MM) / arc
    x = _medial(hemisphere) * u * out * _LOBE_MM - _medial(hemisphere) * _LOBE_CENTRE_MM
    return np.stack([x, -np.cos(arc / _LOBE_MM) * _LOBE_MM, v * out * _LOBE_MM], axis=1)


def _join(halves: list[Patches]) -> Patches:
    names = ("area", "hemisphere", "x", "y", "size")
    return Patches(*(np.concatenate([getattr(h, n) for h in halves]) for n in names))
