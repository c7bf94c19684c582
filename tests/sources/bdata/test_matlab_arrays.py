"""Arrays in MATLAB files, against what h5py and scipy wrote."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from nedx.errors import CorruptStoreError, SourceError, StoreError
from nedx.sources.bdata.matlab_arrays import open_array, open_stored, read_array
from nedx.store.location import Location
from tests.laziness import computes_at_most
from tests.servers import HttpServer
from tests.sources.bdata.files import SPARSE, write_dense, write_sparse

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv": RNG.standard_normal((1, 3, 2, 4)).astype(np.float32),
    "fc": RNG.standard_normal((1, 6)),
    "matrix": RNG.standard_normal((5, 7)),
}


@pytest.mark.parametrize("python", [True, False])
@pytest.mark.parametrize("name", ARRAYS)
def test_dense_arrays_keep_shape_dtype_and_values(tmp_path, name, python):
    array = ARRAYS[name]
    write_dense(tmp_path / "a.mat", "x", array, python=python)
    assert h5py.File(tmp_path / "a.mat")["x"].shape == array.shape[::-1]
    got = read_array(tmp_path / "a.mat", "x")
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)
    with computes_at_most(0):
        lazy = open_array(tmp_path / "a.mat", "x")
    np.testing.assert_array_equal(lazy.compute(), array)
    np.testing.assert_array_equal(lazy[..., 1:3].compute(), array[..., 1:3])


def test_a_vector_of_python_keeps_its_one_axis(tmp_path):
    vector = np.arange(5.0)
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["x"] = vector[None]
        file["x"].attrs["Python.Shape"] = np.array([5], np.uint64)
        file["x"].attrs["MATLAB_class"] = np.bytes_("double")
    np.testing.assert_array_equal(read_array(tmp_path / "a.mat", "x"), vector)
    np.testing.assert_array_equal(open_array(tmp_path / "a.mat", "x")[1:3].compute(), vector[1:3])


def test_matlab_5_files_are_read_too(tmp_path):
    savemat(tmp_path / "a.mat", {"feat": ARRAYS["conv"][0]})
    np.testing.assert_array_equal(read_array(tmp_path / "a.mat", "feat"), ARRAYS["conv"][0])


def test_sparse_matrices_of_matlab_5_become_dense(tmp_path):
    matrix = np.where(RNG.random((5, 4)) < 0.3, 1.5, 0)
    savemat(tmp_path / "a.mat", {"W": csc_array(matrix)})
    np.testing.assert_array_equal(read_array(tmp_path / "a.mat", "W"), matrix)


def test_an_array_without_values_is_not_taken_for_its_shape(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["x"] = np.array([0, 5], np.uint64)
        file["x"].attrs["MATLAB_empty"] = np.uint8(1)
    assert read_array(tmp_path / "a.mat", "x").shape == (0, 5)
    assert open_array(tmp_path / "a.mat", "x").compute().shape == (0, 5)


@pytest.mark.parametrize("writer", ["cells", "plain"])
def test_sparse_arrays_of_both_writers(tmp_path, writer):
    array = np.where(RNG.random((9, 1, 2, 3)) < 0.3, RNG.standard_normal((9, 1, 2, 3)), 0)
    write_sparse(tmp_path / "a.mat", "W", array, writer=writer)
    np.testing.assert_array_equal(read_array(tmp_path / "a.mat", "W"), array)
    stored = open_stored(Location.of(tmp_path), "a.mat", "W")
    assert stored.is_sparse
    assert stored.shape == array.shape
    sparse = stored.read_sparse()
    np.testing.assert_array_equal(sparse.value, array[np.nonzero(array)])
    np.testing.assert_array_equal(open_array(tmp_path / "a.mat", "W")[2:5].compute(), array[2:5])


def test_a_sparse_index_may_lie_on_its_side_and_a_background_may_be_any(tmp_path):
    array = np.full((4, 3), 7.0)
    array[1, 2] = 1
    array[3, 0] = 2
    index = np.array([[1, 2], [3, 0]])
    for orientation in (index.T, index):
        with h5py.File(tmp_path / "a.mat", "w") as file:
            group = file.create_group("W")
            group[SPARSE] = True
            group["index"] = np.array([[1, 3, 0], [2, 0, 1]]) if orientation is index else index.T
            group["value"] = [1.0, 2.0, 7.0] if orientation is index else [1.0, 2.0]
            group["shape"], group["background"] = [4, 3], 7.0
        np.testing.assert_array_equal(read_array(tmp_path / "a.mat", "W"), array)


def test_a_slice_of_a_large_matrix_far_away_is_read_alone(tmp_path):
    matrix = np.arange(8e6, dtype=np.float32).reshape(1000, 8000)
    write_dense(tmp_path / "M.mat", "M", matrix)
    server = HttpServer(tmp_path)
    try:
        lazy = open_array(f"{server.url}/M.mat", "M")
        assert max(lazy.chunks[1]) < 8000
        got = lazy[:, 10:20].compute()
        sent = server.counter.bytes()
    finally:
        server.close()
    np.testing.assert_array_equal(got, matrix[:, 10:20])
    assert sent < matrix.nbytes / 2


def test_faults_are_named(tmp_path):
    write_dense(tmp_path / "a.mat", "feat", ARRAYS["fc"])
    with pytest.raises(SourceError, match="has no array 'faet': did you mean 'feat'"):
        read_array(tmp_path / "a.mat", "faet")
    with pytest.raises(StoreError, match="there is no file"):
        read_array(tmp_path / "b.mat", "feat")
    (tmp_path / "c.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(60))
    with pytest.raises(CorruptStoreError, match="Fetch it again"):
        read_array(tmp_path / "c.mat", "feat")
    (tmp_path / "d.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:900])
    with pytest.raises(CorruptStoreError, match="cut short"):
        read_array(tmp_path / "d.mat", "feat")
    with h5py.File(tmp_path / "e.mat", "w") as file:
        group = file.create_group("W")
        group[SPARSE] = True
        group["index"], group["value"] = [[0, 9], [0, 1]], [1.0, 2.0]
        group["shape"], group["background"] = [4, 3], 0.0
        file.create_group("other")
    with pytest.raises(SourceError, match="whose index runs to"):
        read_array(tmp_path / "e.mat", "W")
    with pytest.raises(SourceError, match="is no array, but a group"):
        read_array(tmp_path / "e.mat", "other")
