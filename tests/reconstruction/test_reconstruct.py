from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
import tests.tvshim  # noqa: F401  (must come before diffusers)
from nedx.errors import ModelError
from nedx.reconstruction.generators import Generator, LatentDecoder, NearestImage
from nedx.reconstruction.generators.autoencoder import Autoencoder
from tests.laziness import computes_at_most
from tests.reconstruction.simulated import FAST, decoded, features, ids, truth


def photos(count: int, size: int = 5, seed: int = 3) -> xr.Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    return xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)}, coords={"image_id": ("image", ids(count))}
    )


def nearest_by_hand(embedding, gallery):
    """Return positions of the highest cosine, one pair at a time."""
    found = []
    for one in embedding.astype(np.float64):
        close = [one @ g / np.linalg.norm(one) / np.linalg.norm(g) for g in gallery]
        found.append(int(np.argmax(close)))
    return found


@dataclass(frozen=True)
class Painter:
    """A generator of one's own: a plain picture of the sum of a row, and its seed."""

    limit: int = 3

    reads = "embedding"
    row_dims = ("feature",)

    def check(self, shape):
        return 2, 4

    def describe(self):
        return {"limit": self.limit}

    def make(self, rows, seeds, device):
        assert len(rows) <= self.limit, "more rows than a block should have"
        out = np.zeros((len(rows), 2, 4, 3), np.uint8)
        out[..., 0] = (np.abs(rows.sum(1)) * 10 % 256).astype(np.uint8)[:, None, None]
        out[..., 1] = np.array([seed % 256 for seed in seeds], np.uint8)[:, None, None]
        return out


def test_nearest_image_is_the_one_of_the_highest_cosine():
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((2, 7, 6)).astype(np.float32)
    gallery = rng.standard_normal((40, 6)).astype(np.float32) * rng.uniform(0.1, 9, (40, 1))
    images = photos(40)
    order = rng.permutation(40)
    shuffled = images.isel(image=order).chunk({"image": 3})
    wanted = xr.Dataset(
        {"features": (("image", "feature"), gallery)}, coords={"image_id": ("image", ids(40))}
    ).chunk({"image": 11})
    ds = decoded(embedding)
    with computes_at_most(2):  # labels of the chunked gallery and images
        generator = NearestImage(wanted, shuffled)
    with computes_at_most(0):
        out = ds.ned.reconstruct(generator)
    assert isinstance(generator, Generator)
    assert out["pixels_reconstructed"].dims == ("subject", "image", "y", "x", "rgb")
    for i in range(2):
        expected = images["pixels"].values[nearest_by_hand(embedding[i], gallery)]
        np.testing.assert_array_equal(out["pixels_reconstructed"].values[i], expected)
    assert '"n_candidates": 40' in out["pixels_reconstructed"].attrs["generator"]


def test_strings_as_zarr_gives_them_make_no_difference():
    rng = np.random.default_rng(0)
    ds, gallery = decoded(rng.standard_normal((5, 32))), features(rng.standard_normal((20, 32)))
    images = photos(20)
    plain = ds.ned.reconstruct(NearestImage(gallery, images))["pixels_reconstructed"].values
    ds, gallery, images = (
        one.assign_coords(
            image_id=("image", one["image_id"].values.astype(np.dtypes.StringDType()))
        )
        for one in (ds, gallery, images)
    )
    found = ds.ned.reconstruct(NearestImage(gallery, images))["pixels_reconstructed"].values
    np.testing.assert_array_equal(found, plain)


def test_block_borders_of_the_gallery_do_not_matter(monkeypatch):
    from nedx.reconstruction.generators import nearest as module

    rng = np.random.default_rng(1)
    embedding = rng.standard_normal((9, 6)).astype(np.float32)
    gallery = rng.standard_normal((30, 6)).astype(np.float32)
    gallery[20] = gallery[4]  # equal ones: the first is shown
    embedding[0] = gallery[4]
    monkeypatch.setattr(module, "_ROWS", 4)
    import dask.array as da

    found = module.nearest(embedding, da.from_array(gallery, chunks=7))
    assert found.tolist() == nearest_by_hand(embedding, gallery)
    assert found[0] == 4


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(0, 99), st.permutations(range(6)))
def test_pictures_do_not_depend_on_chunks(chunk, seed, order):
    embedding, _ = truth(12)
    ds = decoded(np.stack([embedding[:6], embedding[6:]]))
    whole = nedx.reconstruct(ds, Painter(limit=12), seed=seed)["pixels_reconstructed"].values
    shuffled = ds.isel(image=list(order))
    shuffled = shuffled.assign(embedding=shuffled["embedding"].chunk({"image": chunk}))
    found = nedx.reconstruct(shuffled, Painter(limit=12), seed=seed)["pixels_reconstructed"]
    np.testing.assert_array_equal(found.values, whole[:, list(order)])
    # The seeds are of images: subjects share them, and another seed is another picture.
    assert (whole[0, :, ..., 1] == whole[1, :, ..., 1]).all()
    other = nedx.reconstruct(ds, Painter(limit=12), seed=seed + 1)["pixels_reconstructed"].values
    assert not np.array_equal(other, whole)


