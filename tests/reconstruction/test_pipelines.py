from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import nedx
from nedx.errors import ModelError
from nedx.reconstruction.generators import (
    LatentDecoder,
    SdxlTurboImageToImage,
    SdxlTurboIpAdapter,
    Unclip,
)
from tests.laziness import computes_at_most
from tests.reconstruction import pipelines
from tests.reconstruction.simulated import decoded


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    return pipelines.sdxl(folder), pipelines.unclip(folder / "u")


@pytest.fixture(params=["ip_adapter", "ip_adapter_guided", "unclip"])
def generator(request, folders):
    if request.param == "unclip":
        return Unclip(folders[1], size=32, steps=2)
    return SdxlTurboIpAdapter(
        folders[0] / "sdxl",
        folders[0] / "adapter",
        "models",
        "adapter.safetensors",
        size=32,
        steps=2,
        guidance=3.0 if request.param == "ip_adapter_guided" else 0.0,
    )


def embeddings(count=4):
    rng = np.random.default_rng(0)
    return decoded(3 * rng.standard_normal((count, pipelines.EMBEDDING)).astype(np.float32))


def test_pictures_are_of_their_embedding_and_seed(generator):
    ds = embeddings()
    with computes_at_most(0):
        out = ds.ned.reconstruct(generator, seed=1)
    found = out["pixels_reconstructed"].values
    assert found.shape == (4, 32, 32, 3)
    assert found.dtype == np.uint8
    assert found.std() > 5
    again = ds.isel(image=[2, 0]).ned.reconstruct(generator, seed=1)
    np.testing.assert_array_equal(again["pixels_reconstructed"].values, found[[2, 0]])
    other = ds.isel(image=[0]).ned.reconstruct(generator, seed=2)
    assert not np.array_equal(other["pixels_reconstructed"].values, found[[0]])
    # The same noise, another embedding: what is seen depends on what was decoded.
    swapped = ds.assign(embedding=ds["embedding"].roll(image=1)).isel(image=[0])
    moved = swapped.ned.reconstruct(generator, seed=1)["pixels_reconstructed"].values
    assert not np.array_equal(moved, found[[0]])


def layouts(folders, **changes):
    adapter = folders[0] / "sdxl", folders[0] / "adapter", "models", "adapter.safetensors"
    return SdxlTurboImageToImage(*adapter, **{"size": 32, "steps": 4, **changes})


def with_latents(count=3):
    ds = embeddings(count)
    latent = 2 * np.random.default_rng(1).standard_normal((count, 4, 16, 16)).astype(np.float32)
    return ds.assign(latent=(("image", "latent_channel", "latent_y", "latent_x"), latent))


def test_pictures_start_from_decoded_latents(folders):
    ds = with_latents()
    chunks = {"embedding": {"image": 2, "feature": 7}, "latent": {"image": 1, "latent_y": 5}}
    ds = ds.assign({name: ds[name].chunk(sizes) for name, sizes in chunks.items()})
    generator = layouts(folders, embedding_norm=5.0)
    with computes_at_most(0):
        out = ds.ned.reconstruct(generator, seed=1)
    found = out["pixels_reconstructed"].values
    assert found.shape == (3, 32, 32, 3)
    again = ds.isel(image=[2, 0]).ned.reconstruct(generator, seed=1)
    np.testing.assert_array_equal(again["pixels_reconstructed"].values, found[[2, 0]])
    larger = ds.assign(embedding=ds["embedding"] * 7).ned.reconstruct(generator, seed=1)
    assert np.abs(larger["pixels_reconstructed"].values.astype(int) - found).max() <= 1
    for name in ("embedding", "latent"):
        rolled = ds.assign({name: ds[name].roll(image=1)}).ned.reconstruct(generator, seed=1)
        assert not np.array_equal(rolled["pixels_reconstructed"].values, found)
    # Subjects may share a layout.
    both = ds.assign(embedding=xr.concat([ds["embedding"], -ds["embedding"]], "subject"))
    many = both.ned.reconstruct(generator, seed=1)["pixels_reconstructed"]
    assert many.dims == ("subject", "image", "y", "x", "rgb")
    np.testing.assert_array_equal(many.values[0], found)


def test_what_is_hardly_noised_keeps_its_layout(folders):
    ds = with_latents()
    low = ds.ned.reconstruct(LatentDecoder(folders[0] / "sdxl" / "vae"))["pixels_reconstructed"]
    near, far = (
        ds.ned.reconstruct(layouts(folders, steps=100, strength=share))["pixels_reconstructed"]
        for share in (0.01, 1.0)
    )
    closeness = [np.corrcoef(one.values.ravel(), low.values.ravel())[0, 1] for one in (near, far)]
    assert closeness[0] > 0.9
    assert closeness[1] < 0.5


def test_starts_that_do_not_fit_are_refused(folders):
    ds = with_latents()
    with pytest.raises(ModelError, match="no 'latent' here"):
        embeddings().ned.reconstruct(layouts(folders))
    with pytest.raises(ModelError, match=r"the latents are \(4, 16, 8\).*\(4, 16, 16\)"):
        ds.isel(latent_x=slice(8)).ned.reconstruct(layouts(folders))
    with pytest.raises(ModelError, match="strength is 0.1 of 4 steps"):
        ds.ned.reconstruct(layouts(folders, strength=0.1))


def test_embeddings_of_another_width_are_refused(generator):
    ds = embeddings().isel(feature=slice(20))
    with pytest.raises(ModelError, match=r"20 features, the .* reads 24"):
        ds.ned.reconstruct(generator)


def test_embeddings_are_scaled_where_asked(folders):
    ds = embeddings(2)
    plain = Unclip(folders[1], size=32, steps=2, embedding_norm=5.0)
    larger = ds.assign(embedding=ds["embedding"] * 7)
    found = [nedx.reconstruct(one, plain)["pixels_reconstructed"].values for one in (ds, larger)]
    assert np.abs(found[0].astype(int) - found[1]).max() <= 1


def test_places_without_pipelines_are_told(tmp_path):
    ds = embeddings(1)
    with pytest.raises(ModelError, match="there is no folder"):
        ds.ned.reconstruct(Unclip(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="is no Stable unCLIP pipeline"):
        ds.ned.reconstruct(Unclip(tmp_path))
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        ds.ned.reconstruct(SdxlTurboIpAdapter(tmp_path, tmp_path, weight_name="adapter.bin"))
    with pytest.raises(ModelError, match="is no IP-Adapter"):
        ds.ned.reconstruct(SdxlTurboIpAdapter(tmp_path, tmp_path, "models"))
    with pytest.raises(ModelError, match="size is 500"):
        ds.ned.reconstruct(Unclip(tmp_path, size=500))
    with pytest.raises(ModelError, match="steps is 0"):
        ds.ned.reconstruct(SdxlTurboIpAdapter(tmp_path, tmp_path, steps=0))


def test_batches_of_pictures_are_those_of_single_ones(folders):
    ds = embeddings(3)
    found = [
        ds.ned.reconstruct(Unclip(folders[1], size=32, steps=2, batch_size=size))[
            "pixels_reconstructed"
        ].values.astype(int)
        for size in (1, 3)
    ]
    assert np.abs(found[0] - found[1]).max() <= 1
