"""PixCorr and SSIM, against scikit-image, torch and what must hold of them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import SchemaError, SelectionError, StimulusError
from nedx.metrics.images import pixcorr, ssim
from nedx.store.opening import open_store
from nedx.store.writing import to_zarr
from tests.laziness import computes_at_most
from tests.metrics.images.pictures import IDS, blended, pictures, seen, stimuli, together

TRUE = pictures((4, 60, 75), seed=3)
RECONSTRUCTED = np.stack([blended(pictures((4, 48, 48), seed=3), s) for s in (0.9, 0.4)])
# Of the same size as the true ones, so that they can share a Dataset.
ALIKE = blended(TRUE, 0.5)


def by_torch(image, *sides):
    """Resize uint8 (y, x, rgb) as torchvision does float images: (rgb, y, x) in [0, 1]."""
    batch = torch.tensor(image / 255).permute(2, 0, 1)[None]
    for side in sides:
        batch = torch.nn.functional.interpolate(
            batch, size=(side, side), mode="bilinear", align_corners=False, antialias=True
        )
    return batch[0].numpy()


def mindeye_ssim(true, reconstructed):
    skimage = pytest.importorskip("skimage")
    grey = [
        skimage.color.rgb2gray(by_torch(image, 256, 425).transpose(1, 2, 0))
        for image in (true, reconstructed)
    ]
    return skimage.metrics.structural_similarity(
        *grey, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )


def necomimi_ssim(true, reconstructed):
    skimage = pytest.importorskip("skimage")
    grey = [
        skimage.transform.resize(
            skimage.color.rgb2gray(image), (256, 256), order=1, anti_aliasing=True
        )
        for image in (true, reconstructed)
    ]
    return skimage.metrics.structural_similarity(*grey, data_range=1.0)


TRUTHS = {"mindeye": mindeye_ssim, "necomimi": necomimi_ssim}


def test_pixcorr_is_the_correlation_of_resized_pixels():
    found = pixcorr(seen(RECONSTRUCTED, lead=("kind",)), stimuli(TRUE))
    assert found.dims == ("kind", "image")
    for (kind, image), value in np.ndenumerate(found.values):
        pair = TRUE[image], RECONSTRUCTED[kind, image]
        expected = np.corrcoef(*(by_torch(one, 256, 425).ravel() for one in pair))[0, 1]
        np.testing.assert_allclose(value, expected, atol=1e-9)
    assert found.attrs["units"] == "1"
    assert found.attrs["n_images"] == 4


@pytest.mark.parametrize("variant", ["mindeye", "necomimi"])
@pytest.mark.parametrize("side", [48, 300])
def test_ssim_is_that_of_scikit_image(variant, side):
    true, reconstructed = TRUE[:2], blended(pictures((2, side, side), seed=3), 0.7)
    found = ssim(seen(reconstructed), stimuli(true), variant=variant)
    pairs = zip(true, reconstructed, strict=True)
    expected = [TRUTHS[variant](*pair) for pair in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.attrs["variant"] == variant


def test_the_variants_of_ssim_are_not_one_number():
    ds = together(TRUE, ALIKE)
    assert (np.abs(ssim(ds) - ssim(ds, variant="necomimi")) > 0.01).all()


@pytest.mark.parametrize("metric", [pixcorr, ssim])
def test_equal_images_score_one(metric):
    ds = together(TRUE, TRUE)
    np.testing.assert_allclose(metric(ds), 1, atol=1e-12)


def test_a_negative_has_the_correlation_minus_one():
    np.testing.assert_allclose(pixcorr(seen(255 - TRUE), stimuli(TRUE)), -1, atol=1e-12)


def test_a_picture_of_one_colour_has_no_correlation():
    plain = ALIKE.copy()
    plain[2] = 128
    values = pixcorr(seen(plain), stimuli(TRUE)).values
    np.testing.assert_array_equal(np.isnan(values), [False, False, True, False])


def test_images_are_joined_by_name():
    order = [2, 0, 3]
    ds = seen(ALIKE[order], ids=[IDS[i] for i in order])
    whole = pixcorr(seen(ALIKE), stimuli(TRUE)).load()
    np.testing.assert_array_equal(pixcorr(ds, stimuli(TRUE)), whole[order])
    assert whole.sel(image_id="set:cat").item() == whole.values[2]


def test_single_trials_of_one_image_are_compared_each():
    ids = [IDS[0], IDS[1], IDS[0]]
    trials = seen(ALIKE[:3], ids=ids).rename(image="trial")
    found = pixcorr(trials, stimuli(TRUE))
    assert found.dims == ("trial",)
    expected = [pixcorr(seen(ALIKE[[i]], ids=[ids[i]]), stimuli(TRUE)).values[0] for i in range(3)]
    np.testing.assert_allclose(found, expected)
    assert found.attrs["n_images"] == 2


def test_one_dataset_without_names_is_of_the_same_images():
    ds = together(TRUE, ALIKE)
    np.testing.assert_array_equal(pixcorr(ds.drop_vars("image_id")), pixcorr(ds))


@settings(max_examples=8)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(7, 60), st.integers(1, 4))
def test_chunks_make_no_difference(image, kind, y, true):
    small, others = TRUE[:, :20, :20], RECONSTRUCTED[:, :, :20, :20]
    chunked = seen(others, lead=("kind",)).chunk(image=image, kind=kind, y=y, rgb=1)
    found = ssim(chunked, stimuli(small).chunk(image=true, x=y), variant="necomimi")
    expected = ssim(seen(others, lead=("kind",)), stimuli(small), variant="necomimi")
    np.testing.assert_array_equal(found, expected)


def test_nothing_is_computed_before_it_is_asked_for(tmp_path):
    to_zarr(stimuli(TRUE), tmp_path / "true.zarr")
    stored = open_store(str(tmp_path / "true.zarr"))
    others = seen(da.from_array(RECONSTRUCTED, chunks=(1, 2, 48, 48, 3)), lead=("kind",))
    with computes_at_most(0):
        found = xr.Dataset({"pixcorr": pixcorr(others, stored), "ssim": ssim(others, stored)})
    with computes_at_most(1):
        found.compute()


def test_only_selected_images_are_compared():
    def fail(block, block_info):
        assert block_info[0]["array-location"][0][0] == 2
        return block

    lazy = da.from_array(ALIKE, chunks=(1, 60, 75, 3)).map_blocks(fail, dtype=np.uint8)
    found = pixcorr(seen(lazy), stimuli(TRUE)).isel(image=2)
    np.testing.assert_array_equal(found, pixcorr(seen(ALIKE), stimuli(TRUE))[2])


@pytest.mark.parametrize(
    ("ds", "given", "message"),
    [
        (stimuli(TRUE), None, "no variable 'pixels_reconstructed'"),
        (seen(ALIKE), None, "stimuli="),
        (seen(ALIKE), stimuli(TRUE).drop_vars("image_id"), "nothing is joined by position"),
        (seen(ALIKE[:0], ids=[]), stimuli(TRUE), "no image was selected"),
        (seen(ALIKE), stimuli(TRUE, ids=[IDS[0]] * 4), "more than once"),
    ],
)
def test_what_cannot_be_paired_is_refused(ds, given, message):
    with pytest.raises(SchemaError, match=message):
        pixcorr(ds, given)


def test_images_that_are_not_there_are_named():
    with pytest.raises(SelectionError, match="2 reconstructions are not there: set:cat, set:dog"):
        pixcorr(seen(ALIKE), stimuli(TRUE[:2]))


@pytest.mark.parametrize("values", [ALIKE / 255, ALIKE[..., :1], ALIKE.astype(np.int64)])
def test_what_is_no_picture_is_refused(values):
    with pytest.raises(StimulusError):
        ssim(seen(values), stimuli(TRUE))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant is 'mindeye' or 'necomimi'"):
        ssim(seen(ALIKE), stimuli(TRUE), variant="wang")
