"""BIDS: the events of real datasets, and volumes with their events against nibabel."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest

import nedx
from nedx.errors import CorruptStoreError, SelectionError, SourceError, StoreError
from nedx.preprocessing.blocks import block_averages
from nedx.sources.bids import open_bids
from nedx.sources.bids_events import read_events
from nedx.sources.importing import import_source
from nedx.store.location import Location
from tests.laziness import computes_at_most
from tests.servers import S3Server

SHAPE = (4, 3, 5, 20)
EVENTS = """onset\tduration\ttrial_type\tstim_file
4.0\t4.0\tface\timages\\anna.png
8.0\t4.0\thouse\timages/villa.01
20\t2\tn/a\tn/a
30.0\t4.0\tface\tanna.png
"""


@pytest.fixture
def dataset(tmp_path):
    """Write two runs of 20 volumes, 2 s each."""
    root = tmp_path / "bids"
    func = root / "sub-01/ses-a/func"
    func.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Two Runs"}))
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 3, 3, 1])
    for run, ending in ((1, "nii.gz"), (2, "nii")):
        values = (500 + 20 * rng.standard_normal(SHAPE)).astype(np.int16)
        image = nibabel.Nifti1Image(values, affine)
        image.header.set_zooms((3, 3, 3, 2.0))
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, func / f"sub-01_ses-a_task-look_run-0{run}_bold.{ending}")
        (func / f"sub-01_ses-a_task-look_run-0{run}_events.tsv").write_text(EVENTS)
    inside = np.zeros(SHAPE[:3], np.uint8)
    inside[1:3, :, 2:] = 1
    nibabel.save(nibabel.Nifti1Image(inside, affine), root / "mask.nii.gz")
    return root


def volumes(root, run):
    """Return (volume, voxel) within the mask, in C order."""
    ending = "nii.gz" if run == 1 else "nii"
    path = root / f"sub-01/ses-a/func/sub-01_ses-a_task-look_run-0{run}_bold.{ending}"
    inside = nibabel.load(root / "mask.nii.gz").get_fdata() > 0
    return nibabel.load(path).get_fdata()[inside].T


def test_volumes_with_their_events(dataset):
    with computes_at_most(0):
        ds = open_bids(dataset, subject=1, mask="mask.nii.gz", image_set="mine")
    nedx.validate(ds)
    for run in (1, 2):
        expected = volumes(dataset, run)
        expected = 100 * (expected / expected.mean(0) - 1)
        found = ds.response.isel(trial=(ds.run == run).values)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    first = ds.isel(trial=slice(0, 20))
    kinds = ["rest"] * 20
    kinds[2:4], kinds[4:6], kinds[15:17] = ["face"] * 2, ["house"] * 2, ["face"] * 2
    assert first.category.values.tolist() == kinds
    assert first.event.values.tolist() == [-1] * 2 + [0, 0, 1, 1] + [-1] * 9 + [3, 3] + [-1] * 3
    assert sorted(set(first.stimulus_id.values)) == ["", "mine:anna", "mine:villa.01"]
    assert first.onset.values[:3].tolist() == [0.0, 2.0, 4.0]


def test_a_delay_moves_the_labels_back(dataset):
    late = open_bids(dataset, subject=1, mask="mask.nii.gz", delay=4.0)
    assert late.category.values[:6].tolist() == ["rest"] * 4 + ["face"] * 2


def test_means_of_events_know_their_images(dataset):
    ds = open_bids(dataset, subject="sub-01", mask="mask.nii.gz", normalize="zscore")
    events = block_averages(ds, label="event", rest="-1", detrend=None)
    nedx.validate(events)
    assert (
        events.image_id.values.tolist()
        == [
            "two-runs:anna",
            "two-runs:villa.01",
            "two-runs:anna",
        ]
        * 2
    )
    course = volumes(dataset, 2)
    course = (course - course.mean(0)) / course.std(0)
    expected = [course[2:4].mean(0), course[4:6].mean(0), course[15:17].mean(0)]
    np.testing.assert_allclose(events.response[3:], expected, atol=1e-5)


def test_from_a_bucket(dataset):
    server = S3Server()
    try:
        url = server.fill("open-bids", dataset)
        there = Location.of(url, storage_options=server.options)
        near = open_bids(dataset, subject=1, mask="mask.nii.gz")
        far = open_bids(there, subject=1, mask="mask.nii.gz")
        np.testing.assert_array_equal(far.response, near.response)
    finally:
        server.close()


def raises(root, tmp_path, kind, words, **arguments):
    place = tmp_path / "refused.zarr"
    with pytest.raises(kind, match=words):
        import_source("bids", root, place, **{"subject": 1, **arguments})
    assert not place.exists()


def test_bad_input(dataset, tmp_path):
    func = dataset / "sub-01/ses-a/func"
    raises(dataset, tmp_path, SourceError, "no volumes of task walk", task="walk")
    raises(dataset, tmp_path, SourceError, "no column 'image'", stimulus="image")
    raises(dataset, tmp_path, SelectionError, "'percent' or 'zscore'", normalize="none")
    raises(dataset, tmp_path, StoreError, "no file .*brain.nii", mask="brain.nii")
    other = nibabel.Nifti1Image(np.ones((4, 3, 4), np.uint8), np.diag([3.0, 3, 3, 1]))
    nibabel.save(other, dataset / "other.nii")
    raises(dataset, tmp_path, SourceError, "has the shape", mask="other.nii")
    events = func / "sub-01_ses-a_task-look_run-02_events.tsv"
    events.write_text(EVENTS + "400\t1\tface\tanna.png\n")
    raises(dataset, tmp_path, SourceError, "begins at 400 s, the run in .* ends at 40 s")
    events.unlink()
    raises(dataset, tmp_path, StoreError, "no file .*run-02_events.tsv")
    events.write_text(EVENTS)
    bold = func / "sub-01_ses-a_task-look_run-02_bold.nii"
    bold.write_bytes(bold.read_bytes()[:-100])
    raises(dataset, tmp_path, CorruptStoreError, "is cut short")


@pytest.mark.parametrize("name", ["task-walk_run-01", "task-look_run-01_echo-2"])
def test_two_files_of_one_run(dataset, tmp_path, name):
    """They would be one run of twice the volumes to whatever is done by run."""
    func = dataset / "sub-01/ses-a/func"
    first = "sub-01_ses-a_task-look_run-01"
    shutil.copyfile(func / f"{first}_bold.nii.gz", func / f"sub-01_ses-a_{name}_bold.nii.gz")
    shutil.copyfile(func / f"{first}_events.tsv", func / f"sub-01_ses-a_{name}_events.tsv")
    raises(dataset, tmp_path, SourceError, "are both run 1 of session a: choose by task=")
    if "walk" in name:
        assert open_bids(dataset, subject=1, task="look").sizes["trial"] == 40


def test_times_of_events_that_are_not_finite(dataset, tmp_path):
    func = dataset / "sub-01/ses-a/func"
    events = func / "sub-01_ses-a_task-look_run-01_events.tsv"
    events.write_text(EVENTS.replace("8.0\t4.0", "8.0\tNaN"))
    ds = open_bids(dataset, subject=1, mask="mask.nii.gz")
    assert ds.event.values[3:6].tolist() == [0, 1, -1]
    events.write_text(EVENTS.replace("8.0\t4.0", "nan\t4.0"))
    raises(dataset, tmp_path, SourceError, "onset in line 3 .* is 'nan', no number")


def test_voxels_outside_the_brain_have_no_percent(dataset, tmp_path):
    path = dataset / "sub-01/ses-a/func/sub-01_ses-a_task-look_run-02_bold.nii"
    image = nibabel.load(path)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 0
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
    raises(dataset, tmp_path, SourceError, "1 voxels have a mean of 0 or below")
    inside = open_bids(dataset, subject=1, mask="mask.nii.gz")
    assert np.isfinite(inside.response.values).all()


@pytest.fixture(scope="module")
def events_of(shared_data):
    place = shared_data / "openneuro_events"
    if not place.is_dir():
        pytest.skip(f"the events are not at {place}")

    def read(dataset, **options):
        path = next(p for p in sorted((place / dataset).rglob("*events.tsv*")))
        return read_events(Location.of(path.parent), path.name, **options)

    return read


def test_onsets_in_samples_are_refused_or_converted(events_of):
    with pytest.raises(SourceError, match="these are samples, not seconds. Type sampling_rate="):
        events_of("ds003825")
    events = events_of("ds003825", sampling_rate=1000)
    assert events.onset[0] == pytest.approx(163.141)
    assert events.duration[0] == pytest.approx(0.05)
    assert events.stimulus[0] == "snowball_03s"
    assert events.category[0] == "snowball"


def test_ids_that_look_like_numbers_stay_as_written(events_of):
    events = events_of("ds001246", stimulus="stimulus_id")
    named = events_of("ds001246")
    assert named.category[0] == "rest"
    assert named.stimulus[0] == ""
    assert (named.stimulus != "").sum() == (events.stimulus != "").sum() > 0
    # The number is that of the name, six digits after the point.
    for number, name in zip(events.stimulus, named.stimulus, strict=True):
        if name:
            synset, image = name.removeprefix("n").split("_")
            assert number == f"{int(synset)}.{int(image):06d}"


def test_seconds_beside_seconds(events_of):
    events = events_of("ds001499")
    assert events.onset[0] == 6.0367
    assert events.columns["StimOn(s)"][0] == "6.0367"
    assert events.stimulus[0] == "n01930112_19568"
    assert events.category[0] == "imagenet"


def test_events_of_a_meg_dataset(events_of):
    events = events_of("ds000117")
    assert events.stimulus[0] == "u032"
    assert events.category[0] == "Unfamiliar"


def test_runs_of_haxby_are_labelled_as_its_attributes(shared_data, tmp_path):
    source = shared_data / "haxby2001_pymvpa"
    if not source.is_dir():
        pytest.skip(f"the recording is not at {source}")
    func = tmp_path / "sub-01/func"
    func.mkdir(parents=True)
    for run in range(1, 13):
        folder = source / f"haxby2001/sub001/BOLD/task001_run{run:03d}"
        name = f"sub-01_task-objects_run-{run:02d}"
        shutil.copyfile(folder / "bold_25mm.nii.gz", func / f"{name}_bold.nii.gz")
        shutil.copyfile(folder / "bold_events.tsv", func / f"{name}_events.tsv")
    mask = source / "haxby2001/sub001/masks/25mm/vt.nii.gz"
    shutil.copyfile(mask, tmp_path / "vt.nii.gz")
    ds = open_bids(tmp_path, subject=1, mask="vt.nii.gz")
    lines = (source / "attributes_literal.txt").read_text().split("\n")
    expected = [line.split()[0] for line in lines if line]
    assert ds.category.values.tolist() == expected
    assert ds.sizes["voxel"] == int((nibabel.load(mask).get_fdata() > 0).sum())
