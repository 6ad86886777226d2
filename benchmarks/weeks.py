"""Twelve weekly retrainings on a folder of images that grows, as a schedule fires them.

Each is a workspace at one pinned commit; every fourth approved student is promoted, and once a
month what is old is freed. No test row of the first week may ever be trained on.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.clone import SMALL, STILLHOUSE, act, call, clone, commit, small
from benchmarks.table import Row, row

WEEKS = 12
FIRST, MORE = 900, 75  # images
FIRE = (
    "from flows.deployment import fire; from flows.state import adopt, find_checkout; import sys; "
)
FIRE += "c = find_checkout(); adopt(c); sys.exit(fire(c, 'HEAD').code)"


def rows(base: Path) -> list[Row]:
    """Legality, leakage, disk."""
    print(f"bench-whole: {WEEKS} weeks", flush=True)
    folder, photos = clone(base / "weeks"), base / "photos"
    small(folder, SMALL, {"data": {"source": "images", "path": "../photos"}})
    commit(folder, "Retrain on photos")
    first: set[str] = set()
    legal = leaked = 0
    sizes, versions = [], []
    for week in range(1, WEEKS + 1):
        _grow(photos, week)
        done = call([STILLHOUSE[0], "-c", FIRE], folder)
        newest = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        trained = _rows(newest / "data/train.parquet")
        first = first or _rows(newest / "data/test.parquet")
        leaked += len(first & trained)
        legal += _legal(folder, newest, done.returncode)
        if week % 4 == 1 and done.returncode == 0:
            act(folder, "promote", str(_newest_version(folder)))
        before = _bytes(folder)
        if week % 4 == 0:
            call([*STILLHOUSE, "gc", "--older-than", "0"], folder)
        sizes.append((before, _bytes(folder)))
        versions.append(_newest_version(folder))
        print(
            f"  week {week}: {len(trained)} training rows, {sizes[-1][1] / 1e6:.0f} MB", flush=True
        )
    call([*STILLHOUSE, "history"], folder)
    command, runs = "a firing of stillhouse schedule", WEEKS
    kept = [after for before, after in sizes if after < before]
    return [
        row(
            "weekly runs on growing data that ended legally",
            legal,
            "",
            f">= {WEEKS}",
            command,
            runs,
        ),
        row("test rows of the first week ever trained on", leaked, "", "<= 0", command, runs),
        row("disk after four weeks, unfreed", sizes[3][0] / 1e6, "MB", "", "du"),
        row("disk after four weeks and gc", kept[0] / 1e6, "MB", "", "stillhouse gc"),
        row("disk after eight weeks and gc", kept[1] / 1e6, "MB", "", "stillhouse gc"),
        row("disk after twelve weeks and gc", kept[2] / 1e6, "MB", "", "stillhouse gc"),
        row(
            "growth per registered version between the first gc and the last",
            (kept[2] - kept[0]) / 1e6 / max(1, versions[-1] - versions[3]),
            "MB",
            "<= 10",
            "stillhouse gc",
        ),
        row(
            "workspaces left after the last gc",
            len(list((folder / "runs").iterdir())),
            "",
            "<= 0",
            "stillhouse gc",
        ),
    ]


def _grow(photos: Path, week: int) -> None:
    """Write this week's images; those of former weeks stay."""
    content = load_digits()
    start = 0 if week == 1 else FIRST + MORE * (week - 2)
    for number in range(start, FIRST + MORE * (week - 1)):
        folder = photos / str(content.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (content.images[number] * 15).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def _rows(path: Path) -> set[str]:
    return set(pq.read_table(path, columns=["row"])["row"].to_pylist())


def _legal(folder: Path, workspace: Path, code: int) -> bool:
    """Judged to the end, sealed from a tree as committed, whole, and registered if approved."""
    verdict = json.loads((workspace / "reports/student/verdict.json").read_text())
    subject = json.loads((workspace / "evidence/student/subject.json").read_text())["digest"]
    bundle = folder / ".stillhouse/bundles" / f"student-{subject[:12]}"
    manifest = json.loads((bundle / "manifest.json").read_text())
    whole = call([*STILLHOUSE, "verify", str(bundle)], folder).returncode == 0
    agreed = verdict["approved"] == (code == 0)
    return whole and agreed and not manifest["circumstances"]["dirty"]


def _newest_version(folder: Path) -> int:
    with sqlite3.connect(folder / ".stillhouse/mlflow.db") as database:
        asked = "SELECT max(version) FROM model_versions WHERE name = 'digits-candidates'"
        return int(database.execute(asked).fetchone()[0] or 0)


def _bytes(folder: Path) -> int:
    """All that the checkout takes on disk; hard links count once."""
    seen = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            state = path.stat()
            seen[state.st_ino] = state.st_size
    return sum(seen.values())
