"""What the stages of a checkout left behind, read from `dvc.lock` and the files that it names.

Plain values for whoever projects them: keys, parameters, metrics, curves, artefacts. Knows nothing
of MLflow, never imports DVC. A stage counts only as locked: its files by their MD5, its folders
(models, predictions) by their number of files and bytes alone, which tells a stage that is half
done from a whole one, not an edit that keeps the size. The seal digests every file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from flows.recovery import SAFE_LOADER
from tasks.core.errors import DataError
from tasks.core.files import digest, read_json

Entries = dict[str, dict[str, Any]]

# Reports, cards, tables, plots: no data, no weights.
READABLE = {".csv", ".json", ".jsonl", ".md", ".png", ".svg"}
RAW = "data/raw"  # the input of the DAG, tracked beside it
LARGEST = 2**20  # bytes of an artefact worth showing


@dataclass(frozen=True)
class Outputs:
    """One finished stage. `artefacts` are relative to the checkout's root."""

    stage: str
    key: str
    params: dict[str, str]
    metrics: dict[str, float]
    history: bytes
    artefacts: tuple[PurePosixPath, ...]


def read_lock(root: Path) -> Entries:
    """The entries of `dvc.lock`, by stage name; a missing or torn file is a `DataError`."""
    path = root / "dvc.lock"
    try:
        content = yaml.load(path.read_bytes(), SAFE_LOADER)  # noqa: S506
        return {str(name): dict(entry) for name, entry in content["stages"].items()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `stillhouse run` or `dvc repro`") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"{path}: not a whole lock file; restore it from git") from None


def lock_key(entries: Entries) -> str:
    """The key of a whole run: the digest of every lock entry."""
    return digest(entries)


def lock_objects(entries: Entries) -> dict[str, str]:
    """Path -> MD5 of everything in DVC's cache that the lock names: outs of stages, and the raw
    data that were taken in. Other stages may have been locked with former ones.

    >>> out = {"path": "data/a.parquet", "md5": "0a"}
    >>> raw = {"path": "data/raw", "md5": "0b.dir"}
    >>> lock_objects({"ingest": {"deps": [raw, {"path": "tasks", "md5": "0c"}], "outs": [out]}})
    {'data/a.parquet': '0a', 'data/raw': '0b.dir'}
    """
    outs = [out for entry in entries.values() for out in entry.get("outs", [])]
    raw = [d for d in entries.get("ingest", {}).get("deps", []) if d["path"] == RAW]
    return {str(o["path"]): str(o["md5"]) for o in sorted([*outs, *raw], key=lambda o: o["path"])}


def history_path(stage: str) -> PurePosixPath | None:
    """Where a training stage writes its curves; None for the others.

    >>> history_path("distill@student")
    PurePosixPath('models/student/history.jsonl')
    >>> history_path("judge@student") is None
    True
    """
    name, _, item = stage.partition("@")
    model = "teacher" if name == "teach" else item if name == "distill" else ""
    return PurePosixPath("models", model, "history.jsonl") if model else None


def curves(history: bytes) -> Iterator[tuple[int, dict[str, float]]]:
    """Epoch and numbers of each whole line of a `history.jsonl`.

    >>> list(curves(b'{"epoch": 1, "loss": 0.5}\\n{"epoch": 2, "lo'))
    [(1, {'loss': 0.5})]
    """
    for line in history[: history.rfind(b"\n") + 1].splitlines():
        numbers = figures(json.loads(line))
        yield int(numbers.pop("epoch")), numbers


def figures(value: Any, prefix: str = "") -> dict[str, float]:
    """Every finite number in a report, under dotted keys; a list counts if its items have names.

    >>> figures({"kept": 0.99, "gates": [{"name": "bytes", "passed": True}]})
    {'kept': 0.99, 'gates.bytes.passed': 1.0, 'gates_passed': 1.0, 'gates': 1.0}
    """
    if isinstance(value, bool | int | float):
        return {prefix: float(value)} if math.isfinite(value) else {}
    if isinstance(value, list):
        value = {item["name"]: item for item in value if isinstance(item, dict) and "name" in item}
    if not isinstance(value, dict):
        return {}
    found: dict[str, float] = {}
    for key, inner in value.items():
        at = f"{prefix}.{key}" if prefix else str(key)
        found |= figures(inner, re.sub(r"[^\w\-./: ]", "_", at))
        if key == "gates" and isinstance(inner, list):
            found[f"{at}_passed"] = float(sum(bool(g.get("passed")) for g in inner))
            found[at] = float(len(inner))
    return found


def flat(params: Any, prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted keys and text.

    >>> flat({"teach": {"seed": 0, "widths": [8, 16]}})
    {'teach.seed': '0', 'teach.widths': '[8, 16]'}
    """
    if not isinstance(params, dict):
        return {prefix: params if isinstance(params, str) else json.dumps(params)}
    found: dict[str, str] = {}
    for key, inner in params.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def flat_params(entry: dict[str, Any]) -> dict[str, str]:
    """The parameters that a stage was locked with."""
    found: dict[str, str] = {}
    for values in entry.get("params", {}).values():
        found |= flat(values)
    return found


def read_outputs(root: Path, stage: str, entry: dict[str, Any]) -> Outputs | None:
    """What `stage` left behind; None where its files and folders are not as locked."""
    outs = entry.get("outs", [])
    if not all(_present(root / out["path"], out) for out in outs):
        return None
    artefacts = tuple(path for out in outs for path in _shown(root, PurePosixPath(out["path"])))
    metrics: dict[str, float] = {}
    for path in artefacts:
        if path.suffix == ".json":
            metrics |= figures(read_json(root / path), _prefix(path, outs))
    history = history_path(stage)
    lines = (root / history).read_bytes() if history and (root / history).is_file() else b""
    return Outputs(stage, digest(entry), flat_params(entry), metrics, lines, artefacts)


def _present(path: Path, out: dict[str, Any]) -> bool:
    """A file has the locked MD5, a folder the locked number of files and bytes."""
    if path.is_file():
        content = path.read_bytes()
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == out.get("md5")
    sizes = [p.stat().st_size for p in path.rglob("*") if p.is_file()]
    return path.is_dir() and (len(sizes), sum(sizes)) == (out.get("nfiles"), out.get("size"))


def _shown(root: Path, out: PurePosixPath) -> Iterator[PurePosixPath]:
    """The readable files of an out: itself, or the top of its folder."""
    path = root / out
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and file.suffix in READABLE and file.stat().st_size <= LARGEST:
            yield PurePosixPath(file.relative_to(root).as_posix())


def _prefix(path: PurePosixPath, outs: list[dict[str, Any]]) -> str:
    """Reports speak for themselves; what was measured and what lies in a folder says its name."""
    if path.parts[0] == "measured":
        return "measured"
    return "" if any(out["path"] == str(path) for out in outs) else path.stem
