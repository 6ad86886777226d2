"""The flow over a real DAG: order, concurrency, failure, resumption, and what Prefect records."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import psutil
import pytest

from flows.running import lives
from tests.flows.prefect_api import asked

CRASHING = """
import json, os, sys
from pathlib import Path
from flows.dag import read_graph
from flows.retrain import retrain
from flows.runner import Outcome
from flows.state import adopt, find_checkout

adopt(find_checkout())
os.environ["PREFECT_API_URL"] = sys.argv[1]
from prefect.task_engine import SyncTaskRunEngine

begin_run = SyncTaskRunEngine.begin_run


def begins(engine):
    if engine.task_run.name == "grow":
        raise ConnectionError("the server is lost")
    begin_run(engine)


SyncTaskRunEngine.begin_run = begins


def one(stage):
    return Outcome(stage.name, "ran", 0.0)


results = retrain(read_graph(Path.cwd()), one, "tiny")
failed = {stage: str(error) for stage, error in results.failed.items()}
print(json.dumps([list(results.done), failed, results.blocked, results.exit_code]))
"""


def crashed(tiny: Any, url: str) -> Any:
    """What becomes of a flow in which Prefect loses its server before it begins `grow`."""
    done = tiny.call(sys.executable, "-c", CRASHING, url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(url: str, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of Prefect's database."""
    found: list[dict[str, Any]] = asked(f"{url}/{what}/filter", query)
    return found


def test_every_stage_runs_in_order_side_by_side_where_it_can_and_prefect_knows(
    fresh: Any, prefect_url: str
) -> None:
    fresh.change("left", wait="began-right")  # each waits for the other: only side by side ends
    fresh.change("right", wait="began-left")

    result = fresh.flow(prefect_url)

    assert result["code"] == 0
    assert result["done"] == dict.fromkeys(["alone", "grow", "left", "right", "join"], "ran")
    assert ["left", "right"] in result["due"]
    assert sum("join" in names for names in result["due"]) == 1
    assert {fresh.out(stage).read_text() for stage in result["done"]} == {"1"}
    (run,) = rows(prefect_url, "flow_runs", {"sort": "START_TIME_DESC", "limit": 1})
    assert (run["name"], run["state_type"]) == ("tiny", "COMPLETED")
    within = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = {t["name"]: t for t in rows(prefect_url, "task_runs", within)}
    assert set(tasks) == set(result["done"])
    assert tasks["grow"]["end_time"] <= tasks["left"]["start_time"]


def test_where_nothing_changed_prefect_is_not_imported(tiny: Any) -> None:
    result = tiny.flow("http://127.0.0.1:9/nowhere")

    assert result["code"] == 0
    assert result["done"] == {}
    assert result["prefect"] is False


def test_a_failure_stops_only_what_follows_and_the_next_run_resumes(
    tiny: Any, prefect_url: str
) -> None:
    for stage in ("left", "right", "alone"):
        tiny.change(stage, value=2)
    tiny.change("left", refuse="too bitter; pick riper ones")
    tiny.change("alone", crash="no water")

    failed = tiny.flow(prefect_url)

    log, aside = ".stillhouse/logs/alone.log", "what it wrote is in .stillhouse/failed"
    assert failed["code"] == 3  # the gravest
    assert failed["failed"] == {
        "left": [1, f"too bitter; pick riper ones; {aside}/left"],
        "alone": [3, f"RuntimeError: no water; see {log}; {aside}/alone"],
    }
    assert failed["blocked"] == {"join": "left"}
    assert failed["done"] == {"right": "ran"}
    assert "Traceback" in (tiny.root / log).read_text()
    assert tiny.out("left").read_text() == "1"  # the former out is back
    assert (tiny.root / ".stillhouse/failed/left/out/left.txt").read_text() == "half"

    tiny.change("left", refuse=None)
    tiny.change("alone", crash=None)
    resumed = tiny.flow(prefect_url)

    assert resumed["code"] == 0
    assert resumed["done"] == {"left": "ran", "alone": "ran", "join": "ran"}


def test_a_stage_that_prefect_did_not_complete_has_failed_and_blocks(
    fresh: Any, prefect_url: str
) -> None:
    done, failed, blocked, code = crashed(fresh, prefect_url)

    assert done == ["alone"]
    assert list(failed) == ["grow"]
    assert failed["grow"].startswith("Prefect did not run it (")
    assert "the server is lost" in failed["grow"]
    assert "\n" not in failed["grow"]
    assert blocked == {"left": "grow", "right": "grow", "join": "grow"}
    assert code == 3
    (run,) = rows(prefect_url, "flow_runs", {"sort": "START_TIME_DESC", "limit": 1})
    assert run["state_type"] == "FAILED"


def test_without_prefect_every_first_stage_has_failed(fresh: Any) -> None:
    done, failed, blocked, code = crashed(fresh, "http://127.0.0.1:9/api")

    assert done == []
    assert set(failed) == {"alone", "grow"}
    assert set(blocked) == {"left", "right", "join"}
    assert "127.0.0.1:9" in failed["alone"]
    assert code == 3


def test_dvc_decides_what_comes_from_its_cache_and_what_is_unchanged(
    tiny: Any, prefect_url: str
) -> None:
    tiny.change("alone", value=2)
    tiny.repro()
    tiny.change("alone", value=1)
    tiny.change("left", wait="began-left")  # another parameter, the same out

    result = tiny.flow(prefect_url)

    assert result["done"] == {"alone": "restored", "left": "ran", "join": "unchanged"}
    assert tiny.out("alone").read_text() == "1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stage_and_brings_its_outs_back(
    tiny: Any, prefect_url: str, number: int, until: Any, result_of: Any
) -> None:
    tiny.change("left", value=2, wait="never")
    (tiny.root / "began-left").unlink()
    flow = tiny.start(prefect_url)
    until((tiny.root / "began-left").exists)
    (stage,) = [
        p for p in psutil.Process(flow.pid).children(recursive=True) if "step.py" in p.cmdline()
    ]

    os.kill(flow.pid, number)
    result = result_of(flow)

    assert result["code"] == 130
    assert result["blocked"] == {"join": "left"}
    assert not lives(stage)
    assert tiny.out("left").read_text() == "1"
    assert list((tiny.root / ".stillhouse/running").iterdir()) == []
