"""What converters refuse, and what they say of it."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import MissingExtraError, ModelError, NedxWarning, SelectionError, UnknownIdError
from tests.conversion.simulated import images, responses
from tests.laziness import computes_at_most


def plain(subject, size=10, rows=40, start=0, seed=0):
    rng = np.random.default_rng([seed, int(subject[-1])])
    return responses(rng.standard_normal((rows, size)), images(rows, start), subject)


def with_rois(ds, **masks):
    held = np.stack(list(masks.values()))
    return ds.assign_coords(
        roi=np.array(list(masks), dtype=object), roi_mask=(("roi", "voxel"), held)
    )


@pytest.mark.parametrize(
    "make",
    [
        nedx.RidgeConverter,
        nedx.ProcrustesConverter,
        nedx.HyperalignmentConverter,
        nedx.OptimalTransportConverter,
    ],
)
def test_no_shared_images(make):
    expected = "sub-01 and sub-02 share no training images.*'sim:0000'.*'sim:0100'.*" + re.escape(
        "ContentLossConverter(decoder) needs none"
    )
    with pytest.raises(ModelError, match=expected):
        make().fit(plain("sub-01"), plain("sub-02", start=100))


def test_labels_of_other_kinds_share_nothing():
    numbers = plain("sub-02")
    numbers = numbers.drop_indexes("image_id").assign_coords(
        image_id=("image", np.arange(40).astype(str).astype(object))
    )
    with pytest.raises(ModelError, match=r"such as 'sim:0000'.*such as '0'"):
        nedx.RidgeConverter().fit(plain("sub-01"), numbers)
    nameless = plain("sub-02").drop_vars("image_id")
    with pytest.raises(ModelError, match="sub-02 have no 'image_id'"):
        nedx.RidgeConverter().fit(plain("sub-01"), nameless)


def test_only_test_images_are_shared():
    held = plain("sub-01").assign_coords(partition=("image", np.array(["test"] * 40, object)))
    with pytest.raises(ModelError, match="sub-01 saw no training images"):
        nedx.RidgeConverter().fit(held, plain("sub-02"))


def test_constant_and_missing_values():
    one, other = plain("sub-01"), plain("sub-02")
    constant = other.copy(deep=True).compute()
    constant["response"].values[:, [3, 7]] = 0.1
    with pytest.raises(ModelError, match=r"2 of 10 neuroids of sub-02 are constant.*\[3, 7\]"):
        nedx.RidgeConverter().fit(one, constant)
    missing = one.copy(deep=True).compute()
    missing["response"].values[[2, 30], 1] = np.nan
    with pytest.raises(
        ModelError, match=r"sub-01 are NaN .* 2 of 40 samples.*'sim:0002', 'sim:0030'"
    ):
        nedx.RidgeConverter().fit(missing, other)
    fitted = nedx.RidgeConverter(alpha=1.0, device="cpu").fit(one, other)
    with pytest.raises(ModelError, match=r"NaN or infinite values .*sim:0002"):
        missing.ned.convert(fitted)["response"].compute()


def test_what_is_advised_can_be_typed():
    one, other = plain("sub-01"), plain("sub-02")
    spoilt = one.copy(deep=True).compute()
    spoilt["response"].values[:, 4] = np.nan
    with pytest.raises(ModelError, match=r"1 of 10 neuroids of sub-01 are NaN .* \[4\]") as error:
        nedx.RidgeConverter(alpha=1.0).fit(spoilt, other)
    advised = str(error.value).rpartition("as by ")[2]
    mended = eval(advised, {"ds": spoilt.chunk()})
    spoilt["response"].values[:, 4] = 3.0
    with pytest.raises(ModelError, match="constant") as error:
        nedx.RidgeConverter(alpha=1.0).fit(spoilt, other)
    advised = str(error.value).rpartition("as by ")[2]
    for ds in (mended, eval(advised, {"ds": spoilt.chunk()})):
        assert ds["voxel"].values.tolist() == np.delete(one["voxel"].values, 4).tolist()
        nedx.RidgeConverter(alpha=1.0, device="cpu").fit(ds, other)


def test_all_pairs_and_parameters_are_checked_before_any_is_read():
    tree = xr.DataTree.from_dict(
        {f"sub-0{n}": plain(f"sub-0{n}", start=100 * (n == 3)) for n in (1, 2, 3)}
    )
    make = nedx.RidgeConverter
    pairs = [(1, 2), (1, 3)]
    with computes_at_most(0):
        with pytest.raises(ModelError, match="sub-01 and sub-03 share no training images"):
            make(alpha=1.0).fit(tree, pairs=pairs)
        with pytest.raises(ModelError, match="has none for sub-01 to sub-03"):
            make(alpha={(1, 2): 1.0}).fit(tree, pairs=pairs)
        with pytest.raises(ModelError, match=r"by pairs such as .*, not 'sub-01'"):
            make(alpha={"sub-01": 1.0}).fit(tree, pairs=[(1, 2)])
        with pytest.raises(ModelError, match=r"alphas are \[-1\]"):
            make(alphas=[-1]).fit(tree, pairs=[(1, 2)])
        with pytest.raises(ModelError, match="cv is 1; type a number of folds from 2"):
            make(cv=1).fit(tree, pairs=[(1, 2)])
        with pytest.raises(ModelError, match="areas= names none"):
            make("subarea", areas=[]).fit(tree, pairs=[(1, 2)])
        with pytest.raises(ModelError, match="reg is '0.1'; type a positive number"):
            nedx.OptimalTransportConverter(reg="0.1").fit(tree, pairs=[(1, 2)])
        for wrong in ([1, 2], ("sub-01", "sub-02"), [(1, 2, 3)]):
            with pytest.raises(ModelError, match=r"type a list of \(source, target\)"):
                make().fit(tree, pairs=wrong)
    with pytest.raises(ModelError, match="sub-01 has no ROI 'V1'"):
        make("subarea", areas="V1").fit(tree, pairs=[(1, 2)])


def test_regions_that_are_not_there():
    size = np.arange(10)
    whole = {"V1": size % 5 < 3, "V2": size % 5 >= 3}
    one = with_rois(plain("sub-01"), **whole)
    fit = nedx.RidgeConverter("subarea", alpha=1.0, areas=["V1", "V2"]).fit
    with pytest.raises(ModelError, match="sub-02 has no ROI 'V2'"):
        fit(one, with_rois(plain("sub-02"), V1=size >= 0))
    left_only = {"V1": size >= 0, "V2": size == 0}
    with pytest.raises(ModelError, match="sub-02 has no neuroids in RH_V2"):
        fit(one, with_rois(plain("sub-02"), **left_only))
    partial = {"V1": size % 5 == 0, "V2": size % 5 == 1}
    with pytest.raises(ModelError, match=r"6 of 10 neuroids of sub-02 are in none of LH_V1"):
        fit(one, with_rois(plain("sub-02"), **partial))
    with pytest.raises(ModelError, match="neither the 'hemisphere' nor ROIs such as 'ROI_LH_VC'"):
        nedx.RidgeConverter("whole").fit(plain("sub-01").drop_vars("hemisphere"), one)
    flags = with_rois(
        plain("sub-02").drop_vars("hemisphere"), ROI_LH_VC=size < 4, ROI_RH_VC=size >= 4
    )
    fitted = nedx.RidgeConverter("whole", alpha=1.0, device="cpu").fit(plain("sub-01"), flags)
    assert (fitted.model_.weights(1, 2)["weight"].values[:5, 4:] == 0).all()


def test_subjects_and_pairs():
    tree = xr.DataTree.from_dict({f"sub-0{n}": plain(f"sub-0{n}") for n in (1, 2, 3)})
    make = nedx.ProcrustesConverter
    with pytest.raises(ModelError, match=r"there are 3 subjects .* say which pairs"):
        make().fit(tree)
    with pytest.raises(ModelError, match=r"needs two subjects, found sub-01: .fit\(source, target"):
        make().fit(plain("sub-01"))
    with pytest.raises(ModelError, match="unknown subject 'sub-09'"):
        make().fit(tree, pairs=[(1, 9)])
    with pytest.raises(ModelError, match="two different subjects"):
        make().fit(tree, pairs=[(1, 1)])
    with pytest.raises(ModelError, match="the target holds 3 subjects"):
        make().fit(plain("sub-01"), tree)
    fitted = make(device="cpu").fit(tree, pairs=[(1, 2)])
    with pytest.raises(SelectionError, match="nothing converts sub-03 here"):
        tree["sub-03"].to_dataset().ned.convert(fitted)
    with pytest.raises(SelectionError, match="no target 'sub-03' here"):
        tree["sub-01"].to_dataset().ned.convert(fitted, subject=3)


def test_what_does_not_fit_a_converter():
    one, other = plain("sub-01"), plain("sub-02")
    fitted = nedx.ProcrustesConverter(device="cpu").fit(one, other)
    fewer = one.isel(voxel=slice(6))
    with pytest.raises(ModelError, match=r"4 of 10 voxels that the converter takes are missing"):
        fewer.ned.convert(fitted)
    raw = one.copy()
    raw["response"] = raw["response"].assign_attrs(units="percent")
    with pytest.raises(ModelError, match="units is 'percent', the converter takes '1'"):
        raw.ned.convert(fitted)
    with pytest.raises(ModelError, match=r"takes a converter, not int"):
        one.ned.convert(3)
    with pytest.raises(ModelError, match="not fitted yet"):
        one.ned.convert(nedx.RidgeConverter())
    with pytest.raises((UnknownIdError, nedx.errors.StoreError)):
        one.ned.convert("no-such-converter")


def test_parameters():
    one, other = plain("sub-01"), plain("sub-02")
    with pytest.raises(ModelError, match="method is one of full, whole, subarea"):
        nedx.RidgeConverter("hemispheres").fit(one, other)
    for alpha in (0, -1.0, "best", True):
        with pytest.raises(ModelError, match="type a positive number, 'cv', or a table"):
            nedx.RidgeConverter(alpha=alpha).fit(one, other)
    with pytest.raises(ModelError, match="the table of penalties has none for sub-01 to sub-02"):
        nedx.RidgeConverter(alpha={(2, 1): 3.0}).fit(one, other)
    with pytest.raises(ModelError, match="cost is one of"):
        nedx.OptimalTransportConverter("manhattan").fit(one, other)
    with pytest.raises(ModelError, match="reg is 0"):
        nedx.OptimalTransportConverter(reg=0).fit(one, other)
    with pytest.raises(ModelError, match="no parameter 'alfa'; did you mean 'alpha'"):
        nedx.RidgeConverter().set_params(alfa=1)
    with pytest.raises(ModelError, match="network is 'linear' or 'unet'"):
        nedx.EEGConverter("transformer").fit(one, other)
    with pytest.raises(ModelError, match=r"sub-01 has no times.*RidgeConverter"):
        nedx.EEGConverter().fit(one, other)
    with pytest.raises(ModelError, match=r"not fitted: type .fit\(source, target\)"):
        nedx.RidgeConverter().predict(one)


def test_transport_that_does_not_converge_is_told():
    fit = nedx.OptimalTransportConverter("normalized_sqeuclidean", reg=1e-5, device="cpu").fit
    with pytest.warns(NedxWarning, match="did not converge: try a larger reg"):
        fit(plain("sub-01"), plain("sub-02"))


def test_transport_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(MissingExtraError, match=r"nedx\[ot\]"):
        nedx.OptimalTransportConverter().fit(plain("sub-01"), plain("sub-02"))
