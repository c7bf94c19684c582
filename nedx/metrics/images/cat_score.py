"""The CAT score: how many category tags of an image are seen in its reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.metrics.images.judgements import Judgements, judgements
from nedx.metrics.inference import bootstrap_mean
from nedx.metrics.intervals import t_interval

OVER = ("subject", "annotator")


def cat_score(
    match: xr.DataArray | xr.Dataset,
    tags: xr.DataArray | None = None,
    *,
    over: str | Sequence[str] = OVER,
    missing: Literal["refuse", "report"] = "refuse",
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """Add up which tags of the images their reconstructions match, lazily.

    The category-based assessment table (Chen 2024, NECOMIMI, arXiv:2410.00712): the sum
    over images i and tags j of match(i, j), 1,000 at most for 200 images of five tags. Judgements
    of annotators who saw all images and subjects come as the dims ``annotator`` and ``subject``.

    Parameters
    ----------
    match : DataArray or Dataset
        ``match (..., image, tag)`` bool, or numbers in [0, 1]; NaN is a judgement that is missing.
        With the coordinate ``tag_role (tag)``: broad_1, broad_2, specific, background, extra. A
        Dataset may hold ``tags`` too.
    tags : DataArray, optional
        ``tags (image, tag)``, strings, joined by ``image_id``. Where it is empty the image has no
        such tag: nothing is counted there. Its ``tag_role`` holds where ``match`` has none.
    over : str or sequence of str
        The dims whose labels are samples of a population, for the intervals. Those of the
        default may be absent.
    missing : {"refuse", "report"}
        Missing judgements are an error, or are left out of the sum and counted.
    level : float
        How often the intervals should cover the mean, between 0 and 1.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Dataset
        All float64, "1", ``...`` being the other dims of ``match``: ``cat_score (...)``, the sum
        over what was judged; ``cat_fraction (...)``, the sum divided by the number judged;
        ``fraction_judged (...)`` and ``n_missing (...)``; with roles ``cat_role_score (..., role)``
        and ``cat_role_fraction``. ``cat_mean`` is the mean of the scores along ``over``, and
        ``cat_interval_t`` and ``cat_interval_bootstrap (..., over, bound)`` are its intervals over
        each dim of two labels or more, the others being averaged. ``maximum`` is in the
        attributes.

    Raises
    ------
    SchemaError
        If dims are missing, images are not named, or, when computed, judgements are missing or
        out of range.
    SelectionError
        If an image has no tags, or a dim of ``over`` is not there.
    """
    if missing not in ("refuse", "report"):
        raise ValueError(f"missing is 'refuse' or 'report', not {missing!r}")
    if tags is None and isinstance(match, xr.Dataset):
        tags = match.get("tags")
    found = judgements(match, tags, refuse_missing=missing == "refuse")
    over = _present(found, over)
    scores = _sums(found)
    score = scores["cat_score"]
    if over:
        mean = score.mean(over, skipna=False, keep_attrs=False)
        attrs = {**score.attrs, "long_name": f"mean CAT score over {' and '.join(over)}"}
        scores["cat_mean"] = mean.assign_attrs(attrs)
    sampled = [dim for dim in over if score.sizes[dim] > 1]
    if sampled:
        text = f"{100 * level:g} % interval of the mean CAT score"
        options: dict[str, Any] = {"n_resamples": n_resamples, "level": level, "seed": seed}
        by_t = _intervals(score, over, sampled, partial(t_interval, level=level))
        drawn = _intervals(score, over, sampled, partial(bootstrap_mean, **options))
        scores["cat_interval_t"] = _named(by_t, f"{text}, Student's t", level=level)
        scores["cat_interval_bootstrap"] = _named(drawn, f"{text}, bootstrap", **options)
    attrs = {"missing": missing, "n_images": found.n_images}
    return xr.Dataset(scores, attrs={**attrs, **_matcher(found.values)})


def _present(found: Judgements, over: str | Sequence[str]) -> list[str]:
    over = [over] if isinstance(over, str) else list(over)
    dims = [str(dim) for dim in found.values.dims if dim not in (found.sample, "tag")]
    absent = [dim for dim in over if dim not in dims and dim not in OVER]
    if absent:
        hint = close_matches(absent[0], dims) or "the judgements have no further dims"
        raise SelectionError(f"over={over!r} names no dims of the judgements: {hint}")
    return [dim for dim in over if dim in dims]


def _sums(found: Judgements) -> dict[str, xr.DataArray]:
    """Return the sums over all tags, and over those of each role."""
    over = [found.sample, "tag"]
    judged = found.values.notnull() & found.asked
    matched = found.values.where(judged, 0.0)
    total, count = _total(matched, over), _total(judged, over)
    asked = _total(found.asked, over)
    maximum = int(asked.item())
    scores = {
        "cat_score": _named(total, "CAT score", maximum=maximum),
        "cat_fraction": _named(total / count, "share of the judged tags that match"),
        "fraction_judged": _named(count / asked, "share of the tags that were judged"),
        "n_missing": _named(asked - count, "number of judgements that are missing"),
    }
    if found.roles is not None:
        names = list(dict.fromkeys(found.roles.values.ravel().tolist()))
        role = xr.DataArray(np.array(names, dtype=object), dims="role", name="role")
        by_role = found.roles == role.assign_coords(role=role)
        sums = _total(matched.where(by_role, 0.0), over)
        counts = _total(judged & by_role, over)
        scores["cat_role_score"] = _named(sums, "CAT score of the tags of a role")
        share = "share of the judged tags of a role that match"
        scores["cat_role_fraction"] = _named(sums / counts, share)
        for name in ("cat_role_score", "cat_role_fraction"):
            scores[name] = scores[name].transpose(..., "role")
    return scores


def _total(values: xr.DataArray, over: Sequence[str]) -> xr.DataArray:
    return values.astype(np.float64).sum(over, skipna=False, keep_attrs=False)


def _named(values: xr.DataArray, long_name: str, **attrs: Any) -> xr.DataArray:
    return values.drop_attrs().assign_attrs({"units": "1", "long_name": long_name, **attrs})


def _intervals(
    score: xr.DataArray,
    over: Sequence[str],
    sampled: Sequence[str],
    interval: Callable[[xr.DataArray, str], xr.DataArray],
) -> xr.DataArray:
    """Return the interval of the mean over each dim, the others averaged."""
    by_dim = []
    for dim in sampled:
        others = [other for other in over if other != dim]
        values = score.mean(others, skipna=False) if others else score
        by_dim.append(interval(values, dim).drop_attrs())
    dims = xr.DataArray(np.array(sampled, dtype=object), dims="over", name="over")
    found = xr.concat(by_dim, dims, coords="minimal", compat="equals")
    return found.transpose(..., "over", "bound").drop_attrs()


def _matcher(values: xr.DataArray) -> dict[str, Any]:
    """Return what is known of an automatic matcher."""
    return {name: values.attrs[name] for name in ("matcher", "threshold") if name in values.attrs}
