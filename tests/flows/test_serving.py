"""A schedule on a real Prefect server: one firing, a queue, its end in order and by `kill -9`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.running import lives
from tests.flows.prefect_api import PATIENCE, asked
from tests.howto import alike, blocks, commands
from tests.howto import hold as hold_page

Command = Callable[..., "subprocess.CompletedProcess[str]"]
MONDAYS = ("--cron", "0 3 * * 1")
PAGE = (Path(__file__).parents[2] / "docs/howto-schedule.md").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Schedule:
    """`stillhouse schedule` at work in a project."""

    root: Path
    process: subprocess.Popen[str]
    port: int
    said: list[str]

    def api(self, path: str, body: object | None = None) -> Any:
        """What its server answers."""
        return asked(f"http://127.0.0.1:{self.port}/api{path}", body)

    @property
    def deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api("/deployments/name/retrain/digits")
        return found

    def fire(self) -> str:
        """Ask for a run now, as the scheduler does when one is due; returns its id."""
        path = f"/deployments/{self.deployment['id']}/create_flow_run"
        return str(self.api(path, {"state": {"type": "SCHEDULED"}})["id"])

    def run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api(f"/flow_runs/{run}")
        return found

    def state(self, run: str) -> str:
        return str(self.run(run)["state_type"])

    def end(self) -> str:
        """What else it says until its end."""
        rest, errors = self.process.communicate(timeout=PATIENCE)
        return rest + errors


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def schedule() -> Iterator[Callable[[Path], Schedule]]:
    """Start `stillhouse schedule` in a project; returns once it serves."""
    started: list[subprocess.Popen[str]] = []

    def start(root: Path) -> Schedule:
        port = free_port()
        command = [sys.executable, "-m", "flows.cli", "schedule", *MONDAYS, "--port", str(port)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        said: list[str] = []
        assert process.stdout is not None
        while not said or "Ctrl-C stops it" not in said[-1]:
            line = process.stdout.readline()
            assert line, f"{said} {process.stderr and process.stderr.read()}"
            said.append(line.rstrip())
        return Schedule(root, process, port, said)

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def at_rest(root: Path, table: str) -> dict[str, str]:
    """Name or id -> what Prefect's database holds of it, once no server runs."""
    asked = {
        "runs": "SELECT id, state_name FROM flow_run WHERE auto_scheduled = 0",
        "deployments": "SELECT name, paused FROM deployment",
    }
    with closing(sqlite3.connect(root / ".stillhouse/prefect/prefect.db")) as database:
        return {str(key): str(value) for key, value in database.execute(asked[table])}


def commit(root: Path) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *name, "commit", "-qam", "today's"], cwd=root, check=True)
    return git(root, "rev-parse", "HEAD")


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def left_behind(root: Path) -> list[Path]:
    """Records of processes, of the checkout, its schedule and its workspaces."""
    return [*root.glob(".stillhouse/**/running/*.json"), *root.glob("runs/*/.stillhouse/running/*")]


