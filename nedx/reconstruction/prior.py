"""apply_prior: embeddings of brains become embeddings of images, lazily and with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.compute import cache
from nedx.compute.batches import checked
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.compute.references import ModelRef
from nedx.errors import ModelError
from nedx.reconstruction.prior_store import PriorModel, PriorPart, PriorRecipe
from nedx.reconstruction.rows import over_rows, variable
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.reconstruction.prior_training import DiffusionPrior

EMBEDDING = "embedding"
ONE_STAGE = "embedding_one_stage"


def apply_prior(
    ds: xr.Dataset,
    prior: PriorModel | DiffusionPrior | str | Path | Location,
    *,
    guidance: float = 5.0,
    steps: int = 50,
    seed: int = 0,
    sampler: str = "ddpm",
    batch_size: int = 64,
    device: str = "auto",
) -> xr.Dataset:
    """Turn decoded embeddings into embeddings of the space that images are generated from.

    The noise of an image comes from its ``image_id`` and the seed alone, and each batch has the
    same size: one image, one seed and one machine give one result to the bit, whatever is computed
    with it. Subjects share the noise of an image.

    Parameters
    ----------
    ds : Dataset
        ``embedding ([subject,] image | trial[, repetition], feature)`` with ``image_id``, from
        `decode`.
    prior : PriorModel, DiffusionPrior, path or URL
        What was trained on embeddings of this kind.
    guidance : float
        Of classifier-free guidance: 1 follows the condition, 0 ignores it, 5 is published.
    steps : int
        Times visited in sampling.
    seed : int
        Of the noise.
    sampler : {"ddpm", "ddim"}
        As published, or that of diffusers, which needs fewer steps (10 to 25). Multistep solvers
        are left out: nearly all of the signal is gone at the first times, and their extrapolation
        of the prediction there ran away.
    batch_size : int
        Images at a time.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    Dataset
        What was given, with ``embedding`` float32 in the target space, lazily, and what it was
        before as ``embedding_one_stage``. Where widths differ, all that lay along ``feature`` lies
        along ``feature_one_stage``.

    Raises
    ------
    ModelError
        If there is no embedding, its width is not the prior's, a prior was applied already, or
        images have no ids. NaN are found when they are computed.
    """
    from nedx.reconstruction.prior_sampling import check_sampling

    check_device(device)
    model = _model(prior)
    recipe = model.recipe
    check_sampling(recipe, steps, sampler, batch_size)
    given = variable(ds, EMBEDDING, "Type: ds.ned.decode(decoder)")
    _check(given, recipe)
    if ONE_STAGE in ds:
        raise ModelError(
            f"there is {ONE_STAGE!r} already: a prior was applied to these embeddings. Apply the "
            "other one to what was decoded, ds.ned.decode(decoder)"
        )
    task = PriorTask(model.ref, float(guidance), steps, sampler, seed, batch_size, device)
    made = over_rows(given, ("feature",), task)
    attrs = {**_provenance(model), **task.options()}
    dims = (*(dim for dim in given.dims if dim != "feature"), "feature")
    if recipe.width != recipe.condition_width:
        ds = ds.rename(feature="feature_one_stage")
    return ds.rename({EMBEDDING: ONE_STAGE}).assign({EMBEDDING: (dims, made, attrs)})


@dataclass(frozen=True)
class PriorTask:
    """Samples the embeddings of one block of images.

    Parameters
    ----------
    model : ModelRef
        The prior.
    guidance, steps, sampler, seed, batch_size, device
        As `apply_prior` takes them.
    """

    model: ModelRef
    guidance: float
    steps: int
    sampler: str
    seed: int
    batch_size: int
    device: str

    def options(self) -> dict[str, Any]:
        """Return what decides the result, beside the prior."""
        names = ("guidance", "steps", "sampler", "seed", "batch_size")
        return {name: getattr(self, name) for name in names}

    @property
    def shape(self) -> tuple[int, ...]:
        """One embedding."""
        return (PriorRecipe.model_validate_json(self.model.recipe).width,)

    @property
    def dtype(self) -> np.dtype:
        """Of embeddings."""
        return np.dtype(np.float32)

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return float32 (image, feature) of float (image, feature)."""
        from nedx.reconstruction.prior_sampling import sample

        device = resolve_device(self.device)
        values = rows.astype(np.float32)
        values = checked(values, values.shape, np.float32, EMBEDDING, names=names)
        network = cache.get(self.model, device, PriorPart())
        with forward_slot(device):
            made = sample(
                network,
                PriorRecipe.model_validate_json(self.model.recipe),
                values,
                names,
                guidance=self.guidance,
                steps=self.steps,
                sampler=self.sampler,
                seed=self.seed,
                batch_size=self.batch_size,
                device=device,
            )
        return checked(made, made.shape, np.float32, "the prior's embedding", names=names)


def _model(prior: PriorModel | DiffusionPrior | str | Path | Location) -> PriorModel:
    from nedx.encoding.model import load_model
    from nedx.reconstruction.prior_training import DiffusionPrior

    if isinstance(prior, DiffusionPrior):
        return prior.fitted()
    model = load_model(prior) if isinstance(prior, str | Path | Location) else prior
    if not isinstance(model, PriorModel):
        raise ModelError(
            f"a {type(model).__name__} is no diffusion prior; type nedx.DiffusionPrior().fit("
            "embeddings, targets)"
        )
    return model


def _provenance(model: PriorModel) -> dict[str, Any]:
    return {
        "long_name": "embedding",
        "units": "1",
        "model": model.recipe.target,
        "prior_sha256": model.weights_sha256,
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }


def _check(given: xr.DataArray, recipe: PriorRecipe) -> None:
    if "feature" not in given.dims or given.dtype.kind != "f":
        raise ModelError(
            f"'embedding' is {given.dtype} {given.dims}, expected floats over 'feature'"
        )
    if given.sizes["feature"] != recipe.condition_width:
        raise ModelError(
            f"the embeddings have {given.sizes['feature']} features, the prior was trained with "
            f"{recipe.condition_width}: decode with the decoder it was trained with"
            + (f" ({recipe.condition})" if recipe.condition else "")
        )
