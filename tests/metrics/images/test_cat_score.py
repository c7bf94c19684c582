"""The CAT score, its intervals and its judges, against sums written out and published examples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.images import annotator_agreement, cat_score, match_by_similarity
from nedx.metrics.intervals import t_interval
from tests.laziness import computes_at_most
from tests.metrics.images.pictures import features

ROLES = ["broad_1", "broad_2", "specific", "background", "extra"]
IDS = [f"set:{i}" for i in range(8)]
RNG = np.random.default_rng(2)
MATCH = RNG.random((2, 4, 3, 8, 5)) < [0.8, 0.6, 0.3, 0.5, 0.4]


def judged(values=MATCH, **coords):
    dims = ("model", "subject", "annotator", "image", "tag")[-values.ndim :]
    found = xr.DataArray(values, dims=dims, coords={"image_id": ("image", IDS), **coords})
    return found.set_xindex("image_id")


def tagged(ids=IDS, absent=()):
    words = np.array([[f"{role} of {i}" for role in ROLES] for i in ids], dtype=object)
    for image, tag in absent:
        words[image, tag] = ""
    coords = {"image_id": ("image", ids), "tag_role": ("tag", ROLES)}
    return xr.DataArray(words, dims=("image", "tag"), coords=coords)


def test_scores_are_sums_over_images_and_tags():
    found = cat_score(judged(tag_role=("tag", ROLES)))
    np.testing.assert_array_equal(found["cat_score"], MATCH.sum(axis=(-1, -2)))
    np.testing.assert_allclose(found["cat_fraction"], MATCH.mean(axis=(-1, -2)))
    np.testing.assert_array_equal(found["cat_role_score"], MATCH.sum(axis=-2))
    np.testing.assert_allclose(found["cat_role_fraction"], MATCH.mean(axis=-2))
    assert found["role"].values.tolist() == ROLES
    assert found["cat_score"].attrs["maximum"] == 40
    assert found["cat_role_score"].sum() == found["cat_score"].sum()


def test_two_hundred_images_of_five_tags_score_a_thousand_at_most():
    ones = np.ones((200, 5), dtype=bool)
    coords = {"image_id": ("image", [f"set:{i}" for i in range(200)])}
    found = cat_score(xr.DataArray(ones, dims=("image", "tag"), coords=coords))
    assert found["cat_score"] == found["cat_score"].attrs["maximum"] == 1000
    assert "cat_mean" not in found
    assert "cat_interval_t" not in found


def test_intervals_are_over_subjects_and_over_annotators():
    found = cat_score(judged())
    scores = MATCH.sum(axis=(-1, -2)).astype(float)
    np.testing.assert_allclose(found["cat_mean"], scores.mean(axis=(1, 2)))
    for over, axis in (("subject", 2), ("annotator", 1)):
        for model, values in enumerate(scores.mean(axis=axis)):
            n = values.size
            sem = scipy.stats.sem(values)
            expected = scipy.stats.t.interval(0.95, n - 1, loc=values.mean(), scale=sem)
            by_t, drawn = (
                found[f"cat_interval_{how}"].sel(over=over)[model] for how in ("t", "bootstrap")
            )
            np.testing.assert_allclose(by_t, expected)
            lower, upper = drawn.values
            assert values.min() <= lower <= values.mean() <= upper <= values.max()


def test_the_t_interval_covers_as_often_as_it_says():
    values = xr.DataArray(RNG.normal(size=(4000, 5)), dims=("draw", "subject"))
    bounds = t_interval(values, level=0.8)
    covered = (bounds.sel(bound="lower") < 0) & (bounds.sel(bound="upper") > 0)
    assert abs(covered.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 4000)


def test_one_subject_has_no_interval():
    found = cat_score(judged(MATCH[:, :1, :1]))
    assert "cat_interval_t" not in found
    assert t_interval(found["cat_score"][:, 0], "annotator").isnull().all()


def missing_some():
    values = MATCH.astype(float)
    values[0, 1, 2, 3, 4] = values[0, 1, 2, 5, 0] = np.nan
    return values


def test_missing_judgements_are_refused():
    with pytest.raises(SchemaError, match=r"2 of 960 are missing.*missing='report'"):
        cat_score(judged(missing_some()))


def test_missing_judgements_are_no_mismatches_when_reported():
    values = missing_some()
    found = cat_score(judged(values, tag_role=("tag", ROLES)), missing="report")
    counts = np.isnan(values).sum(axis=(-1, -2))
    np.testing.assert_array_equal(found["n_missing"], counts)
    np.testing.assert_allclose(found["fraction_judged"], 1 - counts / 40)
    np.testing.assert_allclose(found["cat_score"], np.nansum(values, axis=(-1, -2)))
    np.testing.assert_allclose(found["cat_fraction"], np.nanmean(values, axis=(-1, -2)))
    np.testing.assert_allclose(found["cat_role_fraction"], np.nanmean(values, axis=-2))
    assert found.attrs["missing"] == "report"


def test_tags_that_an_image_has_not_are_not_asked_for():
    absent = [(3, 4), (5, 0)]
    order = RNG.permutation(8)
    tags = tagged(absent=absent).isel(image=order)
    found = cat_score(judged(missing_some()), tags)
    asked = np.ones((8, 5), dtype=bool)
    asked[3, 4] = asked[5, 0] = False
    np.testing.assert_array_equal(found["cat_score"], (MATCH & asked).sum(axis=(-1, -2)))
    assert found["cat_score"].attrs["maximum"] == 38
    assert found["role"].values.tolist() == ROLES
    assert (found["n_missing"] == 0).all()
    whole = judged(missing_some()).to_dataset(name="match").assign(tags=tagged(absent=absent))
    xr.testing.assert_identical(cat_score(whole), found)


def test_tags_lie_in_any_order_of_dims_and_of_images():
    expected = cat_score(judged(), tagged(absent=[(1, 3)]))
    turned = tagged(absent=[(1, 3)])[::-1].transpose("tag", "image")
    xr.testing.assert_identical(cat_score(judged(), turned), expected)


def test_roles_and_images_are_any_strings():
    strings = np.dtypes.StringDType()
    roles = ("tag", np.array(ROLES, dtype=strings))
    match = judged().drop_indexes("image_id").assign_coords(tag_role=roles)
    match = match.assign_coords(image_id=("image", np.array(IDS, dtype=strings)))
    found = cat_score(match, tagged().astype(strings).assign_coords(tag_role=roles))
    expected = cat_score(judged(), tagged())
    xr.testing.assert_identical(found["cat_role_score"], expected["cat_role_score"])


def test_degrees_of_matching_are_added_up():
    values = RNG.random((4, 8, 5))
    xr.testing.assert_allclose(
        cat_score(judged(values[:, None]))["cat_score"][:, 0].drop_attrs(),
        xr.DataArray(values.sum(axis=(1, 2)), dims="subject"),
    )


@settings(max_examples=4)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 5), st.integers(1, 3))
def test_chunks_make_no_difference(subject, image, tag, annotator):
    chunks = {"subject": subject, "image": image, "tag": tag, "annotator": annotator}
    chunked = judged(missing_some()).chunk(chunks)
    options = {"missing": "report", "n_resamples": 100}
    whole = cat_score(judged(missing_some()), **options)
    xr.testing.assert_allclose(cat_score(chunked, **options), whole)
    xr.testing.assert_allclose(
        annotator_agreement(chunked), annotator_agreement(judged(missing_some()))
    )


def test_nothing_is_computed_before_it_is_asked_for():
    chunked = judged().chunk(subject=1)
    with computes_at_most(0):
        found = cat_score(chunked, tagged())
        annotator_agreement(chunked)
    with computes_at_most(1):
        found.compute()


def test_alpha_is_that_of_the_published_example():
    # Krippendorff 2011, section C: four observers, twelve units, values 1 to 5; alpha for
    # interval data is 0.849.
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3"]
    rows += [". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    table = [[np.nan if v == "." else (int(v) - 1) / 4 for v in row.split()] for row in rows]
    match = xr.DataArray(np.array(table)[..., None], dims=("annotator", "image", "tag"))
    assert round(annotator_agreement(match)["krippendorff_alpha"].item(), 3) == 0.849


def test_agreement_of_copies_and_of_coins():
    same = judged(np.repeat(MATCH[:, :, :1], 3, axis=2))
    xr.testing.assert_equal(
        annotator_agreement(same)["agreement"],
        xr.ones_like(same[..., 0, 0, 0], float).drop_vars("image_id"),
    )
    np.testing.assert_allclose(annotator_agreement(same)["krippendorff_alpha"], 1)
    coins = xr.DataArray(RNG.random((2, 4000, 5)) < 0.5, dims=("annotator", "image", "tag"))
    found = annotator_agreement(coins)
    assert abs(found["agreement"] - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    assert abs(found["krippendorff_alpha"]) < 4 / np.sqrt(20_000)


def test_the_automatic_matcher_compares_cosines_and_says_so():
    images = features(RNG.normal(size=(2, 8, 6)), ids=IDS, lead=("subject",))
    order = RNG.permutation(8)
    text = RNG.normal(size=(8, 5, 6))
    coords = {"image_id": ("image", [IDS[i] for i in order]), "tag_role": ("tag", ROLES)}
    named = xr.DataArray(text[order], dims=("image", "tag", "feature"), coords=coords)
    named = named.set_xindex("image_id").assign_attrs(model="clip")
    found = match_by_similarity(images, named, threshold=0.2)
    cosines = np.einsum("sif,itf->sit", images.values, text)
    cosines /= np.linalg.norm(images.values, axis=-1)[..., None] * np.linalg.norm(text, axis=-1)
    np.testing.assert_array_equal(found, cosines >= 0.2)
    assert found.attrs["matcher"] == "cosine of features >= 0.2 (clip)"
    scored = cat_score(found)
    assert scored.attrs["matcher"] == found.attrs["matcher"]
    assert scored["role"].values.tolist() == ROLES
    with computes_at_most(0):
        match_by_similarity(images.chunk(image=3), named.chunk(image=2), threshold=0.2)


TWICE = judged().drop_indexes("image_id").isel(image=[0, 1, 2, 2])


@pytest.mark.parametrize(
    ("match", "tags", "options", "error", "message"),
    [
        (judged(MATCH * 2.0), None, {}, SchemaError, "values from 0 to 2"),
        (judged(MATCH.astype(str)), None, {}, SchemaError, "expected bool or numbers"),
        (judged()[..., 0], None, {}, SchemaError, "expected dims"),
        (judged().to_dataset(name="hits"), None, {}, SchemaError, "no variable 'match'"),
        (judged(), tagged(IDS[:6]), {}, SelectionError, "no tags of 2 images: set:6, set:7"),
        (judged(), tagged()[:, :4], {}, SchemaError, "5 tags were judged, 4 are named"),
        (judged(), tagged().drop_vars("image_id"), {}, SchemaError, "no image_id"),
        (judged(), tagged([*IDS, IDS[3]]), {}, SchemaError, "'set:3' is there more than once"),
        (TWICE, None, {}, SchemaError, "'set:2' is there more than once; .* a dim of their own"),
        (
            judged(tag_role=("tag", ROLES)),
            tagged()[:, ::-1],
            {},
            SchemaError,
            "tag_role is .*'broad_1', .* of the tags",
        ),
        (judged(), None, {"over": ["session"]}, SelectionError, "there are: model, subject"),
        (judged(), None, {"missing": "zero"}, ValueError, "'refuse' or 'report'"),
        (judged(), None, {"level": 95}, ValueError, "level is between 0 and 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(match, tags, options, error, message):
    with pytest.raises(error, match=message):
        cat_score(match, tags, **options)


def test_one_annotator_agrees_with_nobody():
    with pytest.raises(SchemaError, match="agreement takes two of 'annotator' or more"):
        annotator_agreement(judged()[:, :, :1])


@pytest.mark.parametrize(
    ("width", "threshold", "message"), [(5, 0.2, "take both of one model"), (6, 30, "cosine")]
)
def test_what_cannot_be_matched_is_refused(width, threshold, message):
    text = xr.DataArray(
        np.ones((8, 5, width)),
        dims=("image", "tag", "feature"),
        coords={"image_id": ("image", IDS)},
    )
    with pytest.raises(SchemaError, match=message):
        match_by_similarity(features(np.ones((8, 6)), ids=IDS), text, threshold=threshold)
