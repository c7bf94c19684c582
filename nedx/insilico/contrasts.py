"""How conditions differ, how sure that is, and whether chance would do as much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.insilico.chain import measures, sample_of
from nedx.metrics.inference import bootstrap_mean, sign_flip_p

Of = Callable[[np.ndarray], np.ndarray]

LEVEL = 0.95
"""Of all intervals."""


def check_resamples(count: int) -> None:
    """Raise where there would be nothing to take an interval of."""
    if not isinstance(count, int | np.integer) or count < 1:
        raise SelectionError(f"n_resamples is a whole number above 0, not {count!r}")


def contrast(
    scores: xr.Dataset,
    target: int,
    others: Sequence[int],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Compare a condition with one other, or with the mean of several.

    Parameters
    ----------
    scores : Dataset
        ``(condition, seed, subject[, image | trial])``, see `nedx.insilico.chain.scores_of`.
    target : int
        Position of the condition.
    others : sequence of int
        Positions of those it is compared with.
    n_resamples, seed : int
        Of the bootstrap and of the permutations.

    Returns
    -------
    Dataset
        For each measure ``<measure>_difference (subject)``, target less others, averaged over
        seeds; ``_interval (subject, bound)``, the percentile bootstrap over images (Efron &
        Tibshirani 1993, chapter 13), 95 %; ``_p (subject)``, two-sided. Of one other condition the
        permutations exchange the two for some of the images; of several they exchange the target
        with each, so that p is no less than 1 / (conditions). Of two subjects or more
        also ``_group_interval (bound)``, bootstrapped, and ``_group_p``, of flipped signs
        (`nedx.metrics.inference.sign_flip_p`). NaN where a score has no images to resample, or is
        NaN itself.
    """
    sample = sample_of(scores)
    found = xr.Dataset(coords={"bound": np.array(["lower", "upper"], dtype=object)})
    if "subject" in scores.coords:
        found = found.assign_coords(subject=scores["subject"])
    for name, (score, of) in measures(scores).items():
        array = scores[score].transpose("condition", "seed", "subject", ...)
        images = sample in array.dims
        values = array.values[[target, *others]]
        difference = _difference(of(values))
        interval = np.full((difference.size, 2), np.nan)
        p = np.full(difference.size, np.nan)
        if images:
            interval = _bootstrapped(values, of, n_resamples, seed)
        if len(others) > 1:
            p = _exchanged_sets(of(values).mean(1))
        elif images:
            p = _exchanged_images(values, of, n_resamples, seed)
        # What is NaN is less than nothing, and would count as never reached by chance.
        p = np.where(np.isfinite(difference), p, np.nan)
        found[f"{name}_difference"] = ("subject", difference, _said(f"difference of {name}"))
        found[f"{name}_interval"] = (("subject", "bound"), interval, _said("95 % interval"))
        found[f"{name}_p"] = ("subject", p, _said("two-sided p-value"))
        found = _with_group(found, name, n_resamples, seed)
    return found


def _said(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}


def _with_group(found: xr.Dataset, name: str, n_resamples: int, seed: int) -> xr.Dataset:
    difference = found[f"{name}_difference"]
    if difference.sizes["subject"] < 2:
        return found
    interval = bootstrap_mean(difference, n_resamples=n_resamples, level=LEVEL, seed=seed)
    p = sign_flip_p(difference, seed=seed, alternative="two-sided")
    return found.assign({f"{name}_group_interval": interval, f"{name}_group_p": p})


def _difference(measure: np.ndarray) -> np.ndarray:
    """Return the first condition less the mean of the others, of (condition, seed, subject)."""
    means = measure.mean(1)
    found: np.ndarray = means[0] - means[1:].mean(0)
    return found


def _bootstrapped(values: np.ndarray, of: Of, n_resamples: int, seed: int) -> np.ndarray:
    """Return the interval (subject, 2) of values (condition, seed, subject, image)."""
    rng = np.random.default_rng([seed, 0])
    count = values.shape[-1]
    drawn = [
        _difference(of(values[..., rng.integers(0, count, count)])) for _ in range(n_resamples)
    ]
    outside = (1 - LEVEL) / 2
    found: np.ndarray = np.quantile(drawn, [outside, 1 - outside], axis=0).T
    return found


def _exchanged_images(values: np.ndarray, of: Of, n_permutations: int, seed: int) -> np.ndarray:
    """Return p (subject) of values (2, seed, subject, image), conditions exchanged by image."""
    observed = np.abs(_difference(of(values)))
    extreme = np.zeros(observed.size)
    for swap in _swaps(values.shape[-1], n_permutations, seed):
        chance = np.abs(_difference(of(np.where(swap, values[::-1], values))))
        extreme += chance >= observed - 1e-12
    found: np.ndarray = (extreme + 1) / (n_permutations + 1)
    return found


def _swaps(count: int, n_permutations: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    for _ in range(n_permutations):
        yield rng.integers(0, 2, count, dtype=np.int8).astype(bool)


def _exchanged_sets(means: np.ndarray) -> np.ndarray:
    """Return p (subject) of the first of (condition, subject): any of them might be the target."""
    count = len(means)
    rest = (means.sum(0) - means) / (count - 1)
    distance = np.abs(means - rest)
    found: np.ndarray = (distance >= distance[0] - 1e-12).mean(0)
    return found
