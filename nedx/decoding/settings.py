"""How a decoder is trained, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nedx.decoding.augmentation import Augmentation
from nedx.errors import ModelError, faults_of

_Share = Field(ge=0, lt=1)


class TrainingSettings(BaseModel):
    """What `EEGDecoder` is given, as a value; its parameters have their meaning there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: float = Field(ge=0)
    text: float = Field(ge=0)
    mse: float = Field(ge=0)
    logit_scale: Literal["exp", "softplus", "linear", "fixed"]
    mask_same_image: bool
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    betas: tuple[float, float]
    schedule: Literal["constant", "cosine"]
    warmup: float = Field(ge=0)
    ema: float | None = Field(gt=0, lt=1)
    precision: Literal["float32", "bfloat16"]
    average_trials: bool | int
    augmentation: tuple[Augmentation, ...]
    mode: Literal["in_subject", "leave_one_subject_out", "joint"]
    validation: float = _Share
    patience: int | None = Field(ge=1)
    seed: int = Field(ge=0)

    @field_validator("average_trials", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        # A 1 of numpy would be taken for True.
        return value.item() if isinstance(value, np.generic) else value

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if not isinstance(self.average_trials, bool) and self.average_trials < 1:
            raise ValueError("average_trials is True, False or how many, 1 or more")
        if self.image + self.text + self.mse == 0:
            raise ValueError("the weights image, text and mse are all 0: nothing would be learnt")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas are from 0 to less than 1")
        return self


def checked_settings(parameters: Mapping[str, Any]) -> TrainingSettings:
    """Return settings made of parameters.

    Raises
    ------
    ModelError
        With every fault.
    """
    try:
        return TrainingSettings.model_validate(dict(parameters))
    except ValidationError as error:
        raise ModelError(
            f"EEGDecoder cannot be trained so: {faults_of(error, 'EEGDecoder')}"
        ) from error
