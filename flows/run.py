"""`stillhouse run`: everything from raw data to registered students, in its order.

The stages run through Prefect in a thread, so that this thread hears Ctrl-C at any moment; then
every stage that runs is ended, its former outs come back, and the next run resumes there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows import registry, seal, tracking
from flows.acquire import acquire
from flows.act import put_back
from flows.cache import in_use
from flows.dag import Stage, read_graph
from flows.database import examine
from flows.display import Display, display
from flows.freshness import check_teacher
from flows.plan import check_steps, settle
from flows.recovery import mend
from flows.repository import Tree, tree
from flows.retrain import Results, retrain
from flows.runner import Outcome, Runner
from flows.running import hold
from flows.runs import Story, recorded
from flows.server import Standby
from flows.show import show
from flows.state import Checkout, Interrupted, adopt
from flows.stopping import in_thread, stoppable
from tasks.core.errors import GateError, StillhouseError

if TYPE_CHECKING:
    from flows.params import Params


def run(checkout: Checkout, console: Console) -> int:
    """Bring the checkout up to date, print what came of it, and return the exit code.

    Raises the error of the step that failed, if that was not a stage.
    """
    adopt(checkout)
    with (
        hold(checkout),
        in_use(checkout),
        recorded(checkout) as story,
        Standby(checkout) as prefect,
    ):
        runner, begun = Runner(checkout), tree(checkout.root)
        with display(console) as shown, stoppable(runner):
            for note in mend(checkout):
                shown.note(note)
            if not (checkout.root / "dvc.lock").is_file():
                prefect.begin(runner.stopping)  # nothing has ever run here, so something will now
            if checkout.database is not None:
                examine(checkout.database)
            job = Job(checkout, _checked(checkout), runner, prefect, shown, story, begun)
            results = in_thread(job.work, runner)
        story.exit_code = report(console, job, results)
        return story.exit_code


def _checked(checkout: Checkout) -> Params:
    """The parameters; their schemas import torch, which takes seconds: after the server's start."""
    from flows.params import check_params

    return check_params(checkout.root)


@dataclass(frozen=True)
class Job:
    """One run: where, with which parameters, by whom, shown how."""

    checkout: Checkout
    params: Params
    runner: Runner
    prefect: Standby
    shown: Display
    story: Story = field(default_factory=Story)
    begun: Tree | None = None

    def work(self) -> Results:
        """Data, stages, tracking, seal, registry."""
        self.shown.note(f"taking {self.params.data.source} data")
        acquire(self.checkout, self.params)
        planned = settle(self.checkout, self.params)  # before DVC reads the rungs
        if planned is not None:
            self.shown.note(planned)
        params = self.params
        if params.distill.plan is not None:
            from flows.params import check_params
            from flows.warm_start import check_start

            params = check_params(self.checkout.root)
            check_start(self.checkout, params)
        graph = read_graph(self.checkout.root)
        if graph.stale:
            check_steps(self.checkout, params)
        self.shown.planned(graph)
        if graph.stale:
            self.prefect.begin(self.runner.stopping)
            background(lambda: tracking.warm(self.checkout))
            self.prefect.adopt()
        self._go_on()
        results = retrain(graph, self.one, self.params.name, self.runner.turns.due)
        for stage, cause in results.blocked.items():
            self.shown.blocked(stage, cause)
        self._go_on()
        self.project(results)
        return results

    def _go_on(self) -> None:
        if self.runner.stopping.is_set():
            raise Interrupted("interrupted; `stillhouse run` resumes")

    def one(self, stage: Stage) -> Outcome:
        """Bring one stage up to date; no rung learns from an outdated teacher."""
        try:
            if stage.group == "distill":
                self.check_teacher()
            with tracking.live(self.checkout, stage.name):
                outcome = self.runner.run(
                    stage,
                    say=lambda line: self.shown.line(stage.name, line),
                    began=lambda: self.shown.began(stage.name),
                )
        except StillhouseError as error:
            self.shown.failed(stage.name, str(error))
            raise
        self.shown.done(outcome)
        return outcome

    def check_teacher(self) -> None:
        """Refuse an outdated teacher."""
        check_teacher(self.checkout, self.params.teach.max_age, datetime.now(UTC))

    def project(self, results: Results) -> None:
        """What the stages wrote, into tracking; what the judge approved, into the registry.

        A step that fails is one more failure in `results`, and hides none.
        """
        if not (self.checkout.root / "dvc.lock").is_file():
            return  # no stage has ever come to its end here
        self.shown.note("recording the run")
        with step(results, "tracking"):
            run_id = tracking.project(self.checkout)
            students = self.judged(results)
            with step(results, "teacher"):
                if students:
                    self.check_teacher()
                for student in students:
                    self.publish(student, run_id, results)
            with step(results, "champion"):
                for note in put_back(self.checkout):
                    self.shown.note(note)

    def publish(self, student: str, run_id: str, results: Results) -> None:
        """Seal a judged student, and register it if it is approved."""
        with step(results, f"seal@{student}"):
            bundle = seal.seal(self.checkout, student, self.begun)
            self.story.tell(student, bundle=bundle.name)
            self.shown.note(f"sealed: {bundle.name}")
            with step(results, f"register@{student}"):
                version = registry.register(self.checkout, student, bundle, run_id)
                if version is not None:
                    self.story.tell(student, version=version)
                    self.shown.note(f"registered: {student}, version {version}")

    def judged(self, results: Results) -> list[str]:
        """Shipped students whose verdict is today's."""
        stopped = {*results.failed, *results.blocked}
        return [s for s in self.params.distill.ship if f"judge@{s}" not in stopped]


def report(console: Console, job: Job, results: Results) -> int:
    """Every verdict, then every failure; returns the exit code."""
    refused = 0
    for student in job.judged(results):
        with step(results, f"show@{student}"):
            verdict = show(console, job.checkout, student, job.story.version(student))
            gates = tuple(gate.name for gate in verdict.failed)
            job.story.tell(student, approved=verdict.approved, refused_by=gates)
            if not verdict.approved:
                refused = GateError.exit_code
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    for stage, error in results.failed.items():
        job.story.failures[stage] = str(error)
        errors.print(f"error: {stage}: {error}", markup=False)
    return max(refused, results.exit_code)


@contextmanager
def step(results: Results, name: str) -> Iterator[None]:
    """A step after the stages: its failure is kept beside theirs."""
    try:
        yield
    except StillhouseError as error:
        results.failed[name] = error


def background(work: Callable[[], Any]) -> None:
    """Do `work` beside the run, ahead of need; whoever needs it meets its failure again."""

    def quietly() -> None:
        with suppress(StillhouseError):
            work()

    threading.Thread(target=quietly, daemon=True).start()
