"""The flow over a real DAG: order, concurrency, failure, resumption, and what Prefect records."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import Any

import psutil
import pytest

from flows.running import lives


def asked(url: str, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of Prefect's database."""
    body = json.dumps(query).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{what}/filter", body, headers)  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - the server that we started
        rows: list[dict[str, Any]] = json.loads(answer.read())
    return rows


def test_every_stage_runs_in_order_side_by_side_where_it_can_and_prefect_knows(
    fresh: Any, prefect_url: str
) -> None:
    fresh.change("left", wait="began-right")  # each waits for the other: only side by side ends
    fresh.change("right", wait="began-left")

    result = fresh.flow(prefect_url)

    assert result["code"] == 0
    assert result["done"] == dict.fromkeys(["alone", "grow", "left", "right", "join"], "ran")
    assert {fresh.out(stage).read_text() for stage in result["done"]} == {"1"}
    (run,) = asked(prefect_url, "flow_runs", {"sort": "START_TIME_DESC", "limit": 1})
    assert (run["name"], run["state_type"]) == ("tiny", "COMPLETED")
    within = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = {t["name"]: t for t in asked(prefect_url, "task_runs", within)}
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

    log = ".stillhouse/logs/alone.log"
    assert failed["code"] == 3  # the gravest
    assert failed["failed"] == {
        "left": [1, "too bitter; pick riper ones"],
        "alone": [3, f"RuntimeError: no water; see {log}"],
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
