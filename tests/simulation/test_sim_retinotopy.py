"""Retinotopy against the published formulas, by other ways of computing them."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.simulation.cortex import ANATOMIES, draw_tuning, receptive_fields
from nedx.simulation.grids import N_VERTICES, VOXEL_MM, icosphere, native_voxels, surface
from nedx.simulation.images import DEGREES
from nedx.simulation.retinotopy import AREAS, Anatomy, look_up, magnification

MEAN = Anatomy(1.0, (0.0, 0.0), 0.0)


@pytest.fixture(scope="module")
def patches():
    return native_voxels(MEAN).patches


def test_magnification_of_horton_and_hoyt():
    # 17.3 / (E + 0.75): at 0.75 degrees, and the half-height eccentricity.
    assert magnification(0.75) == pytest.approx(17.3 / 1.5)
    assert magnification(0.0) == pytest.approx(2 * magnification(0.75))


@pytest.mark.parametrize("eccentricity", [0.5, 1.0, 2.0, 4.0])
def test_distance_along_v1_is_the_integral_of_magnification(eccentricity):
    steps = np.linspace(0, eccentricity, 20_001)
    u = np.trapezoid(magnification(steps), steps)
    seen = look_up(np.array([u]), np.array([0.0]), "L", MEAN)
    assert AREAS[seen.area[0]] == "V1"
    assert seen.x[0] == pytest.approx(eccentricity, rel=1e-5)
    assert seen.y[0] == pytest.approx(0, abs=1e-9)


def test_v1_takes_the_area_that_magnification_says(patches):
    """Cortex of a hemisphere from 0.1 to 4.2 degrees: integral of M^2 pi E dE."""
    steps = np.linspace(0.1, 4.2, 10_001)
    area = np.trapezoid(magnification(steps) ** 2 * np.pi * steps, steps)
    voxels = np.sum((patches.area == 0) & (patches.hemisphere == "L"))
    # A folded sheet crosses more cells of a cubic grid than a flat one that is aligned with it.
    assert 1.0 < voxels * VOXEL_MM**2 / area < 1.6


@pytest.mark.parametrize(
    ("area", "slope"), [("V1", 0.10), ("V2", 0.15), ("V3", 0.27), ("hV4", 0.40)]
)
def test_fields_grow_with_eccentricity_and_from_area_to_area(patches, area, slope):
    inside = patches.area == AREAS.index(area)
    fitted = np.polyfit(patches.eccentricity[inside], patches.size[inside], 1)
    np.testing.assert_allclose(fitted, [slope, 0.5], rtol=1e-6)


def test_a_point_sweeps_out_a_gaussian_of_the_stated_size(patches):
    """Pooled and compressed, the answer to a point falls as exp(-d^2 / 2 size^2)."""
    some = patches.take(np.flatnonzero((patches.area >= 0) & (patches.area < 4))[::40])
    exponent = draw_tuning(some, np.random.default_rng(0)).exponent
    fields = receptive_fields(some, exponent).astype(float) ** exponent[:, None, None]
    grid = fields.shape[1]
    across = (np.arange(grid) + 0.5) * DEGREES / grid - DEGREES / 2
    for field, x, y, size in zip(fields, some.x, some.y, some.size, strict=True):
        squared = (across - x) ** 2 + (-across[:, None] - y) ** 2
        near = (squared < (2 * size) ** 2) & (field > 1e-6)
        slope = np.polyfit(squared[near], np.log(field[near]), 1)[0]
        assert (-1 / (2 * slope)) ** 0.5 == pytest.approx(size, rel=1e-3)


def test_hemispheres_see_the_other_side_and_ventral_sees_up(patches):
    mapped = patches.area < 4
    left = patches.hemisphere == "L"
    assert (patches.x[mapped & left] >= 0).all()
    assert (patches.x[mapped & ~left] <= 0).all()
    u = np.full(2, 20.0)
    ventral, dorsal = look_up(u, np.array([-12.0, 12.0]), "L", MEAN).y
    assert ventral > 0 > dorsal


def test_borders_are_mirrors():
    """The elevation does not jump where V1 meets V2 and V2 meets V3."""
    v = -np.linspace(0.01, 67, 4000)
    seen = look_up(np.full(v.shape, 25.0), v, "L", MEAN)
    kept = (seen.area >= 0) & (seen.area < 4)
    assert list(dict.fromkeys(seen.area[kept])) == [0, 1, 2, 3]
    assert np.abs(np.diff(seen.y[kept])).max() < 0.05


def test_subjects_differ_and_voxels_do_not_repeat():
    counts = set()
    for anatomy in ANATOMIES.values():
        voxels = native_voxels(anatomy)
        assert len(np.unique(voxels.index, axis=0)) == len(voxels.index)
        assert voxels.index.min() >= 0
        assert (voxels.index < voxels.shape).all()
        homogeneous = np.column_stack([voxels.index, np.ones(len(voxels.index))])
        np.testing.assert_allclose(
            (homogeneous @ voxels.affine.T)[:, :3], voxels.position, atol=1e-3
        )
        counts.add(len(voxels.index))
    assert len(counts) == 3


def test_the_sphere_has_as_many_vertices_as_fsaverage5():
    sphere = icosphere()
    assert sphere.shape == (N_VERTICES, 3) == (10_242, 3)
    np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), 1)
    assert len(np.unique(sphere.round(6), axis=0)) == N_VERTICES
    # Coarser spheres are the first vertices of finer ones.
    np.testing.assert_allclose(icosphere(2), sphere[:162])


def test_an_roi_may_be_empty_in_one_hemisphere():
    patches = surface(ANATOMIES["sub-02"])
    face = patches.area == AREAS.index("FFA-1")
    assert not face[:N_VERTICES].any()
    assert face[N_VERTICES:].sum() > 5
