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
from nedx.preprocessing.steps import response_of
from nedx.schema import role_dim, sample_dim

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
    train: xr.Dataset | None = None
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
            decoder = self._fitted(decoder, change(self._train))
        decoded = decoded_by(decoder, change(test))
        if self.retrain == "prior":
            prior = self._fitted(self.prior, decoded_by(decoder, change(self._train)))
            decoded = _with_prior(decoded, prior)
        scored = self.outcome(decoded)
        if not isinstance(scored, xr.Dataset) or not scored.data_vars:
            raise SchemaError("what outcome returns", ["it is no Dataset of scores"])
        return _only_scores(scored.compute(), test)

    @property
    def _train(self) -> xr.Dataset:
        if self.train is None:
            raise ModelError("there are no responses to train on; give responses_train=")
        return self.train

    def _fitted(self, estimator: Any, responses: xr.Dataset) -> Any:
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


def check_test(test: xr.Dataset) -> None:
    """Raise where repetitions were not averaged: the noise is that of what is decoded."""
    if role_dim(test, "repetition") is not None:
        raise SelectionError(
            "the test responses have repetitions; average them first, as the noise is matched to "
            "what is decoded: ds.ned.average_repetitions()"
        )


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the seeds without repeats; raise where there are none."""
    listed = list(dict.fromkeys(seeds))
    if not listed:
        raise SelectionError("seeds= is empty: name at least one, for example seeds=range(5)")
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
