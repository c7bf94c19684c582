"""Retrieval against plain numpy in float64, on galleries in memory and in Zarr stores."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.spatial.distance
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import nedx
from nedx.errors import ModelError, SchemaError, SelectionError
from nedx.metrics.similarity import SIMILARITIES
from tests.laziness import computes_at_most
from tests.memory import needs_proc

ROWS, WIDTH, SHOWN = 2500, 24, 30


def gallery(rows=ROWS, chunks=None, dtype="f2", *, seed=0, twins=100) -> xr.Dataset:
    """Return random features; the first rows are there twice."""
    values = np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(dtype)
    values[twins : 2 * twins] = values[:twins]
    names = np.array([f"t:{i}" for i in range(rows)], dtype=object)
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    return xr.Dataset({"features": (("image", "feature"), data)}, {"image_id": ("image", names)})


def embeddings(of: xr.Dataset, *, subjects=2, noise=1.5, shown=SHOWN) -> xr.Dataset:
    """Return noisy features of some of the images, in another order."""
    rng = np.random.default_rng(1)
    rows = rng.choice(of.sizes["image"], shown, replace=False)
    if of.sizes["image"] > 200:
        rows[:2] = 3, 104
    values = of["features"].values[rows].astype(np.float32)
    values = values + noise * rng.standard_normal((subjects, *values.shape)).astype(np.float32)
    return xr.Dataset(
        {"embedding": (("subject", "image", "feature"), values)},
        {
            "subject": [f"sub-{i + 1:02d}" for i in range(subjects)],
            "image_id": ("image", of["image_id"].values[rows]),
        },
    )


def truth(ds: xr.Dataset, of: xr.Dataset, similarity: str) -> np.ndarray:
    """Return all similarities (subject, image, row), equal where features are."""
    queries = ds["embedding"].values.reshape(-1, WIDTH).astype(np.float64)
    rows = of["features"].values.astype(np.float64)
    if similarity == "dot":
        scores = queries @ rows.T
    else:
        scores = -scipy.spatial.distance.cdist(queries, rows, similarity)
        scores += similarity != "euclidean"
    return scores.round(11).reshape(*ds["embedding"].shape[:-1], -1)


def rank_of(scores: np.ndarray, ds: xr.Dataset, of: xr.Dataset) -> np.ndarray:
    where = [of["image_id"].values.tolist().index(name) for name in ds["image_id"].values]
    true = np.take_along_axis(scores, np.array(where)[None, :, None], axis=-1)
    return (scores >= true).sum(axis=-1)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_candidates_and_ranks_are_those_of_float64(similarity):
    of = gallery(chunks=(400, -1))
    ds = embeddings(of)
    found = ds.ned.retrieve(of, 7, similarity=similarity, device="cpu").compute()
    scores = truth(ds, of, similarity)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :7]
    np.testing.assert_array_equal(found["candidate_id"], of["image_id"].values[order])
    expected = np.take_along_axis(scores, order, axis=-1)
    np.testing.assert_allclose(found["similarity"], expected, rtol=2e-7, atol=1e-7)
    np.testing.assert_array_equal(found["rank"], rank_of(scores, ds, of))
    # Some of the images are there twice, and the twin counts against them.
    twice = [int(name[2:]) < 200 for name in ds["image_id"].values]
    assert sum(twice) >= 2
    np.testing.assert_array_equal(found["ties"], [twice, twice])
    assert found["rank"].dims == ("subject", "image")
    assert found["rank"].attrs["task"] == "exact_image"
    assert found["rank"].attrs["n_candidates"] == ROWS
    assert found["candidate"].values.tolist() == list(range(1, 8))


@settings(max_examples=12)
@given(
    chunks=st.tuples(st.integers(1, 700), st.integers(1, WIDTH)),
    queries=st.tuples(st.integers(1, 2), st.integers(1, SHOWN), st.integers(1, WIDTH)),
    block_bytes=st.integers(1, 200_000),
    similarity=st.sampled_from(SIMILARITIES),
)
def test_chunks_make_no_difference(chunks, queries, block_bytes, similarity):
    of = gallery(700)
    ds = embeddings(of)
    options = {"k": 6, "similarity": similarity, "device": "cpu"}
    whole = nedx.retrieve(ds, of, **options).compute()
    cut = of.assign(
        features=of["features"].chunk(dict(zip(("image", "feature"), chunks, strict=True)))
    )
    sizes = dict(zip(("subject", "image", "feature"), queries, strict=True))
    asked = ds.assign(embedding=ds["embedding"].chunk(sizes))
    found = nedx.retrieve(asked, cut, block_bytes=block_bytes, **options).compute()
    xr.testing.assert_identical(found, whole)


def test_what_cannot_be_told_apart_by_a_product_is_told_apart():
    # Of float32, products of these rows are the same; of float64 each is larger than the last.
    base = np.random.default_rng(0).standard_normal(WIDTH)
    along = base / np.linalg.norm(base)
    steps = (1 + 1e-7 * np.arange(50))[:, None] * along
    of = xr.Dataset(
        {"features": (("image", "feature"), steps)},
        {"image_id": ("image", [f"t:{i}" for i in range(50)])},
    )
    ds = xr.Dataset(
        {"embedding": (("image", "feature"), along[None].astype("f4"))},
        {"image_id": ("image", ["t:20"])},
    )
    found = nedx.retrieve(ds, of, 3, similarity="dot", device="cpu").compute()
    assert found["rank"].item() == 30
    assert found["candidate_id"].values.tolist() == [["t:49", "t:48", "t:47"]]


def test_all_rows_alike_are_all_ties():
    of = gallery(3000, twins=1)
    of["features"][:] = of["features"][0]
    ds = embeddings(of, subjects=1)
    found = nedx.retrieve(ds, of.chunk(image=1111), 4, device="cpu").compute()
    assert (found["rank"] == 3000).all()
    assert (found["ties"] == 2999).all()
    # Of equals the first.
    assert found["candidate_id"].values[0, 0].tolist() == ["t:0", "t:1", "t:2", "t:3"]


def test_nothing_is_computed_before_it_is_asked_for():
    of = gallery(chunks=(400, -1))
    ds = embeddings(of)
    ds["embedding"] = ds["embedding"].chunk(image=10)
    with computes_at_most(0):
        found = ds.ned.retrieve(of, assignment="one_to_one")
        scores = nedx.retrieval_scores(found)
    assert all(dask.is_dask_collection(array) for array in (found["rank"], scores["top1"]))
    with computes_at_most(1):
        dask.compute(found, scores)


def test_a_store_is_searched_and_what_is_found_is_stored(tmp_path):
    of = gallery(chunks=(400, -1), dtype="f4")
    of["features"].attrs["units"] = "1"
    of.ned.parse().ned.to_zarr(tmp_path / "gallery.zarr")
    opened = nedx.open_store(tmp_path / "gallery.zarr")
    ds = embeddings(of)
    found = nedx.retrieve(ds, opened, block_bytes=20_000, device="cpu")
    expected = nedx.retrieve(ds, opened.load(), device="cpu").compute()
    xr.testing.assert_identical(found.compute(), expected)
    found.ned.to_zarr(tmp_path / "found.zarr")
    kept = nedx.open_store(tmp_path / "found.zarr").load()
    for name in ("candidate_id", "rank", "ties"):
        np.testing.assert_array_equal(kept[name], expected[name])
    # Stores round what is float32.
    np.testing.assert_allclose(kept["similarity"], expected["similarity"], rtol=1e-3)
    assert kept["rank"].attrs["task"] == "exact_image"
    scored, direct = nedx.retrieval_scores(kept), nedx.retrieval_scores(expected)
    xr.testing.assert_allclose(scored, direct, rtol=1e-3)


def test_another_search_takes_the_place_of_the_last():
    of = gallery(300, twins=1)
    ds = embeddings(of)
    options = {"similarity": "dot", "device": "cpu"}
    first = ds.ned.retrieve(of, 7, true_match="ignore", assignment="one_to_one", device="cpu")
    again, alone = (x.ned.retrieve(of, 3, **options).compute() for x in (first, ds))
    xr.testing.assert_identical(again, alone)


def test_trials_are_joined_by_the_image_they_show():
    of = gallery()
    ds = embeddings(of, subjects=1).isel(subject=0, drop=True)
    trials = (
        ds.isel(image=[4, 9, 4]).drop_indexes("image_id", errors="ignore").rename(image="trial")
    )
    found = nedx.retrieve(trials, of, device="cpu").compute()
    single = nedx.retrieve(ds, of, device="cpu").compute()["rank"].values
    assert found["rank"].dims == ("trial",)
    assert found["rank"].values.tolist() == single[[4, 9, 4]].tolist()


def test_one_to_one_assignment_is_that_of_scipy_and_says_what_it_is():
    of = gallery(60, twins=1)
    ds = embeddings(of, noise=3)
    found = ds.ned.retrieve(of.chunk(image=13), assignment="one_to_one", device="cpu").compute()
    scores = truth(ds, of, "cosine")
    for subject in range(2):
        expected = of["image_id"].values[linear_sum_assignment(-scores[subject])[1]]
        np.testing.assert_array_equal(found["assigned_id"][subject], expected)
        assert len(set(expected)) == SHOWN
    assert found["assigned_id"].attrs["transductive"] == "true"
    assert "transductive" not in found["rank"].attrs
    alone = ds.ned.retrieve(of, device="cpu").compute()
    xr.testing.assert_identical(found["rank"], alone["rank"])


def test_one_to_one_assignment_has_a_limit():
    of = gallery(400_000, twins=1)
    ds = embeddings(of, subjects=5)
    with pytest.raises(SelectionError, match="60,000,000 scores in memory"):
        ds.ned.retrieve(of, assignment="one_to_one")
    with pytest.raises(SelectionError, match="30 embeddings cannot each have an image"):
        embeddings(of).ned.retrieve(
            of.isel(image=slice(20)), true_match="ignore", assignment="one_to_one"
        )


def test_class_centres_are_means_and_a_task_of_their_own():
    of = gallery(300, chunks=(70, -1))
    rng = np.random.default_rng(2)
    concepts = rng.choice(np.array([f"c{i:02d}" for i in range(20)], dtype=object), 300)
    of = of.assign_coords(category=("image", concepts))
    ds = embeddings(of)
    ds = ds.assign_coords(
        category=("image", [concepts[int(name[2:])] for name in ds["image_id"].values])
    )
    with computes_at_most(0):
        centres = nedx.class_centres(of)
        found = ds.ned.retrieve(centres, 3, device="cpu")
    expected = of["features"].astype("f8").groupby("category").mean()
    np.testing.assert_array_equal(centres["category"], expected["category"])
    np.testing.assert_allclose(centres["features"], expected.transpose("category", ...), rtol=1e-6)
    assert int(centres["n_images"].sum()) == 300
    scores = truth(ds, centres, "cosine")
    right = [centres["category"].values.tolist().index(name) for name in ds["category"].values]
    true = np.take_along_axis(scores, np.array(right)[None, :, None], axis=-1)
    np.testing.assert_array_equal(found["rank"], (scores >= true).sum(axis=-1))
    assert found["rank"].attrs["task"] == "class_centre"
    assert set(found["candidate_id"].values.ravel()) <= set(concepts)
    exact = ds.ned.retrieve(of, 3, device="cpu")
    mixed = xr.concat([found, exact], "model", coords="different", compat="equals", join="outer")
    with pytest.raises(SchemaError, match=r"retrieval_task is \['class_centre', 'exact_image'\]"):
        nedx.retrieval_scores(mixed)


def test_labels_are_any_strings_and_numbers_in_any_order_of_bytes():
    of = gallery(300, dtype="f4")
    ds = embeddings(of)
    ds, of = (
        x.assign_coords(category=("image", [n[-1] for n in x.image_id.values])) for x in (ds, of)
    )
    strings = np.dtypes.StringDType()

    def from_files(x: xr.Dataset) -> xr.Dataset:
        labels = {n: ("image", x[n].values.astype(strings)) for n in ("image_id", "category")}
        return x.astype(">f4").assign_coords(labels)

    for make in (lambda x: x, nedx.class_centres):
        found = nedx.retrieve(from_files(ds), make(from_files(of)), 3, device="cpu").compute()
        expected = nedx.retrieve(ds, make(of), 3, device="cpu").compute()
        for name in ("candidate_id", "rank", "similarity"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_images_that_the_gallery_lacks_are_an_error_unless_they_are_to_be_ignored():
    of = gallery()
    ds = embeddings(of)
    lacking = of.isel(image=np.flatnonzero(~of["image_id"].isin(ds["image_id"][3:5].values)))
    with pytest.raises(SelectionError, match="no true match of 2 of 30 image_ids: t:") as error:
        ds.ned.retrieve(lacking)
    assert "true_match='ignore'" in str(error.value)
    found = ds.ned.retrieve(lacking, true_match="ignore", device="cpu").compute()
    whole = ds.ned.retrieve(of, device="cpu").compute()
    known = found["in_gallery"].values
    assert np.flatnonzero(~known).tolist() == [3, 4]
    assert np.isnan(found["rank"].values[:, 3:5]).all()
    assert np.isnan(found["similarity_true"].values[:, 3:5]).all()
    change = whole["rank"].values[:, known] - found["rank"].values[:, known]
    assert set(np.unique(change)) <= {0, 1, 2}
    scores = nedx.retrieval_scores(found)
    assert scores.attrs["n_queries"] == 28
    assert np.isfinite(scores["top1"]).all()
    none = ds.ned.retrieve(of.isel(image=slice(5)), true_match="ignore", device="cpu")
    assert none["candidate_id"].shape == (2, SHOWN, 5)


def _wide(ds, of):
    return ds, of.isel(feature=slice(5))


def _nan_gallery(ds, of):
    of = of.copy(deep=True)
    of["features"][2000, 3] = np.nan
    return ds, of


def _zero_gallery(ds, of):
    of = of.copy(deep=True)
    of["features"][7] = 0
    return ds, of


def _nan_trial(ds, of):
    ds = ds.copy(deep=True)
    ds["embedding"][1, 4, 0] = np.nan
    return ds, of


FAULTS = {
    "another width": (_wide, ModelError, "24 features, those of the gallery 5"),
    "NaN in the gallery": (_nan_gallery, ModelError, "the first at 2000"),
    "a row without direction": (_zero_gallery, ModelError, "no direction .*the first at 7"),
    "a NaN trial": (_nan_trial, ModelError, "1 of 60 embeddings are NaN"),
    "no embedding": (lambda ds, of: (ds.drop_vars("embedding"), of), SchemaError, "decode first"),
    "no features": (lambda ds, of: (ds, of.drop_vars("features")), SchemaError, "encode_features"),
    "no ids": (
        lambda ds, of: (ds.drop_vars("image_id"), of),
        SchemaError,
        "no coordinate 'image_id'",
    ),
    "a gallery without ids": (
        lambda ds, of: (ds, of.drop_vars("image_id")),
        SchemaError,
        "nothing is joined by position",
    ),
    "an id twice": (
        lambda ds, of: (ds, of.isel(image=[*range(ROWS), 9])),
        SchemaError,
        "'t:9' is there more than once",
    ),
    "no images": (
        lambda ds, of: (ds.isel(image=[]), of),
        SchemaError,
        "nothing is there: .*'image': 0",
    ),
    "integers": (lambda ds, of: (ds, of.astype(int)), SchemaError, "expected floats"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_told(fault):
    change, kind, message = FAULTS[fault]
    of = gallery()
    ds, of = change(embeddings(of), of)
    with pytest.raises(kind, match=message):
        nedx.retrieve(ds, of, device="cpu").compute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "cosin"}, "similarity is one of 'cosine'"),
        ({"true_match": "maybe"}, "true_match is one of"),
        ({"assignment": "greedy"}, "assignment is one of"),
        ({"device": "gpu"}, "device='auto'"),
        ({"k": 0}, "k=0 candidates of a gallery of 2500"),
        ({"k": 2501}, "k=2501 candidates"),
        ({"k": 2.5}, "k is a whole number from 1"),
    ],
)
def test_options_that_are_none_are_told(options, message):
    of = gallery()
    with pytest.raises((ValueError, ModelError, SelectionError), match=message):
        nedx.retrieve(embeddings(of), of, **options)


@needs_proc
def test_memory_does_not_grow_with_the_gallery():
    script = textwrap.dedent("""
        import dask.array as da, numpy as np, xarray as xr
        import nedx
        from tests.memory import peak_kib
        dims = ("image", "feature")
        for rows in (20_000, 120_000):
            names = np.array([f"t:{i}" for i in range(rows)], dtype=object)
            rng = da.random.default_rng(0)
            values = rng.standard_normal((rows, 512), chunks=(2048, -1), dtype="f4")
            of = xr.Dataset({"features": (dims, values)}, {"image_id": ("image", names)})
            shown = names[np.linspace(0, rows - 1, 100).astype(int)]
            asked = np.random.default_rng(1).standard_normal((100, 512)).astype("f4")
            ds = xr.Dataset({"embedding": (dims, asked)}, {"image_id": ("image", shown)})
            nedx.retrieve(ds, of, block_bytes=2**23, device="cpu").compute(num_workers=2)
            print(peak_kib())
    """)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = (int(line) for line in done.stdout.split())
    # The larger gallery has 205 MB more.
    assert many - few < 80_000
