"""Promotions, schedules and clearing up that are asked for wrongly, or in the wrong place."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import ledger
from flows.state import Checkout, Servers
from tests.bad_input.case import Case, Place, params, untouched, written
from tests.bad_input.surroundings import alone, no_git

PORT = "4417"
WORDS = ("--by", "Ada", "--reason", "better")
PROMOTE = ("promote", "1", *WORDS)
WEEKLY = ("schedule", "--cron", "0 3 * * 1")


def _detached(root: Path) -> None:
    subprocess.run(["git", "checkout", "--quiet", "--detach"], cwd=root, check=True)


def _committed(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    """Spoil and commit it."""

    def arrange(root: Path) -> None:
        spoil(root)
        who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *who, "commit", "--quiet", "-am", "spoilt"], cwd=root, check=True)

    return arrange


@contextmanager
def at_the_ledger(root: Path) -> Iterator[Place]:
    """Somebody else promotes."""
    with ledger.alone(Checkout(root, root, Servers())):
        yield Place(root)


@contextmanager
def taken_port(root: Path) -> Iterator[Place]:
    """Another server listens there."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(PORT)))
        other.listen()
        yield Place(root)


LIFECYCLE = (
    Case(
        "a promotion in nobody's name",
        untouched,
        ("--by: is missing", "give --by TEXT"),
        ("promote", "1", "--reason", "better"),
    ),
    Case(
        "a promotion for no reason",
        untouched,
        ("--reason: write between 1 and 500 printable characters",),
        ("promote", "1", "--by", "Ada", "--reason", " "),
    ),
    Case(
        "a version that is no number",
        untouched,
        ("Invalid value for 'version'", "a valid integer"),
        ("promote", "first", *WORDS),
    ),
    Case(
        "a version that does not exist",
        untouched,
        ("digits-candidates: no version 7; there is 1",),
        ("promote", "7", *WORDS),
    ),
    Case(
        "a promotion without a git repository",
        no_git,
        ("no git repository with a commit here", "`git init`"),
        PROMOTE,
        around=alone,
    ),
    Case(
        "a promotion on a detached HEAD",
        _detached,
        ("detached HEAD at", "`git switch` to a branch first"),
        PROMOTE,
    ),
    Case(
        "a promotion from a dirty tree",
        params({"judge.margin": 0.2}),
        ("not as committed (params.yaml)", "commit or restore it first"),
        PROMOTE,
    ),
    Case(
        "a threshold changed between verdict and promotion",
        _committed(params({"judge.margin": 0.2})),
        ("judge.margin: 0.02 then, 0.2 now", "`stillhouse run` judges it by today's"),
        PROMOTE,
    ),
    Case(
        "a rollback where nothing was promoted",
        untouched,
        ("digits: no champion to go back to (there is none)", "promote another version"),
        ("rollback", *WORDS),
    ),
    Case(
        "a ledger that is not one",
        written(".stillhouse/ledger.jsonl", b"promoted by Ada\n"),
        ("ledger.jsonl: line 1 is not JSON", "restore the file"),
        ("history",),
    ),
    Case(
        "a second promotion at the same time",
        untouched,
        ("another promotion or rollback is at work", "wait for it"),
        PROMOTE,
        around=at_the_ledger,
    ),
    Case(
        "a schedule that never comes",
        untouched,
        ("--cron '0 3 * *': not five fields of cron", "for example '0 3 * * 1'"),
        ("schedule", "--cron", "0 3 * *"),
    ),
    Case(
        "a time zone that does not exist",
        untouched,
        ("--timezone Europe/Pariss: no such time zone", "did you mean 'Europe/Paris'?"),
        (*WEEKLY, "--timezone", "Europe/Pariss"),
    ),
    Case(
        "a port in use",
        untouched,
        (f"127.0.0.1:{PORT}: address already in use", "choose another with --port"),
        (*WEEKLY, "--port", PORT),
        around=taken_port,
    ),
    Case(
        "a port that is none",
        untouched,
        ("--port 70000: must be between 1 and 65535",),
        (*WEEKLY, "--port", "70000"),
    ),
    Case(
        "clearing up what is younger than now",
        untouched,
        ("--older-than",),
        ("gc", "--older-than", "-1"),
    ),
)
