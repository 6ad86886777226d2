"""The `quantize` section: the candidates of the search and the bounds of the choice."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from tasks.core.params import Section
from tasks.core.trainer import Training
from tasks.quantize.search import Goals
from tasks.quantize.targets import Name

Scheme = Literal[
    "float32", "dynamic", "static", "qat", "float16", "bfloat16", "weights8", "weights4",
    "weights_mixed", "mixed",
]  # fmt: skip


class Calibration(Section):
    """Training rows that set activation ranges, and how."""

    rows: int = Field(ge=16)
    method: Literal["minmax", "percentile", "entropy"] = "minmax"
    percentile: float = Field(default=99.99, gt=50, le=100)


class SensitivityRows(Section):
    """How many validation rows say what a layer costs in fewer bits."""

    rows: int = Field(default=2000, ge=1)


class QuantizeParams(Section):
    """`quantize`. float32 is always a candidate: it is what the others are measured against."""

    schemes: tuple[Scheme, ...] = Field(min_length=1)
    target: Name = "auto"  # the CPU that int8 is made for
    calibration: Calibration
    sensitivity: SensitivityRows = SensitivityRows()
    qat: Training
    temperature: float = Field(default=4.0, gt=0)
    alpha: float = Field(default=0.9, ge=0, le=1)
    accuracy_drop: float = Field(ge=0, le=1)
    bytes: int | None = Field(default=None, ge=1)  # of the file; None: the fewest that qualify
    latency_ms_p95: float | None = Field(default=None, gt=0)  # of one row on one thread
    latency_margin: float = Field(ge=1)

    @property
    def goals(self) -> Goals:
        """What a candidate must keep to."""
        return Goals(self.accuracy_drop, self.bytes, self.latency_ms_p95, self.latency_margin)

    @field_validator("qat")
    @classmethod
    def _exact(cls, qat: Training) -> Training:
        if qat.precision != "float32":
            raise ValueError("precision must be float32: bfloat16 cannot hold what int8 adds up to")
        return qat


class Budget(BaseModel):
    """What this stage reads of `requirements`: the median at batch 1 on one thread."""

    latency_ms: float = Field(gt=0)
