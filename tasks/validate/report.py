"""The report of a validation, and the verdict in one line. Equal findings give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tasks.core.errors import GateError
from tasks.core.tables import SPLITS
from tasks.validate.checkpoint import Outcome
from tasks.validate.examine import Examination
from tasks.validate.frames import class_counts
from tasks.validate.quarantine import Offender, class_name, counted

FORMAT = "stillhouse/validation/1"
NAMED = 100  # label issues that are named in the report, the worst first


def failed(outcomes: list[Outcome], severity: str) -> list[Outcome]:
    """Expectations of this severity that do not hold."""
    return [o for o in outcomes if not o.success and o.severity == severity]


def report(
    outcomes: list[Outcome],
    found: Examination | None,
    offenders: list[Offender],
    near_duplicate: float,
) -> dict[str, Any]:
    """`reports/validation/report.json`; `found` is None when the tables could not be read."""
    critical, warnings = failed(outcomes, "critical"), failed(outcomes, "warning")
    content: dict[str, Any] = {
        "format": FORMAT,
        "passed": not critical,
        "counts": {
            "expectations": len(outcomes),
            "failed_critical": len(critical),
            "failed_warning": len(warnings),
        },
        "expectations": [
            {k: v for k, v in asdict(outcome).items() if k != "remedy" or not outcome.success}
            for outcome in outcomes
        ],
    }
    return content if found is None else content | _findings(found, offenders, near_duplicate)


def stop_on_critical(outcomes: list[Outcome], docs: str) -> None:
    """Raise a `GateError` that names the first critical failure and how many follow."""
    critical = failed(outcomes, "critical")
    if critical:
        first, more = critical[0], len(critical) - 1
        rest = f" ({more} more)" if more else ""
        raise GateError(
            f"validate: {first.split}: {first.name} fails, {first.observed}{rest}; "
            f"{first.remedy}; see {docs}"
        )


def _findings(
    found: Examination, offenders: list[Offender], near_duplicate: float
) -> dict[str, Any]:
    lines, schema = counted(offenders), found.schema
    return {
        "rows": {split: len(found.tables[split]) for split in SPLITS},
        "classes": {
            split: dict(
                zip(
                    schema.classes,
                    class_counts(found.tables[split], len(schema.classes)).tolist(),
                    strict=True,
                )
            )
            for split in SPLITS
        },
        "set_aside": {"train": lines["train"]},
        "listed": {split: lines[split] for split in SPLITS if split != "train"},
        "duplicates": _duplicates(found, near_duplicate),
        "label_issues": _label_issues(found, lines["train"]),
    }


def _duplicates(found: Examination, near_duplicate: float) -> dict[str, Any]:
    pairs: dict[str, int] = {}
    for split, near in found.near.items():
        for other, count in near.pairs.items():
            pairs[split if other == split else f"{split}-{other}"] = count
    copies = found.copies
    return {
        "exact": {s: int(copies[s].later.sum()) for s in SPLITS},
        "exact_across_splits": {s: int((copies[s].elsewhere != "").sum()) for s in SPLITS},
        "conflicting_labels": {s: int(copies[s].conflicting.sum()) for s in SPLITS},
        "near": {"threshold": near_duplicate, "pairs": pairs},
    }


def _label_issues(found: Examination, train: Mapping[str, int]) -> dict[str, Any]:
    labels, table, schema = found.labels, found.tables["train"], found.schema
    accuracy = None if labels.accuracy is None else round(labels.accuracy, 4)
    named = list(
        zip(
            labels.position.tolist(),
            labels.suggested.tolist(),
            labels.confidence.tolist(),
            strict=True,
        )
    )[:NAMED]
    return {
        "checked": labels.checked,
        "found": len(labels.position),
        "share": round(labels.share, 4),
        "set_aside": train.get("label_issue", 0),
        "out_of_fold_accuracy": accuracy,
        "unchecked_classes": list(labels.unchecked),
        "worst": [
            {
                "position": position,
                "row": str(table.rows[position]),
                "label": class_name(schema, int(table.labels[position])),
                "suggested": class_name(schema, suggested),
                "probability": round(confidence, 3),
            }
            for position, suggested, confidence in named
        ],
    }
