"""nedx fit: from recordings to a model that nedx synth runs and verify proves."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import yaml

import nedx
from nedx.cli import main
from nedx.errors import ModelError, StoreExistsError
from nedx.fitting import FitRecipe, fit, load_fit_recipe, model_card
from tests.encoding.truth import features, stimuli

COMPONENTS = 8
ESTIMATOR = {"kind": "ridge", "parameters": {"n_components": COMPONENTS, "alphas": [100.0]}}
BACKBONE = {
    "name": "gabor",
    "layers": ["energy_0", "energy_1", "energy_2"],
    "pooling": "avg2",
    "policy": "raw01",
    "batch_size": 8,
    "image_size": 64,
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Images and recordings of them in stores: two subjects, each with voxels of its own."""
    folder = tmp_path_factory.mktemp("recorded")
    images = nedx.parse(stimuli(60))
    nedx.to_zarr(images, folder / "images.zarr")
    rng = np.random.default_rng(0)
    x = features(images.pixels.values)
    x = (x - x.mean(0)) / x.std(0)
    kinds = np.array(["train"] * 45 + ["test"] * 15, dtype=object)
    children = {}
    for subject, voxels in (("sub-01", 4), ("sub-02", 3)):
        signal = x @ rng.normal(size=(x.shape[1], voxels)) / np.sqrt(x.shape[1])
        response = signal[:, None] + 0.5 * rng.normal(size=(60, 3, voxels))
        children[f"/{subject}"] = xr.Dataset(
            {
                "response": (
                    ("image", "repetition", "voxel"),
                    response.astype(np.float32),
                    {"units": "percent", "source": "synthetic"},
                )
            },
            {
                "image_id": ("image", images.image_id.values),
                "partition": ("image", kinds),
                "category": ("image", np.array([f"kind-{i % 6}" for i in range(60)], object)),
                "repetition": np.arange(3, dtype=np.int16),
                "voxel": np.arange(voxels, dtype=np.int32),
            },
            {"modality": "fmri", "dataset": "toy", "license": "CC0-1.0", "species": "none"},
        )
    tree = nedx.parse(xr.DataTree.from_dict(children))
    nedx.to_zarr(tree, folder / "responses.zarr")
    return folder


def recipe_of(folder, output, **changes):
    return {
        "name": "toy-gabor",
        "stimuli": str(folder / "images.zarr"),
        "responses": str(folder / "responses.zarr"),
        "backbone": BACKBONE,
        "estimator": ESTIMATOR,
        "output": str(output),
        "citation": "A toy, 2026",
        **changes,
    }


@pytest.fixture(scope="module")
def fitted(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    place = folder / "recipe.yaml"
    place.write_text(yaml.safe_dump(recipe_of(recorded, folder / "out")))
    assert main(["fit", str(place), "--quiet"]) == 0
    return folder / "out"


def test_the_accuracy_is_that_of_scikit_learn(recorded, fitted):
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = features(nedx.open(recorded / "images.zarr").pixels.values).astype(float)
    model = nedx.load_model(fitted / "model.zarr")
    for subject in ("sub-01", "sub-02"):
        y = nedx.open(recorded / "responses.zarr", subject=subject).response.values.mean(1)
        pipeline = make_pipeline(StandardScaler(), PCA(COMPONENTS, svd_solver="full"), Ridge(100.0))
        predicted = pipeline.fit(x[:45], y[:45]).predict(x[45:])
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, y[45:].T, strict=True)]
        member = model.weights[subject]
        np.testing.assert_allclose(member["encoding_accuracy"].values, r, atol=1e-3)
        assert ((member["noise_ceiling"] > 0) & (member["noise_ceiling"] < 1)).all()


