"""A family's outcome as files: `FAMILY.json`, and the folder `FAMILY/` with the plot and the kept.

A family that raises is reported with its error and without gates, so that it fails later and never
disappears. The report is written last: where it is, the folder is whole.
"""

from __future__ import annotations

import shutil
import tempfile
import textwrap
import traceback
from pathlib import Path

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from tasks.core.files import canonical, sha256, write_json
from tasks.core.params import Section
from tasks.core.reports import StressReport
from tasks.stress.case import Case, Outcome
from tasks.stress.params import Family


def examine(case: Case, family: Family, params: Section) -> tuple[StressReport, Outcome]:
    """Run a family on a case; a crash becomes a report with an error, and its trace is printed."""
    error = None
    try:
        outcome: Outcome = family.run(case, params)
        _finite(outcome)
    except (MemoryError, OSError):
        raise  # the machine failed, not the student: the stage fails and may run again
    except Exception as raised:
        traceback.print_exc()
        first = str(raised).splitlines()[0] if str(raised) else "no message"
        error = f"{type(raised).__name__}: {first}"
        outcome = Outcome(rows=0, results={}, gates=(), figure=_crashed(family.name, error))
    report = StressReport(
        student=case.student,
        family=family.name,
        model_sha256=sha256(case.model),
        rows=outcome.rows,
        results=outcome.results,
        gates=outcome.gates,
        error=error,
    )
    return report, outcome


def _finite(outcome: Outcome) -> None:
    """A result that is NaN is a crash too."""
    try:
        canonical(outcome.results)
    except ValueError:
        raise ValueError("a figure of the results is not finite") from None


def write_report(folder: Path, report: StressReport, outcome: Outcome) -> None:
    """Write `folder/FAMILY.json` and `folder/FAMILY/`, each whole or absent."""
    place, page = folder / report.family, folder / f"{report.family}.json"
    folder.mkdir(parents=True, exist_ok=True)
    page.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{report.family}.") as name:
        scratch = Path(name) / report.family
        scratch.mkdir()
        outcome.figure.savefig(scratch / "plot.png", dpi=110, metadata={"Software": None})
        for kept, table in sorted(outcome.kept.items()):
            pq.write_table(table, scratch / f"{kept}.parquet", compression="zstd")
        if place.exists():
            shutil.rmtree(place)
        scratch.rename(place)
    write_json(page, report.model_dump(mode="json"))


def _crashed(name: str, error: str) -> Figure:
    figure = Figure(figsize=(6, 2), layout="constrained")
    figure.text(
        0.5,
        0.5,
        "\n".join(textwrap.wrap(f"{name} crashed: {error}", 70)),
        ha="center",
        va="center",
        parse_math=False,
    )
    return figure
