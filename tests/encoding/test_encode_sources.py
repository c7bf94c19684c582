"""encode on image files, on a cluster, and on many images."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from nedx.encoding import encode
from nedx.errors import StimulusError
from nedx.stimuli import sources
from nedx.stimuli.images import open_images
from tests.encoding.truth import encoder, fit, random_pixels, stimuli
from tests.memory import needs_proc


@pytest.fixture(scope="module")
def fitted():
    return fit(30, 0)


@pytest.fixture(scope="module")
def model(fitted):
    coords = {"unit": np.arange(30)}
    return encoder([fitted], own_projection=False, dims=("unit",), coords=coords)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(random_pixels(20)):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def test_files_are_decoded_as_they_are_needed(folder, model, fitted, monkeypatch):
    read = []
    original = sources.FileSource.read

    def counted(self, indices):
        read.append(len(indices))
        return original(self, indices)

    monkeypatch.setattr(sources.FileSource, "read", counted)
    out = encode(open_images(folder), model)
    assert read == []
    truth = fitted.predict(random_pixels(20))
    bound = 1e-5 * np.abs(truth).max()
    found = out.isel(image=[11, 4], unit=[7])["response"].values
    np.testing.assert_allclose(found, truth[[11, 4]][:, [7]], rtol=0, atol=bound)
    assert sum(read) == 2
    by_id = out["response"].sel(image_id=out["image_id"].values[[3]])
    np.testing.assert_allclose(by_id.values, truth[[3]], rtol=0, atol=bound)
    read.clear()
    np.testing.assert_allclose(out["response"].values, truth, rtol=0, atol=bound)
    # In mini-batches of eight, whatever the chunks are.
    assert sum(read) == 20
    assert max(read) == 8


def test_a_broken_file_is_named(folder, model):
    out = encode(open_images(folder), model)
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:300])
    with pytest.raises(StimulusError, match="07.png"):
        out["response"].compute()


def test_a_cropped_image_is_cropped(folder, model):
    ds = open_images(folder)
    mirrored = encode(ds.isel(x=slice(None, None, -1)), model)["response"].values
    flipped = stimuli().copy()
    flipped["pixels"] = flipped["pixels"][:, :, ::-1]
    expected = encode(flipped, model)["response"].values
    np.testing.assert_allclose(mirrored, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    with pytest.raises(StimulusError, match="64 x 64"):
        encode(ds.isel(x=slice(32), y=slice(32)), model)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_loads_each_part_once_a_process(folder, model, fitted):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        found = encode(open_images(folder, chunks=2), model)["response"].compute()
        loads = client.run(lambda: __import__("nedx.compute.cache").compute.cache.models.loads)
    truth = fitted.predict(random_pixels(20))
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    # Backbone, array handles, projection, readout.
    assert set(loads.values()) <= {0, 4}


@pytest.mark.skipif(sys.platform == "win32", reason="reads the resident size as POSIX has it")
@needs_proc
def test_memory_does_not_grow_with_the_images(tmp_path, model):
    place = tmp_path / "m.zarr"
    model.to_zarr(place)
    script = textwrap.dedent(
        f"""
        import dask.array as da, numpy as np, torch, xarray as xr
        from nedx.encoding import encode
        from tests.memory import peak_kib
        torch.set_num_threads(1)
        def peak(count):
            pixels = da.random.default_rng(0).integers(
                0, 255, (count, 64, 64, 3), dtype=np.uint8, chunks=(100, -1, -1, -1))
            ds = xr.Dataset({{"pixels": (("image", "y", "x", "rgb"), pixels)}})
            response = encode(ds, {str(place)!r})["response"]
            response.mean().compute(scheduler="threads", num_workers=2)
            return peak_kib()
        few = peak(1000)
        many = peak(4000)
        print(many / few)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=200
    )
    # 3000 more images are 37 MB of pixels, a tenth of what torch alone takes.
    assert float(done.stdout) < 1.05
