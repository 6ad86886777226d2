"""One Prefect server at a time on a checkout's database: a run's own, or a schedule's."""

from __future__ import annotations

import os
import threading
import urllib.request
from dataclasses import replace
from typing import Any

import psutil
import pytest

from flows.running import lives, records
from flows.server import (
    Server,
    Standby,
    announce,
    answers,
    database,
    standing,
    start,
    withdraw,
)
from flows.state import Interrupted, Servers
from tasks.core.errors import DataError
from tasks.core.files import write_json


class Process:
    """Just the number of a process that is alive."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def scheduled(tiny: Any, url: str, pid: int | None = None) -> str:
    """Announce a server as a schedule does; by default in the name of this process."""
    process: Any = Process(os.getpid() if pid is None else pid)
    announce(tiny.checkout, Server(tiny.checkout, process, url))
    return url


def test_a_run_works_through_the_schedules_server_and_leaves_it_alone(
    tiny: Any, prefect_url: str
) -> None:
    scheduled(tiny, prefect_url)

    with Standby(tiny.checkout) as standby:
        standby.begin()
        standby.adopt()
        adopted = os.environ["PREFECT_API_URL"]
        begun = records(tiny.checkout)

    assert adopted == prefect_url
    assert begun == []
    assert answers(prefect_url)


def test_a_workspace_finds_the_schedules_server_too(tiny: Any, prefect_url: str) -> None:
    scheduled(tiny, prefect_url)

    assert standing(replace(tiny.checkout, root=tiny.root / "runs" / "any")) == prefect_url


def test_a_server_that_the_team_has_comes_first(tiny: Any, prefect_url: str) -> None:
    scheduled(tiny, prefect_url)
    checkout = replace(tiny.checkout, servers=Servers(prefect="https://p.example.org/api"))
    os.environ.pop("PREFECT_API_URL", None)

    with Standby(checkout) as standby:
        standby.begin()
        standby.adopt()

    assert "PREFECT_API_URL" not in os.environ  # `adopt` of flows/state.py has set it


@pytest.mark.parametrize("stale", ["ended", "another", "torn"])
def test_a_schedules_server_that_is_gone_is_forgotten(
    tiny: Any, prefect_url: str, stale: str
) -> None:
    scheduled(tiny, prefect_url)
    path = tiny.checkout.state / "prefect-server.json"
    born = psutil.Process().create_time()
    said = {"format": "stillhouse/prefect-server/1", "url": prefect_url}
    if stale == "ended":
        write_json(path, said | {"pid": 2**22 + 1, "create_time": born})
    if stale == "another":
        write_json(path, said | {"pid": os.getpid(), "create_time": born - 60})
    if stale == "torn":
        path.write_text(path.read_text()[:20])

    found = standing(tiny.checkout)

    assert found is None
    assert not path.exists()


def test_a_schedules_server_that_is_slow_is_waited_for_and_not_forgotten(
    tiny: Any, prefect_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, slow = scheduled(tiny, prefect_url), iter([False, True])
    monkeypatch.setattr("flows.server.answers", lambda _: next(slow, False))
    assert standing(tiny.checkout) == url

    monkeypatch.setattr("flows.server.SLOW", 0.0)
    with pytest.raises(DataError, match="does not answer; stop the schedule"):
        standing(tiny.checkout)
    assert (tiny.checkout.state / "prefect-server.json").exists()


def test_who_waits_for_a_slow_server_can_be_stopped(
    tiny: Any, prefect_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduled(tiny, prefect_url)
    monkeypatch.setattr("flows.server.answers", lambda _: False)
    stop = threading.Event()
    stop.set()

    with Standby(tiny.checkout) as standby, pytest.raises(Interrupted):
        standby.begin(stop)


def test_no_page_of_somebody_else_may_ask_a_runs_server(tiny: Any) -> None:
    server = start(tiny.checkout)
    try:
        server.wait()
        headers = {"Origin": "http://example.org"}
        foreign = urllib.request.Request(f"{server.url}/health", headers=headers)  # noqa: S310
        with urllib.request.urlopen(foreign, timeout=10) as answer:  # noqa: S310
            assert answer.headers["access-control-allow-origin"] is None
    finally:
        server.stop()


def test_a_run_without_a_schedule_starts_a_server_and_ends_it(tiny: Any) -> None:
    with Standby(tiny.checkout) as standby:
        standby.begin()
        standby.begin()
        (record,) = records(tiny.checkout)
        process = psutil.Process(record.pid)
        standby.adopt()
        url = os.environ["PREFECT_API_URL"]
        assert answers(url)

    assert not answers(url)
    assert not lives(process)


def test_a_schedules_server_neither_comes_nor_goes_while_a_run_works(tiny: Any) -> None:
    def refuse() -> None:
        raise DataError("a run is at work")

    def taken(alone: bool) -> bool:
        try:
            with database(tiny.checkout, alone, refuse):
                return True
        except DataError:
            return False

    with database(tiny.checkout, False, refuse):
        while_a_run_works = taken(alone=False), taken(alone=True)
    with database(tiny.checkout, True, refuse):
        while_one_comes_or_goes = taken(alone=False), taken(alone=True)

    assert while_a_run_works == (True, False)
    assert while_one_comes_or_goes == (False, False)
    assert taken(alone=True)


def test_a_server_is_withdrawn_though_nobody_announced_one(tiny: Any) -> None:
    withdraw(tiny.checkout)

    assert standing(tiny.checkout) is None
