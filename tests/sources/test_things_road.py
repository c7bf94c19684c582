"""From the files of others to retrieval: NICE's pickles and CLIP's tensors, no script edited."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import nedx
from nedx.preprocessing.recipes import NICE_CHANNELS
from nedx.preprocessing.repetitions import average_repetitions, stack_repetitions
from nedx.sources.feature_files import open_feature_file
from nedx.sources.things_eeg2 import open_preprocessed

TRAINED, TESTED, EACH, WIDTH = 30, 20, 8, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Responses are a known linear map of the features, under noise."""
    folder = tmp_path_factory.mktemp("things")
    rng = np.random.default_rng(0)
    train = [
        (f"{i + 1:05d}_c{i}", f"c{i}_{j:02d}b.jpg") for i in range(TRAINED) for j in range(EACH)
    ]
    test = [(f"{i + 1:05d}_t{i}", f"t{i}_01b.jpg") for i in range(TESTED)]
    lists = {}
    for name, images in (("train", train), ("test", test)):
        lists[f"{name}_img_concepts"] = [concept for concept, _ in images]
        lists[f"{name}_img_files"] = [file for _, file in images]
    np.save(folder / "image_metadata.npy", lists, allow_pickle=True)
    linear_map = rng.normal(size=(WIDTH, 63, 1)) * np.hanning(250)
    (folder / "sub-01").mkdir()
    for name, images, repetitions in (("training", train, 4), ("test", test, 8)):
        features = rng.normal(size=(len(images), WIDTH))
        clean = np.einsum("id,dct->ict", features, linear_map)
        noise = rng.normal(size=(len(images), repetitions, 63, 250)) * 4
        held = {
            "preprocessed_eeg_data": clean[:, None] + noise,
            "ch_names": list(NICE_CHANNELS),
            "times": np.arange(-50, 250) / 250,
        }
        path = folder / "sub-01" / f"preprocessed_eeg_{name}.npy"
        path.write_bytes(pickle.dumps(held, protocol=4))
        tensor = torch.from_numpy(features).float()
        torch.save({"img_features": tensor}, folder / f"ViT-H-14_features_{name}.pt")
    return folder


def test_from_pickles_to_retrieval(root):
    eeg = open_preprocessed(root)
    train, test = (eeg.isel(trial=eeg.partition.values == name) for name in ("train", "test"))
    targets = open_feature_file(root / "ViT-H-14_features_training.pt", images=root)
    gallery = open_feature_file(root / "ViT-H-14_features_test.pt", images=root)
    decoder = nedx.EEGDecoder(network="eeg_project", epochs=4, batch_size=60, seed=0)
    decoder.fit(stack_repetitions(train), targets=targets)
    # Concepts, not images, are held out: a store that lost them would hold out images.
    assert f"of {TRAINED} concepts" in decoder.model_.recipe.model_dump_json()
    seen = average_repetitions(test)
    ranks = nedx.retrieve(nedx.decode(seen, decoder.model_), gallery, k=5)["rank"].values
    assert (ranks == 1).mean() > 0.8
    shuffled = gallery.assign_coords(image_id=("image", gallery.image_id.values[::-1]))
    chance = nedx.retrieve(nedx.decode(seen, decoder.model_), shuffled, k=5)["rank"].values
    assert (chance == 1).mean() < 0.3
