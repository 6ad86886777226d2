"""Every run leaves a record, however it ends, and the list says what came of it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.running import hold, write_record
from flows.runs import Run, Student, folder, outcome, read_runs, recorded, show_runs
from flows.seal import verify
from flows.state import Checkout, Interrupted, find_checkout
from flows.store import this_process
from flows.workspace import prepare, requested
from tasks.core.errors import DataError, GateError
from tasks.core.files import write_json

APPROVED = Student(approved=True, bundle="student-0123456789ab", version=3)
REFUSED = Student(refused_by=("accuracy", "bytes"), bundle="student-ba9876543210")


def printed(checkout: Checkout) -> str:
    console = Console(file=io.StringIO(), width=160)
    show_runs(console, checkout, as_json=False)
    said: str = console.file.getvalue()  # type: ignore[attr-defined]
    return said


def only(checkout: Checkout) -> Run:
    (run,) = read_runs(checkout).values()
    return run


def test_a_run_is_on_record_while_it_works_and_complete_when_it_ends(tiny: Any) -> None:
    checkout = tiny.checkout
    head = tiny.call("git", "rev-parse", "HEAD").stdout.strip()

    with recorded(checkout) as story:
        before = only(checkout)
        story.tell("student", bundle="student-0123456789ab")
        story.tell("student", approved=True, version=3)

    after = only(checkout)
    assert (before.state, before.ended, before.exit_code) == ("at work", None, None)
    assert (after.workspace, after.commit, after.dirty) == (".", head, False)
    assert (after.state, after.exit_code, after.students) == ("approved", 0, {"student": APPROVED})
    assert after.ended is not None
    assert after.ended >= after.began
    assert set(after.objects) == {
        f"out/{s}.txt" for s in ("alone", "grow", "left", "right", "join")
    }


@pytest.mark.parametrize(
    ("error", "code", "state", "said"),
    [
        (DataError("data/raw: empty;\n give rows"), 2, "failed", "failed: run: data/raw: empty;"),
        (GateError("the teacher is too old"), 1, "failed", "failed: run: the teacher is too old"),
        (Interrupted("interrupted"), 130, "interrupted", "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted", "interrupted"),
        (RuntimeError("boom"), 3, "failed", "failed: run: boom"),
    ],
)
def test_a_run_that_raises_is_recorded_with_its_exit_code(
    tiny: Any, error: BaseException, code: int, state: str, said: str
) -> None:
    with pytest.raises(type(error)), recorded(tiny.checkout):
        raise error

    run = only(tiny.checkout)
    assert (run.exit_code, run.state) == (code, state)
    assert outcome(tiny.checkout, run) == said


def test_a_run_that_was_killed_is_shown_as_killed(tiny: Any) -> None:
    code = (
        "import sys; from flows.runs import recorded; from flows.state import find_checkout\n"
        "with recorded(find_checkout()):\n    print('begun', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tiny.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    alive = only(tiny.checkout).state

    process.send_signal(signal.SIGKILL)
    process.communicate()

    run = only(tiny.checkout)
    assert (alive, run.state, run.ended) == ("at work", "killed", None)
    assert "killed" in printed(tiny.checkout)


def write(checkout: Checkout, name: str, **values: Any) -> None:
    """A record as a run would have left it."""
    began = datetime(2025, 1, 6, 3, tzinfo=UTC)
    usual = {"workspace": ".", "commit": "01234567" * 5, "dirty": False, "process": this_process()}
    run = Run(**usual | {"began": began, "ended": began + timedelta(seconds=125)} | values)
    write_json(folder(checkout) / f"{name}.json", run.model_dump(mode="json"))


def test_the_list_says_what_came_of_each_run_the_newest_first(tiny: Any) -> None:
    ends: list[dict[str, Any]] = [
        {"students": {"student": APPROVED}, "exit_code": 0},
        {"students": {"student": APPROVED, "tiny": REFUSED}, "exit_code": 1},
        {"failures": {"teach": "no such column"}, "exit_code": 3},
        {"exit_code": 0, "dirty": True, "workspace": "runs/digits"},
    ]
    for number, end in enumerate(ends):
        began = datetime(2025, 1, 6 + number, 3, tzinfo=UTC)
        write(tiny.checkout, f"{number}", began=began, ended=began + timedelta(seconds=125), **end)

    lines = [" ".join(line.split()) for line in printed(tiny.checkout).splitlines()]

    assert [line for line in lines if line.startswith("2025")] == [
        "2025-01-09 03:00:00 runs/digits 01234567+ 2 min 05 s done",
        "2025-01-08 03:00:00 . 01234567 2 min 05 s failed: teach: no such column",
        "2025-01-07 03:00:00 . 01234567 2 min 05 s approved: student (version 3); "
        "refused: tiny: accuracy, bytes",
        "2025-01-06 03:00:00 . 01234567 2 min 05 s approved: student (version 3)",
    ]


def test_a_run_in_a_workspace_is_listed_by_the_checkout_with_the_stage_at_work(tiny: Any) -> None:
    place = prepare(tiny.checkout, *requested(tiny.checkout, "digits", []))
    workspace = find_checkout(place)

    with hold(workspace), recorded(workspace):
        write_record(workspace, "distill@student", os.getpid(), ("models/student",))
        run = only(tiny.checkout)
        said = outcome(tiny.checkout, run)

    assert (run.workspace, said) == ("runs/digits", "at work: distill@student")
    assert not folder(Checkout(place, place, tiny.checkout.servers)).exists()


def test_machines_get_the_records_with_state_and_outcome(tiny: Any) -> None:
    write(tiny.checkout, "1", students={"student": APPROVED}, exit_code=0)

    done = tiny.cli("runs", "--json")

    (run,) = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (run["format"], run["state"]) == ("stillhouse/run/1", "approved")
    assert run["outcome"] == "approved: student (version 3)"
    assert run["began"] == "2025-01-06T03:00:00Z"


def test_a_record_that_is_none_is_named(tiny: Any) -> None:
    write(tiny.checkout, "1")
    (folder(tiny.checkout) / "2.json").write_text('{"format": "stillhouse/run/9"}')

    with pytest.raises(DataError, match=r"runs/2\.json.*move this file away"):
        read_runs(tiny.checkout)


def test_without_a_run_the_list_says_what_begins_one(tiny: Any) -> None:
    assert printed(tiny.checkout) == "no run yet; `stillhouse run` begins one\n"


def test_the_list_loads_nothing_that_takes_seconds(tiny: Any) -> None:
    write(tiny.checkout, "1", exit_code=0)
    code = (
        "import sys; sys.argv = ['stillhouse', 'runs']\nfrom flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'onnxruntime', 'pandas'}\n"
        "print('loaded:', sorted(heavy & sys.modules.keys()))"
    )

    done = tiny.call(sys.executable, "-c", code)

    assert done.returncode == 0, done.stderr
    assert "2025-01-06" in done.stdout
    assert done.stdout.endswith("loaded: []\n")


def test_a_real_run_names_what_it_registered_and_left_in_the_cache(pipeline: Path) -> None:
    checkout = find_checkout(pipeline)

    run = list(read_runs(checkout).values())[-1]

    student = run.students["student"]
    assert (run.state, run.exit_code, run.failures) == ("approved", 0, {})
    assert student.version == 1
    assert student.bundle is not None
    assert verify(checkout.bundles / student.bundle) == []
    assert {"data/raw", "data/test.parquet", "models/teacher"} <= run.objects.keys()
