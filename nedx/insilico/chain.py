"""What is done with responses that were changed: decoded, perhaps anew, and scored."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import ModelError, SchemaError, SelectionError
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.steps import response_of
from nedx.schema import parse, role_dim, sample_dim
from nedx.selection import map_nodes

_log = logging.getLogger(__name__)

Outcome = Callable[[xr.Dataset], xr.Dataset]
Change = Callable[..., xr.Dataset]
Retrain = Literal["prior", "decoder"]

RANK_MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "top1": lambda rank: np.mean(rank <= 1, axis=-1),
    "top5": lambda rank: np.mean(rank <= 5, axis=-1),
    "median_rank": lambda rank: np.median(rank, axis=-1),
}
"""What is made of the ranks of the true images, (..., image) to (...); 1 is the best rank."""

_WORDS = {
    "top1": "share of images whose true match is first",
    "top5": "share of images whose true match is among the first five",
    "median_rank": "median rank of the true match",
    "similarity_true": "mean similarity to the true match",
}


@dataclass(frozen=True)
class Chain:
    """From responses to the scores of images, with what is trained on changed responses.

    Parameters
    ----------
    decoder : decoder or callable
        What `nedx.decode` takes, or a function of a Dataset with ``response`` that adds
        ``embedding``. With ``retrain="decoder"`` an estimator that has ``fit(responses, targets)``.
    outcome : callable
        Of a decoded Dataset; returns scores ``([subject,] image | trial)``.
    retrain : {"prior", "decoder"}, optional
        What is trained anew on responses that are changed in the same way.
    train, targets : Dataset, optional
        Responses and features to do so.
    prior : estimator, optional
        With ``fit(embeddings, targets)``; what it returns is called, or given to
        `nedx.reconstruction.prior.apply_prior`.

    Raises
    ------
    ModelError
        If what is to be trained anew, or what it needs, is missing.
    """

    decoder: Any
    outcome: Outcome
    retrain: Retrain | None = None
    train: xr.Dataset | xr.DataTree | None = None
    targets: xr.Dataset | None = None
    prior: Any = None

    def __post_init__(self) -> None:
        if self.retrain not in (None, "prior", "decoder"):
            raise ModelError(f"retrain is None, 'prior' or 'decoder', not {self.retrain!r}")
        needed: dict[str, Any] = {}
        if self.retrain is not None:
            needed = {"responses_train": self.train, "targets": self.targets}
        if self.retrain == "prior":
            needed["prior"] = self.prior
        missing = [f"{name}=" for name, value in needed.items() if value is None]
        if missing:
            raise ModelError(f"retrain={self.retrain!r} needs {' and '.join(missing)}")
        if self.retrain == "prior" and isinstance(self.train, xr.DataTree):
            raise ModelError(
                "a prior is trained on one Dataset of embeddings, as the published one on a single "
                "subject; type responses_train=tree['sub-01'].to_dataset()"
            )
        trained = {"prior": self.prior, "decoder": self.decoder}.get(self.retrain or "")
        if self.retrain is not None and not hasattr(trained, "fit"):
            raise ModelError(
                f"a {type(trained).__name__} cannot be trained anew: it has no fit(). Give an "
                "estimator, for example nedx.EEGDecoder()"
            )

    def scores(self, test: xr.Dataset, change: Callable[[xr.Dataset], xr.Dataset]) -> xr.Dataset:
        """Change responses, decode and score them, now.

        Returns
        -------
        Dataset
            Scores ``(subject, image | trial)`` in memory, indexed by nothing.
        """
        decoder = self.decoder
        if self.retrain == "decoder":
            decoder = self._fitted(decoder, self._trained_on(change))
        decoded = decoded_by(decoder, change(test))
        if self.retrain == "prior":
            changed = self._trained_on(lambda ds: decoded_by(decoder, change(ds)))
            prior = self._fitted(self.prior, changed)
            decoded = _with_prior(decoded, prior)
        scored = self.outcome(decoded)
        if not isinstance(scored, xr.Dataset) or not scored.data_vars:
            raise SchemaError("what outcome returns", ["it is no Dataset of scores"])
        return _only_scores(scored.compute(), test)

    def _trained_on(self, change: Callable[[xr.Dataset], xr.Dataset]) -> xr.Dataset | xr.DataTree:
        if self.train is None:
            raise ModelError("there are no responses to train on; give responses_train=")
        if isinstance(self.train, xr.DataTree):
            return map_nodes(self.train, change)
        return change(self.train)

    def _fitted(self, estimator: Any, responses: xr.Dataset | xr.DataTree) -> Any:
        """Train a copy: the estimator that was given stays as it is."""
        return copy.deepcopy(estimator).fit(responses, self.targets)


def decoded_by(decoder: Any, ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` with ``embedding``, by a function or by `nedx.decode`."""
    if callable(decoder):
        found: xr.Dataset = decoder(ds)
        return found
    from nedx.decoding.decode import decode

    return decode(ds, decoder)


