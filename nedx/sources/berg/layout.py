"""Where the files of a published model lie, under any root: a folder or the public bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nedx.errors import SelectionError, StoreError, UnknownIdError, close_matches
from nedx.schema import subject_label
from nedx.store.location import Location

BUCKET = "s3://brain-encoding-response-generator"


@dataclass(frozen=True)
class Layout:
    """The files of one model.

    Parameters
    ----------
    folder : str
        Below ``encoding_models/``.
    subjects : tuple of str
        As file names spell them, in the order of their labels.
    weights, metadata : tuple of str
        Names of the file of one subject, newest first; ``{subject}`` and ``{split}`` are filled
        in.
    splits : tuple of str
        Names of the training splits, the whole first; empty where there is one training set.
    """

    folder: str
    subjects: tuple[str, ...]
    weights: tuple[str, ...]
    metadata: tuple[str, ...]
    splits: tuple[str, ...] = ()

    def labels(self) -> dict[str, str]:
        """Return the label of each subject, and how file names spell it."""
        return {subject_label(name.lstrip("P")): name for name in self.subjects}


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"{number:02d}" for number in range(1, count + 1))


def _folder(modality: str, dataset: str, model: str) -> str:
    return f"modality-{modality}/train_dataset-{dataset}/model-{model}"


def _by_subject(modality: str, dataset: str, model: str, count: int) -> Layout:
    return Layout(
        _folder(modality, dataset, model),
        _numbered(count),
        ("weights_subject-{subject}.npy",),
        ("metadata_subject-{subject}.npy",),
    )


_MEG_SPLITS = ("full", *(f"split{number}" for number in range(1, 5)))

LAYOUTS: dict[str, Layout] = {
    **{
        f"eeg-things_eeg_2-{model}": _by_subject("eeg", "things_eeg_2", model, 10)
        for model in ("vit_b_32", "alexnet", "alexnet_untrained")
    },
    **{
        f"fmri-nsd_fsaverage-{model}": _by_subject("fmri", "nsd_fsaverage", model, 8)
        for model in ("vit_b_32", "alexnet", "alexnet_untrained")
    },
    "meg-things_meg_1-vit_b_32": Layout(
        _folder("meg", "things_meg_1", "vit_b_32"),
        tuple(f"P{number}" for number in range(1, 5)),
        ("weights_{subject}_{split}.npy",),
        ("metadata_{subject}.npy", "metadata_{subject}_{split}.npy"),
        _MEG_SPLITS,
    ),
    "fmri-things_fmri_1-vit_b_32": Layout(
        _folder("fmri", "things_fmri_1", "vit_b_32"),
        _numbered(3),
        ("weights_sub-{subject}.npy",),
        ("metadata_sub-{subject}.npy",),
    ),
}
"""The linearised models by their published ids."""

_LATER_SPLITS = {
    "full": "all_training_splits",
    **{f"split{number}": f"single_training_split_{number}" for number in range(1, 5)},
}


@dataclass(frozen=True)
class Files:
    """The files of one subject of a model.

    Parameters
    ----------
    root : Location
        What the keys are relative to.
    weights, metadata : str
        Keys.
    """

    root: Location
    weights: str
    metadata: str

    @property
    def weights_url(self) -> str:
        """Where the weights lie, for messages and provenance."""
        return f"{self.root.url.rstrip('/')}/{self.weights}"


def layout_of(model_id: str) -> Layout:
    """Return the layout of a model.

    Raises
    ------
    UnknownIdError
        If it is none of those that are read here; names close matches.
    """
    if model_id not in LAYOUTS:
        raise UnknownIdError(
            f"{model_id!r} is not a published linearised model; {close_matches(model_id, LAYOUTS)}"
        )
    return LAYOUTS[model_id]


def find_files(root: Location, model_id: str, subject: str, split: str | None = None) -> Files:
    """Find the files of one subject.

    Parameters
    ----------
    root : Location
        The bucket, or a folder that holds ``encoding_models``.
    model_id : str
        For example ``"eeg-things_eeg_2-vit_b_32"``.
    subject : str
        Label, for example ``"sub-01"``.
    split : str, optional
        A training split of a model that has them.

    Returns
    -------
    Files

    Raises
    ------
    SelectionError
        If the model has no such subject or split.
    StoreError
        If a file is missing; names it and all names it may have.
    """
    layout = layout_of(model_id)
    labels = layout.labels()
    if subject not in labels:
        raise SelectionError(
            f"{model_id} has no subject {subject!r}; {close_matches(subject, labels)}"
        )
    split = _checked_split(model_id, layout, split)
    base = f"encoding_models/{layout.folder}"
    found = {}
    for kind, folder, patterns in (
        ("weights", "encoding_models_weights", layout.weights),
        ("metadata", "metadata", layout.metadata),
    ):
        spelled = dict.fromkeys(_spelled(patterns, labels[subject], split))
        names = [f"{base}/{folder}/{name}" for name in spelled]
        present = next((name for name in names if root.exists(name)), None)
        if present is None:
            raise StoreError(
                f"the {kind} of {model_id}, {subject}, are not at {root.url}: looked for "
                f"{' and '.join(names)}. Check the root, which holds the folder "
                "'encoding_models', or fetch the file again"
            )
        found[kind] = present
    return Files(root, found["weights"], found["metadata"])


def _checked_split(model_id: str, layout: Layout, split: str | None) -> str | None:
    if not layout.splits:
        if split is not None:
            raise SelectionError(f"{model_id} has one training set, not split {split!r}")
        return None
    split = split or layout.splits[0]
    if split not in layout.splits:
        raise SelectionError(
            f"{model_id} has no split {split!r}; {close_matches(split, layout.splits)}"
        )
    return split


def _spelled(patterns: tuple[str, ...], subject: str, split: str | None) -> Iterator[str]:
    """Yield the names that a file may have; training splits were renamed once."""
    names = [split, _LATER_SPLITS[split]] if split else [""]
    for name in names:
        for pattern in patterns:
            yield pattern.format(subject=subject, split=name)
