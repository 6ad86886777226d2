"""The main job on digits: two fresh clones in different folders, timed, compared and watched."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.clone import call, clone, seconds
from benchmarks.table import Row, row
from tasks.core.files import sha256

MODEL = Path("ship/student/model.onnx")
VERDICT = Path("reports/student/verdict.json")


class Watch:
    """The largest resident set of any process below this one, sampled ten times a second."""

    def __init__(self) -> None:
        self.peak, self.name = 0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            for child in me.children(recursive=True):
                try:
                    size = child.memory_info().rss
                    if size > self.peak:
                        self.peak, self.name = size, _named(child.cmdline())
                except psutil.Error:
                    continue


def _named(words: list[str]) -> str:
    """A command without its interpreter and without folders.

    >>> _named(["/usr/bin/python", "/a/bin/stillhouse", "run"])
    'stillhouse run'
    """
    return " ".join(Path(word).name for word in words[1:4])


def median(call: Callable[[], float], runs: int = 5) -> float:
    return statistics.median(call() for _ in range(runs))


def began(said: str) -> set[str]:
    """Stages that a run began, from its plain lines."""
    return {
        line.split(":")[0].split("@")[0] for line in said.splitlines() if line.endswith(": began")
    }


def verdict(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / VERDICT).read_text())
    content.pop("measured")
    return content


def run() -> list[Row]:
    """All rows of the table."""
    base = Path(tempfile.mkdtemp(prefix="stillhouse-bench-"))
    try:
        return _rows(clone(base / "first"), clone(base / "elsewhere" / "second"))
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _rows(first: Path, second: Path) -> list[Row]:
    python = str(first / ".venv" / "bin" / "python")
    stillhouse = [python, "-m", "flows.cli"]
    dvc = [python, "-m", "dvc"]
    print("bench-main: installing in a fresh clone", flush=True)
    install = seconds(["make", ".venv/installed"], first)
    print("bench-main: first run", flush=True)
    with Watch() as watch:
        running = seconds([str(first / ".venv" / "bin" / "stillhouse"), "run"], first)
    print("bench-main: the same in a second clone, elsewhere", flush=True)
    seconds([*stillhouse, "run"], second)
    same_model = sha256(first / MODEL) == sha256(second / MODEL)
    same_verdict = verdict(first) == verdict(second)
    print("bench-main: nothing changed, five times each", flush=True)
    idle_dvc = median(lambda: seconds([*dvc, "repro"], first))
    idle_run = median(lambda: seconds([*stillhouse, "run"], first))
    report = json.loads((first / VERDICT).read_text())
    print("bench-main: one parameter of quantize changed", flush=True)
    params = first / "params.yaml"
    params.write_text(params.read_text().replace("method: percentile", "method: minmax"))
    said = call([*stillhouse, "run"], first).stdout
    only = began(said) == {"quantize", "stress", "judge"}
    student, teacher = report["student"], report["teacher"]
    latency = report["measured"]["latency_ms"]
    return [
        row(
            "make run on a fresh clone, installation included",
            install + running,
            "s",
            "<= 240",
            "make run",
        ),
        row("make run after installation", running, "s", "<= 90", "make run"),
        row("nothing changed: dvc repro", idle_dvc, "s", "<= 2", "dvc repro", 5),
        row("nothing changed: stillhouse run", idle_run, "s", "<= 10", "stillhouse run", 5),
        row(
            "one quantize parameter changed: only quantize, stress, judge run",
            float(only),
            "",
            ">= 1",
            "stillhouse run",
        ),
        row(
            "student keeps of the teacher's test accuracy",
            report["retention"],
            "",
            ">= 0.99",
            "stillhouse show",
        ),
        row(
            "teacher's parameters over the student's",
            teacher["parameters"] / student["parameters"],
            "x",
            ">= 10",
            "stillhouse show",
        ),
        row(
            "teacher's float weights over the student's file",
            teacher["bytes"] / student["bytes"],
            "x",
            ">= 20",
            "stillhouse show",
        ),
        row(
            "student faster than its teacher in PyTorch, batch 1",
            latency["teacher"] / latency["student"],
            "x",
            "",
            "stillhouse show",
        ),
        row("two clean clones: model.onnx identical", float(same_model), "", ">= 1", "make run"),
        row(
            "two clean clones: verdict.json identical but for measured",
            float(same_verdict),
            "",
            ">= 1",
            "make run",
        ),
        row(
            f"peak memory of any process ({watch.name})",
            watch.peak / 1e9,
            "GB",
            "<= 1.5",
            "make run",
        ),
    ]
