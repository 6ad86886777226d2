from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.bundle import read_manifest
from flows.registry import example, register
from flows.seal import seal
from flows.store import opened
from flows.tracking import project
from tasks.core.errors import DataError
from tasks.core.files import digest, read_json, sha256, tree_sha256, write_json
from tasks.core.reports import at_most
from tasks.core.tables import Schema

NAME = "trees-candidates"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MLFLOW_TRACKING_PASSWORD")


@pytest.fixture
def run_id(trees: Any) -> str:
    """The parent run of the project."""
    return project(trees.checkout)


def version(trees: Any, alias: str = "candidate") -> Any:
    with opened(trees.checkout) as store:
        return store.client.get_model_version_by_alias(NAME, alias)


def names(trees: Any) -> list[str]:
    with opened(trees.checkout) as store:
        return [model.name for model in store.client.search_registered_models()]


def test_an_approved_student_becomes_the_candidate_with_its_digests(
    trees: Any, run_id: str
) -> None:
    bundle = seal(trees.checkout, "student")

    number = register(trees.checkout, "student", bundle, run_id)

    candidate, manifest = version(trees), read_manifest(bundle)
    assert number == int(candidate.version) == 1
    assert candidate.run_id == run_id
    assert candidate.tags == {
        "stillhouse.subject": manifest.subject.digest,
        "stillhouse.student": "student",
        "stillhouse.model_sha256": sha256(bundle / "model.onnx"),
        "stillhouse.teacher_sha256": "7e" * 32,
        "stillhouse.data": "da" * 32,
        "stillhouse.commit": manifest.circumstances.commit or "none",
        "stillhouse.dirty": str(manifest.circumstances.dirty).lower(),
        "stillhouse.bundle": f"bundles/{bundle.name}",
        "stillhouse.alias": "candidate",
        "stillhouse.thresholds": digest(manifest.circumstances.thresholds),
    }