def test_selecting_first_saves_the_work_and_cuts_stay_right():
    embedding, _ = truth(12)
    ds = decoded(embedding)
    whole = nedx.reconstruct(ds, Painter(limit=12))["pixels_reconstructed"]
    values = whole.values
    lazy = nedx.reconstruct(ds, Painter(limit=2))["pixels_reconstructed"]
    with computes_at_most(1):
        some = lazy.isel(image=[7, 2], x=slice(1, None, 2), rgb=1).values
    np.testing.assert_array_equal(some, values[[7, 2]][:, :, 1::2, 1])
    np.testing.assert_array_equal(lazy.isel(image=3).values, values[3])
    assert lazy.isel(image=slice(0, 0)).values.shape == (0, 2, 4, 3)


def test_blocks_of_large_pictures_are_small():
    @dataclass(frozen=True)
    class Large(Painter):
        def check(self, shape):
            return 1024, 1024

        def make(self, rows, seeds, device):
            return np.zeros((len(rows), 1024, 1024, 3), np.uint8)

    embedding, _ = truth(100)
    made = nedx.reconstruct(decoded(embedding), Large())["pixels_reconstructed"]
    assert max(made.chunks[0]) * 3 * 2**20 <= 32 * 2**20


def test_three_kinds_of_picture_side_by_side():
    embedding, target = truth(60)
    square = np.random.default_rng(2).standard_normal((48, 32)).astype(np.float32)
    embedding = embedding @ square
    prior = nedx.DiffusionPrior(**FAST, epochs=1).fit(decoded(embedding), features(target))
    ds = decoded(np.stack([embedding[:5], embedding[5:10]]))
    applied = ds.ned.apply_prior(prior, steps=2)
    out = applied.ned.reconstruct(
        Painter(limit=30),
        kinds=["true_embedding", "one_stage", "two_stage"],
        targets=features(target),
    )
    found = out["pixels_reconstructed"]
    assert found.dims == ("kind", "subject", "image", "y", "x", "rgb")
    assert out["kind"].values.tolist() == ["true_embedding", "one_stage", "two_stage"]
    alone = {
        "true_embedding": np.stack([target[:5], target[:5]]),
        "one_stage": ds["embedding"].values,
        "two_stage": applied["embedding"].values,
    }
    for kind, values in alone.items():
        expected = nedx.reconstruct(decoded(values), Painter(limit=30))[
            "pixels_reconstructed"
        ].values
        np.testing.assert_array_equal(found.sel(kind=kind).values, expected)
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])
    with pytest.raises(ModelError, match="no prior was applied"):
        ds.ned.reconstruct(Painter(), kinds=["one_stage", "two_stage"])
    with pytest.raises(ModelError, match="kinds is empty"):
        ds.ned.reconstruct(Painter(), kinds=[])
    with pytest.raises(ModelError, match="needs targets"):
        ds.ned.reconstruct(Painter(), kinds=["true_embedding"])
    with pytest.raises(ModelError, match="did you mean 'one_stage'"):
        ds.ned.reconstruct(Painter(), kinds=["onestage"])
    with pytest.raises(ModelError, match="images have no target, such as 't:0004'"):
        ds.ned.reconstruct(Painter(), kinds=["true_embedding"], targets=features(target[:4]))


def test_a_photograph_comes_back_from_its_latents(shared_data, tmp_path):
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    from PIL import Image

    folder = shared_data / "weights" / "taef2_autoencoder"
    photo = Image.fromarray(data.astronaut()).resize((256, 256), Image.Resampling.BICUBIC)
    pixels = np.asarray(photo)
    encoder = Autoencoder(str(folder / "taef2_encoder.pth"))
    assert encoder.form(encodes=True) == (32, 8)
    given = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        latent = encoder.load("cpu").encode(given).numpy()
    ds = xr.Dataset(
        {"latent": (("image", "latent_channel", "latent_y", "latent_x"), latent)},
        coords={"image_id": ("image", np.array(["astronaut"], object))},
    )
    with computes_at_most(0):
        out = ds.ned.reconstruct(LatentDecoder(folder / "taef2_decoder.pth"))
    found = out["pixels_reconstructed"].values[0]
    error = np.mean((found.astype(float) - pixels) ** 2)
    assert 10 * np.log10(255**2 / error) > 27
    with pytest.raises(ModelError, match="holds the encoder of an autoencoder, not the decoder"):
        ds.ned.reconstruct(LatentDecoder(folder / "taef2_encoder.pth"))
    with pytest.raises(ModelError, match="4 channels, the decoder .* reads 32"):
        ds.isel(latent_channel=slice(4)).ned.reconstruct(
            LatentDecoder(folder / "taef2_decoder.pth")
        )


