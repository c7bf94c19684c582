from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import nedx
from nedx.backbones import Weights, register_module
from nedx.reconstruction.inversion import (
    CAFFE,
    LBFGS,
    Dists,
    FeatureEncoder,
    FeatureInversion,
    FeatureScaling,
    GeneratorDescent,
    ImageGenerator,
    vgg19_encoder,
)
from nedx.reconstruction.inversion.objective import Objective
from nedx.reconstruction.inversion.problem import Problem
from nedx.stimuli.preprocessing import policy
from tests.laziness import computes_at_most
from tests.reconstruction.inverted import (
    MEAN,
    SIDE,
    as_dataset,
    caffe_input,
    encoder,
    features_by_hand,
    small_generator,
    small_net,
    smooth_images,
)


def loss_by_hand(net, target, images):
    """Return the objective (image,) of RGB images: layers, weights and squares in numpy."""
    found = features_by_hand(net, caffe_input(images.astype(np.float64)))
    inverse = {k: 1 / (v**2).reshape(len(v), -1).sum(1) for k, v in target.items()}
    total = sum(inverse.values())
    return sum(
        inverse[k] / total * ((found[k] - target[k]) ** 2).reshape(len(images), -1).sum(1)
        for k in target
    )


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def generator(net, **options):
    return ImageGenerator(register_module(f"g{id(net)}", net, "1"), 32, **options)


@pytest.fixture(scope="module")
def coded():
    """Return net, generator, codes, RGB images of them, and their features, of 4 images."""
    net, maker = small_net(), small_generator()
    codes = np.random.default_rng(0).uniform(0, 6, (4, 32))
    with torch.no_grad():
        made = maker(torch.from_numpy(codes).float()).double()
    pixels = made.permute(0, 2, 3, 1).numpy()[..., ::-1] + MEAN[::-1]
    return net, maker, codes, pixels, features_by_hand(net, made)


def test_lbfgs_finds_the_image_again():
    net, truth = small_net(1), smooth_images(2, seed=1)
    target = features_by_hand(net, caffe_input(truth))
    ds = as_dataset(target)
    with computes_at_most(0):
        out = ds.ned.reconstruct(FeatureInversion(encoder(net), raw=True), device="cpu")
        one = out.isel(image=slice(0, 1))
    assert out["pixels_reconstructed"].dims == ("image", "y", "x", "rgb")
    assert out["pixels_reconstructed"].dtype == np.uint8
    assert list(out["image_id"].values) == list(ds["image_id"].values)
    raw = one["pixels_raw"].values
    mean_image = np.broadcast_to(MEAN[::-1], raw.shape)
    first = {layer: values[:1] for layer, values in target.items()}
    lowered = loss_by_hand(net, first, mean_image) / loss_by_hand(net, first, raw)
    assert lowered > 1e8
    assert correlation(raw, truth[:1]) > 0.9999
    np.testing.assert_allclose(raw, truth[:1], atol=0.5)
    recipe = json.loads(out["pixels_reconstructed"].attrs["generator"])
    assert recipe["name"] == "FeatureInversion"
    assert recipe["optimizer"]["iterations"] == 200


def test_lbfgs_stays_within_the_range_of_pixels():
    net = small_net(1)
    truth = smooth_images(1) * 2 - 120  # beyond 0 and 255: no image has these features
    ds = as_dataset(features_by_hand(net, caffe_input(truth)))
    inversion = FeatureInversion(encoder(net), LBFGS(20), raw=True)
    raw = nedx.reconstruct(ds, inversion, device="cpu")["pixels_raw"].values
    assert raw.min() > -1e-3
    assert raw.max() < 255 + 1e-3
    assert (raw < 0.01).mean() > 0.01
    assert (raw > 254.99).mean() > 0.01


