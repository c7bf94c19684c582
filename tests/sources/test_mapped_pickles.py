"""Pickles in every protocol, written by pickle, numpy and torch, used where they lie."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import CorruptStoreError, ModelError, StoreError
from nedx.sources.mapped_pickles import lazy_array, open_pickled

HELD = {
    "large": np.random.default_rng(0).normal(size=(40, 3, 5, 25)),
    "half": np.random.default_rng(1).normal(size=(9, 5000)).astype(np.float16),
    "columns": np.asfortranarray(np.random.default_rng(2).normal(size=(200, 300))),
    "names": ["Fp1", "Oz"],
    "paths": np.array([["a/b.jpg", "c/d.jpg"]] * 40),
    "objects": np.array(["x", 3.5, None], dtype=object),
    "number": np.float32(2.5),
    "big_endian": np.arange(20_000, dtype=">f4"),
}


def write(path, form, held=None):
    held = HELD if held is None else held
    if form == "npy":
        with path.open("wb") as file:
            np.save(file, held, allow_pickle=True)
    elif form.startswith("pickle"):
        path.write_bytes(pickle.dumps(held, protocol=int(form[-1])))
    else:
        torch.save(held, path, pickle_protocol=int(form[-1]))


FORMS = ["npy", *(f"pickle{n}" for n in (2, 3, 4, 5)), *(f"torch{n}" for n in (2, 3, 4, 5))]


@pytest.mark.parametrize("form", FORMS)
def test_all_is_as_it_was_written(tmp_path, form):
    write(tmp_path / "held.npy", form)
    found = open_pickled(tmp_path / "held.npy")
    assert list(found) == list(HELD)
    for name, value in HELD.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
            assert found[name].shape == value.shape
        else:
            assert found[name] == value
    with pytest.raises(ValueError, match="read-only"):
        found["large"][0] = 0


@pytest.mark.parametrize("form", ["npy", "pickle4", "pickle5", "torch5"])
def test_values_are_not_read_before_they_are_asked_for(tmp_path, form):
    """What is on the disk after opening is what is seen: nothing was copied."""
    path = tmp_path / "held.npy"
    write(path, form)
    found = open_pickled(path)["large"]
    start = path.read_bytes().find(HELD["large"].tobytes())
    assert start > 0
    with path.open("r+b") as file:
        file.seek(start + 8)
        file.write(np.float64(123.0).tobytes())
    assert found.ravel()[1] == 123.0


def test_tensors_beside_arrays(tmp_path):
    values = torch.randn(30, 40)
    torch.save({"eeg": values, "times": np.arange(40.0)}, tmp_path / "a.pt")
    np.testing.assert_array_equal(open_pickled(tmp_path / "a.pt")["eeg"], values.numpy())


@settings(max_examples=15)
@given(chunk=st.integers(1, 50), rows=st.slices(40))
def test_any_piece_of_a_lazy_array(tmp_path_factory, chunk, rows):
    path = tmp_path_factory.getbasetemp() / "lazy.npy"
    if not path.exists():
        write(path, "pickle4")
    found = lazy_array(path, "large", chunk)
    assert (found.shape, found.dtype) == (HELD["large"].shape, HELD["large"].dtype)
    np.testing.assert_array_equal(found[rows].compute(), HELD["large"][rows])


def test_graphs_carry_no_values(tmp_path):
    write(tmp_path / "held.npy", "pickle4")
    found = lazy_array(tmp_path / "held.npy", "large", 10)
    assert len(pickle.dumps(found)) < 5000
    with pytest.raises(ModelError, match="no array 'names'; it holds large, half"):
        lazy_array(tmp_path / "held.npy", "names", 10)


class Runs:
    """What a hostile pickle does when it is read."""

    def __reduce__(self):
        return (open, ("/dev/null", "rb"))


@pytest.mark.parametrize("form", FORMS)
def test_what_could_run_is_refused(tmp_path, form):
    write(tmp_path / "held.npy", form, {"a": np.arange(3), "b": Runs()})
    with pytest.raises(ModelError, match="is refused: it names"):
        open_pickled(tmp_path / "held.npy")


@pytest.mark.parametrize("form", ["npy", "pickle4", "torch5"])
@settings(max_examples=20)
@given(data=st.data())
def test_damage_is_found_or_harmless(tmp_path_factory, form, data):
    path = tmp_path_factory.getbasetemp() / f"{form}.npy"
    write(path, form)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CorruptStoreError):
        open_pickled(path)
    place = data.draw(st.integers(0, 3000))
    spoiled = bytearray(whole)
    spoiled[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(spoiled)
    with contextlib.suppress(CorruptStoreError, ModelError):
        open_pickled(path)


def test_other_files(tmp_path):
    with pytest.raises(StoreError, match="no file"):
        open_pickled(tmp_path / "none.npy")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(CorruptStoreError, match="is empty"):
        open_pickled(tmp_path / "empty.npy")
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(ModelError, match="expected one pickled dictionary"):
        open_pickled(tmp_path / "plain.npy")
    (tmp_path / "list.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ModelError, match="holds a list"):
        open_pickled(tmp_path / "list.npy")
