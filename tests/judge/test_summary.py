"""The plot of all gates: where a gate stands, and that it comes with the card."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tasks.core.reports import Gate, at_least, at_most
from tasks.judge.__main__ import run
from tasks.judge.summary import END, plot, used


@pytest.mark.parametrize(
    ("gate", "share"),
    [
        (at_least("accuracy", 0.98, 0.96, ""), 0.5),
        (at_least("accuracy", 0.94, 0.96, ""), 1.5),
        (at_least("parity", 1.0, 1.0, ""), 0.0),
        (at_least("parity", 0.0, 1.0, ""), END),
        (at_most("broken", 0, 0, ""), 0.0),
        (at_most("broken", 1, 0, ""), END),
        (at_most("loss", 0.02, 0.02, ""), 1.0),
        (at_most("bytes", 300, 400, ""), 0.75),
        (at_most("loss", -0.1, 0.02, ""), 0.0),
        (at_most("loss", 9.0, 0.02, ""), END),
        (at_most("loss", None, 0.02, ""), END),
    ],
)
def test_a_gate_stands_right_of_the_line_if_and_only_if_it_fails(gate: Gate, share: float) -> None:
    assert used(gate) == pytest.approx(share)
    assert (used(gate) > 1) == (not gate.passed)


def test_the_same_gates_give_the_same_bytes_and_a_failed_one_others() -> None:
    passed, failed = at_most("stress.fidelity.x", 1, 2, ""), at_most("stress.fidelity.x", 3, 2, "")
    assert plot([passed]) == plot([passed]) != plot([failed])


@pytest.mark.usefixtures("world")
def test_card_and_evidence_show_it() -> None:
    run(["student"])
    for folder in (Path("reports/student"), Path("evidence/student")):
        assert "](gates.png)" in (folder / "card.md").read_text()
        with Image.open(folder / "gates.png") as image:
            image.verify()
