"""How a stage ends: what changed under it is not noted as what it was made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.core import params, stage
from tasks.core.params import Section, section

BEFORE = "threads: 1\njudge: {margin: 0.2}\nstress: {seed: 0}\n"


class Judge(Section):
    margin: float


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one file of code and three parameters; where a stage says how it ended."""
    (tmp_path / "params.yaml").write_text(BEFORE)
    file = tmp_path / "made.py"
    file.write_text("A = 1\n")
    made = ModuleType("tasks.made")
    made.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "tasks.made", made)
    monkeypatch.setattr(stage, "CODE", tmp_path)
    monkeypatch.setattr(params, "ASKED", set())
    monkeypatch.setattr(stage, "ASKED", params.ASKED)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setenv("STILLHOUSE_OUTCOME", str(tmp_path / "outcome"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outcome"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("params.yaml", BEFORE.replace("0.2", "0.1"), "params.yaml: judge"),
        ("params.yaml", BEFORE.replace("threads: 1", "threads: 2"), "params.yaml: threads"),
        ("made.py", "A = 20\n", "made.py"),
    ],
)
def test_what_changes_while_a_stage_runs_fails_it(
    outcome: Path, file: str, content: str, said: str
) -> None:
    def run(_: list[str]) -> None:
        section("judge", Judge)
        Path(file).write_text(content)

    with pytest.raises(SystemExit):
        stage.main(run)

    told = json.loads(outcome.read_text())
    assert told["code"] == 2
    assert f"{said}: changed while the stage ran" in told["message"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("params.yaml", BEFORE.replace("seed: 0", "seed: 1")), ("other.py", "B = 1\n")],
)
def test_what_a_stage_has_not_read_may_change(outcome: Path, file: str, content: str) -> None:
    def run(_: list[str]) -> None:
        section("judge", Judge)
        Path(file).write_text(content)

    stage.main(run)

    assert not outcome.exists()
