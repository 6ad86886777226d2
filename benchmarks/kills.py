"""`kill -9` at random instants of a run, a promotion and a rollback; the next command ends right.

After each kill one command is typed. What it leaves is compared with what an undisturbed one
leaves: the same evidence, no second version, no process that works on, nothing half-written, and a
ledger and a registry that agree.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil

from benchmarks.clone import (
    SMALL,
    STILLHOUSE,
    WORDS,
    act,
    call,
    clone,
    commit,
    seconds,
    small,
)
from benchmarks.table import Row, row

KILLS = 20
OUTS = ("models", "measured", "reports", "ship", "evidence", "dvc.lock")


def rows(base: Path) -> list[Row]:
    """One row per command that was killed: after how many kills the next one ended right."""
    folder = clone(base / "kills")
    small(folder, SMALL)
    commit(folder, "Shrink")
    whole = seconds([*STILLHOUSE, "run"], folder)
    if _versions(folder, "digits-candidates") != 1:
        raise RuntimeError("the shrunk student is not approved, so nothing can be told")
    print(f"bench-whole: {KILLS} kills of a run of {whole:.0f} s", flush=True)
    right = sum(_killed_run(folder, instant) for instant in _instants(whole, seed=0))
    act(folder, "promote", "1")
    small(folder, {"requirements": {"bytes": 32768}})
    commit(folder, "Ask for less")
    call([*STILLHOUSE, "run"], folder)
    return [
        _row("run", right),
        _row("promote", _killed_acts(folder, "promote")),
        _row("rollback", _killed_acts(folder, "rollback")),
    ]


def _row(what: str, right: int) -> Row:
    said = f"kill -9 of {what} at random instants: the next command ended right"
    return row(said, right, f"of {KILLS}", f">= {KILLS}", f"stillhouse {what}", KILLS)


def _instants(whole: float, seed: int) -> list[float]:
    chance = random.Random(seed)  # noqa: S311 - no secret
    return [chance.uniform(0.05, whole) for _ in range(KILLS)]


def _kill(command: list[str], folder: Path, instant: float) -> None:
    """Start `command` and kill its process, and nothing that it started, after `instant` s."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    time.sleep(instant)
    process.kill()
    process.wait()


def _kill_at_work(command: list[str], folder: Path, delay: float) -> float:
    """Kill `command` a moment after its intent is in the ledger; returns when that was (s)."""
    ledger, start = folder / ".stillhouse/ledger.jsonl", time.perf_counter()
    before, quiet = ledger.stat().st_size, subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    while ledger.stat().st_size == before and process.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.wait()
    return time.perf_counter() - start


def _killed_run(folder: Path, instant: float) -> bool:
    """Everything is computed anew, killed, and run again."""
    before = _subject(folder)
    for out in OUTS:
        path = folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / ".dvc/cache/runs")
    _kill([*STILLHOUSE, "run"], folder, instant)
    done = call([*STILLHOUSE, "run"], folder)
    fresh = call([*STILLHOUSE, "status"], folder).stdout.endswith("nothing to do\n")
    right = (
        done.returncode == 0
        and fresh
        and _subject(folder) == before
        and _versions(folder, "digits-candidates") == 1
        and not _left(folder)
    )
    print(f"  killed after {instant:.1f} s: {'right' if right else 'WRONG'}", flush=True)
    return right


def _subject(folder: Path) -> str:
    content = json.loads((folder / "evidence/student/subject.json").read_text())
    return str(content["digest"])


def _versions(folder: Path, name: str) -> int:
    with sqlite3.connect(folder / ".stillhouse/mlflow.db") as database:
        asked = "SELECT count(*) FROM model_versions WHERE name = ? AND current_stage != ?"
        found = database.execute(asked, (name, "Deleted_Internal")).fetchone()
    return int(found[0])


def _left(folder: Path) -> list[str]:
    """Processes that still work in the clone, records of such, and half-written files."""
    found = [str(path) for path in (folder / ".stillhouse/running").glob("*.json")]
    found += [str(p) for p in (folder / ".stillhouse/bundles").glob(".sealing-*")]
    for top in ("data", "models", "ship", "reports", "evidence"):
        found += [str(path) for path in (folder / top).rglob(".*.*") if path.name != ".gitignore"]
    for process in psutil.process_iter():
        try:
            inside = process.cwd().startswith(str(folder))
            if inside and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def _killed_acts(folder: Path, what: str) -> int:
    """Kill a promotion (or a rollback) of version 2 over 1; `history` settles; then go back."""
    command = [*STILLHOUSE, what, *(["2"] if what == "promote" else []), *WORDS]
    if what == "rollback":
        act(folder, "promote", "2")
    whole = seconds(command, folder)
    act(folder, *(["rollback"] if what == "promote" else ["promote", "2"]))
    print(f"bench-whole: {KILLS} kills of a {what} of {whole:.1f} s", flush=True)
    right = 0
    for number, instant in enumerate(_instants(whole, seed=len(what))):
        if number % 2:  # every other one while ledger and registry are being changed
            instant = _kill_at_work(command, folder, number / 100)
        else:
            _kill(command, folder, instant)
        champion, agree = _history(folder)
        legal = agree and champion in (1, 2) and _versions(folder, "digits") <= 2
        right += legal
        print(f"  killed after {instant:.1f} s: champion {champion}, {legal}", flush=True)
        if champion == (2 if what == "promote" else 1):
            act(folder, *(["rollback"] if what == "promote" else ["promote", "2"]))
    if what == "rollback":
        act(folder, "rollback")
    return right


def _history(folder: Path) -> tuple[int, bool]:
    """The champion's candidate version; whether the ledger is closed and the registry agrees."""
    done = call([*STILLHOUSE, "history", "--json"], folder)
    content = json.loads(done.stdout)
    closed = content["lines"][-1]["step"] != "intent"
    champion = content["champions"]["digits"]["champion"][-1]
    return champion["candidate"], closed and not content["problems"]
