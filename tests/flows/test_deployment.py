"""A run of a deployment: its workspace, its last words, and a worker that takes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.state import find_checkout
from flows.workspace import pinned, prepare
from tasks.core.errors import DataError, ParamsError
from tests.flows.prefect_api import asked

ROOT = Path(__file__).parents[2]
DEPLOYMENT = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())


def commit(tiny: Any, message: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    tiny.call("git", *name, "commit", "--quiet", "--all", "--message", message)
    return str(tiny.call("git", "rev-parse", "HEAD").stdout.strip())


def test_a_workspace_at_a_commit_is_as_committed(tiny: Any) -> None:
    first = str(tiny.call("git", "rev-parse", "HEAD").stdout.strip())
    (tiny.root / "params.yaml").write_text(
        (tiny.root / "params.yaml").read_text().replace("name: digits", "name: others")
    )
    second = commit(tiny, "another name")
    (tiny.root / "step.py").write_text("not committed")

    folder = prepare(tiny.checkout, "digits-then", None, first)

    assert pinned(tiny.checkout, first) == (first, "digits")
    assert pinned(tiny.checkout, "HEAD") == (second, "others")
    said = tiny.call("git", "-C", str(folder), "status", "--porcelain").stdout
    assert said == ""
    assert tiny.call("git", "-C", str(folder), "rev-parse", "HEAD").stdout.strip() == first
    assert find_checkout(folder).state == tiny.checkout.state


@pytest.mark.parametrize("commit", ["0" * 40, "--help", "HEAD:params.yaml"])
def test_what_is_no_commit_is_refused(tiny: Any, commit: str) -> None:
    with pytest.raises(DataError, match="git rev-parse failed") as caught:
        pinned(tiny.checkout, commit)

    assert "\n" not in str(caught.value)


def test_parameters_of_the_commit_are_checked_and_named_by_it(tiny: Any) -> None:
    (tiny.root / "params.yaml").write_text("name: digits\n")
    broken = commit(tiny, "broken")

    with pytest.raises(ParamsError, match=f"params.yaml at commit {broken[:12]}: "):
        pinned(tiny.checkout, "HEAD")


@pytest.mark.parametrize(
    ("code", "lines", "said"),
    [
        (0, ["ingest: began", "registered: student, version 3"], "registered: student, version 3"),
        (0, ["recording the run"], "up to date, nothing to register"),
        (2, ["teach: failed: no", "error: teach: no weights"], "teach: no weights"),
        (3, ["error: left: a", "error: right: b"], "left: a; right: b"),
        (-9, ["left: began"], "`stillhouse run` ended with exit code -9"),
    ],
)
def test_the_last_word_is_one_line(tiny: Any, code: int, lines: list[str], said: str) -> None:
    from flows.deployment import Ended

    assert Ended(tiny.checkout, code, lines).reason == said


def test_the_last_word_of_a_refusal_is_the_gates(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deployment import Ended

    class Gate:
        name, why = "latency", "It takes 3 ms, and 2 ms are allowed."

    class Refused:
        failed = (Gate(),)

    monkeypatch.setattr("flows.deployment.last_verdict", lambda *_: Refused())

    reason = Ended(tiny.checkout, 1, ["refused: student failed 1 of 2 gates"]).reason

    assert reason == "refused: student: latency: It takes 3 ms, and 2 ms are allowed."


@pytest.mark.slow
def test_the_deployment_is_registered_as_written_and_a_worker_runs_it(
    tiny: Any, prefect_url: str
) -> None:
    (written,) = DEPLOYMENT["deployments"]
    head = str(tiny.call("git", "rev-parse", "HEAD").stdout.strip())
    home = tiny.root.parent / "prefect"
    own = {"PREFECT_API_URL": prefect_url, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "true"}

    def prefect(*words: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "prefect"), "--no-prompt", *words],
            cwd=ROOT,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prefect("work-pool", "create", "stillhouse", "--type", "process", "--overwrite")
    place = f"working_dir={tiny.root}"
    prefect(
        *("deploy", "--prefect-file", "infra/prefect.yaml"),
        *("--name", written["name"], "--job-variable", place),
    )
    made = asked(f"{prefect_url}/deployments/name/retrain/{written['name']}")
    run = asked(f"{prefect_url}/deployments/{made['id']}/create_flow_run", {})
    prefect("worker", "start", "--pool", "stillhouse", "--run-once")

    (schedule,) = made["schedules"]
    cron = {k: schedule["schedule"][k] for k in ("cron", "timezone")}
    assert [cron] == written["schedules"]
    assert schedule["active"] is True
    assert made["entrypoint"] == "flows.deployment.retrain"
    assert made["global_concurrency_limit"]["limit"] == 1
    assert made["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert not made["pull_steps"]
    ended = asked(f"{prefect_url}/flow_runs/{run['id']}")
    (folder,) = (tiny.root / "runs").iterdir()
    assert ended["state_type"] == "FAILED"  # this project has no teacher and no evidence
    assert ended["state"]["message"].startswith(f"{folder.name}: teacher: ")
    assert "\n" not in ended["state"]["message"]
    assert "join: cached" in (folder / ".stillhouse/logs/run.log").read_text()
    assert tiny.call("git", "-C", str(folder), "rev-parse", "HEAD").stdout.strip() == head


def test_the_version_that_the_deployment_names_is_the_one_that_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()

    assert f"prefect=={DEPLOYMENT['prefect-version']}" in pins


REGISTERING = """
import asyncio, json, os, sys
from flows.state import adopt, find_checkout

adopt(find_checkout())
os.environ["PREFECT_API_URL"] = sys.argv[1]
from prefect import get_client
from prefect.runner import Runner
from flows.schedule import Plan
from flows.serving import _register


async def registered():
    runner = Runner()
    number = await _register(runner, Plan("twice", "a" * 40, "0 3 * * 1", "UTC"))
    async with get_client() as client:
        await client.pause_deployment(number)  # as a schedule does that stops
        again = await _register(runner, Plan("twice", "b" * 40, "0 4 * * 2", "Europe/Paris"))
        return number == again, await client.read_deployment(again)


same, found = asyncio.run(registered())
(schedule,) = found.schedules
print(json.dumps([same, found.paused, found.parameters, schedule.schedule.cron, schedule.active]))
"""


def test_a_new_schedule_takes_the_place_of_a_paused_one(tiny: Any, prefect_url: str) -> None:
    done = tiny.call(sys.executable, "-c", REGISTERING, prefect_url)

    assert done.returncode == 0, done.stderr
    same, paused, parameters, cron, active = json.loads(done.stdout.splitlines()[-1])
    assert same is True
    assert paused is False
    assert parameters == {"commit": "b" * 40}
    assert (cron, active) == ("0 4 * * 2", True)
