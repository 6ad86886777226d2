"""The MLflow store of a checkout: one writer at a time, little patience, failures in a line.

Everything goes through `MlflowClient`: the fluent API keeps its active run per thread, and stages
run in many. What is logged is said elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, TypeVar

import psutil

from flows.database import TrackingError as TrackingError
from flows.database import examine
from flows.state import Checkout, adopt, one_line
from tasks.core.errors import ParamsError
from tasks.core.params import read

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

# An absent server must not hold up a run for the minutes that MLflow would wait by itself.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SILENCE = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}  # bundles are small


KIND = "stillhouse.kind"  # run | stage | live
STAGE = "stillhouse.stage"
PROCESS = "stillhouse.process"  # who writes a run that is not finished


@dataclass(frozen=True)
class Store:
    """An open MLflow store and the experiment of this project."""

    client: MlflowClient
    experiment: str

    def runs(self, tags: dict[str, str], status: str | None = None) -> list[Run]:
        """Runs that carry all of `tags`, oldest first."""
        asked = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        asked += [f"attributes.status = '{status}'"] if status else []
        order = ["attributes.start_time ASC"]
        return list(self.client.search_runs([self.experiment], " and ".join(asked), order_by=order))

    def begin(self, name: str, tags: dict[str, str]) -> Run:
        """A new run, which says whose it is until it is finished."""
        own = tags | {PROCESS: this_process()}
        return self.client.create_run(self.experiment, tags=own, run_name=name)

    def log(
        self,
        run: Run,
        metrics: Sequence[tuple[str, float, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        at: int | None = None,
    ) -> None:
        """Log metrics (name, value, step), parameters and tags.

        `at` is in milliseconds; the run's start by default, so that saying a metric again adds
        nothing.
        """
        from mlflow.entities import Metric, Param, RunTag

        own, when = run.info.run_id, run.info.start_time if at is None else at
        for some in _batches([Metric(n, v, when, step) for n, v, step in metrics], 1000):
            self.client.log_batch(own, metrics=some)
        for few in _batches([Param(k, v) for k, v in (params or {}).items()], 100):
            self.client.log_batch(own, params=few)
        self.client.log_batch(own, tags=[RunTag(k, v) for k, v in (tags or {}).items()])


@contextmanager
def opened(checkout: Checkout) -> Iterator[Store]:
    """The store, for one writer at a time on this machine; failures become a `TrackingError`."""
    if os.environ.get("MLFLOW_TRACKING_URI") != checkout.tracking_uri:
        adopt(checkout)
    os.environ.update(PATIENCE | SILENCE)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        with _alone(checkout):
            if checkout.database is not None:
                examine(checkout.database)
            client = MlflowClient(checkout.tracking_uri, checkout.tracking_uri)
            yield Store(client, _experiment(client, checkout))
    except (MlflowException, SQLAlchemyError) as error:
        remedy = "run it again; `mlflow ui` shows what is there"
        if checkout.servers.mlflow:
            remedy = "start it, or mend stillhouse.toml"
        elif isinstance(error, SQLAlchemyError):
            remedy = "move that file away; the next run rebuilds it"
        raise TrackingError(
            f"{checkout.tracking_uri}: {shorten(one_line(error), 160)}; {remedy}"
        ) from error


def project_name(checkout: Checkout) -> str:
    """`name` of `params.yaml`: the experiment's, and the stem of its registered models."""
    name = read(checkout.root / "params.yaml").get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ParamsError("params.yaml: name: must be a word of letters, digits, '.', '_' or '-'")
    return name


def _experiment(client: MlflowClient, checkout: Checkout) -> str:
    """The project's experiment, made on first use. A server places artefacts by itself; beside
    SQLite they would land in whatever folder the process stands in."""
    name = project_name(checkout)
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if checkout.servers.mlflow else checkout.artifacts
        return str(client.create_experiment(name, artifact_location=place))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of at most `size`: MLflow refuses longer ones."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def _alone(checkout: Checkout) -> Iterator[None]:
    """Creating a database twice at once breaks it, and two projections would double their runs."""
    checkout.state.mkdir(parents=True, exist_ok=True)
    with (checkout.state / "mlflow.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def this_process() -> str:
    """Names this process so that a later one can tell whether it still runs: machine, id, start."""
    return f"{_machine()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_gone(process: str) -> bool:
    """Whether the process that `this_process` named has ended; of another machine's, never known.

    >>> is_gone(this_process())
    False
    """
    machine, _, rest = process.partition(":")
    number, _, start = rest.partition(":")
    if machine != _machine():
        return False
    try:  # a re-used id starts later; the clock may be set by seconds meanwhile
        return abs(psutil.Process(int(number)).create_time() - float(start)) > 10
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """The machine without its name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]
