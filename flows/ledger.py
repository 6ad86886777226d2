"""The ledger: which model was champion, since when, by whose word and on which figures.

One JSON object per line in `.stillhouse/ledger.jsonl`, appended and never changed: each line names
the digest of the one before, so an edit anywhere breaks every line after it. An act writes an
intent before it touches the registry and a confirmation after; what a crash leaves between the two
is settled by the next command. The ledger, not the registry, says who should be champion.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flows.state import Checkout
from tasks.core.errors import DataError, StillhouseError
from tasks.core.files import digest
from tasks.core.params import Section, check


class BusyError(DataError):
    """Somebody else promotes or rolls back at this moment."""


START = "0" * 64  # what the first line follows

Act = Literal["promote", "rollback"]
Step = Literal["refused", "intent", "confirmed", "abandoned"]


class Model(Section):
    """A registered student. `candidate`: its version of `<name>-candidates`; `version`: that of
    `<name>`, once it has one; `subject`: the digest of its evidence; `sha256`: of `model.onnx`."""

    student: str
    subject: str
    sha256: str
    bundle: str
    candidate: int
    version: int | None = None


class Flips(Section):
    """The champion's flip ledger, asked again. Of the rows that it had lost to its own teacher:
    those that `recur`, are `mended`, are `gone` from the table; `new` are the candidate's own."""

    recur: int
    mended: int
    new: int
    gone: int


class Comparison(Section):
    """A model against the champion on the same test rows. `loss_upper` is the bound for this look
    alone; `loss_upper_looks` holds for all looks at these rows together (Bonferroni)."""

    lost: int
    gained: int
    loss_upper: float
    loss_upper_looks: float
    margin: float
    confidence: float
    ruined: tuple[str, ...] = ()  # classes
    flips: Flips | None = None  # None where either has no flip ledger


class Look(Section):
    """One look at a test set: `number` counts the decisions that these rows were asked for."""

    test: str  # SHA-256 of the test table
    rows: int
    number: int


class Line(Section):
    """`stillhouse/ledger/1`: one step of one act.

    `model` is who becomes champion under `alias` of the registered model `name`, `former` who was.
    `why` is said of what did not happen. `closes` is the digest of the intent that a step ends.
    """

    format: Literal["stillhouse/ledger/1"] = "stillhouse/ledger/1"
    number: int
    at: str  # UTC, ISO 8601
    act: Act
    step: Step
    name: str
    alias: str
    by: str
    reason: str
    commit: str
    model: Model
    former: Model | None = None
    look: Look | None = None
    comparison: Comparison | None = None
    why: str | None = None
    closes: str | None = None
    previous: str
    digest: str


def path(checkout: Checkout) -> Path:
    """Where the ledger lies."""
    return checkout.state / "ledger.jsonl"


def read(checkout: Checkout) -> tuple[Line, ...]:
    """Every line, checked against the one before; a `DataError` names the first that is not whole.

    A last line that a crash cut off was never acknowledged, and does not count.
    """
    place = path(checkout)
    if not place.is_file():
        return ()
    text = place.read_bytes()
    lines: list[Line] = []
    for number, raw in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        lines.append(_line(raw, number, lines[-1].digest if lines else START, place))
    return tuple(lines)


def _line(raw: bytes, number: int, previous: str, place: Path) -> Line:
    try:
        content = json.loads(raw)
    except ValueError:
        raise DataError(f"{place}: line {number} is not JSON; restore the file") from None
    try:
        line = check(Line, content, where=f"{place}: line {number}")
    except StillhouseError as error:
        raise DataError(f"{error}; restore the file") from None
    if line.previous != previous or line.number != number:
        raise DataError(
            f"{place}: line {number} does not follow from the one before; a line was removed, "
            "added or moved; restore the file"
        )
    if _digest(content) != line.digest:
        raise DataError(f"{place}: line {number} was changed; restore the file")
    return line


def _digest(content: dict[str, Any]) -> str:
    return digest({key: value for key, value in content.items() if key != "digest"})


def append(checkout: Checkout, **content: Any) -> Line:
    """Add a line and return it once it is on disk. Call it within `alone`."""
    place = path(checkout)
    lines = read(checkout)
    fields: dict[str, Any] = {
        **content,
        "number": len(lines) + 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "previous": lines[-1].digest if lines else START,
        "digest": "",
    }
    plain = Line(**fields).model_dump(mode="json")
    plain["digest"] = _digest(plain)
    _drop_torn_tail(place)
    new = not place.exists()
    with place.open("ab") as stream:
        stream.write(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    if new:
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return Line.model_validate(plain)


def _drop_torn_tail(place: Path) -> None:
    """A line without its end was being written when its writer died."""
    if not place.is_file():
        return
    whole = place.read_bytes().rfind(b"\n") + 1
    if whole != place.stat().st_size:
        os.truncate(place, whole)


@contextmanager
def alone(checkout: Checkout) -> Iterator[None]:
    """Be the one who promotes or rolls back here; `BusyError` if somebody else does."""
    checkout.state.mkdir(parents=True, exist_ok=True)
    with (checkout.state / "ledger.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{path(checkout)}: another promotion or rollback is at work; wait for it"
            ) from None
        yield


def pending(lines: Sequence[Line]) -> Line | None:
    """The intent that nothing has closed yet."""
    return lines[-1] if lines and lines[-1].step == "intent" else None


def champions(lines: Sequence[Line], name: str, alias: str) -> tuple[Model, ...]:
    """Who was champion of `name` under `alias`, oldest first; a rollback takes the last away."""
    found: list[Model] = []
    for line in lines:
        if line.step == "confirmed" and (line.name, line.alias) == (name, alias):
            if line.act == "promote":
                found.append(line.model)
            else:
                found.pop()
    return tuple(found)


def aliases(lines: Sequence[Line], name: str) -> tuple[str, ...]:
    """Every alias of `name` that has ever had a champion."""
    mine = (line for line in lines if line.step == "confirmed" and line.name == name)
    return tuple(sorted({line.alias for line in mine}))


def names(lines: Sequence[Line]) -> tuple[str, ...]:
    """Every registered model that has ever had a champion."""
    return tuple(sorted({line.name for line in lines if line.step == "confirmed"}))


def looks(lines: Sequence[Line], tests: Set[str]) -> int:
    """How many decisions these test tables, by SHA-256, were asked for."""
    return sum(
        line.look is not None and line.look.test in tests and line.step in ("intent", "refused")
        for line in lines
    )


def unsettled(checkout: Checkout) -> bool:
    """Whether an act is open; a ledger that cannot be read does not tell."""
    try:
        return pending(read(checkout)) is not None
    except StillhouseError:
        return False
