"""How a stage ends: what changed under it is not noted as what it was made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.core import stage
from tasks.core.checkpoint import code
from tasks.core.files import sha256

ROOT = Path(__file__).parents[2]
BEFORE = "threads: 1\nstress: {seed: 0, slices: {margin: 0.2}, fidelity: {agreement: 0.9}}\n"
DAG = """
stages:
  stress:
    matrix: {student: [s], family: [slices, fidelity]}
    do: {cmd: x, params: [threads, stress.seed, "stress.${item.family}"]}
"""


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one file of code and three parameters; where a stage says how it ended."""
    (tmp_path / "params.yaml").write_text(BEFORE)
    (tmp_path / "dvc.yaml").write_text(DAG)
    file = tmp_path / "made.py"
    file.write_text("A = 1\n")
    made = ModuleType("tasks.made")
    made.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "tasks.made", made)
    monkeypatch.setattr(stage, "CODE", tmp_path)
    monkeypatch.setattr(stage, "_stage", lambda: "stress")
    monkeypatch.setattr(sys, "argv", ["stress", "student", "slices"])
    monkeypatch.setenv("STILLHOUSE_OUTCOME", str(tmp_path / "outcome"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outcome"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("params.yaml", BEFORE.replace("0.2", "0.1"), "params.yaml: stress.slices"),
        ("params.yaml", BEFORE.replace("threads: 1", "threads: 2"), "params.yaml: threads"),
        ("made.py", "A = 20\n", "made.py"),
        ("dvc.yaml", DAG.replace("threads, ", ""), "params.yaml: threads"),
    ],
)
def test_what_changes_while_a_stage_runs_fails_it(
    outcome: Path, file: str, content: str, said: str
) -> None:
    def run(_: list[str]) -> None:
        Path(file).write_text(content)

    with pytest.raises(SystemExit):
        stage.main(run)

    told = json.loads(outcome.read_text())
    assert told["code"] == 2
    assert f"{said}: changed while the stage ran" in told["message"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("params.yaml", BEFORE.replace("0.9", "0.8")),
        ("other.py", "B = 1\n"),
        ("made.py", "A = 1\n"),
    ],
)
def test_what_is_not_of_the_stage_may_change_and_what_is_may_be_written_again(
    outcome: Path, file: str, content: str
) -> None:
    def run(_: list[str]) -> None:
        Path(file).write_text(content)

    stage.main(run)

    assert not outcome.exists()


def test_a_link_that_an_editor_leaves_beside_a_module_is_none(outcome: Path) -> None:
    outcome.with_name(".#made.py").symlink_to("somebody@host.1:1")
    stage.main(lambda _: None)

    assert not outcome.exists()


def test_a_checkpoint_is_keyed_by_the_code_that_the_stage_began_with(outcome: Path) -> None:
    keys: list[list[str]] = []

    def run(_: list[str]) -> None:
        for content in ("A = 2\n", "A = 1\n"):
            Path("made.py").write_text(content)
            keys.append([line for line in code() if line.startswith("tasks.made ")])

    stage.main(run)

    assert not outcome.exists()
    assert keys[0] == keys[1] == [f"tasks.made {sha256(Path('made.py'))}"]


def test_a_stage_knows_itself_by_how_it_was_started() -> None:
    code = (
        "import runpy; from tasks.core import stage; stage.main = lambda _: print(stage._stage())"
    )
    for module, name in (("tasks.judge", "judge"), ("tasks.distill.compare", "")):
        run = f"{code}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        done = subprocess.run(
            [sys.executable, "-c", run], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == name
