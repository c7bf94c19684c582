"""Prepared recordings of every layout in which a pickle would run something are refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from nedx.errors import ModelError
from nedx.sources.things_eeg2 import open_preprocessed, open_raw
from tests.sources.eeg2_files import write_metadata, write_raw
from tests.sources.test_things_eeg2_preprocessed import (
    write_neurobridge,
    write_nice,
    write_official,
    write_ubp,
)

WRITERS = {
    "nice": (write_nice, "preprocessed_eeg_training.npy"),
    "official": (write_official, "preprocessed_eeg_test.npy"),
    "ubp": (write_ubp, "train.pt"),
    "neurobridge": (write_neurobridge, "test.npy"),
}


class Runs:
    """What a hostile pickle does when it is read."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


def rewrite(path, hostile):
    """Write the file again in its own container, with one more thing in its dictionary."""
    start = path.read_bytes()[:6]
    if start == b"\x93NUMPY":
        np.save(path, {**np.load(path, allow_pickle=True).item(), "x": hostile}, allow_pickle=True)
    elif start[:2] == b"PK":
        torch.save({**torch.load(path, weights_only=False), "x": hostile}, path)
    else:
        path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), "x": hostile}, 4))


@pytest.mark.parametrize("layout", list(WRITERS))
def test_prepared_recordings(tmp_path, layout):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(n, 2, 63, 250)) for name, n in (("train", 6), ("test", 2))}
    write, name = WRITERS[layout]
    root = tmp_path / "whiten"
    write(root, values)
    open_preprocessed(root, normalization="whitened")
    proof = tmp_path / "it_ran"
    rewrite(root / "sub-01" / name, Runs(proof))
    with pytest.raises(ModelError, match="is refused: it names"):
        open_preprocessed(root, normalization="whitened")
    assert not proof.exists()


def test_raw_recordings_and_the_list_of_images(tmp_path):
    folder = write_raw(tmp_path, sessions=(1,))
    proof = tmp_path / "it_ran"
    rewrite(tmp_path / "image_set" / "image_metadata.npy", Runs(proof))
    with pytest.raises(ModelError, match="is refused: it names"):
        open_raw(tmp_path, sessions=[1])
    write_metadata(tmp_path / "image_set")
    rewrite(folder / "ses-01" / "raw_eeg_test.npy", Runs(proof))
    with pytest.raises(ModelError, match="is refused: it names"):
        open_raw(tmp_path, sessions=[1])
    assert not proof.exists()