def test_descent_finds_codes_and_images_again(coded):
    net, maker, codes, pixels, target = coded
    enc, gen = encoder(net), generator(maker, upper=6.0)
    objective = Objective.of(target, "cpu", torch.float32)
    problem = Problem(enc, enc.load("cpu", "float32"), objective, gen, gen.load("cpu", "float32"))
    found = GeneratorDescent().solve(problem, [0] * 4)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 6
    with torch.no_grad():
        made = maker(found).permute(0, 2, 3, 1).double().numpy()[..., ::-1] + MEAN[::-1]
        start = maker(torch.zeros(4, 32)).permute(0, 2, 3, 1).double().numpy()
    lowered = loss_by_hand(net, target, start[..., ::-1] + MEAN[::-1])
    lowered /= loss_by_hand(net, target, made)
    assert lowered.min() > 1e3
    for i in range(4):
        assert correlation(found[i].numpy(), codes[i]) > 0.999
        assert correlation(made[i], pixels[i]) > 0.999
    inversion = FeatureInversion(enc, GeneratorDescent(), gen, batch_size=4, raw=True)
    out = as_dataset(target).ned.reconstruct(inversion, device="cpu")
    np.testing.assert_allclose(out["pixels_raw"].values, made, atol=1e-3)


def test_lbfgs_through_a_generator(coded):
    net, maker, _, pixels, target = coded
    inversion = FeatureInversion(encoder(net), LBFGS(150), generator(maker, upper=6.0), raw=True)
    one = as_dataset({layer: values[:1] for layer, values in target.items()})
    raw = nedx.reconstruct(one, inversion, device="cpu")["pixels_raw"].values
    assert correlation(raw, pixels[:1]) > 0.9999


def test_images_do_not_depend_on_chunks_or_on_those_beside_them(coded):
    net, maker, _, _, target = coded
    settings = GeneratorDescent(iterations=15, start="normal")
    inversion = FeatureInversion(
        encoder(net), settings, generator(maker, lower=None), batch_size=3, raw=True
    )
    ds = as_dataset(target, np.float32)
    whole = nedx.reconstruct(ds, inversion, device="cpu")["pixels_raw"].values
    for chunk, order in ((1, [3, 0, 1, 2]), (2, [2, 1, 3, 0])):
        some = ds.isel(image=order).chunk({"image": chunk})
        found = nedx.reconstruct(some, inversion, device="cpu")["pixels_raw"].values
        np.testing.assert_array_equal(found, whole[order])
    lazy = nedx.reconstruct(ds, inversion, device="cpu")
    with computes_at_most(1):
        np.testing.assert_array_equal(lazy["pixels_raw"].isel(image=2).values, whole[2])
    assert max(lazy["pixels_raw"].chunks[0]) == 3
    none = nedx.reconstruct(ds.isel(image=[]), inversion, device="cpu")
    assert none["pixels_raw"].values.shape == (0, SIDE, SIDE, 3)
    other = nedx.reconstruct(ds, inversion, seed=1, device="cpu")["pixels_raw"].values
    assert not np.allclose(other, whole, atol=1)


def test_subjects_flat_units_and_transposed_maps_give_the_same_images(coded):
    net, _, _, _, target = coded
    layers = ("conv2_1", "fc6")
    some = {layer: target[layer][:2].astype(np.float32) for layer in layers}
    inversion = FeatureInversion(encoder(net, layers), LBFGS(3), raw=True)
    ds = as_dataset(some, np.float32)
    expected = nedx.reconstruct(ds, inversion, device="cpu")["pixels_raw"].values
    flat = np.concatenate([values.reshape(2, -1) for values in some.values()], 1)
    names = np.repeat(layers, [some[layer][0].size for layer in layers]).astype(object)
    made = {
        "flat": xr.Dataset(
            {"features": (("image", "feature"), flat)},
            coords={"layer": ("feature", names), "image_id": ds["image_id"]},
        ),
        "transposed": ds.transpose("image", "conv2_1_x", "conv2_1_channel", ...),
        "subjects": ds.expand_dims(subject=["sub-01"]),
    }
    for name, other in made.items():
        out = nedx.reconstruct(other, inversion, device="cpu")["pixels_raw"]
        np.testing.assert_array_equal(out.values.reshape(expected.shape), expected, err_msg=name)
        if name == "subjects":
            assert out.dims == ("subject", "image", "y", "x", "rgb")


