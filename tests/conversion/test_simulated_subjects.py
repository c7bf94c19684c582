"""The simulated datasets hold maps between subjects: converters come near to what they allow."""

from __future__ import annotations

import numpy as np
import pytest

import nedx
from nedx.conversion.training import Material
from nedx.simulation.stores import open_simulation


def r(x, y, axis=0):
    x, y = ((v - v.mean(axis)) / v.std(axis) for v in (x, y))
    return (x * y).mean(axis)


@pytest.fixture(scope="module")
def fmri():
    tree = nedx.open("sim-fmri").ned.roi(["V1", "V2", "V3"])
    fit = nedx.RidgeConverter("whole", alpha=1000.0, device="cpu").fit
    return fit(tree, pairs=[(1, 2), (2, 1)]), tree


def test_voxels_are_predicted_better_than_by_the_subject_s_own_repeat(fmri):
    converter, tree = fmri
    one, other = (tree[f"sub-0{n}"].to_dataset() for n in (1, 2))
    test = one["partition"].values == "test"
    made = one.isel(image=test).ned.convert(converter)
    nedx.validate(made)
    truth = open_simulation("sim-fmri", group="truth/sub-02")["noise_free"]
    truth = truth.sel(voxel=other["voxel"].values).values[test].astype(float)
    found = made["response"].values.astype(float)
    own = other["response"].values[test].astype(float)
    responsive = truth.std(0) > 0.3
    converted = r(found.mean(1), truth)[responsive].mean()
    assert converted > r(own[:, 0], truth)[responsive].mean()
    back = made.ned.convert(converter)["response"].values
    original = one.isel(image=test)["response"].values
    reliable = r(original[:, 0], original[:, 1]) > 0.1
    repeated = r(original[:, 0], original[:, 1])[reliable].mean()
    assert r(back[:, 0], original[:, 0])[reliable].mean() > repeated


def test_channels_are_converted_nearly_as_by_the_true_map():
    eeg = nedx.open("sim-eeg", subject=[1, 2], time=(0.05, 0.4)).isel(image=slice(None, None, 4))
    truth = open_simulation("sim-eeg", group="truth").sel(subject=["sub-01", "sub-02"])
    truth = truth.isel(image=slice(None, None, 4)).sel(time=eeg["time"].values, method="nearest")
    one, other = (eeg.isel(subject=n) for n in (0, 1))
    converter = nedx.RidgeConverter(device="cpu").fit(one, other)
    test = eeg["partition"].values == "test"
    made = one.isel(image=test).ned.convert(converter)["response"].mean("repetition").values
    into = truth["pair_into"].values[0].astype(float)
    pair = into @ truth["pair_out_of"].values[1].astype(float)
    noisy = one["response"].isel(image=test).mean("repetition").values
    by_truth = np.einsum("nct,cd->ndt", noisy, pair)
    wanted = truth["noise_free"].values[1][test].astype(float)
    shared = np.flatnonzero(wanted.std(0).ravel() > 0.2)
    flat = [v.reshape(len(v), -1)[:, shared] for v in (made, by_truth, wanted)]
    assert r(flat[0], flat[2]).mean() >= 0.95 * r(flat[1], flat[2]).mean()


def test_a_subject_is_read_once_for_all_its_pairs(fmri):
    _, tree = fmri
    subjects = {name: tree[name].to_dataset() for name in ("sub-01", "sub-02", "sub-03")}
    material = Material(subjects)
    first = material.together(["sub-01", "sub-02"])
    again = material.together(["sub-03", "sub-01"])
    assert first["sub-01"] is again["sub-01"]
