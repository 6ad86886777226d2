"""`python -m flows.remeasure STUDENT FILE`: the judge's latencies on this CPU, as JSON in FILE.

A process of its own, since the judge reads below the working directory and sets torch's threads.
"""

from __future__ import annotations

from pathlib import Path

from tasks.core.files import write_json
from tasks.core.models import MODELS, read_spec
from tasks.core.params import read, section
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.core.tables import read_fingerprint, read_split
from tasks.judge.case import read_rung
from tasks.judge.measured import measure
from tasks.judge.params import JudgeParams, Requirements
from tasks.judge.runtime import BATCH


def run(arguments: list[str]) -> None:
    """Measure teacher, float student and student, and gate the student's latency."""
    student, result = arguments
    deterministic(0, int(read()["threads"]))
    budget = section("requirements", Requirements).latency_ms
    images = read_split("test", read_fingerprint().data).images[:BATCH]
    teacher, rung = read_spec(MODELS / "teacher"), read_rung(student)
    watts = section("judge", JudgeParams).watts
    measured = measure(student, teacher, rung, images, budget, watts)
    write_json(Path(result), measured.model_dump(mode="json"))


if __name__ == "__main__":
    main(run)
