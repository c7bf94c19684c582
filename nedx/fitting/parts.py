"""Parts that recipes share: where images and recordings are, and which are held out."""

from __future__ import annotations

from typing import Annotated, Any

import xarray as xr
from pydantic import Field, field_validator, model_validator

from nedx.errors import ModelError, UnknownIdError
from nedx.fitting.words import Words

Selected = str | int | tuple[str | int, ...] | None


class StimuliSource(Words):
    """The images, or features of them.

    Parameters
    ----------
    place : str
        A catalog id, a Zarr store, or what `nedx.open_images` takes.
    group : str, optional
        A group of a store.
    options : dict
        Further arguments of `nedx.open_images`, such as ``{"fit": "crop", "size": 425}``.
    """

    place: str
    group: str | None = None
    options: dict[str, Any] = {}

    def open(self) -> xr.Dataset:
        """Open them lazily.

        Raises
        ------
        ModelError
            If the store holds neither pixels nor features.
        """
        from nedx.catalog.resolving import open as open_entry
        from nedx.catalog.resolving import resolve
        from nedx.stimuli import open_images

        is_store = self.place.rstrip("/").endswith(".zarr")
        try:
            if not is_store:
                resolve(self.place)
        except UnknownIdError:
            return open_images(self.place, **self.options)
        found = open_entry(self.place, group=self.group)
        if not isinstance(found, xr.Dataset) or not {"pixels", "features"} & set(found.data_vars):
            raise ModelError(
                f"{self.place!r} holds no images; type: nedx list --kind stimuli, or name the "
                "group that holds features"
            )
        return open_images(found, **self.options) if self.options else found


class ResponsesSource(Words):
    """The recordings.

    Parameters
    ----------
    place : str
        A catalog id, a path or a URL.
    subject, roi, channel, time
        What of them, as `nedx.open` takes it; a time window is ``[start, stop]`` in seconds.
    """

    place: str
    subject: Selected = None
    roi: str | tuple[str, ...] | None = None
    channel: str | tuple[str, ...] | None = None
    time: tuple[float, float] | float | None = None

    def open(self) -> xr.Dataset | xr.DataTree:
        """Open them lazily.

        Raises
        ------
        ModelError
            If it is a model.
        """
        from nedx.catalog.resolving import open as open_entry

        words: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) and name != "time" else value
            for name, value in self.model_dump(exclude={"place"}).items()
        }
        found = open_entry(self.place, **words)
        if not isinstance(found, xr.Dataset | xr.DataTree):
            raise ModelError(f"{self.place!r} is a model; a fit needs responses")
        return found


class Split(Words):
    """Which images are fitted to, and which are held out.

    Parameters
    ----------
    coordinate : str
        Of images or trials.
    train, test : tuple of str
        Its values for images to fit to and for those held out; one alone and numbers will do.
    test_fraction : float, optional
        Instead: hold out this part of the images, drawn by `seed`.
    groups : str, optional
        With `test_fraction`: images that share this coordinate are held out together.
    seed : int
        Of the draw.
    """

    coordinate: str = "partition"
    train: tuple[str, ...] = ("train",)
    test: tuple[str, ...] = ("test",)
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    groups: str | None = None
    seed: int = 0

    @field_validator("train", "test", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        # YAML makes numbers of folds and sessions; coordinates are compared as strings.
        several = value if isinstance(value, list | tuple) else [value]
        return [str(one) if isinstance(one, int) else one for one in several]

    @model_validator(mode="after")
    def _apart(self) -> Split:
        both = set(self.train) & set(self.test)
        if both:
            raise ValueError(f"{sorted(both)} are in train and in test; an image is one or other")
        return self
