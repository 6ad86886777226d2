"""MLflow runs as projections of what the stages wrote: made after the fact, or again, at will.

A parent run is keyed by the digest of all lock entries, a child by its parent and its own entry:
projecting twice doubles nothing, and a wiped store is rebuilt. While a stage trains, its curves go
to a run of their own (`flows/live.py`), which the next projection adopts. Decides nothing; logs no
environment and no data.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from flows.live import HISTORY, LIVE, live
from flows.outputs import (
    Entries,
    Outputs,
    curves,
    flat_params,
    history_path,
    lock_key,
    read_lock,
    read_outputs,
)
from flows.state import Checkout
from flows.store import KIND, PROCESS, STAGE, Store, is_gone, opened, project_name
from tasks.core.files import digest

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = ["live", "project", "warm"]

log = logging.getLogger(__name__)

KEY = "stillhouse.key"  # digest of all lock entries (run) or of one (stage)
COMPUTED_BY = "stillhouse.computed_by"  # the run that logged what a cached stage links to
PARENT = "mlflow.parentRunId"

HEADLINE = ("approved", "retention", "compression", "gates", "gates_passed", "student.bytes")


def warm(checkout: Checkout) -> None:
    """Create the database and the experiment ahead of need: seconds, once."""
    with opened(checkout):
        pass


def project(checkout: Checkout) -> str:
    """Bring MLflow in line with `dvc.lock` and the outputs it confirms; returns the parent's id.

    A stage whose outputs are not in the working tree as locked is left for a later projection.
    Raises `DataError` without a lock file, `TrackingError` where MLflow does not answer.
    """
    entries = read_lock(checkout.root)
    with opened(checkout) as store:
        _bury(store)
        parent = _parent(store, checkout, entries)
        nested = store.runs({PARENT: parent.info.run_id, KIND: "stage"})
        children = {run.data.tags[KEY]: run for run in nested}
        for stage, entry in entries.items():
            child = children.get(digest(entry))
            if child is None or child.info.status != "FINISHED":
                _project_stage(store, checkout, parent, stage, entry, child)
            else:
                _drop_live(store, checkout, stage)
        _log_headline(store, checkout, parent, entries)
        store.client.set_terminated(parent.info.run_id, "FINISHED")
    return str(parent.info.run_id)


def _bury(store: Store) -> None:
    """Runs whose writer is gone will never be finished by it."""
    for run in store.runs({}, "RUNNING"):
        if is_gone(run.data.tags.get(PROCESS, "")):
            store.client.set_terminated(run.info.run_id, "KILLED")


def _parent(store: Store, checkout: Checkout, entries: Entries) -> Run:
    """The one run of this lock, found or begun."""
    key = lock_key(entries)
    found = store.runs({KIND: "run", KEY: key})
    name = f"{project_name(checkout)}-{key[:8]}"
    return found[0] if found else store.begin(name, {KIND: "run", KEY: key})


def _project_stage(
    store: Store,
    checkout: Checkout,
    parent: Run,
    stage: str,
    entry: dict[str, Any],
    child: Run | None,
) -> None:
    """Finish the child run of one stage: a link, a tailed run, one begun before, or a new one."""
    key = digest(entry)
    tags = {KIND: "stage", KEY: key, STAGE: stage, PARENT: str(parent.info.run_id)}
    computed = [
        r
        for r in store.runs({KIND: "stage", KEY: key}, "FINISHED")
        if COMPUTED_BY not in r.data.tags
    ]
    if computed:
        tags[COMPUTED_BY] = str(computed[0].info.run_id)
        child = child or store.begin(stage, tags)
    else:
        outputs = read_outputs(checkout.root, stage, entry)
        if outputs is None:
            log.warning("%s: its outputs are not as locked, so MLflow has none of them yet", stage)
            return
        tailed = _tailed(store, stage, outputs.history)
        child = child or (tailed[0] if tailed else store.begin(stage, tags))
        _log_outputs(store, checkout, child, outputs)
    store.log(child, tags=tags)  # last: only what is complete becomes this stage's run
    store.client.set_terminated(child.info.run_id, "FINISHED")
    _drop_live(store, checkout, stage)


def _log_outputs(store: Store, checkout: Checkout, run: Run, outputs: Outputs) -> None:
    """All that a stage left behind, or the same again: what is there already does not double."""
    metrics = [(name, value, 0) for name, value in outputs.metrics.items()]
    if HISTORY not in run.data.tags:
        metrics += [
            (name, value, epoch)
            for epoch, numbers in curves(outputs.history)
            for name, value in numbers.items()
        ]
    store.log(run, metrics, outputs.params)
    for path in outputs.artefacts:
        store.client.log_artifact(run.info.run_id, str(checkout.root / path), str(path.parent))


def _log_headline(store: Store, checkout: Checkout, parent: Run, entries: Entries) -> None:
    """What tells runs apart in a list: their parameters, and the verdict of each student."""
    metrics, values = [], dict[str, set[str]]()
    for stage, entry in entries.items():
        for name, value in flat_params(entry).items():
            values.setdefault(name, set()).add(value)
        if stage.startswith("judge@") and (outputs := read_outputs(checkout.root, stage, entry)):
            student = stage.partition("@")[2]
            metrics += [
                (f"{student}.{name}", outputs.metrics[name], 0)
                for name in HEADLINE
                if name in outputs.metrics
            ]
    agreed = {name: value.pop() for name, value in values.items() if len(value) == 1}
    store.log(parent, metrics, agreed)  # stages of a half-done run may differ on a parameter


def _tailed(store: Store, stage: str, history: bytes) -> list[Run]:
    """Tailed runs that hold exactly these curves."""
    seen = hashlib.sha256(history).hexdigest()
    return store.runs({KIND: LIVE, STAGE: stage, HISTORY: seen}, "FINISHED")


def _drop_live(store: Store, checkout: Checkout, stage: str) -> None:
    """Curves that the stage's own run holds too, as when DVC took them from its cache."""
    path = history_path(stage)
    if path and (checkout.root / path).is_file():
        for run in _tailed(store, stage, (checkout.root / path).read_bytes()):
            store.client.delete_run(run.info.run_id)
