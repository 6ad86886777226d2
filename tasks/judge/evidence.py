"""`evidence/STUDENT/`: all that is reproducible about a decision, in one folder with one digest.

Two builders with the same inputs get the same bytes, so the digest is what is approved, signed and
registered. Nothing measured, no time and no path of a machine goes in; test rows are named by hash.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.files import write_bytes, write_json, write_text
from tasks.judge import summary
from tasks.judge.case import REPORTS, SHIP, Case
from tasks.judge.portability import NAME as CERTIFICATE
from tasks.judge.subject import SUBJECT, Subject, subject
from tasks.judge.verdict import Verdict, as_json

EVIDENCE = Path("evidence")


def write_evidence(case: Case, verdict: Verdict, card: str, folder: Path) -> Subject:
    """Write the whole folder beside `folder`, then rename it: it is complete or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        for name in ("model.onnx", "spec.json"):
            write_bytes(made / name, (SHIP / case.student / name).read_bytes())
        write_text(made / "card.md", card)
        write_bytes(made / summary.NAME, summary.plot(verdict.gates))
        write_json(made / "verdict.json", as_json(verdict.reproducible()))
        write_json(made / "data.json", data_digests(case))
        _write_predictions(made / "predictions.parquet", case)
        if not isinstance(case.certificate, str):
            write_bytes(made / CERTIFICATE, (SHIP / case.student / CERTIFICATE).read_bytes())
        _copy_stress(case, made / "stress")
        result = subject(made)
        write_json(made / SUBJECT, result.model_dump(mode="json"))
        if folder.exists():
            shutil.rmtree(folder)
        made.replace(folder)
    return result


def data_digests(case: Case) -> dict[str, Any]:
    """Which data was used, without a row of it."""
    return {
        "format": "stillhouse/data/1",
        "fingerprint": case.data.model_dump(mode="json"),
        "set_aside": case.set_aside,
    }


def _write_predictions(path: Path, case: Case) -> None:
    """`row`, `label`, logits of teacher and student, and what the student says of validity."""
    columns = {
        "row": pa.array(case.test.rows.tolist(), pa.string()),
        "label": pa.array(case.test.labels.astype(np.int32)),
        "teacher": _lists(case.teacher.logits),
        "student": _lists(case.shipped.logits),
        "valid": pa.array(case.shipped.valid),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _lists(logits: NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])


def _copy_stress(case: Case, folder: Path) -> None:
    """Each family's report and what it kept, verbatim; a family without them leaves nothing."""
    source = REPORTS / case.student / "stress"
    for family in case.stress:
        page, kept = source / f"{family}.json", source / family
        if page.is_file():
            write_bytes(folder / page.name, page.read_bytes())
        if kept.is_dir():
            shutil.copytree(kept, folder / family)