def test_a_version_holds_the_shipped_bytes_a_contract_and_nothing_that_executes(
    trees: Any, run_id: str, tmp_path: Path
) -> None:
    import mlflow

    bundle = seal(trees.checkout, "student")
    register(trees.checkout, "student", bundle, run_id)

    folder = Path(
        mlflow.artifacts.download_artifacts(
            f"models:/{NAME}@candidate", dst_path=str(tmp_path / "downloaded")
        )
    )
    info = mlflow.models.get_model_info(str(folder))
    assert (folder / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert {p.suffix for p in folder.rglob("*")} <= {"", ".onnx", ".json", ".yaml", ".txt"}
    assert info.signature.inputs.input_names() == ["input"]
    assert info.signature.inputs.inputs[0].shape == (-1, 3, 4, 5)
    assert info.signature.outputs.input_names() == ["logits", "valid"]
    assert info.flavors["onnx"]["providers"] == ["CPUExecutionProvider"]
    pinned = (folder / "requirements.txt").read_text().split()
    assert sorted(p.split("==")[0] for p in pinned) == ["mlflow", "numpy", "onnx", "onnxruntime"]
    saved = read_json(folder / "serving_input_example.json")["inputs"]["input"]
    assert np.array(saved, np.float32).shape == (1, 3, 4, 5)


def test_the_bundle_is_kept_with_the_run(trees: Any, run_id: str, tmp_path: Path) -> None:
    bundle = seal(trees.checkout, "student")
    register(trees.checkout, "student", bundle, run_id)

    with opened(trees.checkout) as store:
        place = store.client.download_artifacts(run_id, f"bundles/{bundle.name}", str(tmp_path))
    assert tree_sha256(Path(place)) == tree_sha256(bundle)


def test_registering_again_gives_the_same_version_and_logs_nothing(trees: Any, run_id: str) -> None:
    bundle = seal(trees.checkout, "student")
    first = register(trees.checkout, "student", bundle, run_id)
    before = trees.rows(), trees.artifacts()

    assert register(trees.checkout, "student", bundle, run_id) == first
    assert (trees.rows(), trees.artifacts()) == before


def test_another_student_is_another_version_and_the_last_approved_is_the_candidate(
    trees: Any, run_id: str, tmp_path: Path
) -> None:
    first = seal(trees.checkout, "student")
    shutil.copytree(trees.root, tmp_path / "before", ignore=shutil.ignore_patterns(".stillhouse"))
    register(trees.checkout, "student", first, run_id)
    trees.another_student()
    assert register(trees.checkout, "student", seal(trees.checkout, "student"), run_id) == 2
    assert int(version(trees).version) == 2

    back = replace(trees.checkout, root=tmp_path / "before")
    assert register(back, "student", first, run_id) == 1
    assert int(version(trees).version) == 1


@pytest.mark.parametrize(
    ("ship", "held", "missing"),
    [
        (["student"], {"candidate"}, "candidate-student"),
        (["student", "other"], {"candidate", "candidate-student"}, "candidate-other"),
        (["other", "student"], {"candidate-student"}, "candidate"),
    ],
)
def test_students_that_ship_together_do_not_take_each_others_alias(
    trees: Any, run_id: str, ship: list[str], held: set[str], missing: str
) -> None:
    trees.set_params(distill={"ship": ship})

    register(trees.checkout, "student", seal(trees.checkout, "student"), run_id)

    with opened(trees.checkout) as store:
        model = store.client.get_registered_model(NAME)
    assert set(model.aliases) == held
    assert missing not in model.aliases


def test_a_refused_student_is_recorded_and_not_registered(trees: Any) -> None:
    trees.judged(approved=False)
    trees.lock()
    run_id = project(trees.checkout)

    assert register(trees.checkout, "student", seal(trees.checkout, "student"), run_id) is None

    assert names(trees) == []
    (judge,) = trees.runs(stage="judge@student")
    assert judge.data.metrics["approved"] == 0
    assert judge.data.metrics["gates_passed"] == 1


def test_a_latency_missed_on_the_cpu_of_the_seal_vetoes(trees: Any, run_id: str) -> None:
    bundle = seal(trees.checkout, "student")
    manifest = read_json(bundle / "manifest.json")
    again = dict(manifest["circumstances"]["measured"])
    again["gates"] = [at_most("latency_ms", 3.0, 2.0, "median").model_dump(mode="json")]
    manifest["circumstances"]["measured_again"] = again
    write_json(bundle / "manifest.json", manifest)

    assert register(trees.checkout, "student", bundle, run_id) is None
    assert names(trees) == []


def test_a_changed_bundle_is_not_registered(trees: Any, run_id: str) -> None:
    bundle = seal(trees.checkout, "student")
    (bundle / "card.md").write_text("# better\n")

    with pytest.raises(DataError, match=r"card.md: its SHA-256 .*not registered"):
        register(trees.checkout, "student", bundle, run_id)
    assert names(trees) == []


def test_a_bundle_of_another_model_than_the_verdicts_is_not_registered(
    trees: Any, run_id: str
) -> None:
    bundle = seal(trees.checkout, "student")
    trees.another_student()

    with pytest.raises(DataError, match=r"verdict.json: judges another model than .*bundles"):
        register(trees.checkout, "student", bundle, run_id)


def test_no_secret_of_the_environment_reaches_mlflow(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(SECRETS):
        monkeypatch.setenv(name, f"hunter2-{number}-swordfish")

    run_id = project(trees.checkout)
    register(trees.checkout, "student", seal(trees.checkout, "student"), run_id)

    files = [path for path in trees.checkout.state.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert b"swordfish" not in content, path
        assert b"hunter2" not in content, path


def test_the_example_is_valid_input_over_the_whole_range(trees: Any) -> None:
    spec = read_json(trees.root / "ship/student/spec.json")

    ramp = example(Schema.model_validate(spec["data"]))

    assert ramp.shape == (1, 3, 4, 5)
    assert (ramp.min(), ramp.max()) == (0, 16)