def test_the_same_recipe_has_the_same_name_after_pickling_and_is_stored(coded, tmp_path):
    net, maker, _, _, target = coded
    gen = generator(maker, upper=[6.0] * 32)
    dists = Dists({"fc6": 0.1}, {"fc6": 0.2})
    inversion = FeatureInversion(
        encoder(net), GeneratorDescent(2), gen, dists=dists, batch_size=2, raw=True
    )
    ds = as_dataset(target, np.float32).chunk()
    again = pickle.loads(pickle.dumps(inversion))
    made = [nedx.reconstruct(ds, one, device="cpu") for one in (inversion, again)]
    assert made[0]["pixels_raw"].data.name == made[1]["pixels_raw"].data.name
    other = nedx.reconstruct(ds, replace(inversion, loss="l1"), device="cpu")
    assert made[0]["pixels_raw"].data.name != other["pixels_raw"].data.name
    pictures = made[0][["pixels_reconstructed", "pixels_raw"]]
    pictures.ned.to_zarr(tmp_path / "pictures.zarr")
    opened = nedx.open(tmp_path / "pictures.zarr")
    for name in pictures:
        np.testing.assert_allclose(opened[name].values, pictures[name].values, rtol=1e-3)


def test_scaling_is_undone_before_inverting(coded):
    net, _, _, _, target = coded
    layers = ("conv1_1", "fc6")
    some = {layer: target[layer][:1] for layer in layers}
    stds = {"conv1_1": some["conv1_1"].std((2, 3)).mean(), "fc6": some["fc6"].std()}
    inversion = FeatureInversion(encoder(net, layers), LBFGS(5), raw=True)
    expected = nedx.reconstruct(as_dataset(some), inversion, device="cpu")["pixels_raw"].values
    weak = as_dataset({layer: values * 0.2 for layer, values in some.items()})
    scaled = FeatureInversion(
        encoder(net, layers), LBFGS(5), scaling=FeatureScaling("std_about_zero", stds), raw=True
    )
    with computes_at_most(0):
        lazy = nedx.reconstruct(weak, scaled, device="cpu")["pixels_raw"]
    np.testing.assert_allclose(lazy.values, expected, atol=1e-2)


def test_a_generator_of_other_pixels_and_larger_images(coded):
    """A generator in RGB from 0 to 1 of 64 pixels: its centre is what the encoder sees."""
    net = small_net()
    maker = small_generator(side=64)
    gen = generator(maker, pixels=policy("raw01"))
    enc = encoder(net)
    objective = Objective.of(coded[4], "cpu", torch.float64)
    problem = Problem(enc, enc.load("cpu", "float64"), objective, gen, gen.load("cpu", "float64"))
    codes = torch.rand(4, 32, dtype=torch.float64)
    whole = maker.double()(codes).detach()[..., 16:48, 16:48].numpy()
    expected = (whole * 255)[:, ::-1] - MEAN[:, None, None]
    np.testing.assert_allclose(problem.images(codes).detach().numpy(), expected, rtol=1e-9)
    maker.float()


def bad(ds, inversion, match, compute=False):
    def reconstruct():
        out = nedx.reconstruct(ds, inversion, device="cpu")
        return out.compute(scheduler="synchronous") if compute else out

    with pytest.raises(nedx.errors.ModelError, match=match):
        reconstruct()


def test_features_that_do_not_fit(coded):
    net, _, _, _, target = coded
    inversion = FeatureInversion(encoder(net), LBFGS(1))
    ds = as_dataset(target)
    bad(ds.drop_vars(["feature_fc6", "feature_conv1_1"]), inversion, "layers conv1_1, fc6; there")
    bad(ds[["image_id"]].assign(other=("image", np.zeros(4))), inversion, "no features to invert")
    narrow = ds.isel(fc6_unit=slice(0, 60), conv1_1_y=slice(0, 30))
    bad(narrow, inversion, r"(?s)conv1_1 is \(8, 30, 32\).*\(8, 32, 32\).*fc6 is \(60,\)")
    flat = xr.Dataset({"features": (("image", "feature"), target["fc6"])}, ds.coords)
    bad(flat, inversion, r"those of: features of which no 'layer \(feature\)' is told")
    kind, stds = "feature_std_train_mean_center", dict.fromkeys(inversion.encoder.names, 1.0)
    unaveraged = replace(inversion, scaling=FeatureScaling(kind, stds, ds))
    bad(ds, unaveraged, r"(?s)train_mean= is of .*type .mean\('image'\).*fc8 is \(4, 10\)")
    bad(ds.astype(np.int32), inversion, "int32, expected floats")
    bad(ds.drop_vars("image_id"), inversion, "image_id")
    holes = ds.copy(deep=True)
    holes["feature_fc7"][2, 5] = np.nan
    bad(holes, inversion, "NaN or infinite values for 1 of 4 entries: t:0002", compute=True)
    zero = ds.assign(feature_fc8=ds["feature_fc8"] * 0)
    bad(zero, inversion, r"all zero \(fc8\)", compute=True)
    apart = ds.assign(feature_fc8=ds["feature_fc8"].expand_dims(subject=2))
    bad(apart, inversion, "all layers need the same images")
    pixels = ds.assign(pixels=(("image", "y", "x"), np.zeros((4, 5, 5))))
    bad(pixels, inversion, "this Dataset holds images")
    with pytest.raises(nedx.errors.ModelError, match="of embeddings"):
        nedx.reconstruct(ds, inversion, kinds=["one_stage"])


