"""`LowLevelDecoder`: learn to decode the latents of an autoencoder, and so the layout of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict
from sklearn.base import BaseEstimator

from nedx.compute import cache
from nedx.compute.batches import batches, checked
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.compute.references import ModelRef
from nedx.decoding.fitting_in import checked_response, fitting_response
from nedx.decoding.networks.recipe import NetworkRecipe
from nedx.decoding.recipe import DecoderRecipe
from nedx.encoding.estimators.base import UnfittedError
from nedx.errors import ModelError
from nedx.reconstruction.generators.autoencoder import LATENT_DIMS
from nedx.reconstruction.network_store import StoredNetwork, arrays_of, load_weights
from nedx.reconstruction.prior_rows import pair
from nedx.reconstruction.rows import over_rows, variable
from nedx.schema import role_dim
from nedx.store.location import Location

LATENT = "latent"
_SAID = ("units", "normalization", "normalization_scope", "transform")


class LowLevelRecipe(BaseModel):
    """What a low-level decoder takes and makes.

    Parameters
    ----------
    takes : DecoderRecipe
        Channels, times and units of the responses; how the epoch was chosen, and origin.
    latent_shape : (int, int, int)
        Channels, height and width of latents.
    autoencoder : str, optional
        Whose latents they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    takes: DecoderRecipe
    latent_shape: tuple[int, int, int]
    autoencoder: str | None = None


class LowLevelModel(StoredNetwork[LowLevelRecipe]):
    """A trained low-level decoder; `nedx.load_model` opens one from where `to_zarr` wrote it."""

    model_type = "low_level_decoder"
    recipe_type = LowLevelRecipe

    def predict(
        self, responses: xr.Dataset, *, batch_size: int = 32, device: str = "auto"
    ) -> xr.Dataset:
        """Decode latents, lazily.

        Parameters
        ----------
        responses : Dataset
            ``response (image | trial[, repetition], channel, time)`` with ``image_id``.
        batch_size : int
            Responses at a time.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

        Returns
        -------
        Dataset
            What was given, with ``latent (image | trial[, repetition], latent_channel, latent_y,
            latent_x)`` float32, which `LatentDecoder` makes pictures of.

        Raises
        ------
        ModelError
            If channels, times or units are others.
        """
        check_device(device)
        if batch_size < 1:
            raise ModelError(f"batch_size is {batch_size}; it is at least 1")
        array = fitting_response(responses, self.recipe.takes)
        if "image_id" in responses["response"].coords:
            array = array.assign_coords(image_id=responses["response"]["image_id"].variable)
        task = LowLevelTask(self.ref, batch_size, device)
        made = over_rows(array, array.dims[-2:], task)
        attrs = {
            "long_name": "latent of an autoencoder",
            "units": "1",
            "model": self.recipe.autoencoder or "not said",
            "weights_sha256": self.weights_sha256,
            "batch_size": batch_size,
            "torch_version": version("torch"),
            "code_version": version("nedx"),
        }
        return responses.assign({LATENT: ((*array.dims[:-2], *LATENT_DIMS), made, attrs)})


