"""The how-to pages, typed word for word as a new user would."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.howto import follow, hold

Command = Callable[..., "subprocess.CompletedProcess[str]"]
DOCS = Path(__file__).parents[1] / "docs"


def typing(folder: Path, command: Command) -> Callable[[list[str]], tuple[str, int]]:
    """What types commands in `folder`, as somebody whom git knows."""
    for key, value in (("name", "reader"), ("email", "reader@localhost")):
        subprocess.run(["git", "config", f"user.{key}", value], cwd=folder, check=True)

    def type_(words: list[str]) -> tuple[str, int]:
        done = command(folder, *words, check=False)
        return done.stdout, done.returncode

    return type_


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_own_images_and_own_teachers_work_as_their_page_says(
    clone: Callable[[], Path], command: Command
) -> None:
    folder = clone()

    follow(DOCS / "howto-data-and-teacher.md", folder, typing(folder, command))

    data = read(folder / "ship/student/spec.json")["data"]
    assert (data["shape"], data["classes"]) == ([3, 12, 10], ["china", "flower"])
    tried = {read(p / "models/teacher/spec.json")["kind"]: p for p in (folder / "runs").iterdir()}
    assert set(tried) == {"torch", "onnx"}, "one trial each"
    given = read(tried["torch"] / "models/teacher/spec.json")["sha256"]
    assert given == read(folder / "models/assistant/spec.json")["sha256"]
    report = read(tried["onnx"] / "models/assistant/report.json")
    assert report["lineage"][0]["flops"] is None, "a black box does not say"
    assert report["lineage"][0]["parameters"] > 48_000
    assert report["val_accuracy"]["value"] > 0.9
    manifests = (folder / ".stillhouse/bundles").glob("*/manifest.json")
    dirty = [read(manifest)["circumstances"]["dirty"] for manifest in manifests]
    assert sorted(dirty) == [False, True, True], "what no commit holds is told from what one does"
    status = ["git", "status", "--porcelain"]
    assert command(folder, *status).stdout == "", "trials leave the checkout as it was"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_second_student_a_loss_and_a_stress_family_work_as_their_page_says(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    folder = Path(shutil.copytree(pipeline, tmp_path / "stillhouse", symlinks=True))
    before = (folder / "models/student/weights.safetensors").read_bytes()

    follow(DOCS / "howto-extend.md", folder, typing(folder, command))

    assert (folder / "models/student/weights.safetensors").read_bytes() == before
    verdicts = {s: read(folder / f"reports/{s}/verdict.json") for s in ("student", "tiny")}
    for student, verdict in verdicts.items():
        assert verdict["student"]["name"] == student
        assert "stress.occlusion.loss" in {gate["name"] for gate in verdict["gates"]}
    assert verdicts["tiny"]["teacher"] == verdicts["student"]["teacher"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_promoting_and_rolling_back_work_as_their_page_says(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    without_state = shutil.ignore_patterns(".stillhouse")  # MLflow's places are absolute
    folder = tmp_path / "stillhouse"
    shutil.copytree(pipeline, folder, symlinks=True, ignore=without_state)
    command(folder, "stillhouse", "run")

    follow(DOCS / "howto-promote.md", folder, typing(folder, command))

    story = json.loads(command(folder, "stillhouse", "history", "--json").stdout)
    assert [m["candidate"] for m in story["champions"]["digits"]["champion"]] == [1]
    assert [line["step"] for line in story["lines"]] == ["intent", "confirmed"] * 3
    assert story["problems"] == []
    assert command(folder, "git", "status", "--porcelain").stdout in ("", "?? dvc.lock\n")


@pytest.mark.parametrize(
    ("console", "fault"),
    [
        ("$ make it\nmade 2\n", "should print"),
        ("$ make it\nmade 1\nmore\n", "should print"),
        ("$ fail\n", "`fail` ended with 1"),
        ("$ fail\n$ make it\n", "`fail` ended with 1"),
        ("$ fail\n$ echo $?\n2\n", "should print"),
    ],
)
def test_a_page_that_promises_what_does_not_happen_is_refused(console: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        hold("page", console, lambda words: ("made 1\n", int(words[0] == "fail")))


def test_a_page_says_what_is_written_edited_and_typed(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a:\n  b: 1  # one\n  c: [1, 2]\n")
    page = tmp_path / "page.md"
    page.write_text(
        "Save as `x.py`:\n\n```python\nx = 1\n```\n\nIn `params.yaml`:\n\n"
        "```yaml\na:\n  c: [3]\nd: new\n```\n\n```console\n$ show 'a b'\n... b\n$ echo $?\n0\n```\n"
    )
    typed: list[list[str]] = []

    def type_(words: list[str]) -> tuple[str, int]:
        typed.append(words)
        return "a b\n", 0

    follow(page, tmp_path, type_)

    assert (tmp_path / "x.py").read_text() == "x = 1\n"
    assert (tmp_path / "params.yaml").read_text() == "a:\n  b: 1  # one\n  c: [3]\nd: new\n"
    assert typed == [["show", "a b"]]
