"""Where the files of a published model lie, under any root: a folder or the public bucket."""

from __future__ import annotations

from dataclasses import dataclass

from nedx.errors import SelectionError, StoreError, UnknownIdError, close_matches
from nedx.schema import subject_label
from nedx.sources.berg.streams import url_of
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
    weights : tuple of tuple of str
        Names of the files of one subject, in each era; ``{subject}`` and ``{split}`` are filled
        in. One file holds everything, or three hold scaler, components and regressions, or the
        first holds scaler and components and others the regressions of some targets each.
    metadata : tuple of str
        Names that the file of one subject may have.
    splits : tuple of str
        Names of the training splits, the whole first; empty where there is one training set.
    """

    folder: str
    subjects: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]
    metadata: tuple[str, ...]
    splits: tuple[str, ...] = ()

    def labels(self) -> dict[str, str]:
        """Return the label of each subject, and how file names spell it."""
        return {subject_label(name.lstrip("P")): name for name in self.subjects}


_NED = ("StandardScaler_param.npy", "pca_param.npy", "LinearRegression_param_sub-{subject}.npy")
"""The files of NED (2024), whose scaler and components are those of all subjects."""

_NED_JOBLIB = tuple(name.replace(".npy", ".joblib") for name in _NED)
"""The same before October 2024."""

_TVSD_CHUNKS = (
    "preprocessing_linear_all_monkey{subject}.npy",
    *(f"linear_all_chunk_{number}_monkey{{subject}}.pkl" for number in range(8)),
)
"""The first version of the TVSD models: regressions of 128 electrodes in each file."""


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"{number:02d}" for number in range(1, count + 1))


def _folder(modality: str, dataset: str, model: str) -> str:
    return f"modality-{modality}/train_dataset-{dataset}/model-{model}"


def _by_subject(modality: str, dataset: str, model: str, count: int) -> Layout:
    return Layout(
        _folder(modality, dataset, model),
        _numbered(count),
        (("weights_subject-{subject}.npy",), _NED, _NED_JOBLIB),
        ("metadata_subject-{subject}.npy", "metadata_sub-{subject}.npy"),
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
        (("weights_{subject}_{split}.npy",),),
        ("metadata_{subject}.npy", "metadata_{subject}_{split}.npy"),
        _MEG_SPLITS,
    ),
    "fmri-things_fmri_1-vit_b_32": Layout(
        _folder("fmri", "things_fmri_1", "vit_b_32"),
        _numbered(3),
        (("weights_sub-{subject}.npy",),),
        ("metadata_sub-{subject}.npy",),
    ),
    "utah_array-tvsd-vit_b_32": Layout(
        _folder("utah_array", "tvsd", "vit_b_32"),
        ("F", "N"),
        (("weights_monkey{subject}.npy",), _TVSD_CHUNKS),
        ("metadata_monkey{subject}.npy",),
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
    weights : tuple of str
        Keys, as `Layout` says.
    metadata : str
        Key.
    """

    root: Location
    weights: tuple[str, ...]
    metadata: str

    @property
    def of_ned(self) -> bool:
        """Whether scaler, components and regressions lie apart, as in the files of NED."""
        return len(self.weights) == len(_NED)

    @property
    def weights_url(self) -> str:
        """Where the weights that are the subject's own lie, for messages."""
        return url_of(self.root, self.weights[-1])


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
    name = labels[subject]
    weights = _present(
        root,
        f"the weights of {model_id}, {subject},",
        [_spelled(f"{base}/encoding_models_weights", era, name, split) for era in layout.weights],
    )
    metadata = _present(
        root,
        f"the metadata of {model_id}, {subject},",
        [_spelled(f"{base}/metadata", (one,), name, split) for one in layout.metadata],
    )
    return Files(root, weights, metadata[0])


def _present(root: Location, what: str, eras: list[list[tuple[str, ...]]]) -> tuple[str, ...]:
    """Return the first names whose files are all there."""
    names = [keys for era in eras for keys in era]
    for keys in names:
        if all(root.exists(key) for key in keys):
            return keys
    looked_for = " or ".join(dict.fromkeys(keys[-1] for keys in names))
    raise StoreError(
        f"{what} are not at {root.url}: looked for {looked_for}. Check the root, which holds the "
        "folder 'encoding_models', or fetch the file again"
    )


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


def _spelled(
    folder: str, patterns: tuple[str, ...], subject: str, split: str | None
) -> list[tuple[str, ...]]:
    """Return the keys that files may have; training splits were renamed once."""
    splits = [split, _LATER_SPLITS[split]] if split else [""]
    keys = [
        tuple(f"{folder}/{p.format(subject=subject, split=name)}" for p in patterns)
        for name in splits
    ]
    return list(dict.fromkeys(keys))