@pytest.mark.slow
def test_a_reader_of_the_page_retrains_at_the_commit_and_what_is_sealed_is_clean(
    pipeline: Path, tmp_path: Path, schedule: Callable[[Path], Schedule], command: Command
) -> None:
    root = Path(shutil.copytree(pipeline, tmp_path / "copy", symlinks=True))
    shutil.rmtree(root / ".stillhouse/bundles")
    head = git(root, "rev-parse", "HEAD")
    (root / "README.md").write_text("not committed")

    at_work = schedule(root)
    server = json.loads((root / ".stillhouse/prefect-server.json").read_text())
    heard = {c.laddr.ip for c in psutil.Process(server["pid"]).net_connections("tcp")}
    planned_runs = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    coming = at_work.api("/flow_runs/filter", planned_runs)
    page = PAGE.replace("4200", str(at_work.port))
    serving, trying = (b.text for b in blocks(page) if b.language == "console")
    hold_page("howto-schedule.md", trying, lambda words: typed(command(root, *words, check=False)))
    ours = {"flow_runs": {"deployment_id": {"any_": [at_work.deployment["id"]]}}}
    (run,) = [r for r in at_work.api("/flow_runs/filter", ours) if not r["auto_scheduled"]]
    at_work.process.terminate()
    said = at_work.end()

    assert next(commands(serving))[0] == 'stillhouse schedule --cron "0 3 * * 1"'
    assert alike(next(commands(serving))[1], "\n".join(at_work.said) + "\n")
    times = sorted(datetime.fromisoformat(r["expected_start_time"]) for r in coming)
    assert len(times) >= 3
    assert {(t.weekday(), t.hour, t.minute) for t in times} == {(0, 3, 0)}
    assert times[0] - datetime.now(UTC) <= timedelta(days=7)
    assert f"next {times[0]:%Y-%m-%d %H:%M} UTC" in at_work.said[-2]
    assert heard == {"127.0.0.1"}
    assert f"README.md: not as committed; the schedule works at {head[:12]}" in said
    (folder,) = (root / "runs").iterdir()
    log = (folder / ".stillhouse/logs/run.log").read_text()
    assert run["state"]["message"].startswith(f"{folder.name}: registered: student, version ")
    assert "teach: back from the cache" in log
    assert git(folder, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock") == ""
    (bundle,) = (root / ".stillhouse/bundles").iterdir()
    circumstances = json.loads((bundle / "manifest.json").read_text())["circumstances"]
    assert (circumstances["commit"], circumstances["dirty"]) == (head, False)
    assert at_work.process.returncode == 0
    assert at_rest(root, "deployments") == {"digits": "1"}, "it is paused"
    assert left_behind(root) == []
    assert not (root / ".stillhouse/prefect-server.json").exists()
    assert not psutil.pid_exists(server["pid"])


def typed(done: subprocess.CompletedProcess[str]) -> tuple[str, int]:
    return done.stdout, done.returncode


@pytest.mark.slow
def test_runs_queue_and_a_run_by_hand_works_through_the_same_server(
    tiny: Any, schedule: Callable[[Path], Schedule]
) -> None:
    tiny.change("left", value=2, wait="go")
    commit(tiny.root)
    tiny.change("left", value=1, wait=None)  # by hand, not committed
    tiny.change("alone", value=3)
    (tiny.root / "began-left").unlink()

    at_work = schedule(tiny.root)
    by_hand = tiny.cli("run")
    runs = at_work.fire(), at_work.fire()
    wait(lambda: list(tiny.root.glob("runs/*/began-left")))
    (folder,) = (tiny.root / "runs").iterdir()
    (folder / "go").touch()
    wait(lambda: [at_work.state(run) for run in runs] == ["FAILED", "FAILED"])  # for want of a seal
    one, other = sorted((at_work.run(run) for run in runs), key=lambda run: str(run["start_time"]))
    at_work.process.terminate()
    at_work.end()

    assert one["end_time"] <= other["start_time"]
    assert one["state"]["message"].startswith(f"{folder.name}: teacher: ")
    assert len(list((tiny.root / "runs").iterdir())) == 2
    assert {f.read_text() for f in tiny.root.glob("runs/*/out/left.txt")} == {"2"}
    assert "alone: done" in by_hand.stdout
    assert tiny.out("alone").read_text() == "3"
    assert not (tiny.root / ".stillhouse/logs/prefect-server.log").exists(), "it needed no server"
    assert at_work.process.returncode == 0


@pytest.mark.slow
def test_kill_9_is_mended_by_the_next_command_and_ctrl_c_brings_outs_back(
    tiny: Any, schedule: Callable[[Path], Schedule]
) -> None:
    tiny.change("left", value=2, wait="never")
    commit(tiny.root)
    (tiny.root / "began-left").unlink()
    killed = schedule(tiny.root)
    first, second = killed.fire(), killed.fire()
    wait(lambda: list(tiny.root.glob("runs/*/began-left")))
    family = psutil.Process(killed.process.pid).children(recursive=True)

    killed.process.kill()
    killed.process.wait()
    alive = [p for p in family if lives(p) and "step.py" in p.cmdline()]
    mended = tiny.cli("status")

    assert alive
    assert "ended firings, which a dead run had left running" in mended.stderr
    assert "ended prefect-server, which a dead run had left running" in mended.stderr
    assert not any(lives(p) for p in family)
    (folder,) = (tiny.root / "runs").iterdir()
    assert (folder / "out/left.txt").read_text() == "1", "its former out is back"

    again = schedule(tiny.root)
    settled = again.state(first), again.state(second)
    paused = again.deployment["paused"]
    third = again.fire()
    wait(lambda: len(list(tiny.root.glob("runs/*/began-left"))) == 2)
    family = psutil.Process(again.process.pid).children(recursive=True)
    engines = [p.pid for p in family if "prefect.engine" in p.cmdline()]
    for number in (again.process.pid, *engines):  # as a terminal does: to all of its foreground
        os.kill(number, signal.SIGINT)
    said = again.end()

    assert sorted(settled) == ["CANCELLED", "CRASHED"], "nobody works at them any more"
    assert paused is False
    assert "stopping; a run at work ends first" in said
    assert again.process.returncode == 0
    assert at_rest(tiny.root, "runs")[third] == "Cancelled"
    assert [f.read_text() for f in tiny.root.glob("runs/*/out/left.txt")] == ["1", "1"]
    assert not any(lives(p) for p in family)
    assert left_behind(tiny.root) == []
