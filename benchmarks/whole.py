"""The main job made whole: bad input, kills at random instants, promotion's time, twelve weeks.

About three quarters of an hour. Every part works in clones of its own, in this environment.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import kills, weeks
from benchmarks.clone import ROOT, STILLHOUSE, WORDS, act, call, clone, commit, seconds, small
from benchmarks.table import Row, row

COMMAND = "make bench-whole"


def run() -> list[Row]:
    """All rows of the table."""
    base = Path(tempfile.mkdtemp(prefix="stillhouse-bench-"))
    try:
        return [*bad_input(), *promotion(base), *kills.rows(base), *weeks.rows(base)]
    finally:
        shutil.rmtree(base, ignore_errors=True)


def bad_input() -> list[Row]:
    """Every case of `docs/errors.md`, tried."""
    print("bench-whole: bad input", flush=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/bad_input",
            "-k",
            "test_bad_input_is_one_line",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    test = "pytest tests/bad_input"
    return [
        row("bad inputs tried, each one clear line", counts.get("passed", 0), "", ">= 40", test),
        row(
            "of these with a trace, or with a changed output or registry",
            counts.get("failed", 0) + counts.get("error", 0),
            "",
            "<= 0",
            test,
        ),
    ]


def promotion(base: Path) -> list[Row]:
    """The time of a promotion over a champion and of a rollback, on digits as it comes."""
    print("bench-whole: promote and rollback", flush=True)
    folder = clone(base / "promotion")
    call([*STILLHOUSE, "run"], folder)
    act(folder, "promote", "1")
    small(folder, {"requirements": {"bytes": 32768}})
    commit(folder, "Ask for less")
    call([*STILLHOUSE, "run"], folder)
    up, down = [], []
    for _ in range(5):
        up.append(seconds([*STILLHOUSE, "promote", "2", *WORDS], folder))
        down.append(seconds([*STILLHOUSE, "rollback", *WORDS], folder))
    return [
        row("promote, over a champion", sorted(up)[2], "s", "<= 15", "stillhouse promote", 5),
        row("rollback", sorted(down)[2], "s", "<= 5", "stillhouse rollback", 5),
    ]
