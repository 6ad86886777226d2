"""Seal a judged student: its evidence, copied whole, with the circumstances that made it.

A bundle is named after its subject. Sealing the same subject again keeps the first manifest.
Nothing here changes the evidence or decides about it.
"""

from __future__ import annotations

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

from flows.bundle import MANIFEST, Circumstances, Manifest, read_manifest, verify
from flows.outputs import lock_key, read_lock
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


def seal(checkout: Checkout, student: str) -> Path:
    """Copy `evidence/STUDENT/` and a manifest to `.stillhouse/bundles/STUDENT-<digest12>/`.

    The bundle is complete or absent. A `DataError` says what the evidence lacks.
    """
    evidence = checkout.root / "evidence" / student
    path = evidence / SUBJECT
    subject = check(Subject, read_json(path), where=str(path))
    bundle = checkout.bundles / f"{student}-{subject.digest[:12]}"
    if not bundle.exists():
        checkout.bundles.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(subject=subject, circumstances=_circumstances(checkout, student))
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


def _circumstances(checkout: Checkout, student: str) -> Circumstances:
    """What is true here and now and need not be elsewhere."""
    verdict = read_verdict(checkout.root / "reports" / student / "verdict.json")
    measured, here = verdict.measured, cpu()
    elsewhere = measured is not None and measured.cpu != here
    return Circumstances(
        commit=_git(checkout.root, "rev-parse", "HEAD"),
        branch=_git(checkout.root, "branch", "--show-current"),
        dirty=_git(checkout.root, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock") != "",
        lock=lock_key(read_lock(checkout.root)),
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        cpu=here,
        sealed_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        measured=measured,
        measured_again=_measure_again(checkout, student) if elsewhere else None,
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers; None where there is no git, no repository or no commit."""
    program = shutil.which("git")
    if program is None:
        return None
    asked = subprocess.run([program, *arguments], cwd=root, capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else None


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
