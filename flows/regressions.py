"""The flip ledgers of every version that was ever champion, side by side, row by row.

Which rows does one version after another lose that its teacher has right? Read from the sealed
bundles in the registry; changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from flows.candidate import fetch_champion
from flows.contest import FLIPS
from flows.ledger import Line, Model
from flows.state import Checkout
from flows.store import opened
from tasks.stress.flips import NEGATIVE

SHOWN = 20  # rows, those that most versions lost
LOST, KEPT, UNTESTED = "x", ".", " "


@dataclass(frozen=True)
class Regressed:
    """A test row that some version lost to its teacher. `marks`: one per version, in order;
    `caused_by`: the step at fault in the last version that lost it."""

    row: str
    label: int
    caused_by: str
    marks: tuple[str, ...]


def promoted(lines: Sequence[Line], name: str) -> tuple[Model, ...]:
    """Every version of `name` that was ever promoted, by its number."""
    found = {
        line.model.version: line.model
        for line in lines
        if line.name == name and (line.act, line.step) == ("promote", "confirmed")
    }
    return tuple(found[number] for number in sorted(n for n in found if n is not None))


def regressed(checkout: Checkout, name: str, models: Sequence[Model]) -> tuple[Regressed, ...]:
    """All rows that one of `models` lost, those that most of them lost first. A version that kept
    no flip ledger has tested nothing."""
    marks: dict[str, list[str]] = {}
    about: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as scratch, opened(checkout) as store:
        for place, model in enumerate(models):
            bundle, _ = fetch_champion(store, name, model, Path(scratch) / str(place))
            if not (bundle / FLIPS).is_file():
                continue
            tested = pq.read_table(bundle / "predictions.parquet", columns=["row"])["row"]
            for row in tested.to_pylist():
                marks.setdefault(row, [UNTESTED] * len(models))[place] = KEPT
            for flip in pq.read_table(bundle / FLIPS).to_pylist():
                if flip["kind"] == NEGATIVE:
                    marks[flip["row"]][place] = LOST
                    about[flip["row"]] = (flip["label"], flip["caused_by"])
    found = [Regressed(row, *said, tuple(marks[row])) for row, said in about.items()]
    return tuple(sorted(found, key=lambda r: (-r.marks.count(LOST), r.row)))


def told(name: str, models: Sequence[Model], rows: Sequence[Regressed]) -> Iterator[str]:
    """The table for people.

    >>> list(told("digits", (), ()))
    ['digits: no version was ever promoted.']
    """
    if not models:
        yield f"{name}: no version was ever promoted."
        return
    numbers = ", ".join(str(model.version) for model in models)
    yield f"{name}: rows that a version lost to its teacher ({LOST}), or not ({KEPT})."
    yield f"row           class  caused by            versions {numbers}"
    for r in rows[:SHOWN]:
        yield f"{r.row[:12]}  {r.label:>5}  {r.caused_by:<19}  {' '.join(r.marks)}".rstrip()
    if len(rows) > SHOWN:
        yield f"and {len(rows) - SHOWN} more; --json names all."
    if not rows:
        yield "none, or no ledger was kept."
