"""Every bad input is one line that says what, where and the remedy, and nothing has changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.bad_input.case import Case
from tests.bad_input.cases import CASES
from tests.bad_input.nursery import Nursery
from tests.bad_input.page import PAGE, page, row

Command = Callable[..., "subprocess.CompletedProcess[str]"]

ALL = [case for cases in CASES.values() for case in cases]
OWN = (  # notes of any command
    ".git/",
    "checkpoints/teacher/",  # what a stage goes on from when there is room again
    ".dvc/tmp/",
    ".stillhouse/failed/",
    ".stillhouse/logs/",
    ".stillhouse/prefect/",
    ".stillhouse/runs/",
)
NOTES = (
    ".stillhouse/run.lock",
    ".stillhouse/ledger.lock",
    ".stillhouse/mlflow.lock",
    ".stillhouse/mlflow.db",
)
REGISTRY = (
    "registered_models",
    "registered_model_aliases",
    "registered_model_tags",
    "model_versions",
    "model_version_tags",
)
ELSEWHERE = shutil.ignore_patterns("artifacts", "prefect")  # the copy's registry points back there
SEEN: dict[str, str] = {}


def placed(source: str, target: str) -> object:
    """A copy; of what is named after its content, and so never written again, a link."""
    stored = "/.dvc/cache/" in source or "/.git/objects/" in source
    return os.link(source, target) if stored else shutil.copy2(source, target)


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkout, by its path; of MLflow's database, its registry."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and not name.startswith(OWN) and "__pycache__" not in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {k: v for k, v in found.items() if k not in NOTES} | registry(root)


def registry(root: Path) -> dict[str, str]:
    """The rows of the registry, in their order; of a file that is no database, its bytes."""
    path = (root / NOTES[-1]).resolve()
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
            rows = {t: database.execute(f"SELECT * FROM {t}").fetchall() for t in REGISTRY}  # noqa: S608
    except sqlite3.DatabaseError:
        return {NOTES[-1]: hashlib.sha256(path.read_bytes()).hexdigest()}
    return {table: "\n".join(sorted(map(str, found))) for table, found in rows.items()}


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.wrong.replace(" ", "_"))
def test_bad_input_is_one_line_with_its_remedy_and_changes_nothing(
    case: Case,
    pipeline: Path,
    tmp_path: Path,
    stillhouse: Nursery,
    command: Command,
    request: pytest.FixtureRequest,
) -> None:
    root = tmp_path / "stillhouse"
    shutil.copytree(pipeline, root, symlinks=True, ignore=ELSEWHERE, copy_function=placed)
    case.arrange(root)

    with case.around(root) as place:
        before = digests(place.root)
        if place.prefix:
            program = [*place.prefix, sys.executable, "-m", "flows.cli"]
            done = command(root, *program, *case.command, check=False)
        else:
            done = stillhouse.command(root, *case.command)
        after = digests(place.root)

    (line,) = done.stderr.splitlines()
    assert done.returncode == case.code
    assert line.startswith("error: ")
    assert "Traceback" not in done.stdout
    assert [part for part in case.says if part not in line] == [], line
    assert after == before
    SEEN[case.wrong] = row(case, line.removeprefix("error: "), tmp_path)
    if not request.config.getoption("--write-errors", False):
        assert SEEN[case.wrong] in PAGE.read_text().splitlines(), "write docs/errors.md anew"


def test_the_page_holds_every_case_and_no_other(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-errors", False):
        PAGE.write_text(page(SEEN))
    shown = [line.split(" | ")[0] for line in PAGE.read_text().splitlines() if "| " in line]
    named = [cell.removeprefix("| ") for cell in shown]

    assert [name for name in named if name != "What is wrong"] == [case.wrong for case in ALL]
    assert len(set(named)) > len(ALL) >= 40
