"""The approved model `<name>` in MLflow's registry: its versions and who is champion.

Only a promotion adds versions here. The registry is a projection of the ledger: a champion whose
entry was lost is put back from its sealed bundle, one that somebody moved by hand is reported.
Decides nothing.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from flows import ledger
from flows.bundle import read_manifest, verify
from flows.candidate import CHAMPION
from flows.ledger import Line, Model
from flows.registry import SUBJECT, add, bundle_tags, versions_of
from flows.state import Checkout
from flows.store import Store
from tasks.core.errors import DataError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

PREVIOUS = "previous"
LEDGER = "stillhouse.ledger"  # tag of the registered model: how far its ledger had come

Lines = tuple[Line, ...]


def holder(store: Store, name: str, alias: str) -> ModelVersion | None:
    """The version that holds an alias of the registered model `name`."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def previous_of(alias: str) -> str:
    """The alias of the former champion.

    >>> previous_of("champion"), previous_of("champion-tiny")
    ('previous', 'previous-tiny')
    """
    return alias.replace(CHAMPION, PREVIOUS, 1)


def admit(store: Store, name: str, model: Model) -> int:
    """The version of `<name>` that holds a model: the one it has, or a copy of the candidate."""
    found = versions_of(store, name, model.subject)
    if found:
        return int(found[0].version)
    with contextlib.redirect_stderr(io.StringIO()):  # MLflow speaks of what it does
        source = f"models:/{name}-candidates/{model.candidate}"
        return int(store.client.copy_model_version(source, name).version)


def point(store: Store, name: str, alias: str, model: Model, below: Model | None) -> None:
    """Make `model` the champion and the one `below` it the previous; the first is what counts."""
    (held, *_) = versions_of(store, name, model.subject)
    store.client.set_registered_model_alias(name, alias, str(held.version))
    former = versions_of(store, name, below.subject) if below is not None else []
    if former:
        store.client.set_registered_model_alias(name, previous_of(alias), str(former[0].version))
    else:
        store.client.delete_registered_model_alias(name, previous_of(alias))


def dismiss(store: Store, name: str, model: Model, lines: Lines) -> None:
    """Delete the copy of a model that was never confirmed."""
    confirmed = (line for line in lines if line.step == "confirmed" and line.name == name)
    if any(line.model.subject == model.subject for line in confirmed):
        return
    for version in versions_of(store, name, model.subject):
        store.client.delete_model_version(name, version.version)


def sign(store: Store, name: str, head: Line) -> None:
    """Tag the registered model, if there is one, with the ledger's last line: a cut is noticed."""
    if _registered(store, name) is not None:
        tag = f"{head.number}:{head.digest}"
        store.client.set_registered_model_tag(name, LEDGER, tag)


def require_whole(checkout: Checkout, store: Store, name: str, lines: Lines) -> None:
    """The ledger is not shorter than the registry knows it; else a `DataError`."""
    for problem in _cut(checkout, store, name, lines):
        raise DataError(problem)


def require_agreement(
    checkout: Checkout, store: Store, name: str, alias: str, lines: Lines
) -> None:
    """The registry says what the ledger says; else a `DataError` that names the difference."""
    for problem in [*_cut(checkout, store, name, lines), *_moved(store, name, alias, lines)]:
        raise DataError(problem)


def disagreements(checkout: Checkout, store: Store, lines: Lines) -> list[str]:
    """Where registry and ledger differ, in words."""
    found = []
    for name in ledger.names(lines):
        found += _cut(checkout, store, name, lines)
        for alias in ledger.aliases(lines, name):
            found += _moved(store, name, alias, lines)
    return found


def _cut(checkout: Checkout, store: Store, name: str, lines: Lines) -> list[str]:
    number, _, digest = _signature(store, name).partition(":")
    if not number or (len(lines) >= int(number) and lines[int(number) - 1].digest == digest):
        return []
    return [
        f"{ledger.path(checkout)}: the registry knows {number} lines of it, and not these "
        f"{len(lines)}; promote where the ledger is, or restore it"
    ]


def _moved(store: Store, name: str, alias: str, lines: Lines) -> list[str]:
    """Aliases that are not where the ledger says."""
    standing = ledger.champions(lines, name, alias)
    wanted = {
        alias: standing[-1] if standing else None,
        previous_of(alias): standing[-2] if len(standing) > 1 else None,
    }
    found = []
    for own, model in wanted.items():
        held = holder(store, name, own)
        if (held.tags.get(SUBJECT) if held else None) == (model.subject if model else None):
            continue
        has = f"version {held.version}" if held else "none"
        says = model.bundle if model else "none"
        remedy = "somebody moved it by hand: set it back in MLflow"
        if held is None:
            remedy = "`stillhouse run` puts it back"
        found.append(
            f"{name}: alias {own} is on {has} in the registry, the ledger says {says}; {remedy}"
        )
    return found


def _registered(store: Store, name: str) -> RegisteredModel | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _signature(store: Store, name: str) -> str:
    found = _registered(store, name)
    return str(found.tags.get(LEDGER, "")) if found else ""


def restore(checkout: Checkout, store: Store, name: str, lines: Lines) -> list[str]:
    """Put back champions that the registry has lost, from their sealed bundles; says which.

    A champion's alias that somebody moved stays where it is. Raises a `DataError` if the ledger is
    shorter than the registry knows it.
    """
    require_whole(checkout, store, name, lines)
    notes = []
    for alias in ledger.aliases(lines, name):
        standing = ledger.champions(lines, name, alias)
        for model in standing:
            if not versions_of(store, name, model.subject):
                _readmit(checkout, store, name, model)
        held = holder(store, name, alias)
        ours = held is None or held.tags.get(SUBJECT) == standing[-1].subject
        if ours and _moved(store, name, alias, lines):
            point(store, name, alias, standing[-1], standing[-2] if len(standing) > 1 else None)
            notes.append(f"put {name}@{alias} back into the registry, as the ledger says")
    if notes and not _signature(store, name):
        sign(store, name, lines[-1])
    return notes


def _readmit(checkout: Checkout, store: Store, name: str, model: Model) -> None:
    """A version of `<name>` for a model of the ledger, by way of its candidate."""
    candidates = versions_of(store, f"{name}-candidates", model.subject)
    number = int(candidates[0].version) if candidates else _register(checkout, store, name, model)
    admit(store, name, model.model_copy(update={"candidate": number}))


def _register(checkout: Checkout, store: Store, name: str, model: Model) -> int:
    bundle = checkout.bundles / model.bundle
    problems = verify(bundle)
    if problems:
        raise DataError(f"{bundle}: {problems[0]}; the champion cannot be put back; restore it")
    run = store.begin(f"restored-{model.bundle}", {})
    store.client.set_terminated(run.info.run_id, "FINISHED")
    tags = bundle_tags(model.student, bundle, read_manifest(bundle))
    return add(store, f"{name}-candidates", bundle, tags, run.info.run_id)
