"""The Prefect flow: one task per stage that may have to run, each after the stale ones it follows.

The graph comes from `dvc.yaml` and is never repeated here. Prefect gives order, concurrency and a
record; DVC alone decides what is fresh, so no Prefect caching. Where nothing is stale, Prefect is
not even imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flows.dag import Graph, Stage
from flows.runner import Outcome, StageError
from flows.state import one_line
from tasks.core.errors import StillhouseError

Run = Callable[[Stage], Outcome]
Due = Callable[[list[str]], None]


@dataclass(frozen=True)
class Results:
    """What became of each stale stage: brought up to date, failed, or never begun."""

    done: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, StillhouseError] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)  # stage -> the failed stage above it

    @property
    def exit_code(self) -> int:
        """0, or the gravest code among the failures."""
        return max((error.exit_code for error in self.failed.values()), default=0)


def retrain(graph: Graph, run: Run, name: str, due: Due = lambda _: None) -> Results:
    """Run the stale stages of `graph` through Prefect, as a flow run of the project `name`.

    `run` brings one stage up to date or raises; a failure stops the stages below it and no others.
    `due` is told the stages that may begin now, since the last one above them has ended.
    Call it in a thread of its own: Prefect then leaves signals to the caller.
    """
    results = Results()
    said = _submit(graph, run, name, results, due) if graph.stale else {}
    for stage in graph:
        cause = next((c for p in stage.parents if (c := _cause(p, results))), None)
        if cause is not None:
            results.blocked[stage.name] = cause
        elif stage.name in said.keys() - results.failed.keys():
            results.failed[stage.name] = StageError(f"Prefect did not run it ({said[stage.name]})")
    return results


def _cause(parent: str, results: Results) -> str | None:
    """The failed stage at or above `parent`, if any."""
    return parent if parent in results.failed else results.blocked.get(parent)


def _submit(graph: Graph, run: Run, name: str, results: Results, due: Due) -> dict[str, str]:
    """One flow run; fills `results` and returns what Prefect says of each stage not done."""
    from prefect import flow, task
    from prefect.futures import wait
    from prefect.logging.handlers import APILogHandler
    from prefect.states import Completed, Failed
    from prefect.task_runners import ThreadPoolTaskRunner

    stale = [stage for stage in graph if stage.name in graph.stale]

    names = {stage.name for stage in stale}

    def free(stage: Stage) -> bool:
        return all(p in results.done for p in stage.parents if p in names)

    @task(persist_result=False)
    def bring_up_to_date(stage: str) -> Any:
        try:
            results.done[stage] = run(graph.stages[stage])
            due([s.name for s in stale if stage in s.parents and free(s)])
        except StillhouseError as error:
            results.failed[stage] = error
            return Failed(message=str(error))
        except Exception as error:
            results.failed[stage] = StageError(f"{type(error).__name__}: {error}")
            return Failed(message=str(results.failed[stage]))
        return Completed(message=results.done[stage].how)

    said: dict[str, str] = {}
    runner: Any = ThreadPoolTaskRunner(max_workers=len(stale))  # a task that waits holds a thread

    @flow(name="retrain", flow_run_name=name, task_runner=runner, persist_result=False)
    def retraining() -> Any:
        futures: dict[str, Any] = {}
        for stage in stale:
            above = [futures[p] for p in stage.parents if p in futures]
            named: Any = bring_up_to_date.with_options(name=stage.name, task_run_name=stage.name)
            futures[stage.name] = named.submit(stage.name, wait_for=above)
        wait(list(futures.values()))
        ends = {s: f.state for s, f in futures.items() if s not in results.done}
        said.update((s, _line(end)) for s, end in ends.items())
        if said:
            begun = (s for s, end in ends.items() if not end.is_pending())
            return Failed(message="; ".join(f"{s}: {said[s]}" for s in begun))
        return Completed(message=f"{len(stale)} stages are up to date")

    try:
        end = _line(retraining(return_state=True))
        APILogHandler().flush()  # while there is still a server to take it
    except Exception as error:  # of Prefect: whatever a stage raises is in `results`
        end = one_line(error)
    return {s.name: said.get(s.name, end) for s in stale if s.name not in results.done}


def _line(state: Any) -> str:
    """A state of Prefect's, in a line."""
    return " ".join((state.message or state.name).split())
