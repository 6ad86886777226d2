"""Evaluate the teacher on validation and test rows, and stop the run if it misses its target."""

from __future__ import annotations

from pathlib import Path

from tasks.core.files import write_json
from tasks.core.models import MODELS, read_spec
from tasks.core.params import read
from tasks.core.predictions import TEACHER, write_predictions
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.core.tables import read_fingerprint, read_split
from tasks.evaluate.report import evaluate, gate
from tasks.modalities.vision.scorers import load_scorer

FOLDER = Path("reports/teacher")


def run(_: list[str]) -> None:
    """Write `reports/teacher/report.json` and `predictions.parquet`; refuse below the target."""
    threads = int(read()["threads"])
    deterministic(0, threads)
    required = float(read()["requirements"]["teacher_accuracy"])
    fingerprint = read_fingerprint()
    score = load_scorer(MODELS / "teacher", threads)
    val, test = (read_split(split, fingerprint.data) for split in ("val", "test"))
    logits = score(test.images)
    report = evaluate(
        (score(val.images), val.labels),
        (logits, test.labels),
        required,
        read_spec(MODELS / "teacher").sha256,
        fingerprint.digest,
    )
    write_predictions(TEACHER, test, logits)
    write_json(FOLDER / "report.json", report.model_dump(mode="json"))
    print(f"evaluate: teacher {100 * report.test.accuracy.value:.2f} % on {len(test):,} test rows")
    gate(report)


if __name__ == "__main__":
    main(run)
