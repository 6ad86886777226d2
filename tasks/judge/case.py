"""The case: every figure that the judge hears about one student, read once from the stages' files.

The final ONNX file is scored here on the test rows, through ONNX Runtime. Where a file is essential
and absent the stage stops and says which; where only a gate needs it, the gate fails instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import read_json
from tasks.core.models import MODELS, ModelSpec, read_spec
from tasks.core.params import check
from tasks.core.predictions import TEACHER, read_predictions
from tasks.core.reports import RungReport
from tasks.core.session import open_session, score
from tasks.core.tables import (
    DATA,
    Fingerprint,
    Table,
    read_fingerprint,
    read_quarantine,
    read_split,
    read_train,
)
from tasks.judge.baseline import BaselinePredictions, fit_and_predict
from tasks.judge.portability import Certified, read_certificate
from tasks.judge.stress import Heard, hear

SHIP = Path("ship")
REPORTS = Path("reports")


@dataclass(frozen=True)
class Scored:
    """A model on the test rows. A row that is not `valid` or whose logits are not finite is wrong:
    `predicted` (N,) then holds the number of classes, which no label equals."""

    logits: NDArray[np.float32]
    valid: NDArray[np.bool_]
    predicted: NDArray[np.int64]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """One student before the judge. `parity`, `validation` and `teacher_report` are None where
    the file is missing or broken; `certificate` and `stress` hold a document, or why there is
    none to believe."""

    student: str
    spec: ModelSpec  # of the shipped file
    shipped: Scored
    float_student: Scored
    teacher_spec: ModelSpec
    teacher: Scored
    teacher_report: dict[str, Any] | None
    rung: RungReport
    data: Fingerprint
    test: Table
    train_rows: int  # that every training saw
    baseline: BaselinePredictions
    parity: bool | None
    certificate: Certified
    validation: bool | None
    stress: dict[str, Heard]
    set_aside: dict[str, int]  # training rows in the quarantine, by reason
    chosen: str | None  # which candidate of the quantization ships, and why

    @property
    def file(self) -> Path:
        """The file that ships."""
        return SHIP / self.student / "model.onnx"


def scored(
    logits: NDArray[np.float32], labels: NDArray[np.int64], valid: NDArray[np.bool_] | None = None
) -> Scored:
    """Predictions of `logits` (N, classes), rows without a valid answer counted as wrong."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    answered = finite if valid is None else finite & valid
    guess = np.where(finite[:, None], logits, 0).argmax(axis=1).astype(np.int64)
    predicted = np.where(answered, guess, logits.shape[1])
    return Scored(logits, answered, predicted, predicted == labels)


def read_case(student: str, families: tuple[str, ...]) -> Case:
    """Read and score everything about `student` below the working directory."""
    data = read_fingerprint()
    test = read_split("test", data.data)
    if not len(test):
        raise DataError("data/test.parquet: no rows to judge on; give ingest more data")
    train = read_train(data.data)
    folder = SHIP / student
    spec = read_spec(folder)
    return Case(
        student=student,
        spec=spec,
        shipped=_score(folder / "model.onnx", test, data),
        float_student=_score(folder / "float.onnx", test, data),
        teacher_spec=read_spec(MODELS / "teacher"),
        teacher=scored(read_predictions(TEACHER, test, len(data.data.classes)), test.labels),
        teacher_report=_mapping(REPORTS / "teacher" / "report.json"),
        rung=read_rung(student),
        data=data,
        test=test,
        train_rows=len(train),
        baseline=fit_and_predict(train, test),
        parity=_stated(folder / "parity.json", "passed"),
        certificate=read_certificate(folder, spec.sha256),
        validation=_stated(REPORTS / "validation" / "report.json", "passed"),
        stress={
            family: hear(REPORTS / student / "stress", student, family, spec.sha256)
            for family in families
        },
        set_aside=_set_aside(DATA / "quarantine.parquet"),
        chosen=_chosen(folder / "frontier.json"),
    )


def read_rung(student: str) -> RungReport:
    """What distill reports of `student` and of the rungs above it."""
    path = MODELS / student / "report.json"
    return check(RungReport, read_json(path), where=str(path))


def _score(path: Path, test: Table, data: Fingerprint) -> Scored:
    """One thread, so that every builder gets the same bits."""
    logits, valid = score(open_session(path, threads=1), test.images)
    expected = (len(test), len(data.data.classes))
    if logits.shape != expected:
        raise DataError(f"{path}: logits of shape {logits.shape}, not {expected}; run quantize")
    return scored(logits, test.labels, valid)


def _mapping(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none to believe."""
    try:
        content = read_json(path)
    except DataError:
        return None
    return content if isinstance(content, dict) else None


def _stated(path: Path, key: str) -> bool | None:
    """A truth value that a report states; None where it states none."""
    value = (_mapping(path) or {}).get(key)
    return value if isinstance(value, bool) else None


def _chosen(path: Path) -> str | None:
    """The sentence in which the frontier explains the choice."""
    why = (_mapping(path) or {}).get("why")
    return why if isinstance(why, str) else None


def _set_aside(path: Path) -> dict[str, int]:
    """How many training rows validation set aside, by reason. A row may have several reasons."""
    columns = read_quarantine(path)
    reasons = [
        str(reason)
        for split, reason in zip(columns["split"], columns["reason"], strict=True)
        if split == "train"
    ]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}
