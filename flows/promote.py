"""`stillhouse promote` and `rollback`: who is champion, changed by a named person for a reason.

Everything is checked here, on what the registry holds and not on what lies in the checkout; only
then `flows/act.py` changes ledger and registry.
"""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import ledger, repository
from flows.act import Act, Say, change, close_open_act
from flows.bundle import thresholds
from flows.candidate import Candidate, fetch, fetch_champion
from flows.champion import require_agreement, restore, sign
from flows.contest import Scored, against, alike, rescore
from flows.history import flips_told
from flows.ledger import Comparison, Line, Look, Model
from flows.state import Checkout
from flows.store import Store, opened, project_name
from flows.trial import random_rows, try_file
from tasks.core.errors import DataError, GateError, ParamsError, StillhouseError
from tasks.core.params import read, section
from tasks.judge.params import JudgeParams

LONGEST = 500  # characters of a name or a reason


def words(text: str, what: str) -> str:
    """A name or a reason as it goes into the ledger: one line, not empty.

    >>> words("  Ada\\tLovelace ", "--by")
    'Ada Lovelace'
    """
    said = " ".join(text.split())
    if not said or len(said) > LONGEST or not said.isprintable():
        raise ParamsError(f"{what}: write between 1 and {LONGEST} printable characters")
    return said


def default_name(root: Path) -> str:
    """Who asks, as git or the system knows them."""
    try:
        return repository.user(root) or getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ""


def promote(checkout: Checkout, number: int, by: str, reason: str, say: Say) -> Line:
    """Make version `number` of `<name>-candidates` the champion; returns the confirmation.

    `say` gets a line per check passed. Raises `DataError` for a version that cannot be promoted,
    `GateError` for one that is not good enough: from the comparison with the champion on, a refusal
    is a line of the ledger.
    """
    by, reason = words(by, "--by"), words(reason, "--reason")
    commit = repository.require_clean(checkout.root)
    with _acting(checkout, say) as (store, name, scratch):
        lines = ledger.read(checkout)
        candidate = fetch(store, name, number, scratch / "candidate")
        require_agreement(checkout, store, name, candidate.alias, lines)
        standing = ledger.champions(lines, name, candidate.alias)
        _require_new(candidate, standing)
        _require_judged(checkout, candidate)
        say(f"{candidate.bundle.name}: whole, approved, made at commit {_commit(candidate)[:12]}")
        scored = rescore(checkout, candidate.bundle)
        seen = ledger.looks(lines, alike(checkout, lines, scored))
        look = Look(test=scored.sha256, rows=len(scored.test), number=seen + 1)
        former = standing[-1] if standing else None
        comparison = _compare(checkout, store, former, scored, candidate, look, scratch)
        act = Act(
            checkout,
            "promote",
            name,
            candidate.alias,
            by,
            reason,
            commit,
            candidate.model,
            former,
            look,
            comparison,
        )
        with _refusing(act, store):
            _require_good_enough(comparison, f"{name}-candidates version {number}")
            say(compared(former, look, comparison))
            say(try_file(candidate.file, scored.test.images, scratch))
        return change(store, act)


def rollback(checkout: Checkout, by: str, reason: str, say: Say, student: str = "") -> Line:
    """Take the last promotion back: the champion before it is champion again.

    `student`: whose line, where several ship; the first by default.
    """
    by, reason = words(by, "--by"), words(reason, "--reason")
    commit = repository.commit(checkout.root) or "none"  # in an emergency no tree need be clean
    with _acting(checkout, say) as (store, name, scratch):
        lines = ledger.read(checkout)
        alias = _alias_of(lines, name, student)
        require_agreement(checkout, store, name, alias, lines)
        standing = ledger.champions(lines, name, alias)
        if len(standing) < 2:
            there = f"version {standing[0].version} is the first" if standing else "there is none"
            raise DataError(f"{name}: no champion to go back to ({there}); promote another version")
        former, model = standing[-1], standing[-2]
        bundle, file = fetch_champion(store, name, model, scratch / "champion")
        say(f"{model.bundle}: whole")
        say(try_file(file, random_rows(bundle), scratch))
        return change(
            store, Act(checkout, "rollback", name, alias, by, reason, commit, model, former)
        )


@contextmanager
def _acting(checkout: Checkout, say: Say) -> Iterator[tuple[Store, str, Path]]:
    """Alone, on a settled ledger and a registry that holds what the ledger names."""
    with ledger.alone(checkout), opened(checkout) as store:
        name = project_name(checkout)
        close_open_act(checkout, store, say)
        for note in restore(checkout, store, name, ledger.read(checkout)):
            say(note)
        with tempfile.TemporaryDirectory() as scratch:
            yield store, name, Path(scratch)


def _require_new(candidate: Candidate, standing: tuple[Model, ...]) -> None:
    if standing and standing[-1].subject == candidate.model.subject:
        raise DataError(
            f"{candidate.bundle.name}: is the champion already, as version {standing[-1].version}; "
            "promote another version"
        )


def _commit(candidate: Candidate) -> str:
    return candidate.manifest.circumstances.commit or "none"


