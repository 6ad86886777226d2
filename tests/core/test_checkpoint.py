"""Checkpoints: what was killed ends as if it had not been, and nothing that is spoilt is used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tasks.core.checkpoint import STATE, remove_checkpoint
from tasks.core.errors import DataError
from tasks.core.signal import Batch, Student
from tests.core.small_training import run, small_rows

ROOT = Path(__file__).parents[2]
STEPS = 3 * (100 // 20)


def trained(folder: Path, *changes: dict[str, object]) -> list[str]:
    """Trainings in `folder`, one after the other, each in a process of its own; what they said."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/core/small_training.py"), str(folder),
         *map(json.dumps, changes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("small:")]


def test_a_training_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"folder": "killed", "ema": 0.9, "patience": 2, "checkpoint": 2}
    deaths = [{"batch": 8}, {"replace": 2}, {"replace": 3}, {"unlink": 1}]
    killed = [{**changes, **death} for death in deaths]
    said = trained(tmp_path, *killed, changes, changes | {"folder": "whole"})

    assert said[:4] == ["-9"] * 4
    assert json.loads(said[4])["batch"] < STEPS - 6, "it began where the last checkpoint was"
    assert json.loads(said[6])["batch"] == STEPS
    ours, theirs = (load_file(tmp_path / n / "weights.safetensors") for n in ("killed", "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    histories = [(tmp_path / n / "history.jsonl").read_bytes() for n in ("killed", "whole")]
    assert histories[0] == histories[1]


def stopped(folder: Path, after: int = 9, **changes: object) -> None:
    """A training that ends early, in this process."""
    count = 0

    def seen(_: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, {"checkpoint": 2, **changes}, seen=seen)


def counted(folder: Path, **changes: object) -> int:
    """The steps that a training still makes."""
    batches: list[int] = []
    run(folder, {"checkpoint": 2, **changes}, seen=lambda images: batches.append(len(images)))
    return len(batches)


def test_what_is_trained_is_not_trained_again_until_its_checkpoint_is_removed(
    tmp_path: Path,
) -> None:
    for number, changes in enumerate(({}, {"ema": 0.9}, {"patience": 2})):
        folder = tmp_path / str(number)
        first = run(folder, changes | {"checkpoint": 2}).state_dict()
        history = (folder / "history.jsonl").read_bytes()
        assert counted(folder, **changes) == 0
        again = run(folder, changes | {"checkpoint": 2}).state_dict()
        assert all(torch.equal(again[k], first[k]) for k in first)
        assert (folder / "history.jsonl").read_bytes() == history
        shutil.rmtree(folder / "checkpoints")
        assert counted(folder, **changes) == STEPS


def test_a_removal_that_is_cut_short_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes first of the rest, the next training begins anew and does not refuse."""
    run(tmp_path, {"checkpoint": 2})
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        remove_checkpoint(tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert counted(tmp_path) == STEPS


def test_a_training_resumes_at_its_last_checkpoint(tmp_path: Path) -> None:
    stopped(tmp_path)
    assert counted(tmp_path) == STEPS - 8


@pytest.mark.parametrize("change", [{"seed": 1}, {"ema": 0.5}, {"learning_rate": 0.02}])
def test_a_checkpoint_of_another_training_is_dropped(
    tmp_path: Path, change: dict[str, object]
) -> None:
    stopped(tmp_path)
    assert counted(tmp_path, **change) == STEPS


@pytest.mark.parametrize(
    ("what", "other"),
    [("tasks.core.checkpoint.code", lambda: ["tasks.core.kd 0"]),
     ("torch.get_num_threads", lambda: 2), ("torch.__version__", "0.0")],
)  # fmt: skip
def test_a_checkpoint_of_other_code_threads_or_torch_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, other: object
) -> None:
    stopped(tmp_path)
    monkeypatch.setattr(what, other)
    assert counted(tmp_path) == STEPS


STARTED = """
import runpy
from tasks.core import checkpoint, stage
stage.main = lambda _: print(*checkpoint.code(), sep="\\n")
runpy.run_module("tasks.teach", run_name="__main__", alter_sys=True)
"""


def test_the_code_of_a_training_is_all_that_is_imported_and_what_was_started() -> None:
    command = [sys.executable, "-c", STARTED]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    known = {line.split()[0] for line in said.splitlines()}
    assert {"tasks.core.trainer", "tasks.teach.__main__"} <= known


def test_other_labels_weights_or_losses_are_another_training(tmp_path: Path) -> None:
    rows = small_rows()
    rows.labels[1] = 0
    weights = torch.ones(100)
    for number, what in enumerate(({"rows": rows}, {"weights": weights}, {"loss": plain})):
        folder, batches = tmp_path / str(number), []
        stopped(folder)
        run(folder, {"checkpoint": 2}, seen=batches.append, **what)  # type: ignore[arg-type]
        assert len(batches) == STEPS


def plain(student: Student, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(student.logits, batch.labels)


def test_how_often_checkpoints_are_made_does_not_change_the_training(tmp_path: Path) -> None:
    stopped(tmp_path)
    assert counted(tmp_path, checkpoint=3) == STEPS - 8


def test_no_checkpoint_is_made_where_none_is_asked_for(tmp_path: Path) -> None:
    stopped(tmp_path, checkpoint=0)
    assert not (tmp_path / "checkpoints").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def turned(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def moved_on(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"step": content["step"] + 1}))


@pytest.mark.parametrize(
    ("name", "harm"),
    [(STATE, cut), (STATE, moved_on), ("1-3.safetensors", cut), ("1-3.safetensors", turned),
     ("1-3.safetensors", Path.unlink)],
)  # fmt: skip
def test_a_checkpoint_that_was_truncated_or_altered_is_refused(
    tmp_path: Path, name: str, harm: Callable[[Path], object]
) -> None:
    stopped(tmp_path)
    harm(tmp_path / "checkpoints" / name)
    with pytest.raises(DataError, match=rf"{name}: .*changed since it was written; delete /"):
        run(tmp_path, {"checkpoint": 2})