class LowLevelDecoder(BaseEstimator):
    """Learn the latents of images from responses, for pictures of layout and colour.

    The recipe of ATM's low-level branch: L1 loss, AdamW, a cosine over all epochs. There the last
    epoch is kept; here that of the lowest loss over held-out concepts. There one network may have
    a first layer for each subject; here a decoder is of one subject, so fit one for each.

    Parameters
    ----------
    epochs : int
        Passes over the training rows.
    batch_size : int
        Rows in a step.
    lr, weight_decay : float
        Of AdamW.
    dropout : float
        After the first layer.
    width : int
        Channels of the first transposed convolution.
    validation : float
        Share of the concepts that the epoch is chosen by; 0 keeps the last epoch.
    groups : str, optional
        The coordinate that names the concept of an image; None holds out images.
    seed : int
        Of initial weights, order and dropout.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Attributes
    ----------
    model_ : LowLevelModel
        The epoch kept.
    history_ : list of dict
        Of each epoch ``epoch``, ``loss`` and ``validation_loss``.

    Examples
    --------
    >>> latents = nedx.encode_latents(images, "sdxl-vae", size=512)
    >>> low = LowLevelDecoder().fit(train, latents)
    >>> seen = low.predict(test).ned.reconstruct(LatentDecoder("sdxl-vae"))
    >>> both = low.predict(test.ned.decode(decoder)).ned.reconstruct(SdxlTurboImageToImage())
    """

    model_: LowLevelModel
    history_: list[dict[str, float]]

    def __init__(
        self,
        epochs: int = 200,
        batch_size: int = 30,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        dropout: float = 0.5,
        width: int = 1024,
        validation: float = 0.1,
        groups: str | None = "category",
        seed: int = 0,
        device: str = "auto",
    ):
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.width = width
        self.validation = validation
        self.groups = groups
        self.seed = seed
        self.device = device

    def fit(self, responses: xr.Dataset, latents: xr.Dataset) -> LowLevelDecoder:
        """Train on the responses of one subject; both are held in memory, as float32.

        Parameters
        ----------
        responses : Dataset
            ``response (image | trial[, repetition], channel, time)``: every repetition is a row.
            Images of the partition ``"test"`` are left out.
        latents : Dataset
            ``latent (image, latent_channel, latent_y, latent_x)`` of `nedx.encode_latents`, joined
            by ``image_id``.

        Returns
        -------
        LowLevelDecoder
            Itself.

        Raises
        ------
        ModelError
            If responses have no latents, values are not finite, or there are several subjects.
        """
        check_device(self.device)
        if self.epochs < 1 or self.batch_size < 1:
            raise ModelError("epochs and batch_size are at least 1")
        array = checked_response(responses)
        if role_dim(array, "subject") is not None:
            raise ModelError("a low-level decoder is of one subject: type ds.isel(subject=0)")
        wanted = variable(latents, LATENT, "Type: nedx.encode_latents(images, autoencoder)")
        shape = tuple(wanted.sizes[dim] for dim in LATENT_DIMS)
        flat = {"feature": tuple(array.dims[-2:])}
        given = array.drop_vars(list(array.dims[-2:])).stack(flat, create_index=False)
        flat_latents = wanted.stack(feature=LATENT_DIMS, create_index=False)
        pairs = pair(
            xr.Dataset({"embedding": given}),
            xr.Dataset({"features": flat_latents}),
            groups=self.groups,
            validation=self.validation,
            seed=self.seed,
        )
        takes = self._takes(responses, array, int(np.prod(shape)))
        recipe = LowLevelRecipe(
            takes=takes,
            latent_shape=shape,
            autoencoder=wanted.attrs.get("model"),
        )
        from nedx.reconstruction.low_level_loop import train

        state, self.history_ = train(pairs, recipe, self, resolve_device(self.device))
        self.model_ = LowLevelModel.kept(recipe, arrays_of(state), pairs.known)
        return self

    def predict(self, responses: xr.Dataset, **options: Any) -> xr.Dataset:
        """Decode latents, lazily; see `LowLevelModel.predict`."""
        return self._fitted().predict(responses, **{"device": self.device, **options})

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def _fitted(self) -> LowLevelModel:
        if not hasattr(self, "model_"):
            raise UnfittedError("this LowLevelDecoder is not fitted: type .fit(responses, latents)")
        return self.model_

    def _takes(self, ds: xr.Dataset, array: xr.DataArray, outputs: int) -> DecoderRecipe:
        channel, time = (np.asarray(ds[dim].values) for dim in array.dims[-2:])
        network = NetworkRecipe(
            name="low_level",
            n_channels=len(channel),
            n_times=len(time),
            n_outputs=outputs,
            options={"dropout": self.dropout, "width": self.width},
        )
        said = {name: array.attrs[name] for name in _SAID if name in array.attrs}
        rule = "the lowest loss over held-out concepts" if self.validation else "the last epoch"
        return DecoderRecipe(
            network=network,
            channels=tuple(map(str, channel)),
            times=tuple(time.astype(np.float64).tolist()),
            sampling_frequency=float(1 / np.median(np.diff(time))) if len(time) > 1 else 1.0,
            selection=rule,
            fitted_by=repr(self),
            training_source=array.attrs.get("source", ds.attrs.get("source")),
            seed=self.seed,
            **said,
        )


@dataclass(frozen=True)
class LowLevelPart:
    """The network of a stored low-level decoder."""

    def read(self, ref: ModelRef, device: str) -> Any:
        """Read its weights and build it."""
        from nedx.reconstruction.low_level_loop import build

        network = build(LowLevelRecipe.model_validate_json(ref.recipe))
        load_weights(network, ref)
        return network.eval().to(device)


@dataclass(frozen=True)
class LowLevelTask:
    """Decodes the latents of one block of responses.

    Parameters
    ----------
    model : ModelRef
        The decoder.
    batch_size, device
        As `LowLevelModel.predict` takes them.
    """

    model: ModelRef
    batch_size: int
    device: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent."""
        return LowLevelRecipe.model_validate_json(self.model.recipe).latent_shape

    @property
    def dtype(self) -> np.dtype:
        """Of latents."""
        return np.dtype(np.float32)

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return float32 (row, latent_channel, y, x) of responses (row, channel, time)."""
        import torch

        device = resolve_device(self.device)
        network = cache.get(self.model, device, LowLevelPart())
        values = rows.astype(np.float32)
        values = checked(values, values.shape, np.float32, "response", names=names)
        made = []
        with forward_slot(device), torch.inference_mode():
            for part in batches(len(values), self.batch_size):
                found = network(torch.from_numpy(values[part]).to(device))
                made.append(found.cpu().numpy())
        return np.concatenate(made)
