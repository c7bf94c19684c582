"""LAION-fMRI in its published layout, against what was written and plain numpy."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

import nedx
from nedx.errors import CorruptStoreError, SelectionError, SourceError, StoreError
from nedx.sources.importing import import_source
from nedx.sources.laion_fmri import open_laion_fmri
from tests.laziness import computes_at_most

SHAPE = (5, 4, 3)
TRIALS = (12, 15)
AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])
NAME = "sub-03"


def save(values, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def func(root, session):
    folder = root / f"derivatives/glmsingle-tedana/{NAME}/ses-{session:02d}/func"
    return folder, f"{NAME}_ses-{session:02d}_task-images"


def betas(root, session):
    folder, name = func(root, session)
    return folder / f"{name}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"


def brain():
    inside = np.zeros(SHAPE, bool)
    inside[1:4, 1:3] = True
    return inside


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "laion"
    rng = np.random.default_rng(0)
    for session, trials in enumerate(TRIALS, start=1):
        values = rng.standard_normal((*SHAPE, trials)).astype(np.float32)
        save(values, betas(root, session))
        folder, name = func(root, session)
        lines = ["session\trun\tbeta_index\tlabel"]
        for trial in range(trials):
            kind = "shared_12rep_LAION_cluster_1_i0" if trial % 3 == 0 else f"unique_{trial}"
            lines.append(f"ses-{session:02d}\trun-{1 + trial % 2:02d}\t{trial}\t{kind}.jpg")
        (folder / f"{name}_desc-SingletrialBetas_trials.tsv").write_text("\n".join(lines) + "\n")
    subject = root / f"derivatives/glmsingle-tedana/{NAME}"
    prefix = f"{NAME}_task-images_space-T1w"
    r2 = np.where(brain(), 0.5, 0).astype(np.float32)
    save(r2, subject / f"{prefix}_stat-rsquare_desc-R2mean_statmap.nii.gz")
    ceiling = np.arange(60, dtype=np.float32).reshape(SHAPE)
    save(ceiling, subject / f"{prefix}_desc-Noiseceiling12rep_statmap.nii.gz")
    region = np.zeros(SHAPE, np.uint8)
    region[2, 1] = 1
    where = root / f"derivatives/rois/{NAME}/face"
    save(region, where / f"{NAME}_space-T1w_res-1pt8_label-FFA1_mask.nii.gz")
    return root


def expected(root, session, inside):
    values = nibabel.load(betas(root, session)).get_fdata()[inside].T
    return (values - values.mean(0)) / values.std(0)


def test_values_and_labels(root):
    with computes_at_most(0):
        ds = open_laion_fmri(root, subject=3)
    nedx.validate(ds)
    wanted = np.concatenate([expected(root, session, brain()) for session in (1, 2)])
    np.testing.assert_allclose(ds.response, wanted, atol=2e-5)
    assert ds.image_id.values[0] == "laion:shared_12rep_LAION_cluster_1_i0"
    assert ds.is_shared.values[:3].tolist() == [True, False, False]
    assert ds.session.values.tolist() == [1] * 12 + [2] * 15
    assert ds.run.values[:2].tolist() == [1, 2]
    assert ds.repetition.values[12] == 4
    ceiling = np.arange(60).reshape(SHAPE)[brain()] / 100
    np.testing.assert_allclose(ds.noise_ceiling, ceiling, rtol=1e-6)
    assert ds.noise_ceiling.attrs["n_repetitions"] == 12
    assert str(ds.roi_group.sel(roi="FFA1").values) == "face"
    plain = open_laion_fmri(root, subject=3, sessions=[2], normalize="none")
    assert plain.response.attrs["units"] == "percent"
    raw = nibabel.load(betas(root, 2)).get_fdata()[brain()].T
    np.testing.assert_allclose(plain.response, raw, rtol=1e-6)


def test_import_of_a_roi(root, tmp_path):
    place = tmp_path / "laion.zarr"
    import_source("laion-fmri", root, place, subject="sub-03", roi="FFA1")
    stored = nedx.open(str(place))
    inside = np.zeros(SHAPE, bool)
    inside[2, 1] = True
    wanted = np.concatenate([expected(root, session, inside) for session in (1, 2)])
    np.testing.assert_allclose(stored.response, wanted, atol=1e-5, rtol=6e-4)
    assert nedx.verify(str(place)).ok


def raises(root, tmp_path, kind, words, **arguments):
    place = tmp_path / "refused.zarr"
    with pytest.raises(kind, match=words):
        import_source("laion-fmri", root, place, **{"subject": 3, **arguments})
    assert not place.exists()


def test_bad_input(root, tmp_path):
    raises(root, tmp_path, SelectionError, "no subject 'sub-02' in LAION-fMRI", subject=2)
    raises(root, tmp_path, SelectionError, "no ROI 'FFA2'.*'FFA1'", roi="FFA2")
    raises(root, tmp_path, SelectionError, "no ceiling", ceiling="Noiseceiling")
    raises(root, tmp_path, SourceError, "session 4 of sub-03 are missing", sessions=[1, 4])
    folder, name = func(root, 2)
    table = folder / f"{name}_desc-SingletrialBetas_trials.tsv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    raises(root, tmp_path, SourceError, "14 trials, numbered 0 to 13, .* 15 volumes")
    table.write_text("\n".join(lines).replace("\t3\tshared", "\tn/a\tshared") + "\n")
    raises(root, tmp_path, SourceError, "line 5 of .* has the beta_index 'n/a'")
    table.unlink()
    raises(root, tmp_path, StoreError, "no file .*trials.tsv")
    table.write_text("\n".join(lines) + "\n")
    mask = root / f"derivatives/rois/{NAME}/face/{NAME}_space-T1w_res-1pt8_label-FFA1_mask.nii.gz"
    save(np.ones(SHAPE, np.uint8), mask, np.eye(4))
    raises(root, tmp_path, SourceError, "the affine of .* differs")
    betas(root, 1).write_bytes(betas(root, 1).read_bytes()[:-200])
    raises(root, tmp_path, CorruptStoreError, "is cut short")


def test_values_that_are_not_finite(root, tmp_path):
    values = nibabel.load(betas(root, 1)).get_fdata().astype(np.float32)
    values[1, 1, 0, 2] = np.nan
    values[2, 1, 1] = np.nan
    save(values, betas(root, 1))
    raises(root, tmp_path, SourceError, r"statmap.nii.gz\): 13 values .*voxel \(2, 1, 1\)")
    found = open_laion_fmri(root, subject=3, sessions=[1], missing="zero").response.values
    course = np.delete(values[1, 1, 0].astype(np.float64), 2)
    assert found[2, 0] == 0
    wanted = (course - course.mean()) / course.std()
    np.testing.assert_allclose(np.delete(found[:, 0], 2), wanted, atol=2e-5)
    constant = np.flatnonzero((np.argwhere(brain()) == (2, 1, 1)).all(1))[0]
    assert (found[:, constant] == 0).all()