def _with_prior(ds: xr.Dataset, prior: Any) -> xr.Dataset:
    if callable(prior):
        found: xr.Dataset = prior(ds)
        return found
    from nedx.reconstruction.prior import apply_prior

    return apply_prior(ds, prior)


def outcome_of(outcome: str | Outcome, gallery: xr.Dataset | None, test: xr.Dataset) -> Outcome:
    """Return the function that scores decoded images; ``"retrieval"`` finds them in a gallery.

    Raises
    ------
    SelectionError, SchemaError
        If there is no such outcome, or no gallery in which ``test`` can be found.
    """
    if callable(outcome):
        return outcome
    if outcome != "retrieval":
        raise SelectionError(
            f"outcome is 'retrieval' or a function of the decoded Dataset, not {outcome!r}"
        )
    if gallery is None:
        raise SelectionError("outcome='retrieval' needs a gallery: features with an 'image_id'")
    retrieved = partial(_retrieved, gallery=gallery)
    # The labels of the gallery are checked before anything is trained or decoded.
    width, sample = gallery.sizes.get("feature", 1), sample_dim(test)
    nothing = da.zeros((test.sizes[sample], width), np.float32)
    bare = test.drop_dims("feature", errors="ignore")
    retrieved(bare.assign(embedding=((sample, "feature"), nothing)))
    return retrieved


def _retrieved(decoded: xr.Dataset, gallery: xr.Dataset) -> xr.Dataset:
    from nedx.decoding.retrieval import retrieve

    return retrieve(decoded, gallery, k=1)[["rank", "similarity_true"]]


def _only_scores(scored: xr.Dataset, test: xr.Dataset) -> xr.Dataset:
    """Leave scores (subject[, image]): labels of images would be compared again and again."""
    known = scored.coords.get("in_gallery")
    if known is not None:
        # An image without a true match was not missed: it has no rank.
        scored = scored.isel({known.dims[0]: np.flatnonzero(known.values)})
    bare = scored.drop_vars(list(scored.coords))
    others = set(bare.dims) - {"subject", sample_dim(test)}
    if others:
        found = ", ".join(sorted(map(str, others)))
        raise SchemaError(
            "what outcome returns",
            [f"scores have the dims {found}; expected ([subject,] {sample_dim(test)})"],
        )
    count = bare.sizes.get("subject", 1)
    bare = bare.map(lambda a: a if "subject" in a.dims else a.expand_dims(subject=count))
    if "subject" not in scored.coords:
        return bare
    return bare.assign_coords(subject=scored["subject"].values.reshape(-1))


def checked_test(test: xr.Dataset | xr.DataTree) -> xr.Dataset:
    """Return test responses, lazily; those of a tree with a dimension of subjects.

    Raises
    ------
    SelectionError
        If repetitions were not averaged: the noise is that of what is decoded. Or if the subjects
        of a tree saw other images.
    ModelError
        If the subjects of a tree differ in channels, times or units.
    """
    if isinstance(test, xr.DataTree):
        return _joined(test)
    if role_dim(test, "repetition") is not None:
        raise SelectionError(
            "the test responses have repetitions; average them first, as the noise is matched to "
            "what is decoded: ds.ned.average_repetitions()"
        )
    return test


