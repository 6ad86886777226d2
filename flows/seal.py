"""Seal a judged student: its evidence, copied whole, with the circumstances that made it.

A bundle is named after its subject. Sealing the same subject again keeps the first manifest, unless
a clean tree explains now what was sealed from a changed one, or the same bytes were judged by other
thresholds since. Nothing here changes the evidence or decides about it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows import repository
from flows.bundle import MANIFEST, Circumstances, Manifest, read_manifest, thresholds, verify
from flows.outputs import Entries, flat_params, lock_key, lock_objects, read_lock
from flows.repository import Tree, tree
from flows.state import Checkout
from tasks.core.cost import cpu
from tasks.core.errors import DataError
from tasks.core.files import read_json, write_json
from tasks.core.params import check
from tasks.judge.subject import SUBJECT, Subject
from tasks.judge.verdict import Measured, read_verdict

__all__ = ["latest", "seal", "verify"]

PACKAGES = (
    "cleanlab",
    "dvc",
    "great-expectations",
    "mlflow",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "prefect",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
)  # what can change a result; constraints.txt, at the commit, names the rest

LISTED = 20  # changed files that a manifest names


def seal(checkout: Checkout, student: str, begun: Tree | None = None) -> Path:
    """Copy `evidence/STUDENT/` and a manifest to `.stillhouse/bundles/STUDENT-<digest12>/`.

    `begun`: the working tree when the run began; if it has changed since, no commit explains what
    was made. The bundle is complete or absent. A `DataError` says what the evidence lacks.
    """
    evidence = checkout.root / "evidence" / student
    path = evidence / SUBJECT
    subject = check(Subject, read_json(path), where=str(path))
    bundle = checkout.bundles / f"{student}-{subject.digest[:12]}"
    if bundle.exists():
        _refuse(bundle, verify(bundle), "move it away and seal again")
        _seal_again(checkout, student, bundle, begun)
    else:
        checkout.bundles.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(subject=subject, circumstances=_circumstances(checkout, student, begun))
        with tempfile.TemporaryDirectory(dir=checkout.bundles, prefix=".sealing-") as scratch:
            made = Path(scratch) / bundle.name
            shutil.copytree(evidence, made)
            write_json(made / MANIFEST, manifest.model_dump(mode="json"))
            _refuse(evidence, verify(made), "run the judge again")
            _to_disk(made)
            try:
                made.replace(bundle)
            except OSError:
                if not bundle.exists():  # else another process has just sealed the same
                    raise
    _refuse(bundle, verify(bundle), "move it away and seal again")
    return bundle


def _seal_again(checkout: Checkout, student: str, bundle: Path, begun: Tree | None) -> None:
    """A new manifest, where a clean tree explains what was sealed from a changed one, or where the
    same bytes were judged by other thresholds since."""
    former = read_manifest(bundle)
    now = _circumstances(checkout, student, begun)
    other = former.circumstances.thresholds != now.thresholds
    if not now.dirty and (former.circumstances.dirty or other):
        again = Manifest(subject=former.subject, circumstances=now)
        write_json(bundle / MANIFEST, again.model_dump(mode="json"))


def latest(checkout: Checkout, student: str) -> Path | None:
    """The bundle of today's evidence, else the one sealed last; None if there is none."""
    name = re.compile(re.escape(student) + r"-[0-9a-f]{12}")
    found = [path for path in checkout.bundles.glob("*") if name.fullmatch(path.name)]
    subject = checkout.root / "evidence" / student / SUBJECT
    if subject.is_file():
        today = f"{student}-{str(read_json(subject).get('digest'))[:12]}"
        found = [path for path in found if path.name == today] or found
    return max(found, key=lambda path: read_manifest(path).circumstances.sealed_at, default=None)


def _refuse(place: Path, problems: list[str], remedy: str) -> None:
    if problems:
        raise DataError(f"{place}: {'; '.join(problems[:3])}; {remedy}")


def _circumstances(checkout: Checkout, student: str, begun: Tree | None) -> Circumstances:
    """What is true here and now and need not be elsewhere."""
    verdict = read_verdict(checkout.root / "reports" / student / "verdict.json")
    measured, here = verdict.measured, cpu()
    elsewhere = measured is not None and measured.cpu != here
    now, entries = tree(checkout.root), read_lock(checkout.root)
    changed = now.changes
    if begun is not None and begun != now:
        changed = ("the working tree, while the run was at work", *(changed or ()))
    return Circumstances(
        commit=now.commit,
        branch=repository.branch(checkout.root),
        dirty=changed != (),
        changes=(changed or ())[:LISTED],
        lock=lock_key(entries),
        objects=lock_objects(entries),
        thresholds=_thresholds(entries, student),
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        cpu=here,
        sealed_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        measured=measured,
        measured_again=_measure_again(checkout, student) if elsewhere else None,
    )


def _thresholds(entries: Entries, student: str) -> dict[str, str]:
    """The parameters that decided, as the student's judge and its stress families were locked."""
    used = flat_params(entries.get(f"judge@{student}", {}))
    for family in json.loads(used.get("stress.families", "[]")):
        used |= flat_params(entries.get(f"stress@{student}-{family}", {}))
    return thresholds(used)


def _measure_again(checkout: Checkout, student: str) -> Measured:
    """The judge's measurement on this CPU, in a process of its own that stands in the checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "measured.json"
        command = [sys.executable, "-m", "flows.remeasure", student, str(result)]
        done = subprocess.run(
            command,
            cwd=checkout.root,
            env=checkout.environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"{student}: its latency was not measured on this CPU ({last})")
        return check(Measured, read_json(result), where=f"{student}: measured again")


def _to_disk(folder: Path) -> None:
    """Flush the files of `folder`, so that its final name never stands for less than all of it."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
