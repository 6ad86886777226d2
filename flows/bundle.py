"""A sealed bundle as a document: what its manifest says, and whether the files still say the same.

The manifest has two parts. The *subject* (SHA-256 of every file, one digest over them) is equal
between two builders: it is what is approved and registered. The *circumstances* (commit, packages,
CPU, times, what was measured) are not. Nothing here writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, JsonValue

from tasks.core.errors import StillhouseError
from tasks.core.files import digest, inside, read_json, sha256
from tasks.core.params import Section, check
from tasks.core.tables import Schema
from tasks.judge.subject import SUBJECT, Subject
from tasks.judge.verdict import Measured, read_verdict

MANIFEST = "manifest.json"
ESSENTIAL = ("model.onnx", "spec.json", "verdict.json")
KEPT = "stress/adversarial/kept.parquet"


class Circumstances(Section):
    """Where, when and on what a subject was sealed. `lock` is the key of its MLflow run.

    `dirty`: the working tree held `changes`, or there is no git to tell. `objects`: path -> MD5 in
    DVC's cache of all data and results that the subject came from. `thresholds`: what `stress`,
    `judge` and `requirements` were when it was judged. `measured_again`: the latencies on `cpu`,
    where the verdict's were measured on another one.
    """

    commit: str | None
    branch: str | None
    dirty: bool
    changes: tuple[str, ...] = ()
    lock: str
    objects: dict[str, str] = Field(default_factory=dict)
    thresholds: dict[str, str] = Field(default_factory=dict)
    python: str
    packages: dict[str, str]
    cpu: dict[str, JsonValue]
    sealed_at: str  # UTC, ISO 8601
    measured: Measured | None
    measured_again: Measured | None = None


class Manifest(Section):
    """`manifest.json`."""

    format: Literal["stillhouse/manifest/1"] = "stillhouse/manifest/1"
    subject: Subject
    circumstances: Circumstances


class Shipped(BaseModel):
    """Of `spec.json`, what tells whether the model is its own and takes the kept images."""

    sha256: str
    data: Schema


def thresholds(params: Mapping[str, str]) -> dict[str, str]:
    """Of flat parameters, those that decide. `judge.watts` only describes, and a family that is not
    in `stress.families` says nothing.

    >>> thresholds({"judge.margin": "0.02", "judge.watts": "10", "teach.seed": "0"})
    {'judge.margin': '0.02'}
    >>> thresholds({"stress.families": '["slices"]', "stress.slices.margin": "0.1",
    ...             "stress.fidelity.agreement": "0.9"})
    {'stress.families': '["slices"]', 'stress.slices.margin': '0.1'}
    >>> thresholds({"stress.families": "slices", "stress.slices.margin": "0.1"})  # no list
    {'stress.families': 'slices'}
    """
    families = _listed(params.get("stress.families", "[]"))

    def decides(key: str) -> bool:
        part, _, rest = key.partition(".")
        family, of_family, _ = rest.partition(".")
        if part == "stress":
            return not of_family or family in families
        return part in ("judge", "requirements") and key != "judge.watts"

    return {key: value for key, value in params.items() if decides(key)}


def _listed(text: str) -> list[object]:
    """The items of a JSON list; none of anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of `bundle`; a missing or malformed one is a one-line error."""
    path = bundle / MANIFEST
    return check(Manifest, read_json(path), where=str(path))


def read_shipped(bundle: Path) -> Shipped:
    """The shipped file's SHA-256 and data, as its `spec.json` states them."""
    return check(Shipped, read_json(bundle / "spec.json"), where=str(bundle / "spec.json"))


def verify(bundle: Path) -> list[str]:
    """What is wrong with a bundle, in words; empty if it is whole and means what it says."""
    try:
        subject = read_manifest(bundle).subject
        problems = [*_own_papers(bundle, subject), *_files(bundle, subject)]
        return problems or [*_model(bundle), *_kept(bundle)]
    except StillhouseError as error:
        return [str(error)]


def _own_papers(bundle: Path, subject: Subject) -> list[str]:
    """The digest recomputes, the judge's copy of the subject agrees, the essential is in it."""
    problems = [f"{name}: not in the subject" for name in ESSENTIAL if name not in subject.files]
    if digest(subject.files) != subject.digest:
        problems.append(f"{MANIFEST}: the subject's digest is not that of its files")
    for name in (MANIFEST, SUBJECT):
        if (bundle / name).is_symlink():
            problems.append(f"{name}: a link; only plain files are sealed")
    path = bundle / SUBJECT
    if not path.is_file():
        problems.append(f"{SUBJECT}: missing")
    elif check(Subject, read_json(path), where=str(path)) != subject:
        problems.append(f"{SUBJECT}: names another subject than {MANIFEST}")
    return problems


def _files(bundle: Path, subject: Subject) -> list[str]:
    """Each file that is missing, changed, linked, outside or not in the subject."""
    problems = []
    for name, stated in sorted(subject.files.items()):
        path = bundle / name
        if inside(bundle, path) != bundle.resolve() / name:
            problems.append(f"{name}: a link or a path in disguise; only plain files are sealed")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256(path) != stated:
            problems.append(f"{name}: its SHA-256 is not the sealed one; it was changed")
    known = {MANIFEST, SUBJECT, *subject.files}
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            problems.append(f"{name}: not in the subject; it was added")
    return problems


def _model(bundle: Path) -> list[str]:
    """The verdict and the spec speak of the model that lies beside them."""
    model = sha256(bundle / "model.onnx")
    problems = []
    if read_verdict(bundle / "verdict.json").student.sha256 != model:
        problems.append("verdict.json: judges another model than model.onnx")
    if read_shipped(bundle).sha256 != model:
        problems.append("spec.json: describes another model than model.onnx")
    return problems


def _kept(bundle: Path) -> list[str]:
    """The kept adversarial examples fool the model exactly as recorded."""
    path = bundle / KEPT
    if not path.is_file():
        return []
    from tasks.core.session import open_session, score

    data = read_shipped(bundle).data
    try:
        kept = pq.read_table(path, columns=["predicted", "pixels"])
        pixels = kept["pixels"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        images = pixels.reshape(-1, *data.shape)
        recorded = kept["predicted"].to_numpy()
        logits, _ = score(open_session(bundle / "model.onnx"), images)
        differs = int((logits.argmax(axis=1) != recorded).sum())
    except (pa.ArrowException, KeyError, ValueError) as error:
        return [f"{KEPT}: not a table of images of shape {data.shape} ({error})"]
    if differs:
        return [f"{KEPT}: {differs} of {len(recorded)} examples score otherwise than recorded"]
    return []
