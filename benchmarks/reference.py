"""The trained Fashion-MNIST models that other benchmarks start from: committed, small, checked.

`standard` is the chain of `make bench-fashion-mnist`, `robust` that of `make bench-robust`. Weights
are kept as float16 (half the bytes; `make bench-distill` shows what that changes), so a reference's
digest is that of its own file. `STILLHOUSE_REFERENCE=write` before the command replaces them;
without that, what was trained is compared with them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.table import Row, row
from tasks.core.errors import DataError
from tasks.core.files import read_json, sha256, write_json
from tasks.core.metrics import accuracy
from tasks.core.models import WEIGHTS, read_spec, read_weights, write_spec, write_weights
from tasks.core.params import Section, check
from tasks.core.session import open_session, score
from tasks.core.tables import Table
from tasks.modalities.vision.scorers import load_scorer

FOLDER = Path(__file__).parent / "reference"
STANDARD, ROBUST = FOLDER / "standard", FOLDER / "robust"
WRITE = "STILLHOUSE_REFERENCE"
SHIPPED = "model.onnx"
KEPT = ("teacher", "student")


class Reference(Section):
    """`reference.json`: test accuracy and the SHA-256 of every file, and how they were made."""

    format: str = "stillhouse/reference/1"
    command: str
    accuracy: dict[str, float]  # of float32 weights, as trained
    files: dict[str, str] = Field(default_factory=dict)


def compared(folder: Path, run: Path, reached: dict[str, float], command: str) -> list[Row]:
    """Rows that set a finished run beside the references in `folder`; with
    `STILLHOUSE_REFERENCE=write`, or the first time, its models become the references before."""
    made = os.environ.get(WRITE) == "write" or not folder.is_dir()
    if made:
        write(folder, run, reached, command)
    known = read(folder)
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    rows = [row("all committed references", size / 1e6, "MB", "<= 3", command)]
    if made:
        return rows  # they are equal to themselves
    worst = max(abs(known.accuracy[name] - reached[name]) for name in KEPT)
    same = all(_halved(run / "models" / n) == known.files[f"{n}/{WEIGHTS}"] for n in KEPT)
    return [
        row("retrained models: largest change of test accuracy against the references", worst, "",
            "<= 0.005", command),
        row("retrained models: weights identical to the references", float(same), "", "", command),
        *rows,
    ]  # fmt: skip


def write(folder: Path, run: Path, reached: dict[str, float], command: str) -> None:
    """Keep the chain of a finished run as the references in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in KEPT:
        spec = read_spec(run / "models" / name)
        digest = write_weights(folder / name / WEIGHTS, _half(run / "models" / name))
        write_spec(folder / name, spec.model_copy(update={"sha256": digest}))
        if (run / "ship" / name / SHIPPED).is_file():
            shutil.copyfile(run / "ship" / name / SHIPPED, folder / name / SHIPPED)
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*.*"))}
    content = Reference(command=command, accuracy=reached, files=files)
    write_json(folder / "reference.json", content.model_dump(mode="json"))


def read(folder: Path) -> Reference:
    """The page of the references in `folder`; every file is checked against its digest."""
    path = folder / "reference.json"
    known = check(Reference, read_json(path), where=str(path))
    for name, digest in known.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise DataError(
                f"{folder / name}: is not the file that {path} names; check it out again"
            )
    return known


def floats(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of model `name` of the references in `folder`, as float32."""
    weights = read_weights(folder / name / WEIGHTS)
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}


def given(folder: Path) -> Path:
    """The standard teacher as one that was trained elsewhere, in a folder below `folder`."""
    spec, into = read_spec(STANDARD / "teacher"), folder / "teacher"
    write_weights(into / WEIGHTS, floats(STANDARD, "teacher"))
    known = spec.model_dump(mode="json", include={"architecture", "normalisation"})
    said = {"classes": list(spec.data.classes), "shape": list(spec.data.shape), **known}
    write_json(into / "spec.json", said)
    return into


def rescored(test: Table, command: str) -> list[Row]:
    """Test accuracy of every committed model, float and shipped."""
    return [line for folder in (STANDARD, ROBUST) for line in _rescored(folder, test, command)]


def _rescored(folder: Path, test: Table, command: str) -> list[Row]:
    known = read(folder)
    rows: list[Row] = []
    for name in KEPT:
        trained = known.accuracy[name]
        logits = load_scorer(folder / name)(test.images)
        rows.append(
            _scored(
                f"{folder.name} reference {name}, float16 weights", logits, test, trained, command
            )
        )
        if (folder / name / SHIPPED).is_file():
            logits, _ = score(open_session(folder / name / SHIPPED), test.images)
            rows.append(
                _scored(
                    f"{folder.name} reference {name}, as shipped", logits, test, trained, command
                )
            )
    return rows


def _scored(
    what: str, logits: NDArray[np.float32], test: Table, trained: float, command: str
) -> Row:
    """Accuracy beside that of the float32 weights, as trained."""
    return row(f"{what}: test accuracy", accuracy(logits, test.labels), "", "", command,
               baseline=trained)  # fmt: skip


def _half(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v.half() if v.is_floating_point() else v
        for k, v in read_weights(folder / WEIGHTS).items()
    }


def _halved(folder: Path) -> str:
    """SHA-256 of the weights in `folder` as a reference would keep them."""
    with tempfile.TemporaryDirectory() as scratch:
        return write_weights(Path(scratch) / WEIGHTS, _half(folder))
