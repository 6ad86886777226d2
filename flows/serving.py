"""Prefect's side of a schedule: the deployment, and the runner that works through what is due.

Everything here speaks with the server that `PREFECT_API_URL` names, so import it only once that is
set; what may be scheduled, and for how long, is decided in `flows/schedule.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.states import Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType

from flows.deployment import retrain
from flows.schedule import Plan
from flows.state import one_line
from tasks.core.errors import StillhouseError

QUERY = 5  # seconds between two looks for runs that are due
PATIENCE = 120  # seconds; a scheduler looks every five, or once a minute
UNENDED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class ScheduleError(StillhouseError):
    """The schedule ended in a way that nobody asked for."""

    exit_code = 3


def serve(plan: Plan, settle: bool, say: Callable[[str], None], stop: threading.Event) -> None:
    """Register the deployment and run what is due, one at a time, until `stop`; then pause it.

    `settle`: the server is ours alone, so runs that nobody ended are a dead schedule's. Works in a
    thread of its own: Prefect then leaves signals to the caller.
    """
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _serve(plan, settle, say, stop)).result()
    except Exception as error:  # whatever Prefect, its client or its server raises
        raise ScheduleError(f"Prefect: {_cause(error)}; schedule again") from error


async def _serve(
    plan: Plan, settle: bool, say: Callable[[str], None], stop: threading.Event
) -> None:
    if settle:
        await _settle(plan)
    runner = Runner(query_seconds=QUERY, limit=1, pause_on_shutdown=True)
    number = await _register(runner, plan)
    serving = asyncio.create_task(runner.start())
    zone = ZoneInfo(plan.timezone)
    next_ = [f"{at.astimezone(zone):%Y-%m-%d %H:%M %Z}" for at in await _coming(number, stop)]
    say(f"{retrain.name}/{plan.name}: at commit {plan.commit[:12]}, next {', '.join(next_[:3])}")
    say("Ctrl-C stops it in order")
    while not serving.done() and not (stop.is_set() and runner.started):
        await asyncio.sleep(0.2)
    if serving.done():
        await serving
        raise RuntimeError("its runner ended")
    say("stopping; a run at work ends first, and its former outputs come back")
    await runner.astop()
    await serving
    say("stopped, and paused")


async def _settle(plan: Plan) -> None:
    """End on paper what a schedule left that was killed: nobody works at it any more, and what
    came due meanwhile names an older commit."""
    unended = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=UNENDED))
    due = filters.FlowRunFilterExpectedStartTime(before_=datetime.now(UTC))
    async with get_client() as client:
        for run in await client.read_flow_runs(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[retrain.name])),
            deployment_filter=filters.DeploymentFilter(
                name=filters.DeploymentFilterName(any_=[plan.name])
            ),
            flow_run_filter=filters.FlowRunFilter(state=unended, expected_start_time=due),
        ):
            await client.set_flow_run_state(run.id, _end(run), force=True)


def _end(run: FlowRun) -> State[None]:
    if run.state is not None and run.state.is_scheduled():
        return Cancelled(message="missed: nothing served the schedule when it was due")
    return Crashed(message="the schedule that ran it was killed")


async def _coming(deployment: UUID, stop: threading.Event) -> list[datetime]:
    """When the server itself has planned runs; a scheduler that fails does so without a word."""
    deadline = time.monotonic() + PATIENCE
    own = filters.DeploymentFilter(id=filters.DeploymentFilterId(any_=[deployment]))
    planned = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED])
        )
    )
    async with get_client() as client:
        while not stop.is_set():
            runs = await client.read_flow_runs(deployment_filter=own, flow_run_filter=planned)
            times = [r.expected_start_time for r in runs if r.auto_scheduled]
            if times:
                return sorted(at for at in times if at is not None)
            if time.monotonic() > deadline:
                raise RuntimeError("its server plans no runs; see its log")
            await asyncio.sleep(1)
    return []


async def _register(runner: Runner, plan: Plan) -> UUID:
    """The deployment `retrain/NAME`, in the place of a former one."""
    deployment = await retrain.ato_deployment(
        plan.name,
        schedule=Cron(plan.cron, timezone=plan.timezone),
        paused=False,  # the last schedule paused it when it stopped
        parameters={"commit": plan.commit},
        version=plan.commit[:12],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.work_pool_name = deployment.work_queue_name = None  # no worker's, if it ever was
    return await runner.aadd_deployment(deployment)


def _cause(error: BaseException) -> str:
    """The first line of an error, or of the first in a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return one_line(error)
