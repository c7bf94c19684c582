"""Held-out concepts: whole ones, never of the test images, the same for all subjects."""

import numpy as np
import pytest

from nedx.decoding.samples import paired
from nedx.decoding.splitting import split_concepts
from nedx.decoding.targets import read_targets
from nedx.errors import ModelError
from tests.decoding.toy import features, responses


def subject(count=40, **coords):
    ds = responses(count).isel(subject=0)
    return ds.assign_coords({k: ("image", np.array(v, dtype=object)) for k, v in coords.items()})


def test_whole_concepts_are_held_out():
    ds = subject()
    split = split_concepts([ds], 0.25, 0)
    kinds = split.of(ds["image_id"].values)
    held = {c for c, kind in zip(ds["category"].values, kinds, strict=True) if kind == "val"}
    kept = {c for c, kind in zip(ds["category"].values, kinds, strict=True) if kind == "train"}
    assert len(held) == 5
    assert not held & kept
    assert split.rule == "5 of 20 concepts, drawn with seed 0"
    assert split.partition == split_concepts([ds], 0.25, 0).partition
    assert split.partition != split_concepts([ds], 0.25, 1).partition


def test_test_images_are_in_neither_part():
    ds = subject(partition=["test"] * 10 + ["train"] * 30)
    kinds = split_concepts([ds], 0.2, 0).of(ds["image_id"].values)
    assert (kinds[:10] == "test").all()
    assert sorted(set(kinds[10:])) == ["train", "val"]
    assert (kinds == "val").sum() == 6


def test_images_and_concepts_are_named_by_any_strings():
    ds = subject(partition=["test"] * 10 + ["train"] * 30)

    def read_by_xarray(x):
        """Return strings as xarray reads them from Zarr."""
        names = [name for name in ("image_id", "category", "partition") if name in x.coords]
        strings = {n: ("image", x[n].values.astype(np.dtypes.StringDType())) for n in names}
        return x.drop_indexes("image_id", errors="ignore").assign_coords(strings)

    read = read_by_xarray(ds)
    assert split_concepts([read], 0.2, 0) == split_concepts([ds], 0.2, 0)
    targets = read_targets(read_by_xarray(features(40)), ds["image_id"].values)
    assert targets.rows == read_targets(features(40), ds["image_id"].values).rows
    samples, _ = paired("sub-01", read, targets.rows, average=True)
    assert samples.image_id.tolist() == ds["image_id"].values.tolist()


def test_given_validation_images_are_taken():
    ds = subject(partition=["val"] * 4 + ["train"] * 36)
    split = split_concepts([ds], 0.2, 0)
    assert (split.of(ds["image_id"].values) == "val").sum() == 4
    assert split.rule == "images of the partition 'val'"


def test_subjects_who_saw_other_images_share_the_concepts_held_out():
    one, two = subject().isel(image=slice(0, 40, 2)), subject().isel(image=slice(1, 40, 2))
    split = split_concepts([one, two], 0.25, 0)
    held = [
        set(ds["category"].values[split.of(ds["image_id"].values) == "val"]) for ds in (one, two)
    ]
    assert held[0] == held[1]
    assert len(held[0]) == 5


@pytest.mark.parametrize("order", [1, -1])
def test_a_test_image_of_one_subject_is_none_to_train_on_for_another(order):
    one = subject(partition=["test"] * 10 + ["train"] * 30)
    two = subject(partition=["train"] * 30 + ["test"] * 10)
    split = split_concepts([one, two][::order], 0, 0)
    kinds = split.of(one["image_id"].values)
    assert (kinds == ["test"] * 10 + ["train"] * 20 + ["test"] * 10).all()


def test_without_categories_each_image_is_a_concept():
    split = split_concepts([subject().drop_vars("category")], 0.1, 0)
    assert split.count("val") == 4


@pytest.mark.parametrize("unknown", ["", np.nan, None])
def test_an_image_without_category_is_a_concept_of_its_own(unknown):
    split = split_concepts([subject(category=["a"] * 10 + [unknown] * 30)], 0.1, 0)
    assert split.rule == "3 of 31 concepts, drawn with seed 0"


@pytest.mark.parametrize(("share", "count"), [(0.01, 0), (0.99, 20)])
def test_shares_that_leave_nothing_are_refused(share, count):
    with pytest.raises(ModelError, match=f"of 20 concepts is {count}"):
        split_concepts([subject()], share, 0)


def test_nothing_to_train_on():
    with pytest.raises(ModelError, match="none of these images is of the partition 'train'"):
        split_concepts([subject(partition=["test"] * 40)], 0.1, 0)
