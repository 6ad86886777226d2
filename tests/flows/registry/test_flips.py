"""Flip ledgers after the run: asked of the next candidate, and side by side over versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import regressions
from flows.contest import FLIPS, Scored, replayed
from flows.ledger import Flips, Model
from flows.regressions import regressed
from flows.state import Checkout, Servers
from tasks.core.tables import Table
from tasks.stress.flips import flip_ledger

NAMES = np.array(list("abcdef"))
LABELS = np.zeros(6, dtype=np.int64)
TEACHER = np.array([0, 0, 0, 0, 0, 1])  # wrong about f


def bundle(folder: Path, student: list[int], step: str = "student", rows: int = 6) -> Path:
    """What a sealed bundle says of `rows` test rows: what either predicts, and the flips."""
    (folder / FLIPS).parent.mkdir(parents=True)
    said = np.array(student)
    says = {"teacher": TEACHER[:rows], step: said}
    ledger = flip_ledger(NAMES[:rows], LABELS[:rows], says, np.zeros(rows))
    pq.write_table(ledger, folder / FLIPS)
    eye = np.eye(2)
    columns = {"row": NAMES[:rows].tolist(), "teacher": eye[TEACHER[:rows]].tolist(),
               "student": eye[said].tolist()}  # fmt: skip
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    return folder


def test_what_the_champion_lost_is_asked_again_and_what_it_gained_is_not(tmp_path: Path) -> None:
    champion = bundle(tmp_path / "1", [1, 1, 1, 0, 0, 0])  # loses a, b and c; gains f
    answers = [1, 0, 0, 1, 0, 1]  # loses a again and d anew; is wrong about f, as its teacher is
    candidate = bundle(tmp_path / "2", answers)
    table = Table(NAMES, LABELS, np.zeros((6, 1, 1, 1), np.uint8))
    scored = Scored(table, "0", np.eye(2, dtype=np.float32)[answers])

    assert replayed(champion, scored, candidate) == Flips(recur=1, mended=2, new=1, gone=0)
    few = Scored(table.take(np.arange(2)), "0", scored.logits[:2])
    short = bundle(tmp_path / "3", answers[:2], rows=2)
    assert replayed(champion, few, short) == Flips(recur=1, mended=1, new=0, gone=1)


def test_versions_are_set_side_by_side_and_what_most_of_them_lost_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        1: bundle(tmp_path / "1", [1, 0, 0, 1, 0, 0], "assistant"),  # loses a and d; gains f
        2: bundle(tmp_path / "2", [0, 0, 0], rows=3),  # never saw d, e and f
        3: bundle(tmp_path / "3", [0, 1, 0, 1, 0, 1], "student"),  # loses b, and d again
    }
    models = [
        Model(student="s", subject="0", sha256="0", bundle="b", candidate=n, version=n)
        for n in folders
    ]

    @contextmanager
    def opened(_: Checkout) -> Iterator[None]:
        yield

    monkeypatch.setattr(regressions, "opened", opened)
    monkeypatch.setattr(
        regressions, "fetch_champion", lambda _s, _n, model, _f: (folders[model.version], None)
    )

    found = regressed(Checkout(tmp_path, tmp_path, Servers()), "x", models)

    assert [(r.row, " ".join(r.marks), r.caused_by) for r in found] == [
        ("d", "x   x", "student"),
        ("a", "x . .", "assistant"),
        ("b", ". . x", "student"),
    ]
