"""The quarantine: every offending row with its reason. Train rows in it are set aside from training
(`tables.read_train`), and rows of the transfer set; those of val and test are listed and stay in
use.

One line a row: the first reason that holds, in the order of `REASONS`. Near duplicates within a
split and constant images are reported, not listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.files import whole
from tasks.core.tables import QUARANTINE, SPLITS, Schema, Table
from tasks.validate.duplicates import Near, exact, near
from tasks.validate.examine import Examination

REASONS = (
    "missing_value",
    "out_of_range",
    "unknown_label",
    "conflicting_label",
    "exact_duplicate",
    "near_duplicate",
    "label_issue",
)


@dataclass(frozen=True)
class Offender:
    """One line; its fields are the columns of `tables.QUARANTINE`, in order."""

    split: str
    position: int
    row: str
    label: str
    reason: str
    detail: str


def quarantine(found: Examination, max_share: float) -> list[Offender]:
    """All offenders, by split and position. Label issues above `max_share` set nothing aside."""
    suspects: dict[int, str] = {}
    if found.labels.share <= max_share:
        suspects = {
            position: f"looks like {class_name(found.schema, suggested)!r} ({confidence:.2f})"
            for position, suggested, confidence in zip(
                found.labels.position.tolist(),
                found.labels.suggested.tolist(),
                found.labels.confidence.tolist(),
                strict=True,
            )
        }
    offenders = []
    for split in SPLITS:
        table = found.tables[split]
        for position in range(len(table)):
            detail = suspects.get(position) if split == "train" else None
            reason = _reason(found, split, position) or (
                ("label_issue", detail) if detail else None
            )
            if reason:
                label = class_name(found.schema, int(table.labels[position]))
                row = str(table.rows[position])
                offenders.append(Offender(split, position, row, label, *reason))
    return offenders


def transferred(transfer: Table, tables: Mapping[str, Table], threshold: float) -> list[Offender]:
    """Unlabelled rows that are nearly a validation or test row: no student may learn from them.

    Exact ones never get this far: ingest leaves them out.
    """
    if not len(transfer):
        return []
    splits = {"test": tables["test"], "val": tables["val"], "train": transfer}
    found = near(splits, exact(splits), threshold)["train"]
    return [
        Offender(
            "transfer", position, str(transfer.rows[position]), "", "near_duplicate",
            _alike(found, position),
        )
        for position in np.flatnonzero(found.similarity).tolist()
    ]  # fmt: skip


def class_name(schema: Schema, label: int) -> str:
    """The name of a class, or its number if there is no such class."""
    return schema.classes[label] if 0 <= label < len(schema.classes) else str(label)


def counted(offenders: Iterable[Offender]) -> dict[str, dict[str, int]]:
    """Lines per split and reason."""
    count = Counter((o.split, o.reason) for o in offenders)
    return {s: {r: count[s, r] for r in REASONS if count[s, r]} for s in SPLITS}


def write_quarantine(path: Path, offenders: list[Offender]) -> None:
    """Write the file; always there, perhaps without rows."""
    columns = list(zip(*map(astuple, offenders), strict=True)) or [()] * len(QUARANTINE)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, QUARANTINE, strict=True)]
    with whole(path) as scratch:
        pq.write_table(pa.Table.from_arrays(arrays, schema=QUARANTINE), scratch, compression="zstd")


def _reason(found: Examination, split: str, position: int) -> tuple[str, str] | None:
    """The first reason, but for label issues, and what the user needs to find the other row."""
    faults, copies, alike = found.faults[split], found.copies[split], found.near[split]
    schema = found.schema
    low, high = schema.range
    if faults.missing[position]:
        return "missing_value", f"{faults.missing[position]} values are NaN"
    if faults.out_of_range[position]:
        return "out_of_range", f"{faults.out_of_range[position]} values outside {low:g} to {high:g}"
    if faults.unknown_label[position]:
        return "unknown_label", f"classes are 0 to {len(schema.classes) - 1}"
    if copies.conflicting[position]:
        same = copies.content == copies.content[position]
        names = sorted({class_name(schema, int(x)) for x in found.tables[split].labels[same]})
        return "conflicting_label", f"the same image is labelled {' and '.join(map(repr, names))}"
    if copies.elsewhere[position]:
        return "exact_duplicate", f"the same image is in {copies.elsewhere[position]}"
    if copies.later[position]:
        return "exact_duplicate", f"the same image is at position {copies.first[position]}"
    if alike.similarity[position]:
        return "near_duplicate", _alike(alike, position)
    return None


def _alike(found: Near, position: int) -> str:
    return (
        f"cosine {found.similarity[position]:.4f} to "
        f"{found.split[position]} position {found.position[position]}"
    )
