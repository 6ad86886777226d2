"""The `data` section: where rows come from and how they are split."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.core.params import Section


class Shares(Section):
    """Shares of train, val and test; they sum to one. `test: given` is the source's own test split:
    then the shares of train and val do."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)
    test: float | Literal["given"]

    @field_validator("test", mode="before")
    @classmethod
    def _share_or_given(cls, test: Any) -> Any:
        share = isinstance(test, int | float) and not isinstance(test, bool)
        if test != "given" and not (share and 0 < test < 1):
            raise ValueError("must be a share between 0 and 1, or 'given'")
        return test

    @model_validator(mode="after")
    def _whole(self) -> Shares:
        if self.test == "given":
            if abs(self.train + self.val - 1) > 1e-9:
                raise ValueError("train and val must sum to 1 where test is given")
        elif abs(self.train + self.val + float(self.test) - 1) > 1e-9:
            raise ValueError("train, val and test must sum to 1")
        return self


class DataParams(Section):
    """`data`. `classes` names the labels of idx files, from 0; `transfer` is a folder or a Parquet
    of images without labels, and so is `strangers`, of images that are none of the data;
    `subgroups` names columns of a Parquet whose values are judged each by itself."""

    source: Literal["digits", "images", "parquet", "idx"]
    path: PurePath | None = None
    classes: tuple[str, ...] | None = Field(default=None, min_length=2)
    split: Shares
    transfer: PurePath | None = None
    strangers: PurePath | None = None
    subgroups: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _located(self) -> DataParams:
        if (self.source == "digits") != (self.path is None):
            raise ValueError("'path' is needed for images, parquet and idx, and null for digits")
        return self

    @model_validator(mode="after")
    def _as_the_source_gives(self) -> DataParams:
        if self.source == "idx" and self.split.test != "given":
            raise ValueError("idx files bring their own test split; write split.test: given")
        if self.source != "idx" and self.split.test == "given":
            raise ValueError(f"{self.source} brings no test split; write a share as split.test")
        if self.source != "idx" and self.classes is not None:
            raise ValueError("'classes' names the labels of idx files; remove it")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("'classes' holds a name twice; name each label otherwise")
        if self.subgroups and self.source != "parquet":
            raise ValueError("'subgroups' names columns of a Parquet; remove it, or give one")
        if len(set(self.subgroups)) < len(self.subgroups):
            raise ValueError("'subgroups' names a column twice; name it once")
        if {"image", "label"} & set(self.subgroups):
            raise ValueError(
                "'subgroups' names 'image' or 'label', which are no subgroups; remove it"
            )
        return self
