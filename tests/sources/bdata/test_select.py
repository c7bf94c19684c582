"""The select expressions of BData, against boolean algebra written out by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import nedx
from nedx.errors import SelectionError
from nedx.sources.bdata.reading import open_bdata
from tests.laziness import computes_at_most
from tests.sources.bdata.files import VOXELS, bdata_parts, write_bdata

FLAGS = bdata_parts()[-1]
V1, V2, VC, HVC = (FLAGS[f"ROI_{name}"] for name in ("V1", "V2", "VC", "HVC"))
LH, RH, NONE = FLAGS["ROI_LH_VC"], FLAGS["ROI_RH_VC"], FLAGS["ROI_none"]
NUMBER = np.arange(VOXELS)


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return open_bdata(write_bdata(tmp_path_factory.mktemp("bdata") / "sub-01_a.h5"))


CASES = {
    "ROI_V1": V1,
    "ROI_V1 = 1": V1,
    "ROI_V1=1": V1,
    "ROI_V1 = 2": NONE,
    "ROI_V1 = 0": ~V1,
    "ROI_V1 + ROI_V2": V1 | V2,
    "ROI_V1|ROI_V2": V1 | V2,
    "ROI_V1 & ROI_V2": V1 & V2,
    "ROI_VC - ROI_V1": VC & ~V1,
    # Alike in binding, from left to right.
    "ROI_V1 + ROI_V2 & ROI_LH_VC": (V1 | V2) & LH,
    "ROI_V1 + (ROI_V2 & ROI_LH_VC)": V1 | (V2 & LH),
    "ROI_VC - ROI_V1 + ROI_V2": (VC & ~V1) | V2,
    "ROI_VC - (ROI_V1 + ROI_V2)": VC & ~(V1 | V2),
    "ROI_V1 = 1 + ROI_V2 = 1": V1 | V2,
    # '@' binds least: what is on either side of it is joined first.
    "ROI_V1 @ ROI_LH_VC + ROI_RH_VC": V1 & (LH | RH),
    "ROI_V1 + ROI_HVC @ ROI_LH_VC - ROI_V1": (V1 | HVC) & (LH & ~V1),
    "ROI_LH_*": LH,
    "ROI_*": VC,
    "*V1": V1 | FLAGS["hcp180_V1"],
    "ROI_V* - ROI_VC": NONE,
    "ROI_*H_VC - ROI_V1": VC & ~V1,
    "'ROI_V1' + \"hcp180_V1\"": V1 | FLAGS["hcp180_V1"],
    "VoxelData": VC,
    "voxel_i = 1": (NUMBER % 7) == 1,
    "((ROI_V1))": V1,
}


@pytest.mark.parametrize("expression", list(CASES))
def test_expressions_mean_what_they_mean_in_bdata(ds, expression):
    with computes_at_most(0):
        got = ds.ned.select(expression)
    assert got["voxel"].values.tolist() == NUMBER[CASES[expression]].tolist()
    assert got["roi"].identical(ds["roi"])


KEYS = {"ROI_V1": V1, "ROI_V2": V2, "ROI_LH_VC": LH, "ROI_HVC = 1": HVC}
STEPS = {
    "+": np.logical_or,
    "|": np.logical_or,
    "&": np.logical_and,
    "-": lambda left, right: left & ~right,
}


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(list(STEPS)), st.sampled_from(list(KEYS))),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["", " ", "  "]),
)
def test_chains_are_folded_from_the_left(ds, chains, space):
    parts, values = [], []
    for chain in chains:
        parts.append(chain[0][1] + "".join(f"{space}{sign}{space}{key}" for sign, key in chain[1:]))
        first = KEYS[chain[0][1]]
        values.append(functools.reduce(lambda a, s: STEPS[s[0]](a, KEYS[s[1]]), chain[1:], first))
    got = ds.ned.select(f"{space}@{space}".join(parts))["voxel"].values
    np.testing.assert_array_equal(got, NUMBER[np.logical_and.reduce(values)])


def test_selecting_before_computing_saves_the_reading(ds):
    part = ds.ned.select("ROI_V1 + ROI_V2")
    expected = bdata_parts()[0][:, 3 : 3 + VOXELS][:, V1 | V2].astype(np.float32)
    np.testing.assert_array_equal(part["response"].values, expected)
    assert part["response"].data.plan.columns.tolist() == (3 + NUMBER[V1 | V2]).tolist()


def test_it_works_on_any_responses_with_rois_and_on_trees():
    mask = np.array([[[1, 1, 0, 0], [0, 0, 0, 1]], [[0, 1, 1, 0], [0, 0, 1, 0]]], bool)
    ds = xr.Dataset(
        {"response": (("image", "vertex"), np.zeros((2, 4), np.float32))},
        coords={
            "vertex": np.arange(4),
            "roi": np.array(["V1v", "FFA-1"], dtype=object),
            "roi_mask": (("subject", "roi", "vertex"), mask),
        },
    )
    assert ds.ned.select("V1v - 'FFA-1'")["vertex"].values.tolist() == [0, 1]
    tree = xr.DataTree.from_dict({"/sub-01": ds, "/sub-02": ds})
    chosen = nedx.ned(tree).select("'FFA-1'")
    assert [chosen[name]["vertex"].values.tolist() for name in ("sub-01", "sub-02")] == [[2, 3]] * 2


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("ROI_V7", "unknown key 'ROI_V7': did you mean"),
        ("roi_v1", "unknown key 'roi_v1'"),
        ("ROI_X*", r"unknown key 'ROI_X\*'"),
        ("ROI_?1", "unknown key"),
        ("Run", r"unknown key 'Run': it labels samples: type ds\['run'\]"),
        ("ROI_V1 +", "it ends where a key is expected"),
        ("+ ROI_V1", r"'\+' stands where a key is expected"),
        ("ROI_V1 ROI_V2", "an operator is missing before 'ROI_V2'"),
        ("(ROI_V1 + ROI_V2", "a parenthesis is not closed"),
        ("ROI_V1)", r"'\)' is one too many"),
        ("'ROI_V1", "a quote is not closed"),
        ("", "it ends where a key is expected"),
        ("3", "a number alone"),
        ("ROI_V1 + 3", "between keys, not numbers"),
        ("ROI_V1 = ROI_V2", "between a key and a number"),
    ],
)
def test_what_cannot_be_understood_is_told(ds, expression, message):
    with pytest.raises(SelectionError, match=message):
        ds.ned.select(expression)


def test_there_must_be_neuroids():
    with pytest.raises(SelectionError, match="there are none here"):
        xr.Dataset({"pixels": ("image", np.zeros(2))}).ned.select("ROI_V1")
