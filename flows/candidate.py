"""What the registry holds of a version, copied and verified: its sealed bundle, and the very file
that a consumer gets. Changes nothing in the registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from flows.bundle import Manifest, read_manifest, verify
from flows.ledger import Model
from flows.registry import ALIAS, ALIAS_TAG, SUBJECT, versions_of
from flows.store import Store
from tasks.core.errors import DataError
from tasks.core.files import sha256
from tasks.judge.verdict import Verdict, read_verdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
FILES = {  # of a version: one model and what describes it
    "MLmodel",
    "conda.yaml",
    "input_example.json",
    "model.onnx",
    "python_env.yaml",
    "requirements.txt",
    "serving_input_example.json",
}


@dataclass(frozen=True)
class Candidate:
    """A version of `<name>-candidates` and what the registry holds of it, copied to a scratch
    folder: `bundle` with its `manifest` and `verdict`, and `file`, the model a consumer gets."""

    version: ModelVersion
    bundle: Path
    file: Path
    manifest: Manifest
    verdict: Verdict

    @property
    def alias(self) -> str:
        """The champion's alias in this student's line: `champion`, or `champion-tiny` beside it."""
        return str(self.version.tags.get(ALIAS_TAG, ALIAS)).replace(ALIAS, CHAMPION, 1)

    @property
    def model(self) -> Model:
        """As the ledger names it."""
        return Model(
            student=self.version.tags["stillhouse.student"],
            subject=self.manifest.subject.digest,
            sha256=self.manifest.subject.files["model.onnx"],
            bundle=self.bundle.name,
            candidate=int(self.version.version),
        )


def fetch(store: Store, name: str, number: int, into: Path) -> Candidate:
    """A candidate with its bundle verified, and its file proven to be the bundle's.

    A `DataError` says what is missing, changed or not of the kind that is registered here.
    """
    version = _version(store, f"{name}-candidates", number)
    what = f"{name}-candidates version {number}"
    if SUBJECT not in version.tags or "stillhouse.bundle" not in version.tags:
        raise DataError(f"{what}: was not registered by `stillhouse run`; promote one that was")
    bundle = _bundle(store, version, version.tags[SUBJECT], into, what)
    manifest = read_manifest(bundle)
    file = _file(store, version, manifest.subject.files["model.onnx"], into, what)
    return Candidate(version, bundle, file, manifest, read_verdict(bundle / "verdict.json"))


def fetch_champion(store: Store, name: str, model: Model, into: Path) -> tuple[Path, Path]:
    """Bundle and file of a model of the ledger, as its version of `<name>` holds them."""
    found = versions_of(store, name, model.subject)
    if not found:
        raise DataError(
            f"{name}: {model.bundle} is not in the registry any more; `stillhouse run` puts it back"
        )
    what = f"{name} version {found[0].version}"
    bundle = _bundle(store, found[0], model.subject, into, what)
    return bundle, _file(store, found[0], model.sha256, into, what)


def _version(store: Store, name: str, number: int) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = sorted(int(v.version) for v in store.client.search_model_versions(f"name = '{name}'"))
    there = f"there is {', '.join(map(str, known))}" if known else "there is none; `stillhouse run`"
    raise DataError(f"{name}: no version {number}; {there}")


def _bundle(store: Store, version: ModelVersion, subject: str, into: Path, what: str) -> Path:
    """A sealed bundle from MLflow, verified; a `DataError` names the file that fails."""
    from mlflow.exceptions import MlflowException

    into.mkdir(parents=True, exist_ok=True)
    place = version.tags["stillhouse.bundle"]
    try:
        bundle = Path(store.client.download_artifacts(str(version.run_id), place, str(into)))
    except (MlflowException, OSError) as error:
        raise DataError(f"{what}: incomplete, its bundle {place} is not in MLflow") from error
    problems = verify(bundle)
    if problems:
        raise DataError(f"{what}: {bundle.name}: {problems[0]}; move it away and seal it again")
    if read_manifest(bundle).subject.digest != subject:
        raise DataError(f"{what}: its bundle is of another subject; restore MLflow's artefacts")
    return bundle


def _file(store: Store, version: ModelVersion, wanted: str, into: Path, what: str) -> Path:
    """The model as a consumer gets it: one ONNX file of SHA-256 `wanted`, and nothing that runs."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder = into / "served"
    folder.mkdir(parents=True, exist_ok=True)
    uri, tracking = f"models:/{version.name}/{version.version}", store.client.tracking_uri
    try:
        served = Path(download_artifacts(uri, dst_path=str(folder), tracking_uri=tracking))
    except (MlflowException, OSError) as error:
        raise DataError(f"{what}: incomplete, its model is not in MLflow") from error
    _require_plain(served, what)
    file = served / "model.onnx"
    if sha256(file) != wanted:
        raise DataError(f"{what}: its model.onnx is not the one that was judged; restore it")
    return file


def _require_plain(served: Path, what: str) -> None:
    """The version is the ONNX flavour with one file, as it was registered here."""
    there = {path.relative_to(served).as_posix() for path in served.rglob("*") if path.is_file()}
    there.discard("registered_model_meta")  # MLflow's note of where it was downloaded from
    if not {"MLmodel", "model.onnx"} <= there:
        raise DataError(f"{what}: incomplete, its model lacks model.onnx or MLmodel")
    if there - FILES:
        raise DataError(f"{what}: its model holds {min(there - FILES)}; register it again")
    try:
        flavours = yaml.safe_load((served / "MLmodel").read_text())["flavors"]
        function, onnx = flavours["python_function"], flavours["onnx"]
        plain = (
            set(flavours) == {"python_function", "onnx"}
            and function["loader_module"] == "mlflow.onnx"
            and function["data"] == onnx["data"] == "model.onnx"
            and not function.get("code")
            and not onnx.get("code")
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        plain = False
    if not plain:
        raise DataError(
            f"{what}: its MLmodel loads something else than model.onnx; register it again"
        )
