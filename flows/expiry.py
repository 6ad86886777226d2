"""What the registry names, and MLflow's runs past their age that nothing names any more.

Runs are removed from the checkout's own database only, never from a team's server. MLflow's own
`mlflow gc` removes what is deleted, with its artefacts; it empties all of MLflow's trash, so that
it is called only where nothing else lies in there that somebody could want back.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from flows.bundle import MANIFEST, Manifest, read_manifest
from flows.cache import size_of
from flows.database import TrackingError
from flows.registry import SUBJECT
from flows.state import Checkout
from flows.store import KIND, Store, opened
from flows.tracking import COMPUTED_BY, KEY, PARENT

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

BUNDLE = "stillhouse.bundle"  # tag of a version: where its bundle lies among its run's artefacts
BATCH = 500  # runs named in one command


@dataclass(frozen=True)
class Registered:
    """What the versions of all registered models name. `places`: where their models lie, in the
    checkout's own store."""

    runs: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()
    bundles: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Expired:
    """Runs and models that may go, by their ids; `size` in bytes of their artefacts.

    `kept_back`: why they stay nevertheless, or None.
    """

    runs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    size: int = 0
    kept_back: str | None = None


def registered(checkout: Checkout) -> Registered:
    """What the registry names; a `TrackingError` where it does not answer."""
    if checkout.database is not None and not checkout.database.is_file():
        return Registered()
    with opened(checkout) as store:
        versions = list(_versions(store))
        mine = versions if checkout.database is not None else []  # one question for each
        places = {store.client.get_model_version_download_uri(v.name, v.version) for v in mine}
    tags = [version.tags for version in versions]
    return Registered(
        frozenset(version.run_id for version in versions if version.run_id),
        frozenset(places),
        frozenset(Path(t[BUNDLE]).name for t in tags if BUNDLE in t),
        frozenset(t[SUBJECT] for t in tags if SUBJECT in t),
    )


def manifests(checkout: Checkout, bundles: Set[str]) -> dict[str, Manifest]:
    """The manifests that MLflow holds of bundles by these names, which are not here any more."""
    if not bundles:
        return {}
    from mlflow.exceptions import MlflowException

    found = {}
    with opened(checkout) as store, tempfile.TemporaryDirectory() as scratch:
        for version in _versions(store):
            place = version.tags.get(BUNDLE, "")
            name = Path(place).name
            if name in bundles and name not in found:
                with suppress(MlflowException, OSError):
                    path = f"{place}/{MANIFEST}"
                    store.client.download_artifacts(str(version.run_id), path, scratch)
                    found[name] = read_manifest(Path(scratch) / place)
    return found


def expired(checkout: Checkout, named: Registered, keys: Set[str], before: float) -> Expired:
    """Runs that ended before a time (s since the epoch) and that nothing names: no version, none
    of the runs of locks with these `keys`, no younger run that links to what they computed."""
    if checkout.database is None or not checkout.database.is_file():
        return Expired()
    with opened(checkout) as store:
        experiments = _all(store.client.search_experiments)
        ids = [experiment.experiment_id for experiment in experiments]
        ours = {run.info.run_id: run for run in _runs(store, ids)}
        kept = _kept(ours, named, keys, before)
        runs = [
            run
            for name, run in ours.items()
            if name not in kept and _own(checkout, run.info.artifact_uri)
        ]
        if not runs:
            return Expired()  # a model without a run waits: `mlflow gc` must be told of some run
        models = [
            model
            for model in _models(store, ids)
            if model.artifact_location not in named.places
            and _own(checkout, model.artifact_location)
            and model.last_updated_timestamp < before * 1000
        ]
        places = [run.info.artifact_uri for run in runs] + [m.artifact_location for m in models]
        return Expired(
            tuple(run.info.run_id for run in runs),
            tuple(model.model_id for model in models),
            sum(size_of(_folder(place)) for place in places),
            _kept_back(store, named, ids),
        )


def remove(checkout: Checkout, these: Expired) -> None:
    """Delete runs and models, then remove them with their artefacts; cut off anywhere, the next
    search finds the rest."""
    with opened(checkout) as store, (checkout.state / "mlflow-gc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until one that was cut off has let go of MLflow's trash
        for model in these.models:
            store.client.delete_logged_model(model)
        ids = [experiment.experiment_id for experiment in _all(store.client.search_experiments)]
        living = {run.info.run_id: run.info.lifecycle_stage for run in _runs(store, ids)}
        runs = [run for run in these.runs if run in living]
        for run in runs:
            if living[run] == "active":
                store.client.delete_run(run)
        for start in range(0, len(runs), BATCH):
            _empty_trash(checkout, runs[start : start + BATCH], lock.fileno())


def _empty_trash(checkout: Checkout, runs: list[str], lock: int) -> None:
    """Remove deleted runs by their ids, and every deleted model; `lock` is held as long."""
    uri = checkout.tracking_uri
    place = ["--backend-store-uri", uri, "--tracking-uri", uri]
    command = [sys.executable, "-m", "mlflow", "gc", *place, "--run-ids", ",".join(runs)]
    done = subprocess.run(
        command,
        cwd=checkout.root,
        env=checkout.environment(),
        capture_output=True,
        text=True,
        pass_fds=(lock,),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise TrackingError(f"{uri}: `mlflow gc` failed ({last}); free space again")


def _kept(ours: dict[str, Run], named: Registered, keys: Set[str], before: float) -> set[str]:
    """Runs that stay: those named or young, the stages of those, and the runs these link to."""
    kept = {
        name
        for name, run in ours.items()
        if name in named.runs
        or run.data.tags.get(KEY) in keys
        or run.info.end_time is None
        or run.info.end_time >= before * 1000
    }
    kept |= {name for name, run in ours.items() if run.data.tags.get(PARENT) in kept}
    return kept | {ours[name].data.tags.get(COMPUTED_BY, "") for name in kept & ours.keys()}


def _kept_back(store: Store, named: Registered, experiments: list[str]) -> str | None:
    """Why MLflow's trash must not be emptied now."""
    from mlflow.entities import ViewType

    deleted = _all(store.client.search_experiments, view_type=ViewType.DELETED_ONLY)
    if deleted:
        return f"experiment '{deleted[0].name}' is deleted and would go too; restore it"
    living = {model.artifact_location for model in _models(store, experiments)}
    lost = {place for place in named.places if "/models/m-" in place} - living
    if lost:
        return f"{min(lost)} is deleted, but a registered version needs it; delete that version"
    return None


def _runs(store: Store, experiments: list[str]) -> Iterator[Run]:
    """Every run that we made, deleted ones too."""
    from mlflow.entities import ViewType

    for run in _all(
        store.client.search_runs, experiment_ids=experiments, run_view_type=ViewType.ALL
    ):
        if KIND in run.data.tags:
            yield run


def _models(store: Store, experiments: list[str]) -> list[LoggedModel]:
    found: list[LoggedModel] = _all(store.client.search_logged_models, experiment_ids=experiments)
    return found


def _versions(store: Store) -> list[ModelVersion]:
    found: list[ModelVersion] = _all(store.client.search_model_versions)
    return found


def _all(search: Any, **asked: Any) -> list[Any]:
    """Every page of a search."""
    found, token = [], None
    while True:
        page = search(**asked, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _own(checkout: Checkout, uri: str) -> bool:
    """Whether artefacts lie in this checkout: the database of one that was copied names those of
    the original."""
    return _folder(uri).is_relative_to(checkout.state)


def _folder(uri: str) -> Path:
    """The folder that a location in the checkout's own store names."""
    return Path(unquote(urlparse(uri).path))
