"""`python -m tasks.validate`: puts expectations to the tables and stops the run on a critical one.

The report, the quarantine and the Data Docs are written first: there is something to look at.
"""

from __future__ import annotations

from pathlib import Path

from tasks.core.errors import ParamsError
from tasks.core.files import write_json
from tasks.core.params import section
from tasks.core.stage import main
from tasks.core.tables import DATA, SPLITS, read_fingerprint, read_split
from tasks.validate.examine import table_files
from tasks.validate.params import ValidateParams
from tasks.validate.quarantine import counted, transferred, write_quarantine
from tasks.validate.report import failed, stop_on_critical
from tasks.validate.validation import Validation, validate

REPORTS = Path("reports/validation")


def run(arguments: list[str]) -> None:
    """Read the tables, judge them, write what was found."""
    if arguments:
        raise ParamsError(f"validate: takes no arguments (got {arguments[0]!r}); leave it out")
    params = section("validate", ValidateParams)
    fingerprint = read_fingerprint()
    schema = fingerprint.data
    files = table_files(fingerprint)
    readable = all(file.readable(schema) for file in files.values())
    tables = {split: read_split(split, schema) for split in SPLITS} if readable else None
    print(
        f"validate: {sum(s.rows for s in fingerprint.splits.values()):,} rows in {len(files)} "
        "tables",
        flush=True,
    )
    result = validate(files, tables, fingerprint, params, REPORTS / "docs")
    write_json(REPORTS / "report.json", result.report)
    aside = []
    if tables is not None:
        aside = transferred(read_split("transfer", schema), tables, params.near_duplicate)
    write_quarantine(DATA / "quarantine.parquet", [*result.offenders, *aside])
    _tell(result)
    if aside:
        print(f"validate: transfer: {len(aside)} rows set aside from training: near_duplicate")
    stop_on_critical(result.outcomes, str(REPORTS / "docs" / "index.html"))


def _tell(result: Validation) -> None:
    counts = result.report["counts"]
    print(
        f"validate: {counts['expectations']} expectations, {counts['failed_critical']} critical "
        f"and {counts['failed_warning']} warnings fail"
    )
    for outcome in failed(result.outcomes, "warning"):
        print(f"warning: {outcome.split}: {outcome.name}: {outcome.observed}; {outcome.remedy}")
    for split, reasons in counted(result.offenders).items():
        what = "set aside from training" if split == "train" else "listed, still in use"
        for reason, count in reasons.items():
            print(f"validate: {split}: {count} rows {what}: {reason}")


if __name__ == "__main__":
    main(run)
