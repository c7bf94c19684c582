"""Which fold of a cross-validation each sample belongs to."""

from __future__ import annotations

from typing import Literal

import numpy as np

from nedx.errors import ModelError

CrossValidation = int | Literal["loo", "gcv"] | np.ndarray
"""Contiguous folds, leave-one-out, generalised cross-validation, or the fold of each sample."""


def fold_numbers(
    samples: int, cv: CrossValidation, groups: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the fold of each sample.

    Parameters
    ----------
    samples : int
        How many there are.
    cv : int, "loo", "gcv" or ndarray of int (sample,)
        How many folds, contiguous as those of scikit-learn's ``KFold``; every sample alone;
        none, for generalised cross-validation; or the fold of each sample.
    groups : ndarray (sample,), optional
        Samples of a group, such as the repeats of an image or a session, stay in one fold; with
        `cv` as a number, groups are dealt to folds as scikit-learn's ``GroupKFold`` does.

    Returns
    -------
    ndarray of int64 (sample,), or None for ``"gcv"``

    Raises
    ------
    ModelError
        If there are fewer samples or groups than folds, or a group is split across folds.
    """
    if groups is not None and len(groups) != samples:
        raise ModelError(f"there are {len(groups)} groups for {samples} samples")
    if isinstance(cv, str):
        return _named(samples, cv, groups)
    if isinstance(cv, np.ndarray):
        return _given(samples, cv, groups)
    if isinstance(cv, bool) or not isinstance(cv, int | np.integer) or cv < 2:
        raise ModelError(
            f"cv is {cv!r}; type a number of folds from 2, 'loo', 'gcv', or the fold of each sample"
        )
    units = samples if groups is None else len(np.unique(groups))
    if units < cv:
        what = "samples" if groups is None else "groups"
        raise ModelError(f"{units} {what} cannot fill {cv} folds; type a smaller cv")
    if groups is None:
        return contiguous_folds(samples, int(cv))
    from sklearn.model_selection import GroupKFold

    numbers = np.empty(samples, np.int64)
    for fold, (_, held) in enumerate(GroupKFold(int(cv)).split(numbers, groups=groups)):
        numbers[held] = fold
    return numbers


def contiguous_folds(samples: int, folds: int) -> np.ndarray:
    """Return the fold of each sample, as scikit-learn's ``KFold`` without shuffling.

    Returns
    -------
    ndarray of int64, (sample,)
    """
    parts = np.array_split(np.arange(samples), folds)
    return np.repeat(np.arange(folds), [len(part) for part in parts])


def _named(samples: int, cv: str, groups: np.ndarray | None) -> np.ndarray | None:
    if cv not in ("loo", "gcv"):
        raise ModelError(f"cv is {cv!r}; type a number of folds, 'loo' or 'gcv'")
    if groups is not None:
        raise ModelError(f"cv={cv!r} would split groups; type the number of folds to deal them to")
    if samples < 3:
        raise ModelError(f"{samples} samples are too few to cross-validate; 3 are needed")
    return np.arange(samples) if cv == "loo" else None


def _given(samples: int, cv: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    if cv.shape != (samples,) or cv.dtype.kind not in "iu":
        raise ModelError(
            f"the folds are {cv.dtype} of shape {cv.shape}, expected a whole number for each of "
            f"{samples} samples"
        )
    names, numbers = np.unique(cv, return_inverse=True)
    if len(names) < 2:
        raise ModelError(f"all samples are in fold {names.tolist()}; at least two are needed")
    if groups is not None:
        of_group, group = np.unique(groups, return_inverse=True)
        pairs = np.unique(np.stack([group, numbers]), axis=1)
        split = np.flatnonzero(np.bincount(pairs[0], minlength=len(of_group)) > 1)
        if split.size:
            raise ModelError(
                f"{split.size} groups are split across folds, {of_group[split[0]]!r} the first: "
                "give all samples of a group the same fold"
            )
    return numbers.astype(np.int64)
