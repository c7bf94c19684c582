"""encode against a bare torch loop, many subjects against one, one ROI against its own bytes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from zarr.storage import LocalStore

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio

IMAGES = 64
COMPONENTS = 250
TIMES = 70
SUBJECTS = 10


def measure() -> list[Row]:
    """Return the rows of this benchmark; about two minutes on two cores."""
    folder = Path(tempfile.mkdtemp(prefix="nedx-bench-"))
    try:
        return [*_speed(folder), _roi_bytes(folder)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _speed(folder: Path) -> list[Row]:
    from nedx.backbones import default_recipe, load_backbone
    from nedx.encoding import encode, load_model
    from nedx.stimuli.preprocessing import preprocess

    recipe = default_recipe("vit_b_32")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 425, 425, 3), dtype=np.uint8)
    ds = xr.Dataset({"pixels": (("image", "y", "x", "rgb"), pixels)}).chunk(image=IMAGES)
    backbone = load_backbone(recipe)

    def bare() -> None:
        for start in range(0, IMAGES, recipe.batch_size):
            batch = preprocess(pixels[start : start + recipe.batch_size], recipe.policy)
            backbone.run(batch, lambda name, tap: None)

    models = {}
    for kind in ("shared", "own"):
        place = folder / f"{kind}.zarr"
        _eeg_model(recipe, own_projection=kind == "own").to_zarr(place)
        models[kind] = load_model(place)

    def encoded(kind: str, subjects: int) -> object:
        chosen = list(range(1, subjects + 1))
        return encode(ds, models[kind], subject=chosen, device="cpu")["response"].compute()

    seconds = interleave(
        {
            "bare": bare,
            "one": lambda: encoded("shared", 1),
            "ten shared": lambda: encoded("shared", SUBJECTS),
            "one own": lambda: encoded("own", 1),
            "ten own": lambda: encoded("own", SUBJECTS),
        },
        rounds=3,
    )
    note = (
        f"ViT-B/32 with random weights, 12 layers, {IMAGES} images of 425 px in memory, batch "
        f"{recipe.batch_size}, {COMPONENTS} components, EEG of 17 x {TIMES}; 3 rounds"
    )
    return [
        at_least(
            "encode / bare torch loop, images a second",
            ratio(seconds["bare"], seconds["one"]),
            0.90,
            note=note,
        ),
        at_most(
            "ten subjects / one, shared projection, time",
            ratio(seconds["ten shared"], seconds["one"]),
            1.1,
        ),
        at_most(
            "ten subjects / one, own projections, time",
            ratio(seconds["ten own"], seconds["one own"]),
            1.35,
        ),
    ]


def _eeg_model(recipe, *, own_projection: bool):
    """Make a model of ten subjects; repetitive values, since only the time matters here."""
    from nedx.encoding import EncoderRecipe, LinearEncoder

    rng = np.random.default_rng(0)
    width = 12 * 50 * 768
    lead = (SUBJECTS,) if own_projection else ()
    dims = ("subject",) if own_projection else ()
    pattern = rng.normal(size=(*lead, 64, COMPONENTS)).astype(np.float32) * 1e-3
    repeats = (*(1 for _ in lead), width // 64, 1)
    weights = xr.Dataset(
        {
            "projection": ((*dims, "feature", "component"), np.tile(pattern, repeats)),
            "projection_offset": ((*dims, "component"), np.zeros((*lead, COMPONENTS), np.float32)),
            "readout": (
                ("subject", "channel", "time", "component"),
                rng.normal(size=(SUBJECTS, 17, TIMES, COMPONENTS)).astype(np.float32),
            ),
            "intercept": (
                ("subject", "channel", "time"),
                np.zeros((SUBJECTS, 17, TIMES), np.float32),
            ),
        },
        coords={
            "subject": np.array([f"sub-{s + 1:02d}" for s in range(SUBJECTS)], dtype=object),
            "channel": np.array([f"E{c}" for c in range(17)], dtype=object),
            "time": np.arange(TIMES) / 100,
        },
    )
    widths = dict.fromkeys(recipe.layers, 50 * 768)
    return LinearEncoder(weights, EncoderRecipe(backbone=recipe), layer_widths=widths)


def _roi_bytes(folder: Path) -> Row:
    """Count the bytes of the readout that one ROI of fsaverage reads."""
    from nedx.backbones import BackboneRecipe
    from nedx.encoding import EncoderRecipe, LinearEncoder, encode, load_model

    vertices, components = 327_684, 250
    rng = np.random.default_rng(0)
    mask = np.zeros((20, vertices), bool)
    for roi in mask:
        start = rng.integers(vertices - 4000)
        roi[start + rng.choice(4000, 1500, replace=False)] = True
    recipe = BackboneRecipe(
        name="gabor", layers=("energy_0",), pooling="mean", policy="raw01", image_size=64
    )
    features = 8
    weights = xr.Dataset(
        {
            "projection": (("feature", "component"), np.ones((features, components), np.float32)),
            "projection_offset": ("component", np.zeros(components, np.float32)),
            "readout": (
                ("vertex", "component"),
                rng.standard_normal((vertices, components), dtype=np.float32),
            ),
            "intercept": ("vertex", np.zeros(vertices, np.float32)),
        },
        coords={
            "roi": np.array([f"roi-{r}" for r in range(20)], dtype=object),
            "roi_mask": (("roi", "vertex"), mask),
            "vertex": np.arange(vertices),
        },
    )
    place = folder / "fsaverage.zarr"
    LinearEncoder(weights, EncoderRecipe(backbone=recipe)).to_zarr(place)
    read: dict[str, int] = {}
    ds = xr.Dataset({"pixels": (("image", "y", "x", "rgb"), np.zeros((4, 64, 64, 3), np.uint8))})
    plain = LocalStore.get

    async def counting(self, key, prototype=None, byte_range=None):
        value = await plain(self, key, prototype, byte_range)
        if value is not None:
            name = key.split("/")[0]
            read[name] = read.get(name, 0) + len(value)
        return value

    LocalStore.get = counting
    try:
        response = encode(ds, load_model(place), roi="roi-0", device="cpu")["response"]
        read.clear()
        values = response.compute()
    finally:
        LocalStore.get = plain
    own = values.sizes["vertex"] * (components + 1) * 4
    labels = sum(len(path.read_bytes()) for path in (place / "nedx_row").rglob("c/*"))
    return at_most(
        "bytes read / bytes of the ROI's readout",
        (read["readout"] + read["intercept"]) / own,
        1.2,
        note=f"{values.sizes['vertex']} of 327,684 vertices, 250 components; where rows lie is a "
        f"label, {labels // 1000} kB, read once",
    )
