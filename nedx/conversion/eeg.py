"""`EEGConverter`: one subject's EEG from another's, channels and times together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import xarray as xr

from nedx.compute.devices import check_device, resolve_device
from nedx.conversion.base import BaseConverter, model_of, solved
from nedx.conversion.recipe import Pair
from nedx.conversion.regions import Region
from nedx.conversion.ridge import ALPHAS, Alpha, SharedRidge
from nedx.conversion.storing import State
from nedx.conversion.subjects import Pairs, Responses, named_pairs
from nedx.conversion.training import Material, Work
from nedx.conversion.unet import UNetTraining, train_unet
from nedx.errors import ModelError

_NETWORKS = ("linear", "unet")


class EEGConverter(BaseConverter):
    """Convert EEG or MEG responses, channels and times together, image by image.

    ``"linear"`` is a ridge from all channels and times to all of the other subject. ``"unet"`` is
    a one-dimensional U-Net along time with skip connections, trained on ``1 - cos`` plus mean
    squared error (EEG2EEG: Lu & Golomb 2023, Proceedings of the Cognitive Science Society 45). The
    published training picked the epoch by the test set; here it is picked by training images that
    are held out.

    Parameters
    ----------
    network : {"linear", "unet"}
    alpha : float, "cv" or mapping
        Of ``"linear"``: the penalty, as `RidgeConverter` takes it.
    alphas, cv : sequence of float, int
        Of ``"linear"``: what cross-validation tries.
    average : bool
        Whether repeats of an image are averaged before the fit.
    epochs, batch_size, learning_rate : int, int, float
        Of ``"unet"``, trained with Adam.
    cosine, squared : float
        Weights of the two terms of the loss.
    validation : float
        Of ``"unet"``: share of the images held out to choose the epoch; 0 keeps the last.
    seed : int
        Of weights, order and the draw of images.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Attributes
    ----------
    model_ : Converter
    history_ : Dataset
        Of ``"unet"``: ``loss`` and ``validation_loss (pair, epoch)``.

    Examples
    --------
    >>> converter = nedx.EEGConverter("linear").fit(eeg, pairs=[(1, 2)])
    >>> other = test.ned.convert(converter, subject=2)
    """

    history_: xr.Dataset

    def __init__(
        self,
        network: Literal["linear", "unet"] = "linear",
        *,
        alpha: Alpha = "cv",
        alphas: Sequence[float] = ALPHAS,
        cv: int = 5,
        average: bool = True,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 2e-3,
        cosine: float = 1.0,
        squared: float = 1.0,
        validation: float = 0.1,
        seed: int = 0,
        device: str = "auto",
    ):
        self.network = network
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.average = average
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.cosine = cosine
        self.squared = squared
        self.validation = validation
        self.seed = seed
        self.device = device

    def fit(
        self, source: Responses, target: Responses | None = None, *, pairs: Pairs | None = None
    ) -> Self:
        """Fit to the images that subjects share.

        Parameters
        ----------
        source, target : Dataset or DataTree
            ``response (image | trial[, repetition], channel, time)`` with ``image_id``.
        pairs : list of (source, target), or "all", optional
            See `RidgeConverter.fit`.

        Returns
        -------
        EEGConverter
            Itself.

        Raises
        ------
        ModelError
            If subjects share no images, have no or other times, or responses are NaN or constant.
        """
        self._check()
        subjects, chosen = named_pairs(source, target, pairs)
        timeless = [name for name, ds in subjects.items() if "time" not in ds["response"].dims]
        if timeless:
            raise ModelError(
                f"{timeless[0]} has no times; EEGConverter mixes channels and times. Type: "
                "nedx.RidgeConverter().fit(source, target)"
            )
        solve = None
        if self.network == "linear":
            solve = SharedRidge(self.alpha, self.alphas, self.cv, resolve_device(self.device))
            for between in chosen:
                solve.check(between, ["all"])
        material = Material(subjects, "neuroid_time", average=self.average)
        for between in chosen:
            material.shared(between)
        works = []
        for one, other in chosen:
            both = material.together([one, other])
            works.append(Work(both[one], both[other], (_everything(both[one], both[other]),)))
        fitted: Iterable[tuple[Pair, State]]
        if solve is not None:
            fitted = (solved(work, solve) for work in works)
        else:
            fitted = self._trained(works, {n: _shape(ds) for n, ds in subjects.items()})
        self.model_ = model_of(
            subjects,
            fitted,
            {image for work in works for image in work.source.image.tolist()},
            method=f"EEG, {self.network}",
            fitted_by=repr(self),
            kernel=self.network,
            space="neuroid_time",
            seed=self.seed,
        )
        return self

    def _check(self) -> None:
        check_device(self.device)
        if self.network not in _NETWORKS:
            raise ModelError(f"network is 'linear' or 'unet', not {self.network!r}")
        if not isinstance(self.validation, Real) or not 0 <= self.validation < 1:
            raise ModelError(f"validation is {self.validation!r}; type a share from 0 to below 1")
        for name in ("epochs", "batch_size"):
            number = getattr(self, name)
            if not isinstance(number, Integral) or number < 1:
                raise ModelError(f"{name} is {number!r}; type a whole number from 1")
        rate = self.learning_rate
        if not isinstance(rate, Real) or not 0 < rate < np.inf:
            raise ModelError(f"learning_rate is {rate!r}; type a positive number, such as 2e-3")

    def _trained(
        self, works: Sequence[Work], shapes: Mapping[str, tuple[int, int]]
    ) -> list[tuple[Pair, State]]:
        """Train a network for each pair."""
        fitted: list[tuple[Pair, State]] = []
        histories = {}
        for work in works:
            held = self._held(work.source.image)
            if held.all():
                raise ModelError(
                    f"all {len(held)} samples are held out: type a smaller validation, or 0"
                )
            sides: dict[str, Any] = {}
            both = []
            for role, side in (("source", work.source), ("target", work.target)):
                raw = side.values.z * side.values.deviation + side.values.mean
                mean, deviation = raw[~held].mean(), raw[~held].std(ddof=1)
                sides[f"{role}_mean"] = np.array([mean], np.float32)
                sides[f"{role}_deviation"] = np.array([deviation], np.float32)
                both.append(((raw - mean) / deviation).reshape(len(raw), *shapes[side.name]))
            training = UNetTraining(
                self.epochs,
                self.batch_size,
                self.learning_rate,
                self.cosine,
                self.squared,
                self.seed,
                resolve_device(self.device),
            )
            state, history = train_unet(both[0], both[1], held, training)
            pair = Pair(
                source=work.source.name, target=work.target.name, n_samples=int((~held).sum())
            )
            fitted.append((pair, {**state, **sides}))
            histories[pair.name] = xr.Dataset({k: ("epoch", v) for k, v in history.items()})
        names = xr.Variable("pair", np.array(list(histories), dtype=object))
        self.history_ = xr.concat(list(histories.values()), names)
        return fitted

    def _held(self, image: np.ndarray) -> np.ndarray:
        """Draw images that are not trained on, bool (row,)."""
        images = np.unique(image.astype(str))
        count = int(round(self.validation * len(images)))
        drawn = np.random.default_rng(self.seed).permutation(images)[:count]
        return np.isin(image.astype(str), drawn)


def _shape(ds: xr.Dataset) -> tuple[int, int]:
    channels, times = ds["response"].shape[-2:]
    return channels, times


def _everything(source: Any, target: Any) -> Region:
    sizes = (len(side.values.mean) for side in (source, target))
    return Region("all", *(np.arange(size) for size in sizes))
