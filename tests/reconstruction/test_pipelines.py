from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import nedx
from nedx.errors import ModelError
from nedx.reconstruction.generators import SdxlTurboIpAdapter, Unclip
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
