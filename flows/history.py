"""The ledger for people: who was champion, since when, by whose word and on which figures.

Reads the ledger and compares it with the registry; changes neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from flows import ledger
from flows.champion import disagreements
from flows.ledger import Flips, Line, Model
from flows.state import Checkout
from flows.store import opened
from tasks.core.errors import StillhouseError


def check_registry(checkout: Checkout, lines: Sequence[Line]) -> list[str]:
    """What the registry says otherwise than the ledger, in words; empty if they agree."""
    if not lines:
        return []
    try:
        with opened(checkout) as store:  # whoever acts holds it to the end: now nobody does
            now = ledger.read(checkout)
            return disagreements(checkout, store, max(tuple(lines), now, key=len))
    except StillhouseError as error:
        return [str(error)]


def as_json(lines: Sequence[Line], problems: Sequence[str]) -> dict[str, Any]:
    """Champions, lines and what is wrong, as plain data."""
    return {
        "format": "stillhouse/history/1",
        "champions": {
            name: {
                alias: [m.model_dump(mode="json") for m in ledger.champions(lines, name, alias)]
                for alias in ledger.aliases(lines, name)
            }
            for name in ledger.names(lines)
        },
        "lines": [line.model_dump(mode="json") for line in lines],
        "problems": list(problems),
    }


def prose(lines: Sequence[Line]) -> Iterator[str]:
    """The whole ledger, as sentences: today first, then every act in its order."""
    if not lines:
        yield "Nothing was ever promoted here; `stillhouse promote VERSION` does."
        return
    for name in ledger.names(lines):
        for alias in ledger.aliases(lines, name):
            yield _today(lines, name, alias)
    yield ""
    for line in lines:
        if line.step != "intent":
            yield f"{_date(line.at)}  {_told(line)}"
            yield f"    Reason given: {line.reason}"
            yield from (f"    {said}" for said in _figures(line))
    intent = ledger.pending(lines)
    if intent is not None:
        yield f"{_date(intent.at)}  {intent.by} began a {intent.act} that is not closed yet."
    yield ""
    count = f"{len(lines)} lines" if len(lines) > 1 else "One line"
    yield f"{count}, each sealed by the next; the last digest is {lines[-1].digest[:12]}."


def _today(lines: Sequence[Line], name: str, alias: str) -> str:
    standing = ledger.champions(lines, name, alias)
    own = [line for line in lines if (line.name, line.alias) == (name, alias)]
    since = [line for line in own if line.step == "confirmed"][-1]
    said = f"{name}@{alias} is {_version(standing[-1])}, since {_date(since.at)}."
    if len(standing) > 1:
        said += f" `stillhouse rollback` would bring back {_version(standing[-2])}."
    return said


def _told(line: Line) -> str:
    """What one step did, in a sentence."""
    model, former = _version(line.model), "" if line.former is None else _version(line.former)
    if line.step == "refused":
        return f"{line.by} asked to promote {model} and was refused."
    if line.step == "abandoned":
        return f"A {line.act} by {line.by} to {model} was {line.why}; nothing changed."
    if line.act == "rollback":
        return f"{line.by} rolled {line.alias} back from {former} to {model}."
    if not former:
        return f"{line.by} promoted {model}: the first {line.alias}."
    return f"{line.by} promoted {model} to {line.alias}, in place of {former}."


def _figures(line: Line) -> Iterator[str]:
    if line.look is not None and line.act == "promote":
        seen = f"Decision {line.look.number} on these {line.look.rows:,} test rows"
        if line.comparison is None:
            yield f"{seen}; there was no champion to compare with."
        else:
            yield (
                f"{seen}: {line.comparison.lost} lost and {line.comparison.gained} gained against "
                f"the champion; worse by at most {100 * line.comparison.loss_upper:.2f} points "
                f"with {100 * line.comparison.confidence:g} % confidence, "
                f"{100 * line.comparison.margin:g} allowed."
            )
            if line.comparison.flips and line.former:
                yield f"{flips_told(line.comparison.flips, line.former).capitalize()}."
    if line.step == "refused":
        yield f"Refused: {line.why}."


def flips_told(flips: Flips, former: Model) -> str:
    """What became of the rows that the champion had lost to its teacher.

    >>> model = Model(student="s", subject="", sha256="", bundle="s-1", candidate=4, version=3)
    >>> flips_told(Flips(recur=4, mended=3, new=2, gone=0), model)
    'flips: 4 recur, 3 mended, 2 new since version 3'
    """
    gone = f", {flips.gone} no longer tested" if flips.gone else ""
    return (
        f"flips: {flips.recur} recur, {flips.mended} mended, {flips.new} new{gone} since version "
        f"{former.version}"
    )


def _version(model: Model) -> str:
    number = f"candidate {model.candidate}" if model.version is None else f"version {model.version}"
    return f"{number} ({model.bundle})"


def _date(at: str) -> str:
    return datetime.fromisoformat(at).strftime("%Y-%m-%d %H:%M UTC")
