"""The `data` section: where rows come from and how they are split."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from tasks.core.params import Section


class Shares(Section):
    """Shares of train, val and test; they sum to one."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Shares:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError("train, val and test must sum to 1")
        return self


class DataParams(Section):
    """`data`."""

    source: Literal["digits", "images", "parquet"]
    path: PurePath | None = None
    split: Shares

    @model_validator(mode="after")
    def _located(self) -> DataParams:
        if (self.source == "digits") != (self.path is None):
            raise ValueError("'path' is needed for images and parquet, and null for digits")
        return self
