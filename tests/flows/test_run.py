"""What follows the stages of a run: a step that fails is one more failure, and hides none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.display import Plain
from flows.params import check_params
from flows.retrain import Results
from flows.run import Job, report
from flows.runner import Runner, StageError
from flows.server import Standby

ROOT = Path(__file__).parents[2]


def after(project: Any, results: Results) -> tuple[Job, int]:
    """Project and report what became of the stages; returns the exit code."""
    checkout, console = project.checkout, Console(quiet=True)
    shown = Plain(console)
    job = Job(checkout, check_params(ROOT), Runner(checkout), Standby(checkout), shown)
    job.project(results)
    return job, report(console, job, results)


def test_a_first_stage_that_fails_on_a_fresh_clone_is_what_is_reported(
    fresh: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(
        failed={"ingest": StageError("no such column")}, blocked={"judge@student": "ingest"}
    )

    _, code = after(fresh, results)

    assert code == 3
    assert capsys.readouterr().err == "error: ingest: no such column\n"
    assert not (fresh.checkout.state / "mlflow.db").exists()


def test_tracking_that_fails_is_reported_beside_the_stages(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.checkout.state.mkdir(exist_ok=True)
    (tiny.checkout.state / "mlflow.db").write_bytes(b"not a database" * 100)
    results = Results(failed={"left": StageError("too bitter")}, blocked={"judge@student": "left"})

    _, code = after(tiny, results)

    first, second = capsys.readouterr().err.splitlines()
    assert code == 3
    assert first == "error: left: too bitter"
    assert second.startswith(f"error: tracking: {tiny.checkout.database}: file is not a database")


def test_a_student_without_evidence_is_reported_beside_the_stages(
    tiny: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "check_teacher", lambda _: None)
    monkeypatch.setattr("flows.tracking.project", lambda _: "a run")
    results = Results(failed={"left": StageError("too bitter")})

    _, code = after(tiny, results)

    left, seal, show = capsys.readouterr().err.splitlines()
    assert code == 3
    assert left == "error: left: too bitter"
    assert seal.startswith("error: seal@student: ")
    assert show.startswith("error: show@student: ")
