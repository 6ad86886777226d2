"""Prefect's API server for the length of one run, on the checkout's own database.

Prefect would start one itself, when its first flow begins; starting it here lets the seconds that
takes pass while data are taken and DVC is asked. Its process group is its own, so that Ctrl-C in a
terminal reaches the run first and the run can still say how it ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from flows.running import GRACE, MARK, end_group, forget, record_path, write_record
from flows.state import Checkout
from tasks.core.errors import DataError

NAME = "prefect-server"
PATIENCE = 180.0  # seconds; the first start creates the database


@dataclass(frozen=True)
class Server:
    """A server that has been started; `wait` until it answers."""

    checkout: Checkout
    process: subprocess.Popen[bytes]
    url: str

    def wait(self) -> None:
        """Wait until the server answers; a `DataError` names its log if it never does."""
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DataError(
                    f"{self.checkout.state / 'prefect'}: Prefect's server does not start; "
                    f"see {self.checkout.logs / f'{NAME}.log'}"
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """End the server."""
        end_group(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            end_group(self.process.pid, signal.SIGKILL)
            self.process.wait()
        forget(self.checkout, NAME)


def start(checkout: Checkout) -> Server:
    """Start a server on a free port of this machine alone; returns at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        MARK: str(record_path(checkout, NAME)),
        "PREFECT__SERVER_EPHEMERAL": "1",  # without scheduler and the like
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_SERVER_UI_ENABLED": "0",
    }
    application = ["--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    checkout.logs.mkdir(parents=True, exist_ok=True)
    with (checkout.logs / f"{NAME}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *application, *place],
            cwd=checkout.root,
            env=checkout.environment() | own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    write_record(checkout, NAME, process.pid)
    return Server(checkout, process, f"http://127.0.0.1:{port}/api")


@dataclass
class Standby:
    """The server of one run: begun when it is sure to be needed, stopped at the end.

    Where the team has a server, nothing is begun and theirs is used.
    """

    checkout: Checkout
    _begun: Server | None = None

    def __enter__(self) -> Standby:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun is not None:
            self._begun.stop()

    def begin(self) -> None:
        """Start the server, if it is not begun; returns at once."""
        if self._begun is None and self.checkout.servers.prefect is None:
            self._begun = start(self.checkout)

    def adopt(self) -> None:
        """Make it this process's server, once it answers; call before Prefect is imported."""
        if self._begun is not None:
            self._begun.wait()
            os.environ["PREFECT_API_URL"] = self._begun.url