def _require_judged(checkout: Checkout, candidate: Candidate) -> None:
    """The candidate was approved, at a commit, by today's thresholds."""
    made, what = candidate.manifest.circumstances, candidate.bundle.name
    if made.dirty or made.commit is None:
        changed = f" ({', '.join(made.changes[:3])})" if made.changes else ""
        raise DataError(
            f"{what}: was made from a tree that was not as committed{changed}, so no commit "
            "explains it; commit, `stillhouse run`, and promote that"
        )
    if not repository.knows(checkout.root, made.commit):
        raise DataError(
            f"{what}: was made at commit {made.commit[:12]}, which this repository does not hold; "
            "`git fetch` it, or promote where it is"
        )
    if not made.thresholds or not made.objects:
        raise DataError(
            f"{what}: incomplete, it does not say by which thresholds or from which data it was "
            "made; move its bundle away and `stillhouse run`"
        )
    changed_thresholds = _changed(checkout, made.thresholds)
    if changed_thresholds:
        raise DataError(
            f"{what}: was judged by other thresholds than params.yaml holds now "
            f"({changed_thresholds}); `stillhouse run` judges it by today's"
        )
    again = made.measured_again or made.measured
    gates = (*candidate.verdict.gates, *(again.gates if again else ()))
    failed = [gate.name for gate in gates if not gate.passed]
    if failed or not candidate.verdict.approved:
        raise GateError(f"{what}: refused by {', '.join(failed)}; it cannot be promoted")


def _changed(checkout: Checkout, then: dict[str, str]) -> str:
    """The first threshold that differs between the judgement and today."""
    from flows.outputs import flat

    now = thresholds(flat(read(checkout.root / "params.yaml")))
    for key in sorted(then.keys() | now.keys()):
        if not _same(then.get(key), now.get(key)):
            return f"{key}: {then.get(key, 'none')} then, {now.get(key, 'none')} now"
    return ""


def _same(one: str | None, other: str | None) -> bool:
    """Equal as text or as numbers, also in lists: two readers of YAML disagree about 2e-2.

    >>> _same("0.02", "2e-2"), _same("0.02", "0.2"), _same(None, "1")
    (True, False, False)
    >>> _same("[0.01, 0.03]", '["1e-2", 0.03]'), _same("true", "1")
    (True, False)
    """
    return one == other or (None not in (one, other) and _plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    """A flat parameter as numbers, where it is numbers."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = value
    if isinstance(found, list):
        return _plain(found)
    try:
        return str(found) if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        return found


def _compare(
    checkout: Checkout,
    store: Store,
    former: Model | None,
    scored: Scored,
    candidate: Candidate,
    look: Look,
    scratch: Path,
) -> Comparison | None:
    """The candidate against the champion, if there is one."""
    if former is None:
        return None
    judge = section("judge", JudgeParams, checkout.root / "params.yaml")
    champion, _ = fetch_champion(store, project_name(checkout), former, scratch / "champion")
    return against(champion, scored, judge, candidate.bundle, look.number)


@contextmanager
def _refusing(act: Act, store: Store) -> Iterator[None]:
    """From here on the test rows have been looked at: a refusal is a line of the ledger."""
    try:
        yield
    except StillhouseError as error:
        sign(store, act.name, act.write("refused", why=str(error)))
        raise


def _require_good_enough(comparison: Comparison | None, what: str) -> None:
    """A `GateError` says why the candidate may not replace the champion."""
    if comparison is None:
        return
    if not comparison.loss_upper <= comparison.margin:
        raise GateError(
            f"{what}: may be worse than the champion by {100 * comparison.loss_upper:.2f} points "
            f"({comparison.lost} rows lost, {comparison.gained} gained); judge.margin allows "
            f"{100 * comparison.margin:g}; the champion stays"
        )
    if comparison.ruined:
        named = ", ".join(comparison.ruined)
        raise GateError(f"{what}: ruins what the champion knew of {named}; the champion stays")


def compared(former: Model | None, look: Look, comparison: Comparison | None) -> str:
    """The comparison in a sentence."""
    seen = f"decision {look.number} on these {look.rows:,} test rows"
    if former is None or comparison is None:
        return f"no champion yet, so nothing to compare with; {seen}"
    together = (
        ""
        if look.number < 2
        else f", {100 * comparison.loss_upper_looks:.2f} over all {look.number} decisions"
    )
    return (
        f"against the champion (version {former.version}): {comparison.lost} rows lost, "
        f"{comparison.gained} gained; no worse by more than {100 * comparison.loss_upper:.2f} "
        f"points with {100 * comparison.confidence:g} % confidence{together}; {seen}"
        + (f"; {flips_told(comparison.flips, former)}" if comparison.flips else "")
    )


def _alias_of(lines: tuple[Line, ...], name: str, student: str) -> str:
    """The alias whose champion is `student`; the first line of models by default."""
    if not student:
        return "champion"
    for alias in ledger.aliases(lines, name):
        if ledger.champions(lines, name, alias)[-1].student == student:
            return alias
    raise DataError(f"no champion is called '{student}'; `stillhouse history` names them")
