"""The `teach` section: train a teacher here, or take a given one."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from tasks.core.models import Architecture
from tasks.core.params import Section
from tasks.core.trainer import Training
from tasks.modalities.vision.views import Views


class TeachParams(Section):
    """`teach`. A given teacher lies in the folder `path`: `spec.json` beside its weights."""

    source: Literal["train", "safetensors", "onnx"]
    path: PurePath | None = None
    max_age: int = Field(default=180, ge=1)  # days; read by the flow, which has a clock
    architecture: Architecture
    training: Training
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    views: Views

    @model_validator(mode="after")
    def _located(self) -> TeachParams:
        if (self.source == "train") != (self.path is None):
            raise ValueError("'path' is needed for a given teacher, and null for source: train")
        return self
