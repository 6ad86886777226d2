"""Clones to measure in: made, shrunk, committed, and asked for what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STILLHOUSE = [sys.executable, "-m", "flows.cli"]
WORDS = ["--by", "Bench", "--reason", "a measurement"]
KEPT = "STILLHOUSE_BENCH"
REFUSED = 1  # a gate said no: an answer, not a failure

SMALL: dict[str, Any] = {  # seconds of training instead of a minute, and gates to match
    "teach": {"training": {"epochs": 6}, "views": {"count": 2}},
    "distill": {
        "rungs": {
            "assistant": {"training": {"epochs": 4}},
            "student": {"training": {"epochs": 12}},
        }
    },
    "quantize": {"schemes": ["float32", "static"]},
    "stress": {
        "budget": "smoke",
        "adversarial": {"margin": 0.5},
        "corruptions": {"severities": 1, "margin": 0.5},
        "fidelity": {"agreement": 0.5, "negative_flips": 0.5},
        "slices": {"margin": 0.9},
        "calibration": {"ece": 0.5},
        "security": {"trigger": 0.9},
    },
    "judge": {"bootstrap": 100, "margin": 0.2, "macro_f1_margin": 0.3, "class_margin": 0.9},
    "requirements": {"teacher_accuracy": 0.8, "accuracy": 0.6, "latency_ms": 50.0},
}


@contextmanager
def workplace(name: str) -> Iterator[Path]:
    """Where a clone called `name` may lie: a scratch folder, or one below `STILLHOUSE_BENCH` that
    stays, so that an interrupted run goes on where it was."""
    kept = os.environ.get(KEPT)
    if kept:
        yield Path(kept) / name
        return
    scratch = tempfile.TemporaryDirectory(prefix="stillhouse-bench-", ignore_cleanup_errors=True)
    with scratch as base:
        yield Path(base) / name


def clone(into: Path) -> Path:
    """A fresh clone of the current commit, with somebody who commits in it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(into)], check=True)
    for key, value in {"user.name": "Bench", "user.email": "bench@localhost"}.items():
        subprocess.run(["git", "config", key, value], cwd=into, check=True)
    return into


def small(folder: Path, *edits: dict[str, Any]) -> None:
    """Merge `edits` into `params.yaml`."""
    yaml = YAML()
    content = yaml.load(folder / "params.yaml")
    for edit in edits:
        _merge(content, edit)
    yaml.dump(content, folder / "params.yaml")


def _merge(into: Any, edit: dict[str, Any]) -> None:
    for key, value in edit.items():
        if isinstance(value, dict):
            _merge(into[key], value)
        else:
            into[key] = value


def commit(folder: Path, message: str) -> None:
    """Commit what changed in tracked files."""
    subprocess.run(["git", "commit", "--quiet", "-a", "-m", message], cwd=folder, check=True)


def call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a crash or bad input is shown and ends the benchmark."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, REFUSED):
        said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{said}")
    return done


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    call(command, folder)
    return time.perf_counter() - start


def act(folder: Path, *words: str) -> None:
    """A promotion or a rollback that must succeed."""
    if call([*STILLHOUSE, *words, *WORDS], folder).returncode:
        raise RuntimeError(f"{' '.join(words)} was refused")
