"""Encoders fitted to the simulated responses: the models that nedx opens where it has no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.simulation.stores import SIMULATION_VERSION, open_group, open_simulation

if TYPE_CHECKING:
    from nedx.encoding.model import LinearEncoder
    from nedx.linear.pca import StandardizedPCA

N_COMPONENTS = 100
"""Principal components of the features of the Gabor pyramid that the readouts see."""
ALPHAS = tuple(float(a) for a in 10.0 ** np.arange(1, 7))
"""Ridge penalties to choose from, by cross-validation over training concepts."""

_SUFFIX = "-gabor"


def build_model(name: str, place: Path) -> None:
    """Fit one of the embedded models and write it.

    Parameters
    ----------
    name : str
        For example ``"sim-eeg-gabor"``, fitted to ``"sim-eeg"``.
    place : Path
        Must not exist.
    """
    fit_model(name).to_zarr(place)


def fit_model(name: str) -> LinearEncoder:
    """Fit one of the embedded models: Gabor energies, standardised, 100 components, ridge.

    Returns
    -------
    LinearEncoder
        Its labels hold ``encoding_accuracy``, the Pearson correlation with the mean of the
        repetitions of the test images, and their ``noise_ceiling``.
    """
    from nedx.encoding.model import LinearEncoder
    from nedx.encoding.weights import fold

    dataset = name.removesuffix(_SUFFIX)
    responses = open_simulation(dataset)
    members = (
        {child: node.to_dataset() for child, node in responses.children.items()}
        if isinstance(responses, xr.DataTree)
        else {"": responses}
    )
    first = next(iter(members.values()))
    features, recipe = _features(first["image_id"].values)
    train = first["partition"].values == "train"
    pca = _components(features[train])
    scores = (((features - pca.mean) / pca.scale) @ pca.components.T).astype(np.float32)
    zero = np.zeros_like(pca.mean)
    projection, offset = fold(pca.mean, pca.scale, pca.components, zero)
    shared = xr.Dataset(
        {
            "projection": (("feature", "component"), projection),
            "projection_offset": ("component", offset),
        }
    )
    fitted = {key: _readout(ds, scores, train) for key, ds in members.items()}
    weights = (
        fitted[""].assign(shared.variables)
        if "" in fitted
        else xr.DataTree.from_dict({"/": shared, **fitted})
    )
    return LinearEncoder(weights, _recipe(name, first, recipe, int(train.sum())))


def _features(image_ids: np.ndarray) -> tuple[np.ndarray, Any]:
    """Return the features (image, feature) of the default Gabor recipe, and the recipe."""
    from nedx.backbones import default_recipe

    truth = open_group("sim-images", "truth")
    positions = truth.indexes["image_id"].get_indexer(image_ids)
    return truth["gabor"].isel(image=positions).values, default_recipe("gabor")


def _components(features: np.ndarray) -> StandardizedPCA:
    from nedx.linear.pca import fit_pca

    return fit_pca(features, N_COMPONENTS)


def _readout(ds: xr.Dataset, scores: np.ndarray, train: np.ndarray) -> xr.Dataset:
    """Fit the readouts of one group, and say how good they are on the test images."""
    from nedx.linear.ridge import fit_ridge
    from nedx.metrics.correlation import pearson_r
    from nedx.metrics.noise_ceiling import noise_ceiling

    trials = ds["response"].load()
    mean = trials.astype(np.float32)
    if "repetition" in mean.dims:
        mean = mean.mean("repetition")
    mean = mean.transpose("image", ...)
    dims, shape = mean.dims[1:], mean.shape[1:]
    fitted = _worth_fitting(ds, dims).reshape(-1)
    flat = mean.values.reshape(len(train), -1)
    fit = fit_ridge(scores[train], flat[train][:, fitted], ALPHAS)
    coef = np.zeros((scores.shape[1], flat.shape[1]), dtype=np.float32)
    coef[:, fitted], intercept = fit.coef, flat[train].mean(0)
    intercept[fitted] = fit.intercept
    predicted = (scores[~train] @ coef + intercept).reshape(-1, *shape)
    measured = mean.isel(image=~train)
    accuracy = pearson_r(measured, measured.copy(data=predicted), "image").fillna(0)
    labels = ds.drop_vars("response").drop_dims(["image", "repetition"], errors="ignore")
    if "repetition" in trials.dims:
        labels = labels.assign_coords(noise_ceiling=noise_ceiling(trials.isel(image=~train)))
    about = {"units": "1", "metric": "pearson_r", "test_set": "200 test concepts"}
    return labels.assign(
        readout=((*dims, "component"), coef.T.reshape(*shape, -1)),
        intercept=(dims, intercept.reshape(shape)),
    ).assign_coords(encoding_accuracy=accuracy.astype(np.float32).assign_attrs(about))


def _worth_fitting(ds: xr.Dataset, dims: tuple[Any, ...]) -> np.ndarray:
    """Return bool (*dims): on a whole cortex only what belongs to some ROI of its subject.

    Elsewhere the readout is 0, and the prediction is the mean of the training images.
    """
    if "subject" not in dims or "roi_mask" not in ds:
        return np.ones([ds.sizes[dim] for dim in dims], dtype=bool)
    return np.asarray(ds["roi_mask"].any("roi").transpose(*dims).values)


def _recipe(name: str, ds: xr.Dataset, backbone: Any, n_images: int) -> Any:
    from nedx.encoding.recipe import EncoderRecipe

    response = ds["response"].attrs
    return EncoderRecipe(
        backbone=backbone,
        model_id=name,
        version=SIMULATION_VERSION,
        units=response["units"],
        normalization=response.get("normalization"),
        normalization_scope=response.get("normalization_scope"),
        modality=ds.attrs["modality"],
        species=ds.attrs["species"],
        dataset="sim",
        training_data=f"{n_images} simulated images of 150 training concepts",
        training_source="synthetic",
        split="by concept: 150 for training, 200 others for testing",
        license=ds.attrs["license"],
        citation="Simulated by nedx; not fitted to measured data.",
    )