def test_the_model_says_where_it_comes_from(fitted):
    model = nedx.load_model(fitted / "model.zarr")
    card = model_card(model)
    assert card.splits == {"train": 45, "test": 15}
    assert card.units == "percent"
    assert "45 images (sha256" in card.training_data
    assert card.accuracy.startswith("sub-01: median r 0.")
    written = (fitted / "model_card.md").read_text()
    for word in ("CC0-1.0", "A toy, 2026", "RidgeEncoder(alphas=[100.0]", "train against test"):
        assert word in written
        assert word in model.recipe.card
    assert "simulated" in written
    for subject in ("sub-01", "sub-02"):
        figure = fitted / "figures" / f"accuracy_{subject}.png"
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert f"figures/{figure.name}" in written
    again = load_fit_recipe(fitted / "recipe.yaml")
    assert again.name == "toy-gabor"
    assert again.estimator.parameters["alphas"] == [100.0]


def test_its_responses_are_synthesized_and_proved(recorded, fitted, tmp_path):
    images, model, out = (
        str(p) for p in (recorded / "images.zarr", fitted / "model.zarr", tmp_path / "out.zarr")
    )
    assert main(["verify", model]) == 0
    assert main(["synth", "init", images, model, out]) == 0
    assert main(["synth", "run", out, "--quiet"]) == 0
    assert main(["synth", "finalize", out]) == 0
    assert main(["synth", "verify", out, "--recompute", "100%"]) == 0
    responses = nedx.open(out, subject=1)
    assert responses.response.attrs["model_id"] == "toy-gabor"
    assert responses.response.attrs["units"] == "percent"
    assert list(responses.partition.values) == ["train"] * 45 + ["test"] * 15
    weights = nedx.load_model(model).weights["sub-01"]
    assert responses.encoding_accuracy.values == pytest.approx(weights.encoding_accuracy.values)


def test_images_are_held_out_whole_categories_at_a_time(recorded, tmp_path):
    split = {"test_fraction": 0.3, "groups": "category", "seed": 1}
    result = fit(recipe_of(recorded, tmp_path / "out", split=split, figures=False))
    known = result.model.weights["sub-01"]
    ids, kinds = known.known_image.values, known.known_partition.values
    category = {f"test:{i:03d}": i % 6 for i in range(60)}
    held = {category[i] for i, kind in zip(ids, kinds, strict=True) if kind == "test"}
    fitted_to = {category[i] for i, kind in zip(ids, kinds, strict=True) if kind == "train"}
    assert len(held) == 2
    assert not held & fitted_to
    assert not (tmp_path / "out" / "figures").exists()
    assert "30% of the images held out by seed 1, whole category" in result.card


