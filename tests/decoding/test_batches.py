"""Batches: all samples, once, shuffled, averaged, whatever the chunks; and what one pass tells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.decoding import batches
from nedx.decoding.batches import Stream
from nedx.decoding.samples import by_subject, paired
from nedx.errors import ModelError
from tests.decoding.toy import CHANNELS, TIMES, responses


def sources(count, *, chunks=16, repetitions=2, subjects=("sub-01",), average=True):
    ds = responses(count, chunks=chunks, repetitions=repetitions, subjects=subjects)
    rows = {name: i for i, name in enumerate(ds["image_id"].values)}
    split = by_subject(ds)
    return [paired(name, one, rows, average)[0] for name, one in split.items()], ds


def joined(drawn):
    drawn = list(drawn)
    return (
        np.concatenate([b.response for b in drawn]),
        np.concatenate([b.subject for b in drawn]),
        np.concatenate([b.target for b in drawn]),
        [len(b.response) for b in drawn],
    )


@settings(max_examples=20)
@given(
    count=st.integers(1, 40),
    chunks=st.integers(1, 17),
    size=st.integers(2, 15),
    streamed=st.booleans(),
)
def test_in_order_all_means_come_once(count, chunks, size, streamed):
    parts, ds = sources(count, chunks=chunks)
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, streamed=streamed)
        x, _, target, lengths = joined(Stream(parts, size, average=True).epoch())
    np.testing.assert_allclose(x, ds["response"].values[0].mean(1), rtol=1e-5)
    np.testing.assert_array_equal(target, np.arange(count))
    assert all(length == size for length in lengths[:-1])


@settings(max_examples=20)
@given(chunks=st.integers(1, 17), size=st.integers(2, 9), streamed=st.booleans())
def test_at_random_each_trial_comes_at_most_once_with_its_image(chunks, size, streamed):
    parts, ds = sources(20, chunks=chunks, average=False)
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, streamed=streamed)
        stream = Stream(parts, size, average=False)
        x, _, target, lengths = joined(stream.epoch(np.random.default_rng(0)))
        other = joined(stream.epoch(np.random.default_rng(1)))
    assert stream.items == 40
    assert lengths == [size] * (40 // size)
    trials = ds["response"].values[0]
    which = [
        [r for r in range(2) if np.array_equal(trials[row, r], one)]
        for one, row in zip(x, target, strict=True)
    ]
    assert all(len(found) == 1 for found in which)
    assert len({(row, found[0]) for row, found in zip(target, which, strict=True)}) == len(x)
    assert not np.array_equal(target, other[2])


def test_some_of_the_repetitions_are_averaged_drawn_anew():
    parts, ds = sources(30, repetitions=4)
    stream = Stream(parts, 10, average=2)
    rng = np.random.default_rng(0)
    trials = ds["response"].values[0]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    seen = set()
    for batch in (*stream.epoch(rng), *stream.epoch(rng)):
        for one, row in zip(batch.response, batch.target, strict=True):
            means = [trials[row, list(pair)].mean(0) for pair in pairs]
            (found,) = [i for i, mean in enumerate(means) if np.allclose(mean, one, rtol=1e-5)]
            seen.add(found)
    assert len(seen) == 6


def test_subjects_are_mixed_and_told_apart():
    parts, ds = sources(24, subjects=("sub-01", "sub-02"))
    parts = [type(one)(**{**vars(one), "index": i}) for i, one in enumerate(parts)]
    stream = Stream(parts, 8, average=True)
    means = ds["response"].values.mean(2)
    mixed = 0
    for batch in stream.epoch(np.random.default_rng(0)):
        np.testing.assert_allclose(batch.response, means[batch.subject, batch.target], rtol=1e-5)
        mixed += len(set(batch.subject.tolist())) == 2
    assert mixed > 3


@settings(max_examples=15)
@given(chunks=st.integers(1, 30), streamed=st.booleans())
def test_one_pass_tells_mean_scale_and_identity_whatever_the_chunks(chunks, streamed):
    parts, ds = sources(25, chunks=chunks)
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, streamed=streamed)
        found = Stream(parts, 4, average=True).summary()
    means = ds["response"].values[0].mean(1).astype(float)
    np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-5)
    spread = np.sqrt(((means - means.mean(0)) ** 2).mean((0, 2)))
    np.testing.assert_allclose(found.scale[:, 0], spread, rtol=1e-4)
    parts, _ = sources(25, chunks=7)
    assert found.checksum == Stream(parts, 4, average=True).summary().checksum


def limited(patch, *, streamed):
    """Let about four images be held at a time."""
    if streamed:
        patch.setattr(batches, "HELD_BYTES", 1)
        patch.setattr(batches, "WINDOW_BYTES", 4 * 4 * 2 * CHANNELS * TIMES)


def test_what_is_held_is_read_once(monkeypatch):
    parts, _ = sources(25)
    stream = Stream(parts, 4, average=True)
    stream.summary()
    monkeypatch.setattr(type(parts[0]), "read", None)
    assert sum(len(b.target) for b in stream.epoch()) == 25


@pytest.mark.parametrize("average", [True, False, 1])
def test_missing_responses_are_named(average):
    _, ds = sources(20, repetitions=3)
    ds = ds.load()
    ds["response"][0, 13, 1, 2, 3] = np.nan
    rows = {name: i for i, name in enumerate(ds["image_id"].values)}
    parts = [paired("sub-01", ds.isel(subject=0), rows, average)[0]]
    with pytest.raises(ModelError, match=r"NaN.*'toy:013'"):
        Stream(parts, 4, average).summary()


def test_a_dead_channel_is_told():
    _, ds = sources(20)
    ds = ds.load()
    ds["response"][..., 3, :] = 1.5
    rows = {name: i for i, name in enumerate(ds["image_id"].values)}
    parts = [paired("sub-01", ds.isel(subject=0), rows, average=True)[0]]
    with pytest.raises(ModelError, match="1 of 6 channels never change, first number 3"):
        Stream(parts, 4, average=True).summary()
