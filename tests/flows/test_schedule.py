"""What `stillhouse schedule` refuses, before anything is started."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Any

import pytest

from flows.running import hold
from flows.schedule import check_cron, check_port, check_timezone, checked, planned
from flows.server import database
from tasks.core.errors import DataError, StillhouseError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("cron", ["nonsense", "0 3 * *", "* * * * * *", "61 * * * *", "0 0 31 2 *"])
def test_what_is_no_cron_or_never_comes_is_refused(cron: str) -> None:
    with pytest.raises(StillhouseError, match=r"five fields of cron .* for example '0 3") as caught:
        check_cron(cron)

    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Europe/Pari", "did you mean 'Europe/Paris'"),
        ("", "write it as in Europe/Paris"),
        ("../../etc/passwd", "no such time zone"),
    ],
)
def test_an_unknown_time_zone_names_the_nearest(name: str, said: str) -> None:
    with pytest.raises(StillhouseError, match=said) as caught:
        check_timezone(name)

    assert caught.value.exit_code == 2


def test_a_port_in_use_says_so_and_names_another() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(
            DataError,
            match=f"127.0.0.1:{port}: address already in use; choose .* --port {port + 1}",
        ):
            check_port(port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(StillhouseError, match="must be between 1 and 65535"):
        check_port(port)


def test_a_second_schedule_says_who_is_first(tiny: Any) -> None:
    place = replace(tiny.checkout, root=tiny.checkout.state / "schedule")

    with hold(place), pytest.raises(DataError, match=f"at work here \\(process {os.getpid()} "):
        checked(tiny.checkout, place, "UTC", free_port())


def test_without_a_commit_there_is_nothing_to_schedule(tiny: Any) -> None:
    tiny.call("git", "checkout", "--quiet", "--orphan", "empty")

    with pytest.raises(DataError, match="no git repository with a commit here; `git init`"):
        planned(tiny.checkout, "0 3 * * 1", "UTC")


def test_while_a_run_has_a_server_of_its_own_a_schedule_is_refused(tiny: Any) -> None:
    with database(tiny.checkout, alone=False, busy=lambda: None):
        done = tiny.cli("schedule", "--cron", "0 3 * * 1", "--port", str(free_port()))

    assert done.returncode == 2
    assert done.stderr.startswith("error: a run is at work through a Prefect server of its own")
    assert len(done.stderr.splitlines()) == 1
    assert list(tiny.root.glob(".stillhouse/**/running/*.json")) == []
