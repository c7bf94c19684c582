"""Raw recordings of THINGS-EEG2 in small: the published layout, names, types and numbers."""

from __future__ import annotations

import numpy as np

# Channels in the order of the recordings (the file's, not NICE's).
_NAMES = """
Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 FC6 FC2
F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz CP4 TP8
C6 C2 FC4 FT8 F6 F2 AF4 AF8
"""
CHANNELS = _NAMES.split()
TRAIN = [f"{concept}_{i:02d}b.jpg" for concept in ("aardvark", "abacus") for i in (1, 2, 3)]
TEST = ["airboat_01b.jpg", "antelope_06s.jpg"]
SEEN = {1: (1, 2, 3), 2: (4, 5, 6), 3: (1, 5, 6), 4: (2, 3, 4)}
"""Training images of each session, from 1: each is in two of the four."""


def write_metadata(folder):
    folder.mkdir(parents=True, exist_ok=True)
    concepts = ["00001_aardvark"] * 3 + ["00002_abacus"] * 3
    tests = ["00001_airboat", "00002_antelope"]
    held = {
        "train_img_concepts": concepts,
        "train_img_concepts_THINGS": ["00001_aardvark"] * 3 + ["00002_abacus"] * 3,
        "train_img_files": TRAIN,
        "test_img_concepts": tests,
        "test_img_concepts_THINGS": ["00010_airboat", "00027_antelope"],
        "test_img_files": TEST,
    }
    np.save(folder / "image_metadata.npy", held, allow_pickle=True)


def recording(numbers, seed, *, channels=CHANNELS, rate=1000.0):
    """Return the dictionary of one file, with an event for each number, 0.25 s apart."""
    rng = np.random.default_rng(seed)
    onsets = 400 + 250 * np.arange(len(numbers)) + rng.integers(0, 40, len(numbers))
    samples = int(onsets[-1]) + 1300
    mixing = np.eye(len(channels)) + 0.3 * rng.normal(size=(len(channels),) * 2)
    noise = rng.normal(size=(len(channels), samples))
    data = np.cumsum(mixing @ noise, 1) * 1e-7 + rng.normal(size=noise.shape) * 1e-6
    stim = np.zeros((1, samples))
    stim[0, onsets] = numbers
    return {
        "raw_eeg_data": np.concatenate([data, stim]),
        "ch_names": [*channels, "stim"],
        "ch_types": ["eeg"] * len(channels) + ["stim"],
        "sfreq": rate,
        "highpass": 0.01,
        "lowpass": 100.0,
    }


def write_raw(root, subject=1, *, sessions=(1, 2, 3, 4), channels=CHANNELS, tests=3, trains=2):
    """Write the sessions of one subject; returns the folder of the subject."""
    write_metadata(root / "image_set")
    folder = root / "Raw_data" / f"sub-{subject:02d}"
    for session in sessions:
        rng = np.random.default_rng([subject, session])
        place = folder / f"ses-{session:02d}"
        place.mkdir(parents=True)
        train = rng.permutation([*SEEN[session] * trains, 99999])
        test = rng.permutation([*(1, 2) * tests, 99999])
        for name, numbers in (("training", train), ("test", test)):
            held = recording(numbers, [subject, session, len(name)], channels=channels)
            np.save(place / f"raw_eeg_{name}.npy", held, allow_pickle=True)
    return folder
