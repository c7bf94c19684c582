"""Maps of importance and ablations find the channels and times that carry the signal."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nedx.errors import SelectionError
from nedx.insilico.ablation import (
    Piece,
    ablate,
    ablation_experiment,
    growing_windows,
    region_pieces,
    sliding_windows,
)
from nedx.insilico.importance import channel_importance, importance_map, time_importance
from nedx.simulation.montage import CHANNELS as MONTAGE
from tests.insilico.ideal import CARRIERS, CHANNELS, TIMES, LeastSquares, Linear

CARRY = np.isin(CHANNELS, CARRIERS)
PUBLISHED = {"frontal": 15, "central": 14, "parietal": 16, "temporal": 10, "occipital": 8}
TEMPORAL = {"FT9", "FT7", "T7", "TP9", "TP7", "TP8", "TP10", "T8", "FT8", "FT10"}


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear(noise_sd=8.0)


@pytest.fixture(scope="module")
def data(linear) -> tuple[xr.Dataset, xr.Dataset]:
    return linear.draw(60, seed=1)


@pytest.mark.parametrize("measure", ["similarity_true", "top1", "median_rank"])
def test_channels_that_carry_the_signal(linear, data, measure):
    found = channel_importance(data[0], linear.decode, data[1], measure=measure, seeds=[0])
    assert found.importance.dims == ("subject", "channel")
    assert found.channel.values.tolist() == CHANNELS
    assert (found.importance.values[:, CARRY] > 0.02).all()
    assert not found.importance.values[:, ~CARRY].any()
    np.testing.assert_array_equal(
        found[measure].values[~CARRY, 0], np.tile(found[f"{measure}_clean"], (10, 1))
    )
    assert found.importance.attrs["measure"] == measure


def test_importance_grows_with_what_a_channel_carries(data):
    linear = Linear(noise_sd=8.0)
    linear.map[:, CHANNELS.index("O1")] *= 0.3
    test, gallery = linear.draw(100, seed=2)
    found = channel_importance(test, linear.decode, gallery, seeds=range(2)).importance
    assert (found.sel(channel="O1") < 0.5 * found.sel(channel=["Oz", "O2"])).all()


def test_times_that_carry_the_signal(linear, data):
    found = time_importance(data[0], linear.decode, data[1], width=0.05, step=0.05, seeds=[0])
    np.testing.assert_allclose(found.time, np.arange(-0.075, 0.376, 0.05))
    bounds = found.time_bounds.values
    carry = (bounds[:, 0] <= 0.2 + 1e-9) & (bounds[:, 1] > 0.1 + 1e-9)
    assert carry.sum() == 3
    assert (found.importance.values[:, carry] > 0.005).all()
    assert not found.importance.values[:, ~carry].any()
    assert found.time.attrs["units"] == "s"
    named = {"over": "time", "width": 0.05, "step": 0.05, "seeds": [0]}
    again = importance_map(data[0], linear.decode, data[1], **named)
    xr.testing.assert_identical(again, found)


@pytest.fixture(scope="module")
def both(linear, data) -> xr.Dataset:
    options = {"over": ("channel", "time"), "width": 0.1, "step": 0.1, "seeds": [3]}
    return importance_map(data[0], linear.decode, data[1], **options)


def test_channels_by_times(both):
    found = both.importance
    assert found.dims == ("subject", "channel", "time")
    expected = CARRY[:, None] & np.isin(found.time.values.round(2), [0.15, 0.25])
    np.testing.assert_array_equal(found.values != 0, np.broadcast_to(expected, found.shape))


def test_a_map_of_channels_and_times_is_drawn_at_a_time(both):
    within, before = (both.ned.plot.importance(time=time) for time in (0.15, -0.05))
    assert within.images[0].get_array().max() > 0.05
    assert not before.images[0].get_array().any()
    with pytest.raises(SelectionError, match=r"5 times.*time=0\.1"):
        both.ned.plot.importance()


def test_a_window_of_channels(linear, data):
    after = channel_importance(data[0], linear.decode, data[1], seeds=[0], time=(0.21, 0.39))
    assert not after.importance.values.any()
    within = channel_importance(
        data[0], linear.decode, data[1], seeds=[0], time=(0.1, 0.2), noise="shuffle"
    )
    assert (within.importance.values[:, CARRY] > 0.02).all()
    assert within.importance.attrs["noise"] == "shuffle"


def test_coordinates_of_channels_are_kept(linear, data):
    test = data[0].assign_coords(region=("channel", ["front"] * 8 + ["back"] * 5))
    found = channel_importance(test, linear.decode, data[1], seeds=[0])
    assert found.region.values.tolist() == test.region.values.tolist()


def refuse(ds):
    raise AssertionError("nothing is decoded before what is asked for was checked")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"over": ("space",)}, "'channel', 'time' or both"),
        ({"over": "timing"}, "'channel', 'time' or both"),
        ({"over": ("time",), "width": 0.01}, "two samples or more"),
        ({"over": ("time",), "step": 0.0}, "step is above 0"),
        ({"over": ("time",), "width": 2.0}, r"no window of 2 s fits in -0\.1 to 0\.39 s"),
        ({"seeds": []}, "seeds= is empty"),
        ({"noise": "wite"}, "unknown noise 'wite'"),
    ],
)
def test_bad_maps(data, options, says):
    with pytest.raises(SelectionError, match=says):
        importance_map(data[0], refuse, data[1], **options)


def test_unknown_measures_and_repetitions(linear, data):
    test, gallery = data
    with pytest.raises(SelectionError, match="did you mean 'top1'"):
        importance_map(test, linear.decode, gallery, measure="top_1")
    with pytest.raises(SelectionError, match="average_repetitions"):
        importance_map(test.expand_dims(repetition=2), refuse, gallery)
    with pytest.raises(SelectionError, match="no named channels"):
        importance_map(test.drop_vars("channel"), refuse, gallery)


def test_regions_are_those_of_the_published_ablations(data):
    labels = {"channel": np.array(MONTAGE, object), "time": np.arange(250) / 250}
    ds = xr.Dataset(coords=labels)
    pieces = {piece.name: piece.channels for piece in region_pieces(ds)}
    sizes = {name: len(channels) for name, channels in pieces.items()}
    assert sizes == PUBLISHED
    assert pieces["occipital"] == ("O1", "Oz", "O2", "PO7", "PO3", "POz", "PO4", "PO8")
    assert set(pieces["temporal"]) == TEMPORAL
    own = ds.assign_coords(region=("channel", ["left", "right"] * 31 + ["left"]))
    assert [len(piece.channels) for piece in region_pieces(own)] == [32, 31]
    with pytest.raises(SelectionError, match="'E1' is not of the 10-10 system"):
        region_pieces(ds.isel(channel=[0]).assign_coords(channel=["E1"]))


def test_windows_are_those_of_the_published_ablations():
    ds = xr.Dataset(coords={"time": np.arange(-50, 250) / 250})
    growing = [piece.time for piece in growing_windows(ds)]
    assert growing[0] == (0, 0.05)
    assert growing[9:] == [(0, end) for end in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    sliding = [piece.time for piece in sliding_windows(ds)]
    assert sliding[0] == (0, 0.1)
    assert sliding[-1] == (0.9, 1.0)
    assert len(sliding) == 14
    assert [p.time[1] for p in growing_windows(ds.isel(time=slice(150)))][-1] == 0.4
    with pytest.raises(SelectionError, match=r"no window ends by 0\.02 s"):
        growing_windows(ds.isel(time=slice(56)))


def test_pieces_are_kept_removed_and_perturbed(data):
    ds = data[0]
    piece = Piece("back", ("O1", "Oz"), (0.1, 0.2))
    kept = ablate(ds, piece, "keep")
    assert kept.channel.values.tolist() == ["O1", "Oz"]
    np.testing.assert_allclose(kept.time, TIMES[20:31])
    removed = ablate(ds, Piece("back", ("O1", "Oz")), "remove")
    assert removed.channel.values.tolist() == [c for c in CHANNELS if c not in ("O1", "Oz")]
    hurt = ablate(ds, piece, noise="zero").response
    assert not hurt.sel(channel=["O1", "Oz"]).isel(time=slice(20, 31)).values.any()
    assert hurt.shape == ds.response.shape
    with pytest.raises(SelectionError, match="would have a gap"):
        ablate(ds, piece, "remove")
    with pytest.raises(SelectionError, match="nothing is left"):
        ablate(ds, Piece("all", tuple(CHANNELS)), "remove")
    with pytest.raises(SelectionError, match="did you mean 'keep'"):
        ablate(ds, piece, "kep")


def test_perturbed_regions_and_windows(linear, data):
    pieces = (*region_pieces(data[0]), *sliding_windows(data[0]))
    options = {"pieces": pieces, "seeds": [0], "n_resamples": 99}
    found = ablation_experiment(None, data[0], linear.decode, data[1], **options)
    assert found.condition.values.tolist() == ["clean", *(piece.name for piece in pieces)]
    lost = found.top1_difference.mean("subject")
    assert np.isnan(lost.sel(condition="clean"))
    for name in ("frontal", "central", "parietal", "0.25-0.35 s", "0.3-0.4 s"):
        assert lost.sel(condition=name) == 0
        assert (found.top1_p.sel(condition=name) == 1).all()
    for name in ("occipital", "0.1-0.2 s"):
        assert lost.sel(condition=name) < -0.3
        assert (found.top1_p.sel(condition=name) <= 0.02).all()


def test_regions_that_are_kept_need_a_decoder_of_their_own():
    linear = Linear(noise_sd=2.0, subjects=("sub-01",))
    train, targets = linear.draw(300, seed=2, prefix="train")
    test, gallery = linear.draw(50, seed=3)
    options = {"pieces": region_pieces(test), "retrain": "decoder", "targets": targets}
    options |= {"n_resamples": 20}
    kept, removed = (
        ablation_experiment(train, test, LeastSquares(), gallery, how=how, **options).top1
        for how in ("keep", "remove")
    )
    assert kept.sel(condition="occipital") > 0.5
    assert (kept.sel(condition=["frontal", "central", "parietal"]) < 0.15).all()
    assert removed.sel(condition="occipital") < 0.15
    assert (removed.sel(condition=["frontal", "central", "parietal"]) > 0.5).all()
    assert kept.sizes["seed"] == 1
    with pytest.raises(SelectionError, match="retrain='decoder'"):
        ablation_experiment(
            None, test, LeastSquares(), gallery, how="keep", pieces=region_pieces(test)
        )


def test_noise_is_not_asked_for_where_none_is_made(data):
    with pytest.raises(SelectionError, match="noise= is of how='perturb'"):
        ablate(data[0], Piece("back", ("Oz",)), "keep", noise="phase")


@pytest.mark.parametrize(
    ("names", "says"),
    [(["a", "b", "a"], "'a' is there twice"), (["clean"], "'clean'"), ([], "pieces= is empty")],
)
def test_pieces_have_names_of_their_own(data, names, says):
    pieces = [Piece(name, ("Oz",)) for name in names]
    with pytest.raises(SelectionError, match=says):
        ablation_experiment(None, data[0], refuse, data[1], pieces=pieces)
