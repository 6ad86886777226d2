"""Approved students as versions of `<name>-candidates`; the same subject is never a second version.

Any retraining may add here; only a promotion adds to `<name>`. A refused student is recorded by
`flows/tracking.py` and never registered.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.bundle import MANIFEST, Manifest, read_manifest, read_shipped, verify
from flows.state import Checkout
from flows.store import Store, opened, project_name
from tasks.core.errors import DataError
from tasks.core.files import digest, read_json
from tasks.core.tables import Schema
from tasks.judge.verdict import read_verdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

ALIAS = "candidate"  # of the student that ships, or of the first that does
SUBJECT = "stillhouse.subject"
ALIAS_TAG = "stillhouse.alias"  # the first alias of a student: which line of models it continues
COMMIT, DIRTY = "stillhouse.commit", "stillhouse.dirty"
THRESHOLDS = "stillhouse.thresholds"  # digest of the parameters that decided
NEEDED = ("mlflow", "numpy", "onnx", "onnxruntime")  # by a consumer that loads through MLflow


def register(checkout: Checkout, student: str, bundle: Path, run_id: str) -> int | None:
    """Make an approved student a version of `<name>-candidates`, under its aliases.

    Returns the version: a new one, or the one that holds this subject already. None if the verdict,
    or a latency measured again for the bundle, refuses it. A `DataError` if the bundle is not whole
    or is not what the verdict speaks of.
    """
    problems = verify(bundle)
    if problems:
        raise DataError(f"{bundle}: {problems[0]}; not registered; seal the student again")
    manifest = read_manifest(bundle)
    path = checkout.root / "reports" / student / "verdict.json"
    verdict = read_verdict(path)
    if verdict.student.sha256 != manifest.subject.files["model.onnx"]:
        raise DataError(f"{path}: judges another model than {bundle}; seal the student again")
    if not verdict.approved or _vetoed(manifest):
        return None
    with opened(checkout) as store:
        name = f"{project_name(checkout)}-candidates"
        own = aliases(student, checkout.shipped)
        tags = bundle_tags(student, bundle, manifest) | {ALIAS_TAG: own[0]}
        found = versions_of(store, name, manifest.subject.digest)
        number = int(found[0].version) if found else add(store, name, bundle, tags, run_id)
        if found:
            _bring_up_to_date(store, found[0], bundle, tags)
        for alias in own:
            store.client.set_registered_model_alias(name, alias, str(number))
    return number


def versions_of(store: Store, name: str, subject: str) -> list[ModelVersion]:
    """The versions of a registered model that hold a subject, by its digest."""
    asked = f"name = '{name}' and tags.`{SUBJECT}` = '{subject}'"
    return list(store.client.search_model_versions(asked))


def _bring_up_to_date(
    store: Store, version: ModelVersion, bundle: Path, tags: dict[str, str]
) -> None:
    """What may change for one subject: its place among the students, and the manifest, as
    `flows/seal.py` says."""
    changed = {ALIAS_TAG: tags[ALIAS_TAG]}
    other = version.tags.get(THRESHOLDS) != tags[THRESHOLDS]
    if tags[DIRTY] == "false" and (version.tags.get(DIRTY) == "true" or other):
        place = version.tags["stillhouse.bundle"]
        store.client.log_artifact(version.run_id, str(bundle / MANIFEST), place)
        changed |= {key: tags[key] for key in (COMMIT, DIRTY, THRESHOLDS)}
    for key, value in changed.items():
        if version.tags.get(key) != value:
            store.client.set_model_version_tag(version.name, version.version, key, value)


def aliases(student: str, shipped: Sequence[str]) -> tuple[str, ...]:
    """Where a consumer finds `student`: each name has one holder at a time.

    >>> aliases("student", ["student"])
    ('candidate',)
    >>> aliases("small", ["small", "tiny"]), aliases("tiny", ["small", "tiny"])
    (('candidate', 'candidate-small'), ('candidate-tiny',))
    """
    if len(shipped) < 2:
        return (ALIAS,)
    own = f"{ALIAS}-{student}"
    return (ALIAS, own) if student == shipped[0] else (own,)


def _vetoed(manifest: Manifest) -> bool:
    """A budget that was measured again, on the CPU of the seal, and missed there."""
    again = manifest.circumstances.measured_again
    return again is not None and not all(gate.passed for gate in again.gates)


def bundle_tags(student: str, bundle: Path, manifest: Manifest) -> dict[str, str]:
    """The digests by which a version is found, approved and traced."""
    data = read_json(bundle / "data.json")
    verdict = read_verdict(bundle / "verdict.json")
    return {
        SUBJECT: manifest.subject.digest,
        "stillhouse.student": student,
        "stillhouse.model_sha256": verdict.student.sha256,
        "stillhouse.teacher_sha256": verdict.teacher.sha256,
        "stillhouse.data": str(data["fingerprint"]["digest"]),
        COMMIT: manifest.circumstances.commit or "none",
        THRESHOLDS: digest(manifest.circumstances.thresholds),
        DIRTY: str(manifest.circumstances.dirty).lower(),
        "stillhouse.bundle": f"bundles/{bundle.name}",
    }


def add(store: Store, name: str, bundle: Path, tags: dict[str, str], run_id: str) -> int:
    """Log the bundle and the model, then create the version: it never points at half of either."""
    from mlflow.exceptions import MlflowException

    client = store.client
    client.log_artifacts(run_id, str(bundle), tags["stillhouse.bundle"])
    model = client.create_logged_model(
        store.experiment, name=tags["stillhouse.student"], source_run_id=run_id, tags=tags
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_model(bundle, folder)
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name, f"models:/{model.model_id}", run_id, tags=tags, model_id=model.model_id
    )
    return int(made.version)


def save_model(bundle: Path, folder: Path) -> None:
    """The shipped file in MLflow's ONNX flavour: the same bytes, and nothing that can execute."""
    import mlflow.onnx

    from tasks.core.session import check_onnx

    data = read_shipped(bundle).data
    mlflow.onnx.save_model(
        check_onnx(bundle / "model.onnx"),
        str(folder),
        signature=_signature(data),
        input_example={"input": example(data)},
        pip_requirements=[f"{package}=={version(package)}" for package in NEEDED],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    shutil.copyfile(bundle / "model.onnx", folder / "model.onnx")  # no serialiser has the last word


def _signature(data: Schema) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema as Tensors
    from mlflow.types import TensorSpec

    float32, boolean = np.dtype("float32"), np.dtype("bool")
    return ModelSignature(
        Tensors([TensorSpec(float32, (-1, *data.shape), "input")]),
        Tensors(
            [
                TensorSpec(float32, (-1, len(data.classes)), "logits"),
                TensorSpec(boolean, (-1,), "valid"),
            ]
        ),
    )


def example(data: Schema) -> NDArray[np.float32]:
    """One valid input (1, C, H, W) that is nobody's: a ramp over the declared range."""
    low, high = data.range
    ramp = np.linspace(low, high, int(np.prod(data.shape)), dtype=np.float32)
    return ramp.reshape(1, *data.shape)
