"""The ledger: appended, chained, and the only one to say who is champion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import ledger
from flows.ledger import Line, Model
from flows.state import Checkout, Servers
from tasks.core.errors import DataError


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path, tmp_path, Servers())


def model(number: int, student: str = "student") -> Model:
    return Model(
        student=student,
        subject=f"{number:02d}" * 32,
        sha256="ab" * 32,
        bundle=f"{student}-{number:012d}",
        candidate=number,
        version=number,
    )


def write(checkout: Checkout, number: int, **more: Any) -> Line:
    own = {"act": "promote", "step": "confirmed", "name": "trees", "alias": "champion"}
    own |= {"by": "Ada", "reason": "better", "commit": "c0" * 20, "model": model(number)}
    checkout.state.mkdir(exist_ok=True)
    return ledger.append(checkout, **{**own, **more})


def raw(checkout: Checkout) -> list[bytes]:
    return ledger.path(checkout).read_bytes().splitlines(keepends=True)


def test_lines_come_back_as_they_were_written_each_naming_the_one_before(
    checkout: Checkout,
) -> None:
    written = [write(checkout, number, reason="größer, schneller") for number in (1, 2, 3)]

    assert list(ledger.read(checkout)) == written
    assert written[0].previous == ledger.START
    assert [line.previous for line in written[1:]] == [line.digest for line in written[:2]]


def test_a_new_line_changes_no_byte_of_the_former_ones(checkout: Checkout) -> None:
    write(checkout, 1)
    before = ledger.path(checkout).read_bytes()
    write(checkout, 2)

    assert ledger.path(checkout).read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda rows: [rows[0].replace(b"Ada", b"Eve"), *rows[1:]], "line 1 was changed"),
        (lambda rows: rows[1:], "line 1 does not follow"),
        (lambda rows: [rows[0], rows[2]], "line 2 does not follow"),
        (lambda rows: [rows[1], rows[0], rows[2]], "line 1 does not follow"),
        (lambda rows: [rows[0], rows[0], *rows[1:]], "line 2 does not follow"),
        (lambda rows: [rows[0], b"{\n", *rows[1:]], "line 2 is not JSON"),
        (lambda rows: [*rows, rows[2].replace(b'"by"', b'"To"')], "line 4.*unknown key"),
    ],
)
def test_a_ledger_that_was_tampered_with_is_refused_by_the_line(
    checkout: Checkout, tamper: Any, said: str
) -> None:
    for number in (1, 2, 3):
        write(checkout, number)
    ledger.path(checkout).write_bytes(b"".join(tamper(raw(checkout))))

    with pytest.raises(DataError, match=said):
        ledger.read(checkout)
    with pytest.raises(DataError, match=said):
        write(checkout, 4)


def test_a_rewritten_line_with_a_digest_of_its_own_breaks_the_one_after(
    checkout: Checkout,
) -> None:
    first, _ = write(checkout, 1), write(checkout, 2)
    content = first.model_dump(mode="json") | {"by": "Eve"}
    content["digest"] = ledger._digest(content)
    rows = [json.dumps(content).encode() + b"\n", raw(checkout)[1]]
    ledger.path(checkout).write_bytes(b"".join(rows))

    with pytest.raises(DataError, match="line 2 does not follow"):
        ledger.read(checkout)


def test_a_line_that_a_crash_cut_off_never_counted_and_makes_room_for_the_next(
    checkout: Checkout,
) -> None:
    write(checkout, 1)
    with ledger.path(checkout).open("ab") as stream:
        stream.write(b'{"act": "promote", "ali')

    assert len(ledger.read(checkout)) == 1
    write(checkout, 2)
    assert [line.model.candidate for line in ledger.read(checkout)] == [1, 2]


def test_a_rollback_takes_the_last_champion_away_and_no_alias_touches_another(
    checkout: Checkout,
) -> None:
    write(checkout, 1)
    write(checkout, 2)
    write(checkout, 9, alias="champion-tiny", model=model(9, "tiny"))
    write(checkout, 3, step="refused")
    write(checkout, 1, act="rollback")
    write(checkout, 4)
    write(checkout, 8, name="shrubs")

    lines = ledger.read(checkout)
    assert [m.candidate for m in ledger.champions(lines, "trees", "champion")] == [1, 4]
    assert [m.candidate for m in ledger.champions(lines, "trees", "champion-tiny")] == [9]
    assert [m.candidate for m in ledger.champions(lines, "shrubs", "champion")] == [8]
    assert ledger.aliases(lines, "trees") == ("champion", "champion-tiny")
    assert ledger.names(lines) == ("shrubs", "trees")


def test_only_decisions_count_as_looks_at_a_test_set(checkout: Checkout) -> None:
    look = ledger.Look(test="7e" * 32, rows=10, number=1)
    for step in ("intent", "confirmed", "refused", "intent", "abandoned"):
        write(checkout, 1, step=step, look=look)
    write(checkout, 1, step="intent", look=ledger.Look(test="00" * 32, rows=10, number=1))

    assert ledger.looks(ledger.read(checkout), {"7e" * 32, "11" * 32}) == 3


def test_two_at_once_cannot_be_at_the_ledger(checkout: Checkout) -> None:
    with (
        ledger.alone(checkout),
        pytest.raises(ledger.BusyError, match="wait for it"),
        ledger.alone(checkout),
    ):
        pass
