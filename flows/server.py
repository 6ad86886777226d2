"""Prefect's API server on the checkout's own database: for one run, or for as long as a schedule.

Prefect would start one itself, when its first flow begins; starting it here lets the seconds that
takes pass while data are taken and DVC is asked. Its process group is its own, so that Ctrl-C in a
terminal reaches the run first and the run can still say how it ended. Two servers never work on
one database: whoever needs one shares a lock, and a schedule's server comes and goes only when
nobody does; while it stands, every run works through it. What a dead schedule left is ended by the
next command, whoever works through it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from pydantic import ValidationError

from flows.running import GRACE, MARK, end_group, forget, lives, record_path, write_record
from flows.state import Checkout, Interrupted
from tasks.core.errors import DataError
from tasks.core.files import write_json
from tasks.core.params import Section

NAME = "prefect-server"
PATIENCE = 180.0  # seconds; the first start creates the database
SLOW = 30.0  # seconds until one that is up already must have answered
EPHEMERAL = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_SERVER_UI_ENABLED": "0"}  # no scheduler


@dataclass(frozen=True)
class Server:
    """A server that has been started; `wait` until it answers."""

    checkout: Checkout
    process: subprocess.Popen[bytes]
    url: str

    def wait(self) -> None:
        """Wait until the server answers; a `DataError` names its log if it never does."""
        deadline = time.monotonic() + PATIENCE
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DataError(
                    f"{self.checkout.state / 'prefect'}: Prefect's server does not start; "
                    f"see {self.checkout.logs / f'{NAME}.log'}"
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server."""
        end_group(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            end_group(self.process.pid, signal.SIGKILL)
            self.process.wait()
        forget(self.checkout, NAME)


def answers(url: str) -> bool:
    """Whether a server of Prefect's is there and well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def start(checkout: Checkout) -> Server:
    """Start a server for one run on a free port of this machine alone; returns at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return _start(checkout, port, EPHEMERAL)


def start_whole(checkout: Checkout, port: int) -> Server:
    """Start a server with scheduler and pages, on this machine alone; returns at once."""
    pages = checkout.state / "prefect" / "pages"  # its default is beside the installed package
    pages.mkdir(parents=True, exist_ok=True)
    own = {
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(pages),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "0",
    }
    return _start(checkout, port, own)


def _start(checkout: Checkout, port: int, settings: dict[str, str]) -> Server:
    own = {
        MARK: str(record_path(checkout, NAME)),
        "PREFECT__SERVER_FINAL": "1",
        # by default any page in the user's browser could start runs
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # into the log
    }
    application = ["--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    checkout.logs.mkdir(parents=True, exist_ok=True)
    with (checkout.logs / f"{NAME}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *application, *place],
            cwd=checkout.root,
            env=checkout.environment() | own | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    write_record(checkout, NAME, process.pid)
    return Server(checkout, process, f"http://127.0.0.1:{port}/api")


class Standing(Section):
    """`.stillhouse/prefect-server.json`: the server that a schedule keeps for every run."""

    format: Literal["stillhouse/prefect-server/1"] = "stillhouse/prefect-server/1"
    url: str
    pid: int
    create_time: float  # tells the process from a later one of the same number


def standing(checkout: Checkout, stop: threading.Event | None = None) -> str | None:
    """URL of the schedule's server; None, and no file, where it is gone. One that is alive may be
    slow on a busy machine: it is waited for, since no second one may work on its database. Raises
    `Interrupted` if `stop` is set meanwhile."""
    path, deadline = _announcement(checkout), time.monotonic() + SLOW
    stop = stop or threading.Event()
    try:
        said = Standing.model_validate_json(path.read_text())
        process = psutil.Process(said.pid)
        while lives(process) and abs(process.create_time() - said.create_time) < 10:
            if answers(said.url):
                return said.url
            if time.monotonic() > deadline:
                raise DataError(
                    f"{path}: the schedule's server (process {said.pid}) does not answer; "
                    "stop the schedule with Ctrl-C where it runs, or end that process"
                )
            if stop.wait(0.1):
                raise Interrupted("interrupted while waiting for the schedule's server")
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError, psutil.Error):
        pass
    path.unlink(missing_ok=True)
    return None


def announce(checkout: Checkout, server: Server) -> None:
    """Let every run of `checkout` and of its workspaces work through `server`."""
    born = psutil.Process(server.process.pid).create_time()
    said = Standing(url=server.url, pid=server.process.pid, create_time=born)
    write_json(_announcement(checkout), said.model_dump(mode="json"))


def withdraw(checkout: Checkout) -> None:
    """No run shall begin to work through the schedule's server any more."""
    _announcement(checkout).unlink(missing_ok=True)


def _announcement(checkout: Checkout) -> Path:
    return checkout.state / f"{NAME}.json"


@contextmanager
def database(checkout: Checkout, alone: bool, busy: Callable[[], None]) -> Iterator[None]:
    """Share Prefect's database with others, or have it `alone`; waits for that, after `busy`."""
    checkout.state.mkdir(parents=True, exist_ok=True)
    with (checkout.state / f"{NAME}.lock").open("w") as lock:
        wanted = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            fcntl.flock(lock, wanted | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(lock, wanted)
        yield


@dataclass
class Standby:
    """The server of one run: begun when it is sure to be needed, stopped at the end.

    Where the team has a server, or a schedule keeps one, nothing is begun and that one is used.
    """

    checkout: Checkout
    _begun: Server | None = None
    _url: str | None = None
    _shared: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Standby:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun is not None:
            self._begun.stop()
        self._shared.close()

    def begin(self, stop: threading.Event | None = None) -> None:
        """Start the server, if there is none; returns at once. See `standing`."""
        if self._url is not None or self.checkout.servers.prefect is not None:
            return
        self._shared.enter_context(database(self.checkout, alone=False, busy=lambda: None))
        self._url = standing(self.checkout, stop)
        if self._url is None:
            self._begun = start(self.checkout)
            self._url = self._begun.url

    def adopt(self) -> None:
        """Make it this process's server, once it answers; call before Prefect is imported."""
        if self._begun is not None:
            self._begun.wait()
        if self._url is not None:
            os.environ["PREFECT_API_URL"] = self._url
