"""THINGS-fMRI in its published layout, against what was written and plain numpy."""

from __future__ import annotations

import csv

import h5py
import numpy as np
import pytest

import nedx
from nedx.errors import CorruptStoreError, SelectionError, SourceError, StoreError
from nedx.sources.importing import import_source
from nedx.sources.things_fmri import open_things_fmri
from tests.laziness import computes_at_most
from tests.servers import S3Server

VOXELS, TRIALS, SESSIONS = 30, 24, 2


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_responses(path, values):
    """Write a table as pandas does: the floats of all trials, and the whole numbers."""
    with h5py.File(path, "w") as file:
        group = file.create_group("ResponseData")
        group["block0_values"] = values
        group["block1_values"] = np.arange(len(values))[:, None]
        group["axis1"] = np.arange(len(values))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "betas_csv"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in ("sub-01", "sub-02"):
        write_responses(root / f"{name}_ResponseData.h5", rng.standard_normal((VOXELS, TRIALS)))
        trials = []
        for trial in range(TRIALS):
            test = trial % 4 == 0
            stimulus = "anchor_01b.jpg" if test else f"aardvark_{trial:02d}s.jpg"
            trials.append(
                {
                    "trial_type": "test" if test else "train",
                    "session": 1 + trial * SESSIONS // TRIALS,
                    "run": 1 + trial % 3,
                    "subject_id": name[-1],
                    "trial_id": trial,
                    "stimulus": stimulus,
                    "concept": stimulus.rpartition("_")[0],
                }
            )
        write_csv(root / f"{name}_StimulusMetadata.csv", trials)
        voxels = [
            {
                "voxel_id": voxel,
                "subject_id": name[-1],
                "voxel_x": 1 + voxel // 6,
                "voxel_y": 39 + voxel % 6,
                "voxel_z": 33,
                "nc_singletrial": voxel / 10,
                "nc_testset": float(voxel),
                "splithalf_corrected": 0.1,
                "prf-eccentricity": voxel / 3,
                "V1": int(voxel in (3, 4, 9)),
                "glasser-FFC": int(voxel > 20),
            }
            for voxel in range(VOXELS)
        ]
        write_csv(root / f"{name}_VoxelMetadata.csv", voxels)
    return root


def expected(folder, *, zscore, name="sub-01"):
    with h5py.File(folder / f"{name}_ResponseData.h5") as file:
        values = file["ResponseData/block0_values"][:].T
    if not zscore:
        return values
    halves = np.split(values, SESSIONS)
    return np.concatenate([(half - half.mean(0)) / half.std(0) for half in halves])


def test_values_and_labels(folder):
    with computes_at_most(0):
        ds = open_things_fmri(folder, subject=1)
    nedx.validate(ds)
    np.testing.assert_allclose(ds.response, expected(folder, zscore=True), atol=2e-5)
    plain = open_things_fmri(folder, subject="sub-01", normalize="none").response
    np.testing.assert_allclose(plain, expected(folder, zscore=False), rtol=1e-6)
    assert ds.image_id.values[:2].tolist() == ["things:anchor_01b", "things:aardvark_01s"]
    assert ds.repetition.values[[0, 4, 8, 1]].tolist() == [0, 1, 2, 0]
    assert ds.partition.values[:2].tolist() == ["test", "train"]
    np.testing.assert_allclose(ds.noise_ceiling, np.arange(VOXELS) / 100, rtol=1e-6)
    assert ds.noise_ceiling.attrs["n_repetitions"] == 12
    assert ds.roi.values.tolist() == ["V1", "glasser-FFC"]
    assert ds.j.values[:3].tolist() == [39, 40, 41]
    some = ds.ned.roi("V1").response.isel(trial=[20, 2])
    wanted = expected(folder, zscore=True)[[20, 2]][:, [3, 4, 9]]
    np.testing.assert_allclose(some, wanted, atol=2e-5)


def test_import_of_rois_of_several_subjects(folder, tmp_path):
    place = tmp_path / "things.zarr"
    import_source("things-fmri", folder, place, subject=[1, 2], roi=["V1", "glasser-FFC"])
    tree = nedx.open(str(place))
    rows = [3, 4, 9, *range(21, 30)]
    for name in ("sub-01", "sub-02"):
        child = tree[name].to_dataset()
        wanted = expected(folder, zscore=True, name=name)[:, rows]
        np.testing.assert_allclose(child.response, wanted, atol=1e-5, rtol=6e-4)
        assert child.voxel.values.tolist() == rows


def test_from_a_bucket(folder):
    from nedx.store.location import Location

    server = S3Server()
    try:
        url = server.fill("things", folder)
        there = Location.of(url, storage_options=server.options)
        far = open_things_fmri(there, subject=1, normalize="none").response
        np.testing.assert_allclose(far, expected(folder, zscore=False), rtol=1e-6)
    finally:
        server.close()


def raises(folder, tmp_path, kind, words, **arguments):
    place = tmp_path / "refused.zarr"
    with pytest.raises(kind, match=words):
        import_source("things-fmri", folder, place, **{"subject": 1, **arguments})
    assert not place.exists()


def test_empty_cells_of_voxels_are_missing_numbers(folder):
    """pandas writes NaN as nothing."""
    table = folder / "sub-01_VoxelMetadata.csv"
    lines = table.read_text().splitlines()
    assert lines[1].startswith("0,1,1,39,33,0.0,0.0,0.1,")
    lines[1] = lines[1].replace("33,0.0,0.0,0.1,0.0,0,", "33,,,,,,")
    table.write_text("\n".join(lines) + "\n")
    ds = open_things_fmri(folder, subject=1)
    assert ds.noise_ceiling.values[:2].tolist() == pytest.approx([0, 0.01])
    assert np.isnan(ds.prf_eccentricity.values[0])
    assert not ds.roi_mask.values[0, 0]


def test_bad_input(folder, tmp_path):
    raises(folder, tmp_path, SelectionError, "no subject 'sub-04' in THINGS-fMRI", subject=4)
    raises(folder, tmp_path, SelectionError, "no ROI 'V9'", roi="V9")
    raises(folder, tmp_path, StoreError, "no file .*sub-03_StimulusMetadata", subject=3)
    path = folder / "sub-01_ResponseData.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    raises(folder, tmp_path, CorruptStoreError, "is cut short")
    write_responses(path, np.zeros((VOXELS, TRIALS - 1)))
    raises(folder, tmp_path, SourceError, "not of the same subject")
    values = np.ones((VOXELS, TRIALS))
    values[4, 2] = np.inf
    write_responses(path, values)
    raises(folder, tmp_path, SourceError, r"session 1 .* 1 values are not finite")
    table = folder / "sub-01_VoxelMetadata.csv"
    table.write_text(table.read_text()[:-20])
    raises(folder, tmp_path, SourceError, "its last line is torn")
