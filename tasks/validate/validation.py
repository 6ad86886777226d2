"""The whole of validation on arrays: examine, quarantine, expect, report.

Tables whose columns or types are wrong cannot be read: then only their files are judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from tasks.core.tables import SPLITS, Fingerprint, Table
from tasks.validate.checkpoint import Outcome, run_checkpoint
from tasks.validate.examine import Examination, TableFile, examine
from tasks.validate.frames import classes_frame, files_frame, pixels_frame, rows_frame
from tasks.validate.params import ValidateParams
from tasks.validate.quarantine import Offender, quarantine
from tasks.validate.report import report
from tasks.validate.suites import classes_suite, files_suite, pixels_suite, rows_suite


@dataclass(frozen=True)
class Validation:
    """What the stage writes, but for the Data Docs."""

    outcomes: list[Outcome]
    offenders: list[Offender]
    report: dict[str, Any]


def validate(
    files: Mapping[str, TableFile],
    tables: Mapping[str, Table] | None,
    fingerprint: Fingerprint,
    params: ValidateParams,
    docs: Path,
) -> Validation:
    """Judge the tables; `tables` is None if `files` says that they cannot be read.

    One thread: sums of floats depend on their number, and other stages run beside this one.
    """
    schema = fingerprint.data
    frames, suites = {"files": files_frame(files)}, {"files": files_suite(schema)}
    found: Examination | None = None
    offenders: list[Offender] = []
    if tables is not None:
        with threadpool_limits(limits=1):
            found = examine(tables, schema, params)
        offenders = quarantine(found, params.label_issues.max_share)
        frames |= {split: rows_frame(found, split, offenders) for split in SPLITS}
        frames |= {"classes": classes_frame(found, offenders)}
        frames |= {"pixels": pixels_frame(tables, schema)}
        suites |= {s: rows_suite(s, frames["train"], fingerprint, params) for s in SPLITS}
        suites |= {"classes": classes_suite(params)}
        suites |= {"pixels": pixels_suite(frames["pixels"], schema)}
    outcomes = run_checkpoint(frames, suites, docs)
    return Validation(
        outcomes, offenders, report(outcomes, found, offenders, params.near_duplicate)
    )
