"""`stillhouse schedule`: retrain by the clock until it is stopped.

Keeps a Prefect server with scheduler and pages (the team's, where `stillhouse.toml` names one),
registers the deployment of `flows/deployment.py` at the commit of this moment and serves it, one
run at a time. It runs no stage itself: each firing is a process of its own.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
import socket
import sys
import threading
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from flows import repository
from flows.running import MARK, busy, end, forget, hold, orphans, record_path, write_record
from flows.server import announce, database, start_whole, withdraw
from flows.state import Checkout
from flows.stopping import first_heard
from flows.workspace import pinned
from tasks.core.errors import DataError, ParamsError

NAME = "schedule"
FIRINGS = "firings"  # the record of all that it starts, but for its server
WAITING = "waiting for a run that works through this server; Ctrl-C again ends it at once"


@dataclass(frozen=True)
class Plan:
    """What shall happen, checked."""

    name: str
    commit: str
    cron: str
    timezone: str


def schedule(checkout: Checkout, console: Console, cron: str, timezone: str, port: int) -> int:
    """Serve the deployment `retrain/NAME` until a signal; returns the exit code."""
    place = replace(checkout, root=checkout.state / NAME)
    checked(checkout, place, timezone, port)
    url = checkout.servers.prefect or f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = url  # Prefect reads its environment once, when it is imported
    os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"  # so that its pages show what a firing said
    check_cron(cron)
    plan = planned(checkout, cron, timezone)
    os.chdir(checkout.root)  # where a firing finds its checkout, and the flow's code
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with hold(place), stopped() as stop:
        write_record(place, FIRINGS, os.getpid())
        os.environ[MARK] = str(record_path(place, FIRINGS))  # so that they are found without us
        try:
            with server(checkout, place, say, port):
                say(f"Prefect's pages: {url.removesuffix('/api')}")
                from flows.serving import serve

                try:
                    serve(plan, checkout.servers.prefect is None, say, stop)
                finally:
                    end(orphans(place, FIRINGS))
        finally:
            forget(place, FIRINGS)
    return 0


def checked(checkout: Checkout, place: Checkout, timezone: str, port: int) -> None:
    """Refuse what cannot be served here, before anything is started."""
    holder = busy(place)
    if holder:
        raise DataError(
            f"{checkout.home}: a schedule is at work here ({holder}); "
            "stop it with Ctrl-C where it runs"
        )
    if checkout.root != checkout.home:
        raise DataError(f"{checkout.root}: is a workspace; schedule in {checkout.home}")
    check_timezone(timezone)
    if checkout.servers.prefect is None:
        check_port(port)


def planned(checkout: Checkout, cron: str, timezone: str) -> Plan:
    """The commit of this moment, its parameters checked; warns of what is not committed."""
    head = repository.commit(checkout.root)
    if head is None:
        raise DataError(
            f"{checkout.root}: no git repository with a commit here; `git init` and commit the "
            "project, since a schedule works at a commit"
        )
    commit, name = pinned(checkout, head)
    changed = repository.changes(checkout.root) or ()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        print(
            f"warning: {changed[0]}{more}: not as committed; the schedule works at {head[:12]}",
            file=sys.stderr,
        )
    return Plan(name, commit, cron, timezone)


def check_timezone(name: str) -> None:
    """Refuse what is no IANA name, with the nearest one."""
    known = zoneinfo.available_timezones()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        meant = f"did you mean '{near[0]}'?" if near else "write it as in Europe/Paris"
        raise ParamsError(f"--timezone {name}: no such time zone; {meant}")


def check_port(port: int) -> None:
    """Refuse a port that cannot be ours."""
    if not 1 <= port <= 65535:
        raise ParamsError(f"--port {port}: must be between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DataError(
                f"127.0.0.1:{port}: {str(error.strerror).lower()}; choose another with --port, "
                f"for example --port {port + 1 if port < 65535 else 4200}"
            ) from None


def check_cron(cron: str) -> None:
    """Refuse what is no five fields of cron, or never comes, by the rule that Prefect follows."""
    try:
        if len(cron.split()) != 5:  # a sixth would be seconds
            raise ValueError(cron)
        from prefect.server.schemas.schedules import CronSchedule

        asyncio.run(CronSchedule(cron=cron).get_dates(1))
    except ValueError:
        raise ParamsError(
            f"--cron '{cron}': not five fields of cron (minute, hour, day, month, weekday) that "
            "ever come; for example '0 3 * * 1', Mondays at 3"
        ) from None


@contextmanager
def stopped() -> Iterator[threading.Event]:
    """An event that a signal to stop sets; a second one ends this process at once."""
    stop = threading.Event()
    with first_heard(stop.set, signal.SIG_DFL):
        yield stop


@contextmanager
def server(
    checkout: Checkout, place: Checkout, say: Callable[[str], None], port: int
) -> Iterator[None]:
    """The schedule's server, for every run of the checkout; or the team's, which is left alone."""
    if checkout.servers.prefect is not None:
        yield
        return
    with database(checkout, alone=True, busy=_refuse):
        begun = start_whole(place, port)
        try:
            begun.wait()
            announce(checkout, begun)
        except BaseException:
            begun.stop()
            raise
    try:
        yield
    finally:
        with database(checkout, alone=True, busy=lambda: say(WAITING)):
            withdraw(checkout)
            begun.stop()


def _refuse() -> None:
    raise DataError(
        "a run is at work through a Prefect server of its own; let it end, then schedule again"
    )