def _joined(tree: xr.DataTree) -> xr.Dataset:
    """Put the subjects of a tree beside each other, image by image."""
    from nedx.decoding.samples import by_subject

    found = by_subject(tree)
    first, reference = next(iter(found.items()))
    images = labels_of(reference, "image_id")
    ordered = []
    for subject, ds in found.items():
        if role_dim(ds, "repetition") or role_dim(ds, "trial"):
            raise SelectionError(
                f"the test responses of {subject} are trials; average them first, as the noise is "
                "matched to what is decoded: tree.ned.average_repetitions()"
            )
        row = {name: n for n, name in enumerate(labels_of(ds, "image_id"))}
        if set(row) != set(images):
            raise SelectionError(
                f"{subject} saw other images than {first}: choose the test images that all saw, or "
                "give one subject at a time"
            )
        ordered.append(ds.isel({sample_dim(ds): [row[name] for name in images]}))
    values = [response_of(ds).variable.transpose("image", "channel", "time") for ds in ordered]
    # What is not the same for all, such as how often each saw an image, is left out.
    shared = {
        name: coord.variable
        for name, coord in reference.coords.items()
        if all(name in ds.coords and ds[name].variable.equals(coord.variable) for ds in ordered)
    }
    shared["subject"] = xr.Variable("subject", np.array(list(found), dtype=object))
    response = xr.Variable.concat(values, "subject")
    return parse(xr.Dataset({"response": response}, shared, reference.attrs))


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the seeds without repeats; raise where there are none, or one is no seed."""
    listed = list(dict.fromkeys(np.atleast_1d(np.asarray(seeds)).tolist()))
    if not listed:
        raise SelectionError("seeds= is empty: name at least one, for example seeds=range(5)")
    if wrong := [seed for seed in listed if not isinstance(seed, int) or seed < 0]:
        raise SelectionError(f"seeds are whole numbers from 0, not {wrong[0]!r}; type seeds=[0, 1]")
    return listed


def scores_of(
    chain: Chain,
    test: xr.Dataset,
    changes: Mapping[str, Change | None],
    seeds: Sequence[int],
) -> xr.Dataset:
    """Score responses under several conditions, now.

    Parameters
    ----------
    chain : Chain
    test : Dataset
        Responses ``([subject,] image | trial, channel, time)``.
    changes : mapping of str to callable
        Conditions, and how each changes a Dataset with a seed; None leaves it as it is, and is
        scored once for all seeds.
    seeds : sequence of int

    Returns
    -------
    Dataset
        Scores ``(condition, seed, subject[, image | trial])``.
    """
    # Once a dask array, what is in memory is not hashed again in every condition.
    test = test.assign(response=response_of(test))
    rows = []
    for name, change in changes.items():
        if change is None:
            found = [chain.scores(test, lambda ds: ds)] * len(seeds)
        else:
            found = [chain.scores(test, partial(change, seed=seed)) for seed in seeds]
        _log.info("scored condition %s", name)
        rows.append(xr.concat(found, "seed"))
    scores = xr.concat(rows, "condition")
    names = np.array(list(changes), dtype=object)
    return scores.assign_coords(condition=names, seed=np.asarray(seeds, np.int64))


def measured(scores: xr.Dataset) -> xr.Dataset:
    """Return the measures of scores, averaged over images, float64 (..., subject)."""
    sample = sample_of(scores)
    found = {}
    for name, (score, of) in measures(scores).items():
        array = scores[score]
        kept = [dim for dim in array.dims if dim != sample]
        values = of(array.transpose(*kept, ...).values)
        attrs = {"units": "1", "long_name": _WORDS.get(name, f"mean {name}")}
        found[name] = (kept, values, attrs)
    coords = {name: c for name, c in scores.coords.items() if sample not in c.dims}
    return xr.Dataset(found, coords)


def measures(scores: xr.Dataset) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Return the measures that scores allow: the name of the score, and a function of its images.

    ``rank`` gives `RANK_MEASURES`, any other score its mean; one without images is itself.
    """
    sample = sample_of(scores)
    found: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
    for name, array in scores.data_vars.items():
        if name == "rank":
            found |= {measure: ("rank", of) for measure, of in RANK_MEASURES.items()}
        else:
            found[str(name)] = (str(name), _mean if sample in array.dims else _itself)
    return found


def sample_of(scores: xr.Dataset) -> str | None:
    """Return the dim of the images of scores; None where they have none."""
    return role_dim(scores, "stimulus") or role_dim(scores, "trial")


def _mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.mean(values, axis=-1, dtype=np.float64))


def _itself(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)