def test_nothing_is_overwritten_unless_asked(recorded, tmp_path):
    recipe = recipe_of(recorded, tmp_path / "out", figures=False)
    first = fit(recipe)
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        fit(recipe)
    second = nedx.fit(recipe, overwrite=True)
    assert second.model.weights_sha256 == first.model.weights_sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"respones": "x"}, "respones is no word of it, did you mean 'responses'"),
        ({"split": {"tst": ["test"]}}, "split.tst is no word of it, did you mean 'test'"),
        # Only words of this mapping are offered: 'place' is one of another.
        ({"split": {"place": "x"}}, "split.place is no word of it, there are: coordinate, groups"),
        ({"estimator": {"kind": "ridge", "parameters": {"alfas": [1.0]}}}, "did you mean 'alphas'"),
        ({"estimator": {"kind": "lasso"}}, "estimator.kind: Input should be 'ridge'"),
        ({"split": {"train": ["all"], "test": ["all"]}}, "in train and in test"),
        ({"split": {"coordinate": "session"}}, "no coordinate 'session' of images"),
        (
            {"split": {"test": ["val"]}},
            r"no image is in the test part \('partition' in \['val'\]\)",
        ),
        ({"stimuli": "nowhere.zarr"}, "nowhere.zarr"),
        ({"split": {"test_fraction": 0.01}}, "1 images are held out.*expected 3 or more"),
    ],
)
def test_faults_are_named_before_anything_is_computed(recorded, tmp_path, changes, message):
    from nedx.errors import NedxError

    with pytest.raises(NedxError, match=message):
        fit(recipe_of(recorded, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_an_image_in_both_parts_is_refused(recorded, tmp_path):
    ds = nedx.open(recorded / "responses.zarr", subject=1).load()
    twice = ds.isel(image=[*range(60), 3]).rename(image="trial").isel(repetition=0, drop=True)
    kinds = twice.partition.values.copy()
    kinds[-1] = "test"
    twice = twice.assign_coords(partition=("trial", kinds)).drop_encoding()
    nedx.to_zarr(nedx.parse(twice), tmp_path / "trials.zarr")
    recipe = recipe_of(recorded, tmp_path / "out", responses=str(tmp_path / "trials.zarr"))
    with pytest.raises(ModelError, match="1 images are fitted to and held out, first 'test:003'"):
        fit(recipe)


def test_recipes_are_frozen_and_read_from_yaml(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(ModelError, match="is not YAML"):
        load_fit_recipe(tmp_path / "broken.yaml")
    with pytest.raises(ModelError, match="no recipe at"):
        load_fit_recipe(tmp_path / "absent.yaml")
    recipe = FitRecipe(name="a", stimuli="b", responses="c", backbone="gabor", output="d")
    assert load_fit_recipe(recipe) is recipe
    assert recipe.split.coordinate == "partition"


def stored(recorded, place, **coords):
    """Write the first subject's responses with one row a repetition, and labels of rows."""
    ds = nedx.open(recorded / "responses.zarr", subject=1).load()
    rows = [ds.isel(repetition=i, drop=True).rename(image="trial") for i in range(3)]
    trials = xr.concat(rows, "trial").assign_coords(
        {name: ("trial", np.asarray(values)) for name, values in coords.items()}
    )
    nedx.to_zarr(nedx.parse(trials.drop_encoding()), place)
    return str(place)


def test_recordings_without_repetitions_are_fitted_and_drawn(recorded, tmp_path):
    ds = nedx.open(recorded / "responses.zarr", subject=1).load()
    once = ds.isel(repetition=0, drop=True).drop_encoding()
    nedx.to_zarr(nedx.parse(once), tmp_path / "once.zarr")
    result = fit(recipe_of(recorded, tmp_path / "out", responses=str(tmp_path / "once.zarr")))
    assert "no noise ceiling: images were not repeated" in result.card
    assert [figure.name for figure in result.figures] == ["accuracy.png"]
    assert nedx.verify(result.place).ok


def test_folds_may_be_numbers(recorded, tmp_path):
    place = stored(recorded, tmp_path / "trials.zarr", fold=np.tile(np.arange(60) % 4, 3))
    split = {"coordinate": "fold", "train": [0, 1, 2], "test": 3}
    recipe = recipe_of(recorded, tmp_path / "out", responses=place, split=split, figures=False)
    assert model_card(fit(recipe).model).splits == {"train": 45, "test": 15}


def test_images_of_several_groups_cannot_be_held_out_whole(recorded, tmp_path):
    place = stored(recorded, tmp_path / "trials.zarr", session=np.repeat([1, 2, 3], 60))
    split = {"test_fraction": 0.3, "groups": "session"}
    with pytest.raises(ModelError, match="'test:000' is in several groups of 'session'"):
        fit(recipe_of(recorded, tmp_path / "out", responses=place, split=split))


def test_images_held_out_must_be_there_before_the_fit(recorded, tmp_path):
    images = nedx.open(recorded / "images.zarr").isel(image=slice(59)).load().drop_encoding()
    nedx.to_zarr(images, tmp_path / "images.zarr")
    told = []
    recipe = recipe_of(recorded, tmp_path / "out", stimuli=str(tmp_path / "images.zarr"))
    with pytest.raises(ModelError, match="1 of 15 images .* first 'test:059'"):
        fit(recipe, progress=told.append)
    assert told == ["reading labels"]
