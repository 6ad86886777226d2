"""`verdict.json`: what the judge decided, on which figures; typed for whoever reads it.

One document, one meaning: `approved` is true exactly when every gate in the document passed. So the
copy in the evidence, which leaves out `measured` because times differ between machines, speaks of
the reproducible gates alone, while `reports/STUDENT/verdict.json` decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from tasks.core.files import read_json
from tasks.core.params import Section, check
from tasks.core.reports import Gate
from tasks.core.reports import Rate as Rate  # part of what a reader of verdicts needs

DIGITS = 6  # decimals kept: far finer than any decision, coarser than a platform's last bit


class ShippedStudent(Section):
    """The file that ships. `flops` is for one row."""

    name: str
    path: str
    sha256: str
    bytes: int
    parameters: int
    flops: int | None


class Teacher(Section):
    """What the student came from. `bytes` counts float32 weights."""

    sha256: str
    bytes: int
    parameters: int


class Link(Section):
    """One link of the chain, teacher first, the shipped student last.

    `retention` and `compression` (parameters) are against the teacher, `step` (parameters) against
    the link before. Rungs are scored on validation rows, the others on test rows: see `split`.
    """

    name: str
    role: Literal["teacher", "rung", "float_student", "student"]
    split: Literal["val", "test"]
    accuracy: Rate
    parameters: int
    flops: int | None
    bytes: int
    retention: float
    compression: float
    step: float


class Baseline(Section):
    """Logistic regression on raw features: what a student must beat to be worth its trouble."""

    accuracy: Rate
    rows: int  # training rows it was fitted on
    features: int
    loss_upper: float  # bound of what the student loses to it; below zero, the student wins


class Weakness(Section):
    """Where the student is behind its teacher. `q`: of a one-sided McNemar test, for classes."""

    where: str
    rows: int | None
    teacher: float
    student: float
    loss: float
    q: float | None = None


class Latency(Section):
    """Median milliseconds for one row on one thread."""

    teacher: float
    float_student: float
    student: float


class Times(Section):
    """Milliseconds of one call."""

    p50: float
    p95: float


class Runtime(Section):
    """What one model takes to run on one thread, in its own runtime.

    `one` and `many`: a batch of 1 row and of 64; `memory_mb`: by how much a process grows at most
    that loads the model and answers 64 rows, None where the system does not tell.
    """

    bytes: int
    load_ms: float
    one: Times
    many: Times
    rows_per_second: float  # in batches of 64
    memory_mb: float | None


class BreakEven(Section):
    """After how many predictions the student has saved what making it took; `why`: in words."""

    predictions: int | None = None
    why: str


class Work(Section):
    """One step of the making in floating-point operations; None: unknown."""

    name: str
    flops: int | None


class Costs(Section):
    """Making and using in floating-point operations: equal on every machine.

    `below_teacher` sums all steps but the teacher's own training; `teacher` and `student` are for
    one prediction.
    """

    steps: tuple[Work, ...]
    below_teacher: Work
    teacher: int | None
    student: int | None
    break_even: BreakEven
    method: str


class Spent(Section):
    """One step of the making in CPU-seconds and energy; None: unknown."""

    name: str
    cpu_seconds: float | None
    watt_hours: float | None


class Use(Section):
    """What some predictions take, made one by one on one thread."""

    cpu_seconds: float
    joules: float


class MeasuredCosts(Section):
    """Making and using in CPU-seconds and energy, by role of a link; see `Costs`.

    `elsewhere` names the steps that ran on another CPU than the predictions.
    """

    steps: tuple[Spent, ...]
    below_teacher: Spent
    per_1000_predictions: dict[str, Use]
    break_even: BreakEven
    elsewhere: tuple[str, ...]
    method: str


class Trial(Section):
    """The shipped file on an emulated `cpu`: how many of the `rows` it answered otherwise than on
    the measured one. Not `tried`: nothing is known, and `why` says the reason."""

    tried: bool
    cpu: str
    rows: int
    different: int | None = None
    largest_difference: float | None = None  # of a logit
    why: str


class Measured(Section):
    """Figures of one machine. They may veto by a declared budget, or by another answer on another
    CPU, and never rank."""

    cpu: dict[str, JsonValue]
    latency_ms: Latency
    runtime: dict[str, Runtime] = Field(default_factory=dict)  # by role; none in older verdicts
    cpu_seconds: dict[str, float]
    gates: tuple[Gate, ...]
    costs: MeasuredCosts | None = None  # None: written before costs were told
    portability: Trial | None = None  # None: measured again, or before trials were made


class Verdict(Section):
    """`stillhouse/verdict/1`."""

    format: Literal["stillhouse/verdict/1"] = "stillhouse/verdict/1"
    approved: bool
    gates: tuple[Gate, ...]
    student: ShippedStudent
    teacher: Teacher
    chain: tuple[Link, ...]
    baseline: Baseline
    retention: float
    compression: float  # of parameters
    compression_bytes: float  # the teacher's float weights over the shipped file
    loss_upper: float  # bound of what the student loses to its teacher, in shares of rows
    margin_resolution: float  # the same bound if no test row were discordant
    confidence: float
    rows: int  # of the test table
    weaker: tuple[Weakness, ...]
    costs: Costs | None = None  # None: written before costs were told
    measured: Measured | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Verdict:
        if self.approved == bool(self.failed) or not self.gates:
            raise ValueError("'approved' contradicts the gates; run the judge again")
        return self

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that refuse the student, measured ones last."""
        measured = self.measured.gates if self.measured else ()
        return tuple(gate for gate in (*self.gates, *measured) if not gate.passed)

    def reproducible(self) -> Verdict:
        """The verdict without what was measured: equal between two builders."""
        passed = all(gate.passed for gate in self.gates)
        return self.model_copy(update={"measured": None, "approved": passed})


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Plain data with rounded floats; a verdict without `measured` has no such key."""
    content = verdict.model_dump(mode="json")
    if verdict.measured is None:
        del content["measured"]
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def read_verdict(path: Path) -> Verdict:
    """Read a verdict; one that contradicts itself is refused."""
    return check(Verdict, read_json(path), where=str(path))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0  # no "-0.0"
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