def test_recipes_that_cannot_work(coded):
    net, maker, _, _, target = coded
    error = nedx.errors.ModelError
    with pytest.raises(error, match="needs generator="):
        FeatureInversion(encoder(net), GeneratorDescent())
    with pytest.raises(error, match=r"encoder= is a str, .*vgg19_encoder"):
        FeatureInversion("vgg19")
    with pytest.raises(error, match="optimizer= is a type"):
        FeatureInversion(encoder(net), LBFGS)
    with pytest.raises(error, match="scaling= is a str"):
        FeatureInversion(encoder(net), scaling="feature_std")
    with pytest.raises(error, match="dists= is a dict"):
        FeatureInversion(encoder(net), dists={"fc6": 1})
    with pytest.raises(error, match="std= is a float"):
        FeatureScaling("feature_std", 2.0)
    with pytest.raises(error, match="FeatureInversion is a class"):
        nedx.reconstruct(as_dataset(target), FeatureInversion)
    with pytest.raises(error, match="no generator.*FeatureInversion for networks"):
        nedx.reconstruct(as_dataset(target), generator(maker))
    with pytest.raises(error, match="generator= is a SmallGenerator"):
        FeatureInversion(encoder(net), GeneratorDescent(), maker)
    with pytest.raises(error, match="recipe= is a str"):
        FeatureEncoder("vgg19")
    with pytest.raises(error, match="precision='half'"):
        LBFGS(precision="half")
    with pytest.raises(error, match="expected two numbers"):
        GeneratorDescent(rate=2.0)
    with pytest.raises(error, match="no loss is called 'l3'"):
        FeatureInversion(encoder(net), loss="l3")
    with pytest.raises(error, match="display"):
        FeatureInversion(encoder(net), display="pretty")
    with pytest.raises(error, match="no generator is called"):
        ImageGenerator("deepsim", 4096)
    with pytest.raises(error, match="upper= has 3 values"):
        generator(maker, upper=[1.0, 2.0, 3.0])
    with pytest.raises(error, match="not below"):
        generator(maker, lower=2.0, upper=1.0)
    with pytest.raises(error, match="no such layers"):
        encoder(net, ("conv9_9",)).shapes()
    with pytest.raises(error, match="as many different names"):
        FeatureEncoder(encoder(net).recipe, ("a", "a"))
    big = FeatureInversion(encoder(small_net(0, 64), side=64), LBFGS(1), generator(maker))
    bad(as_dataset(target), big, f"makes images of {SIDE} x {SIDE}")
    wrong = ImageGenerator(generator(maker).network, 31)
    bad(as_dataset(target), FeatureInversion(encoder(net), LBFGS(1), wrong), "does not take codes")
    fc8 = xr.Dataset({"feature_fc8": (("image", "fc8_unit"), np.ones((2, 1000)))})
    fc8 = fc8.assign_coords(image_id=("image", ["a", "b"]))
    bad(fc8, FeatureInversion(vgg19_encoder("nowhere.pt", layers=["fc8"])), "no weight file at")
    lost = replace(generator(maker), weights=Weights(source="nowhere.pt"))
    absent = FeatureInversion(encoder(net), LBFGS(1), lost)
    bad(as_dataset(target), absent, "no weight file at")
    assert CAFFE.mean == tuple(MEAN)
