"""The `teach` section: train a teacher here, or take one or several given ones."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from tasks.core.adversary import Adversary
from tasks.core.bank import BankForm
from tasks.core.models import Architecture
from tasks.core.params import Section
from tasks.core.trainer import Training
from tasks.modalities.vision.teachers import Source
from tasks.modalities.vision.views import Views


class MemberParams(Section):
    """One of `teach.members`: a given teacher."""

    source: Source
    path: PurePath


class TeachParams(Section):
    """`teach`. A given teacher lies in the folder `path`; an ensemble is made of `members`."""

    source: Literal["train", Source, "ensemble"]
    path: PurePath | None = None
    members: tuple[MemberParams, ...] = Field(default=(), max_length=16)
    max_age: int = Field(default=180, ge=1)  # days; read by the flow, which has a clock
    architecture: Architecture
    training: Training
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    adversary: Adversary | None = None  # the teacher learns at the worst image near each one
    folds: int | None = Field(default=None, ge=2, le=20)  # of out-of-fold labels for the bank
    views: Views
    bank: BankForm = BankForm()

    @model_validator(mode="after")
    def _located(self) -> TeachParams:
        if (self.source in ("train", "ensemble")) != (self.path is None):
            raise ValueError(
                "'path' is needed for a given teacher, and null for source: train or ensemble"
            )
        if self.source == "ensemble" and len(self.members) < 2:
            raise ValueError(
                f"'members' names {len(self.members)}, and an ensemble has two or more; give "
                "each a source and a path"
            )
        if self.members and self.source != "ensemble":
            raise ValueError("'members' belongs to source: ensemble; set that, or empty it")
        if self.folds and self.source != "train":
            raise ValueError(
                "'folds' needs source: train, since what a given teacher has seen is unknown"
            )
        return self