def test_taesd_layout_equals_the_same_network_in_diffusers(tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    theirs = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
    ).eval()
    halves = {}
    for half, first in (("encoder", 0), ("decoder", 1)):
        state = getattr(theirs, half).layers.state_dict()
        # The published files count the saturation of latents as a layer.
        renamed = {
            f"{int(key.partition('.')[0]) + first}.{key.partition('.')[2]}": value
            for key, value in state.items()
        }
        torch.save(renamed, tmp_path / f"taesd_{half}.pth")
        halves[half] = Autoencoder(str(tmp_path / f"taesd_{half}.pth"))
    theirs.save_pretrained(tmp_path / "folder")
    whole = Autoencoder(str(tmp_path / "folder"))
    assert halves["encoder"].form(encodes=True) == whole.form(encodes=True) == (4, 4)
    pixels = torch.rand(2, 3, 16, 24)
    with torch.inference_mode():
        latent = theirs.encode(pixels * 2 - 1).latents
        expected = (theirs.decode(latent).sample + 1) / 2
        for one in (halves["encoder"], whole):
            torch.testing.assert_close(one.load("cpu").encode(pixels), latent)
        for one in (halves["decoder"], whole):
            torch.testing.assert_close(one.load("cpu").decode(latent), expected)
    ds = xr.Dataset(
        {"latent": (("image", "latent_channel", "latent_y", "latent_x"), latent.numpy())},
        coords={"image_id": ("image", ids(2))},
    )
    found = ds.ned.reconstruct(LatentDecoder(tmp_path / "folder", batch_size=1))
    expected = (expected.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(found["pixels_reconstructed"].values - expected).max() <= 1


def test_bad_input_is_told_before_work(tmp_path):
    embedding, _ = truth(6)
    ds = decoded(embedding)
    gallery = features(embedding)
    generator = NearestImage(gallery, photos(6))
    with pytest.raises(ModelError, match="no 'embedding' here"):
        ds.drop_vars("embedding").ned.reconstruct(generator)
    with pytest.raises(ModelError, match="47 features, the gallery 48"):
        ds.isel(feature=slice(47)).ned.reconstruct(generator)
    with pytest.raises(ModelError, match="no image_id"):
        ds.drop_vars("image_id").ned.reconstruct(generator)
    with pytest.raises(ModelError, match="no generator"):
        ds.ned.reconstruct("sdxl")
    with pytest.raises(ModelError, match=r"5 x 5 pixels, and this Dataset holds images of .*9"):
        ds.assign(pixels=photos(6, size=9)["pixels"]).ned.reconstruct(generator)
    with pytest.raises(ModelError, match="have no pixels, such as 't:0005'"):
        NearestImage(features(embedding), photos(5))
    with pytest.raises(ModelError, match="no 'pixels' here"):
        NearestImage(gallery, gallery)
    for wrong in (gallery.isel(image=[]), gallery.expand_dims(layer=2)):
        with pytest.raises(ModelError, match=r"the gallery is .*expected"):
            NearestImage(wrong, photos(6))
    with pytest.raises(ModelError, match="float32 .*expected uint8"):
        NearestImage(gallery, photos(6).astype("float32"))
    with pytest.raises(ModelError, match="no 'latent' here"):
        ds.ned.reconstruct(LatentDecoder(tmp_path / "none.pth"))
    latent = decoded(embedding).rename(embedding="latent")
    with pytest.raises(ModelError, match="expected floats over"):
        latent.ned.reconstruct(LatentDecoder(tmp_path / "none.pth"))
    square = latent.assign(
        latent=(
            ("image", "latent_channel", "latent_y", "latent_x"),
            np.zeros((6, 4, 2, 2), np.float32),
        )
    )
    with pytest.raises(ModelError, match="no weight file"):
        square.ned.reconstruct(LatentDecoder(tmp_path / "none.pth"))
    torch.save({"0.weights": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="which no layer of TAESD"):
        square.ned.reconstruct(LatentDecoder(tmp_path / "other.pth"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="no folder of an autoencoder"):
        square.ned.reconstruct(LatentDecoder(tmp_path / "folder"))
    bad = ds.where(ds["image_id"] != "t:0002")
    with pytest.raises(ModelError, match="t:0002"):
        bad.ned.reconstruct(generator)["pixels_reconstructed"].compute()
