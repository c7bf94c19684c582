"""Which images a decoder is trained on, and by which its epoch is chosen; never test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nedx.errors import ModelError
from nedx.metrics.repeats import labels_of
from nedx.schema import sample_dim


@dataclass(frozen=True)
class Split:
    """What each image is for.

    Attributes
    ----------
    partition : dict of str to str
        ``"train"``, ``"val"`` or ``"test"`` by ``image_id``.
    rule : str
        How validation images were held out.
    """

    partition: dict[str, str]
    rule: str

    def of(self, image_id: np.ndarray) -> np.ndarray:
        """Return the partition of each sample, object (n,)."""
        return np.array([self.partition[str(name)] for name in image_id], dtype=object)

    def count(self, kind: str) -> int:
        """Return how many images are of a partition."""
        return sum(1 for each in self.partition.values() if each == kind)


def split_concepts(responses: Sequence[xr.Dataset], share: float, seed: int) -> Split:
    """Hold out some of the concepts, for all subjects the same; reads labels alone.

    Images of the partition ``"test"`` are neither trained on nor chosen by. Where there are
    images of the partition ``"val"``, these are held out, and none is drawn.

    Parameters
    ----------
    responses : sequence of Dataset
        Of each subject, with ``image_id``, and with ``category`` and ``partition`` if known. An
        image without category is a concept of its own.
    share : float
        Of the concepts to hold out; 0 for none.
    seed : int
        Of the draw.

    Returns
    -------
    Split

    Raises
    ------
    ModelError
        If no images are left to train on, or a share holds out none.
    """
    concepts: dict[str, str] = {}
    partition: dict[str, str] = {}
    for ds in responses:
        dim = sample_dim(ds)
        ids = labels_of(ds, "image_id")
        for found, name, otherwise in (
            (concepts, "category", ids),
            (partition, "partition", np.full(len(ids), "train")),
        ):
            told = name in ds and ds[name].dims == (dim,)
            values = otherwise
            if told:
                values = labels_of(ds, name)
                if name == "category":
                    unknown = pd.isna(ds[name].values.astype(object)) | (values == "")
                    values = np.where(unknown, ids, values)
            for image, value in zip(ids.tolist(), values.tolist(), strict=True):
                # A test image of any subject is not trained on with the responses of another.
                if found.get(image) != "test":
                    found[image] = value
    trained = sorted({concepts[name] for name, kind in partition.items() if kind == "train"})
    if not trained:
        raise ModelError("none of these images is of the partition 'train'")
    if "val" in partition.values():
        return Split(partition, "images of the partition 'val'")
    if share == 0:
        return Split(partition, "none held out")
    count = round(share * len(trained))
    if not 0 < count < len(trained):
        raise ModelError(
            f"validation={share:g} of {len(trained)} concepts is {count}: give another share, or "
            "validation=0 to keep the last epoch"
        )
    drawn = set(np.random.default_rng(seed).permutation(trained)[:count].tolist())
    for name, kind in partition.items():
        if kind == "train" and concepts[name] in drawn:
            partition[name] = "val"
    return Split(partition, f"{count} of {len(trained)} concepts, drawn with seed {seed}")
