"""decode: what a network makes of responses, lazily, of what is selected only, and told clearly."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.compute.cache import models
from nedx.decoding.fitting_in import time_faults
from nedx.decoding.model import NeuralDecoder
from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.recipe import DecoderRecipe, Member
from nedx.decoding.standardized import Standardized
from nedx.errors import (
    CorruptStoreError,
    ModelError,
    NedxError,
    SelectionError,
    StoreExistsError,
)
from tests.decoding.toy import CHANNELS, FEATURES, TIMES, responses
from tests.laziness import computes_at_most

SUBJECTS = ("sub-01", "sub-02", "sub-05")


def decoder(mode="in_subject", subjects=SUBJECTS, name="eeg_project", **changes):
    network = NetworkRecipe(
        name=name,
        n_channels=CHANNELS,
        n_times=TIMES,
        n_outputs=FEATURES,
        n_subjects=len(subjects) if mode == "joint" else 1,
    )
    members = {s: Member(network=s, subject=0) for s in subjects}
    if mode == "joint":
        members = {s: Member(network="all", subject=i) for i, s in enumerate(subjects)}
    names = tuple(dict.fromkeys(member.network for member in members.values()))
    recipe = DecoderRecipe(
        network=network,
        channels=tuple(f"E{i}" for i in range(CHANNELS)),
        times=tuple(np.arange(TIMES) / 100),
        sampling_frequency=100.0,
        units="uV",
        mode=mode,
        networks=names,
        members=members,
        model_id="toy",
        **changes,
    )
    states = {}
    for i, one in enumerate(names):
        torch.manual_seed(i)
        module = Standardized(network)
        module.mean += 20
        module.scale *= 5
        states[one] = {k: v.numpy() for k, v in module.state_dict().items()}
    known = xr.Dataset(
        coords={
            "known_image": np.array(["toy:000", "toy:001"], dtype=object),
            "known_partition": ("known_image", np.array(["train", "val"], dtype=object)),
        }
    )
    return NeuralDecoder(recipe, states, known)


def expected(model, values, member):
    """Torch alone: (x - mean) / scale, a linear layer and a residual one, normalised."""
    state = model.state(member)
    p = "network.projection."
    x = torch.from_numpy((values - state["mean"]) / state["scale"]).flatten(-2)
    state = {k: torch.from_numpy(v) for k, v in state.items()}
    x = x @ state[f"{p}linear.weight"].T + state[f"{p}linear.bias"]
    inner = torch.nn.functional.gelu(x)
    x = x + inner @ state[f"{p}residual.weight"].T + state[f"{p}residual.bias"]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return (x * state[f"{p}norm.weight"] + state[f"{p}norm.bias"]).numpy()


@pytest.fixture(scope="module")
def model():
    return decoder()


def test_each_subject_is_decoded_by_its_own_network(model):
    ds = responses(20, subjects=SUBJECTS)
    with computes_at_most(0):
        out = ds.ned.decode(model, device="cpu")
    assert out["embedding"].dims == ("subject", "image", "repetition", "feature")
    assert out["embedding"].dtype == np.float32
    found = out["embedding"].values
    for i, subject in enumerate(SUBJECTS):
        want = expected(model, ds["response"].values[i], subject)
        np.testing.assert_allclose(found[i], want, atol=2e-5)
    attrs = out["embedding"].attrs
    assert attrs["units"] == "1"
    assert attrs["source"] == "synthetic"
    assert attrs["weights_sha256"] == model.weights_sha256
    assert out["partition"].values[:3].tolist() == ["train", "val", "unseen"]


@settings(max_examples=15)
@given(
    images=st.integers(1, 20),
    repetitions=st.integers(1, 2),
    subjects=st.integers(1, 3),
    channels=st.integers(1, CHANNELS),
    times=st.integers(1, TIMES),
    batch=st.integers(1, 7),
)
def test_chunks_and_batches_change_nothing(images, repetitions, subjects, channels, times, batch):
    model, ds = decoder(), responses(20, subjects=SUBJECTS)
    whole = ds.ned.decode(model, device="cpu")["embedding"].values
    cut = ds.chunk(
        {
            "image": images,
            "repetition": repetitions,
            "subject": subjects,
            "channel": channels,
            "time": times,
        }
    )
    found = cut.ned.decode(model, device="cpu", batch_size=batch)["embedding"].values
    np.testing.assert_allclose(found, whole, atol=1e-6 * np.abs(whole).max())


def test_what_is_selected_later_is_all_that_is_read_and_decoded(tmp_path, model):
    nedx.to_zarr(responses(64, subjects=SUBJECTS, chunks=16), tmp_path / "eeg.zarr")
    ds = nedx.open_store(tmp_path / "eeg.zarr")
    out = ds.ned.decode(model, device="cpu")
    whole = out["embedding"].values
    piece = out["embedding"].isel(subject=[2, 0], image=[40, 3], repetition=[1], feature=[5, 2])
    np.testing.assert_allclose(piece.values, whole[[2, 0]][:, [40, 3]][:, :, [1]][..., [5, 2]])
    one = out["embedding"].isel(subject=1, image=7)
    assert one.dims == ("repetition", "feature")
    np.testing.assert_allclose(one.values, whole[1, 7], atol=1e-6)
    models.clear()
    before = models.loads
    out.sel(subject=["sub-02"]).isel(image=slice(5))["embedding"].compute()
    assert models.loads - before == 1
    kept = ds["response"].isel(subject=[2, 0], image=[40, 3], repetition=[1])
    others = xr.full_like(ds["response"], np.nan).load()
    others[[2, 0], [40, 3], [1]] = kept.values
    spoilt = ds.assign(response=others).chunk().ned.decode(model, device="cpu")["embedding"]
    again = spoilt.isel(subject=[2, 0], image=[40, 3], repetition=[1], feature=[5, 2])
    np.testing.assert_allclose(again.values, piece.values, atol=1e-6)
    with pytest.raises(ModelError, match="NaN"):
        spoilt.isel(image=[40, 4]).compute()


def test_channels_are_found_by_name_and_times_by_value(model):
    ds = responses(9, subjects=SUBJECTS)
    whole = ds.ned.decode(model, device="cpu")["embedding"].values
    order = [3, 1, 5, 0, 2, 4]
    extra = ds.isel(channel=[0]).assign_coords(channel=np.array(["ECG"], dtype=object))
    other = xr.concat([extra, ds.isel(channel=order)], "channel")
    early = ds.isel(time=[0, 1, 2]).assign_coords(time=np.array([-0.03, -0.02, -0.01]))
    early = early.isel(channel=order)
    wide = xr.concat([early, ds.isel(channel=order)], "time")
    for given_ds in (other, wide):
        found = given_ds.ned.decode(model, device="cpu")["embedding"].values
        np.testing.assert_allclose(found, whole, atol=1e-6)


def test_trials_and_single_subjects(model):
    ds = responses(8, subjects=SUBJECTS).sel(subject="sub-05")
    trials = ds.isel(repetition=0, drop=True).rename(image="trial")
    found = trials.ned.decode(model, device="cpu")["embedding"]
    assert found.dims == ("trial", "feature")
    want = expected(model, trials["response"].values, "sub-05")
    np.testing.assert_allclose(found.values, want, atol=2e-5)


def test_a_joint_network_decodes_those_it_does_not_know():
    model = decoder("joint")
    ds = responses(6, subjects=("sub-02", "sub-09"))
    assert ds.ned.decode(model, device="cpu")["embedding"].shape == (2, 6, 2, FEATURES)


def test_it_is_written_and_opened_again(tmp_path, model):
    ds = responses(6, subjects=SUBJECTS)
    model.to_zarr(tmp_path / "decoder.zarr")
    again = nedx.load_model(tmp_path / "decoder.zarr")
    assert again.recipe == model.recipe
    assert again.weights_sha256 == model.weights_sha256
    first, second = (ds.ned.decode(m, device="cpu")["embedding"].values for m in (model, again))
    np.testing.assert_array_equal(first, second)
    assert nedx.verify(tmp_path / "decoder.zarr").ok
    with pytest.raises(StoreExistsError):
        model.to_zarr(tmp_path / "decoder.zarr")
    chosen = again.sel(subject=[5])
    assert chosen.subjects == ("sub-05",)
    chosen.to_zarr(tmp_path / "one.zarr")
    alone = nedx.load_model(tmp_path / "one.zarr")
    assert alone.recipe.networks == ("sub-05",)
    place = str(tmp_path / "one.zarr")
    found = ds.sel(subject=["sub-05"]).ned.decode(place, device="cpu")["embedding"].values
    np.testing.assert_array_equal(found[0], first[2])
    with pytest.raises(SelectionError, match="sub-07"):
        again.sel(subject=7)
    with pytest.raises(ModelError, match="encodes no images"):
        nedx.encode(xr.Dataset(), tmp_path / "decoder.zarr")


def faulty(what):
    ds = responses(6, subjects=SUBJECTS)
    renamed = ["E0", "E1", "E 2", "E3", "E4", "E5"]
    return {
        "channel": ds.assign_coords(channel=np.array(renamed, dtype=object)),
        "rate": ds.assign_coords(time=np.arange(TIMES) / 250),
        "window": ds.isel(time=slice(0, 7)),
        "shifted": ds.assign_coords(time=ds["time"].values + 0.004),
        "units": ds.assign(response=ds["response"].assign_attrs(units="V")),
        "normalization": ds.assign(response=ds["response"].assign_attrs(normalization="zscore")),
        "subject": ds.assign_coords(subject=np.array(["sub-01", "sub-02", "sub-08"], object)),
        "nothing": ds.rename(response="other"),
        "labels": ds.drop_vars("channel"),
        "model": ds.expand_dims("model"),
        "twice": ds.assign_coords(channel=np.array([f"E{i}" for i in (*range(5), 0)], object)),
    }[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("channel", "1 of 6 channels are missing: E2 .*did you mean 'E 2'"),
        ("rate", "sampled at 250 Hz, the decoder takes 100 Hz"),
        ("window", "span 0 to 0.06 s, the decoder takes 0 to 0.09 s"),
        ("shifted", "at the samples that it was fitted to"),
        ("units", "units are 'V', the decoder takes 'uV'"),
        ("normalization", "normalization is 'zscore', the decoder takes None"),
        ("subject", "'sub-08', the decoder was fitted to sub-01, sub-02, sub-05"),
        ("nothing", "there is no 'response'"),
        ("labels", "'channel' has no labels"),
        ("model", "no dimension 'model'"),
        ("twice", "several channels are called 'E0'"),
    ],
)
def test_responses_that_do_not_fit_are_told_when_called(model, what, message):
    with pytest.raises(ModelError, match=message), computes_at_most(0):
        faulty(what).ned.decode(model)


def test_one_time_has_to_be_the_one_that_it_was_fitted_to():
    recipe = (0.03,)
    assert time_faults(np.array([0.025, 0.03, 0.035]), recipe) == []
    assert (
        "samples that it was fitted to" in time_faults(np.array([0.024, 0.029, 0.034]), recipe)[0]
    )
    assert "samples that it was fitted to" in time_faults(np.array([0.031]), recipe)[0]


def test_missing_values_are_named_when_they_are_computed(model):
    ds = responses(6, subjects=SUBJECTS).load()
    ds["response"][1, 4, 1, 0, 0] = np.nan
    out = ds.ned.decode(model, device="cpu")
    with pytest.raises(ModelError, match="toy:004"):
        out["embedding"].compute()
    assert np.isfinite(out["embedding"].isel(image=slice(4)).values).all()


def test_what_is_no_decoder_is_refused(model):
    ds = responses(3, subjects=SUBJECTS)
    with pytest.raises(ModelError, match="not fitted yet"):
        ds.ned.decode(nedx.EEGDecoder())
    with pytest.raises(ModelError, match="takes a decoder, not int"):
        ds.ned.decode(3)
    with pytest.raises(ModelError, match="unknown device"):
        ds.ned.decode(model, device="gpu")


def rewritten(place, change):
    """Change the attributes of a store, in its consolidated metadata too."""
    path = place / "zarr.json"
    held = json.loads(path.read_text())
    change(held["attributes"])
    path.write_text(json.dumps(held))


@pytest.mark.parametrize("fault", ["recipe", "network", "code", "path", "bytes", "nan"])
def test_a_hostile_or_broken_store_is_an_error_and_runs_nothing(tmp_path, fault):
    place = tmp_path / "decoder.zarr"
    decoder(subjects=("sub-01",)).to_zarr(place)
    ds = responses(4)
    if fault == "recipe":
        rewritten(place, lambda attrs: attrs["recipe"].update(hack=1))
    elif fault == "network":
        rewritten(place, lambda attrs: attrs["recipe"]["network"].update(n_outputs=9))
    elif fault == "code":
        rewritten(place, lambda attrs: attrs["recipe"]["network"].update(name="os:system"))
    elif fault == "path":
        rewritten(place, lambda attrs: attrs["recipe"].update(networks=["../../etc"]))
    elif fault == "bytes":
        chunk = place / "networks/sub-01/network.projection.residual.weight/c/0/0"
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 255
        chunk.write_bytes(bytes(content))
    else:
        broken = decoder(subjects=("sub-01",))
        broken._states["sub-01"]["network.projection.linear.bias"][2] = np.nan
        broken.to_zarr(tmp_path / "nan.zarr")
        place = tmp_path / "nan.zarr"
    with pytest.raises((ModelError, CorruptStoreError)) as caught:
        ds.ned.decode(nedx.load_model(place), device="cpu")["embedding"].compute()
    assert isinstance(caught.value, NedxError)
