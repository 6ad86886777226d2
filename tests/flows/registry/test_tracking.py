from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.state import Servers
from flows.store import TrackingError, opened
from flows.tracking import live, project, warm

ROOT = Path(__file__).parents[3]
KILLED = """
import os, sys
from pathlib import Path
import flows.live
from flows.state import Checkout, Servers
flows.live.POLL = 0.05
root = Path(sys.argv[1])
checkout = Checkout(root, root, Servers())
with flows.live.live(checkout, "distill@student"):
    history = root / "models/student/history.jsonl"
    history.write_text('{"epoch": 1, "loss": 3.0}\\n')
    from flows.store import opened
    while True:
        with opened(checkout) as store:
            if store.runs({"stillhouse.kind": "live"}):
                os.kill(os.getpid(), 9)
"""
PROJECT = """
import sys
from pathlib import Path
from flows.state import Checkout, Servers
from flows.tracking import project
root = Path(sys.argv[1])
print(project(Checkout(root, root, Servers())))
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.live.POLL", 0.02)


def history(trees: Any, run: Any, metric: str) -> dict[int, float]:
    with opened(trees.checkout) as store:
        return {m.step: m.value for m in store.client.get_metric_history(run.info.run_id, metric)}


def test_each_stage_is_a_child_with_its_parameters_metrics_curves_and_papers(trees: Any) -> None:
    parent = project(trees.checkout)

    children = {run.info.run_name: run for run in trees.runs(kind="stage")}
    student, judge = children["distill@student"], children["judge@student"]
    assert len(children) == 5
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent}
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert student.data.params["distill.rungs.student.temperature"] == "4.0"
    assert history(trees, student, "loss") == {e: 1 / e for e in range(1, 6)}
    assert judge.data.metrics["retention"] == 0.995
    assert judge.data.metrics["gates_passed"] == 2
    assert any(name.endswith("evidence/student/card.md") for name in trees.artifacts())
    assert not [n for n in trees.artifacts() if n.endswith((".parquet", ".safetensors"))]


def test_the_parent_tells_runs_apart_by_verdict_and_parameters(trees: Any) -> None:
    project(trees.checkout)

    (parent,) = trees.runs(kind="run")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["student.approved"] == 1
    assert parent.data.metrics["student.compression"] == 10
    assert parent.data.params["judge.margin"] == "0.05"


def test_artefacts_lie_in_the_state_of_the_checkout_wherever_one_stands(
    trees: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    project(trees.checkout)

    assert any(name.endswith("verdict.json") for name in trees.artifacts())
    assert not (tmp_path / "mlruns").exists()


def test_projecting_twice_doubles_nothing(trees: Any) -> None:
    first = project(trees.checkout)
    before = trees.rows(), trees.artifacts()

    second = project(trees.checkout)

    assert second == first
    assert (trees.rows(), trees.artifacts()) == before


def test_a_projection_that_broke_off_is_completed_without_doubling(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log_artifact, calls = MlflowClient.log_artifact, []

    def fails_on_the_third(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise MlflowException("the disk is full")
        log_artifact(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", fails_on_the_third)
        with pytest.raises(TrackingError, match="the disk is full"):
            project(trees.checkout)

    project(trees.checkout)

    children = trees.runs(kind="stage")
    assert len(children) == len({run.info.run_name for run in children}) == 5
    assert {run.info.status for run in children} == {"FINISHED"}
    (broken,) = [run for run in children if run.info.run_name == "distill@student"]
    assert broken.info.start_time == min(run.info.start_time for run in children)
    with opened(trees.checkout) as store:
        assert len(store.client.get_metric_history(broken.info.run_id, "loss")) == 5


def test_a_wiped_database_is_rebuilt(trees: Any) -> None:
    project(trees.checkout)
    before = trees.rows(), len(trees.artifacts())
    for path in trees.checkout.state.iterdir():
        if path.is_file():
            path.unlink()
    for path in (trees.checkout.state / "artifacts").rglob("*"):
        if path.is_file():
            path.unlink()

    done = subprocess.run(
        [sys.executable, "-c", PROJECT, str(trees.root)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )

    assert len(done.stdout.split()) == 1
    assert (trees.rows(), len(trees.artifacts())) == before


def test_a_cached_stage_links_to_the_run_that_computed_it(trees: Any) -> None:
    first = project(trees.checkout)
    trees.another_student()

    second = project(trees.checkout)

    assert second != first
    children = {
        r.info.run_name: r
        for r in trees.runs(kind="stage")
        if r.data.tags["mlflow.parentRunId"] == second
    }
    (computed,) = [
        r for r in trees.runs(stage="teach") if r.data.tags["mlflow.parentRunId"] == first
    ]
    assert len(children) == 5
    assert children["teach"].data.tags["stillhouse.computed_by"] == computed.info.run_id
    assert children["teach"].data.metrics == {}
    assert "stillhouse.computed_by" not in children["judge@student"].data.tags


def test_a_stage_whose_outputs_are_away_is_projected_once_they_are_back(
    trees: Any, caplog: pytest.LogCaptureFixture
) -> None:
    away = trees.root / "measured/student.json"
    content = away.read_bytes()
    away.unlink()

    project(trees.checkout)
    assert trees.runs(stage="distill@student") == []
    assert "distill@student: its outputs are not as locked" in caplog.text

    away.write_bytes(content)
    project(trees.checkout)
    assert len(trees.runs(stage="distill@student")) == 1


def test_a_deleted_experiment_comes_back(trees: Any) -> None:
    project(trees.checkout)
    with opened(trees.checkout) as store:
        store.client.delete_experiment(store.experiment)

    assert project(trees.checkout)


@pytest.mark.usefixtures("quick")
def test_curves_are_live_and_the_projection_adopts_them(
    trees: Any, until: Callable[..., Any]
) -> None:
    path = trees.root / "models/student/history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    with live(trees.checkout, "distill@student"):
        path.unlink()
        seen: dict[int, float] = {}
        for count in range(1, len(lines) + 1):
            path.write_text("".join(lines[:count]) + '{"epoch": 99, "lo')
            (run,) = until(lambda: trees.runs(kind="live"))
            until(lambda n=count, r=run: len(history(trees, r, "loss")) == n)
            seen = history(trees, run, "loss")
        path.write_text("".join(lines))
    assert seen == {e: 1 / e for e in range(1, 6)}

    parent = project(trees.checkout)

    (child,) = trees.runs(stage="distill@student")
    assert child.info.run_id == run.info.run_id
    assert child.data.tags["stillhouse.kind"] == "stage"
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.metrics["measured.cpu_seconds"] == 1.5
    with opened(trees.checkout) as store:
        assert len(store.client.get_metric_history(run.info.run_id, "loss")) == 5
    before = trees.rows()
    project(trees.checkout)
    assert trees.rows() == before


@pytest.mark.usefixtures("quick")
def test_a_training_that_runs_is_left_alone_by_a_projection(
    trees: Any, until: Callable[..., Any]
) -> None:
    with live(trees.checkout, "teach"):
        trees.write_history("teacher", 2)
        until(lambda: trees.runs(kind="live"))

        project(trees.checkout)

        (running,) = trees.runs(kind="live")
        assert running.info.status == "RUNNING"


@pytest.mark.usefixtures("quick")
def test_curves_that_dvc_took_from_its_cache_do_not_stand_twice(trees: Any) -> None:
    project(trees.checkout)
    path = trees.root / "models/student/history.jsonl"
    content = path.read_bytes()
    path.unlink()
    with live(trees.checkout, "distill@student"):
        path.write_bytes(content)
    assert len(trees.runs(stage="distill@student")) == 2

    project(trees.checkout)

    (child,) = trees.runs(stage="distill@student")
    assert child.data.tags["stillhouse.kind"] == "stage"


@pytest.mark.usefixtures("quick")
def test_old_curves_are_not_taken_for_those_of_a_stage_that_fails_at_once(trees: Any) -> None:
    path = trees.root / "models/student/history.jsonl"
    content = path.read_bytes()
    with pytest.raises(RuntimeError), live(trees.checkout, "distill@student"):
        path.unlink()
        path.write_bytes(content)  # DVC checks the old outputs out again
        raise RuntimeError

    assert trees.runs(kind="live") == []


@pytest.mark.usefixtures("quick")
def test_a_failed_training_keeps_its_curves_as_failed(trees: Any) -> None:
    with pytest.raises(RuntimeError), live(trees.checkout, "distill@student"):
        trees.write_history("student", 2)
        raise RuntimeError

    (run,) = trees.runs(kind="live")
    assert run.info.status == "FAILED"
    assert history(trees, run, "loss") == {1: 1.0, 2: 0.5}


def test_stages_that_do_not_train_have_no_live_run(trees: Any) -> None:
    with live(trees.checkout, "judge@student"):
        trees.write_history("student", 2)

    assert trees.runs(kind="live") == []


def test_what_a_killed_process_left_running_is_marked_killed(trees: Any) -> None:
    content = (trees.root / "models/student/history.jsonl").read_bytes()
    died = subprocess.run([sys.executable, "-c", KILLED, str(trees.root)], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    (trees.root / "models/student/history.jsonl").write_bytes(content)

    project(trees.checkout)

    (left,) = trees.runs(kind="live")
    assert left.info.status == "KILLED"
    (child,) = trees.runs(kind="stage", stage="distill@student")
    assert child.info.status == "FINISHED"


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_costs_a_training_one_warning(
    trees: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.live.GRACE", 0.5)
    away = replace(trees.checkout, servers=Servers(mlflow="http://127.0.0.1:9"))
    caplog.set_level(logging.WARNING, "flows")

    with live(away, "distill@student"):
        trees.write_history("student", 2)

    assert len([r for r in caplog.records if r.name == "flows.live"]) == 1


def test_a_broken_database_is_one_line_that_says_what_to_do(trees: Any) -> None:
    (trees.checkout.state / "mlflow.db").write_bytes(b"not a database" * 100)

    with pytest.raises(TrackingError, match="move that file away; the next run rebuilds it"):
        warm(trees.checkout)
