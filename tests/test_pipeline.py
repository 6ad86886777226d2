"""The whole of it, for real: what a stranger gets who clones the project and runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.dag import read_graph
from tasks.core.tables import read_fingerprint, read_split

Command = Callable[..., "subprocess.CompletedProcess[str]"]
STUDENT = Path("ship/student/model.onnx")
VERDICT = Path("reports/student/verdict.json")


def copied(source: Path, into: Path) -> Path:
    """A copy of a checkout with its cache and state."""
    return Path(shutil.copytree(source, into / "copy", symlinks=True))


def verdict(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / VERDICT).read_text())
    return content


def stale(folder: Path, command: Command) -> set[str]:
    """Stages that would run, those below a changed one included, as `stillhouse status` says."""
    lines = command(folder, "stillhouse", "status").stdout.splitlines()
    assert any(": fresh" in line for line in lines)
    return {line.split(":")[0].split("@")[0] for line in lines if ": stale: " in line}


def ran(said: str) -> set[str]:
    """Stages that a run began, from its plain lines."""
    return {
        line.split(":")[0].split("@")[0] for line in said.splitlines() if line.endswith(": began")
    }


def test_the_default_student_is_approved_with_reasons(pipeline: Path) -> None:
    found = verdict(pipeline)
    assert found["approved"] is True
    gates = found["gates"]
    assert isinstance(gates, list)
    assert all(gate["passed"] and gate["why"] for gate in gates)
    assert {"accuracy", "non_inferior_to_teacher", "better_than_baseline"} <= {
        g["name"] for g in gates
    }


def test_the_student_is_small_and_keeps_what_its_teacher_knows(pipeline: Path) -> None:
    found = verdict(pipeline)
    student, teacher = found["student"], found["teacher"]
    assert isinstance(student, dict)
    assert isinstance(teacher, dict)
    assert float(str(found["retention"])) >= 0.99
    assert teacher["parameters"] >= 10 * student["parameters"]
    assert teacher["bytes"] >= 20 * student["bytes"]
    assert (pipeline / student["path"]).stat().st_size == student["bytes"]


def test_a_student_hands_on_the_rungs_above_it(pipeline: Path) -> None:
    models = pipeline / "models"
    for file in ("spec.json", "weights.safetensors"):
        handed = models / "student/above/assistant" / file
        assert handed.read_bytes() == (models / "assistant" / file).read_bytes()
    assert not (models / "assistant/above").exists()


def test_the_outcome_is_printed_with_the_next_commands(pipeline: Path) -> None:
    said = (pipeline / ".stillhouse" / "said.txt").read_text()
    for word in (
        "teacher",
        "assistant",
        "student",
        "approved",
        "fewer parameters",
        "95 % confidence",
        "ship/student/model.onnx",
        "stillhouse verify",
    ):
        assert word in said


def test_nothing_is_stale_after_a_run_and_a_second_run_trains_nothing(
    pipeline: Path, command: Command
) -> None:
    assert stale(pipeline, command) == set()
    before = (pipeline / "dvc.lock").read_bytes()
    assert command(pipeline, "stillhouse", "run").returncode == 0
    assert (pipeline / "dvc.lock").read_bytes() == before


def test_the_checkout_is_clean_after_a_run_but_for_the_lock(pipeline: Path) -> None:
    said = subprocess.run(
        ["git", "status", "--porcelain"], cwd=pipeline, capture_output=True, text=True, check=True
    ).stdout.split()
    assert said in ([], ["??", "dvc.lock"], ["M", "dvc.lock"])


@pytest.mark.slow
def test_dvc_alone_does_the_same_work_to_the_byte(
    pipeline: Path, clone: Callable[[], Path], command: Command
) -> None:
    other = clone()
    command(
        other,
        "python",
        "-c",
        "from pathlib import Path; from tasks.modalities.vision.acquire import take; "
        "take('digits', None, None, Path('data/raw'))",
    )
    command(other, "dvc", "repro")
    assert (other / STUDENT).read_bytes() == (pipeline / STUDENT).read_bytes()
    ours, theirs = verdict(pipeline), verdict(other)
    ours.pop("measured")
    theirs.pop("measured")
    assert ours == theirs
    assert (other / "evidence/student/subject.json").read_bytes() == (
        pipeline / "evidence/student/subject.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tasks/quantize/search.py", {"quantize", "stress", "judge"}),
        ("tasks/judge/gates.py", {"judge"}),
        ("tasks/distill/report.py", {"distill", "quantize", "stress", "judge"}),
        ("tasks/stress/fidelity.py", {"stress", "judge"}),
    ],
)
def test_a_comment_makes_only_its_stage_and_those_below_stale(
    pipeline: Path, tmp_path: Path, command: Command, file: str, expected: set[str]
) -> None:
    folder = copied(pipeline, tmp_path)
    with (folder / file).open("a") as source:
        source.write("# a comment\n")
    assert stale(folder, command) == expected


@pytest.mark.slow
def test_one_parameter_of_quantize_runs_quantize_stress_and_judge_only(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    folder = copied(pipeline, tmp_path)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("latency_margin: 1.5", "latency_margin: 1.6"))
    done = command(folder, "stillhouse", "run")
    assert ran(done.stdout) == {"quantize", "stress", "judge"}


def test_an_older_teacher_may_be_allowed_without_training_it_again(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    folder = copied(pipeline, tmp_path)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("max_age: 180", "max_age: 365"))
    assert stale(folder, command) == set()


def test_results_travel_by_a_dvc_remote(pipeline: Path, tmp_path: Path, command: Command) -> None:
    folder = copied(pipeline, tmp_path)
    command(folder, "dvc", "remote", "add", "-d", "local", str(tmp_path / "remote"))
    command(folder, "dvc", "push")
    shutil.rmtree(folder / ".dvc" / "cache")
    for name in ("data", "models", "ship", "reports", "evidence", "measured"):
        for path in (folder / name).iterdir():
            if path.name != "raw.dvc":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    command(folder, "dvc", "pull")
    assert stale(folder, command) == set()
    assert (folder / STUDENT).read_bytes() == (pipeline / STUDENT).read_bytes()


def test_dvc_answers_about_metrics_params_and_plots(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    folder = copied(pipeline, tmp_path)
    shown = command(folder, "dvc", "metrics", "show").stdout
    assert "reports/student/verdict.json" in shown
    (folder / "params.yaml").write_text(
        (folder / "params.yaml").read_text().replace("temperature: 4.0", "temperature: 5.0", 1)
    )
    assert "temperature" in command(folder, "dvc", "params", "diff").stdout
    page = command(folder, "dvc", "plots", "show").stdout
    assert "index.html" in page


def gates_of_the_page() -> list[str]:
    """Patterns of the gates in the table of `docs/architecture.md`: `.b` after `a.c` is `a.b`, and
    capitals stand for any name."""
    page = (Path(__file__).parents[1] / "docs/architecture.md").read_text()
    found = []
    for line in page.split("## Gates")[1].split("## The flow")[0].splitlines():
        names = re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else []
        for name in names:
            whole = names[0].rpartition(".")[0] + name if name.startswith(".") else name
            found.append(re.sub("[A-Z]+", ".+", re.escape(whole)))
    return found


def test_every_gate_of_a_verdict_is_in_the_table_of_gates(pipeline: Path) -> None:
    found = json.loads((pipeline / VERDICT).read_text())
    known = re.compile("|".join(gates_of_the_page()))
    names = [gate["name"] for gate in found["gates"] + found["measured"]["gates"]]
    assert [name for name in names if not known.fullmatch(name)] == []


def test_the_digits_preset_is_the_default() -> None:
    root = Path(__file__).parents[1]
    default, preset = (
        yaml.safe_load((root / name).read_text()) for name in ("params.yaml", "presets/digits.yaml")
    )
    if default["name"] != preset["name"]:
        pytest.skip("params.yaml is of another project than ours")
    assert preset == default


def test_the_flow_has_the_edges_of_dvc(pipeline: Path, command: Command) -> None:
    drawn = set(
        re.findall(r'"([^"]+)" -> "([^"]+)"', command(pipeline, "dvc", "dag", "--dot").stdout)
    )
    between = {(a, b) for a, b in drawn if not a.endswith(".dvc")}
    assert read_graph(pipeline).edges == between
    assert ("distill@assistant", "distill@student") in between


RECORDED = """
import json, sys, logging
logging.disable(logging.WARNING)
from flows.state import adopt, find_checkout
checkout = find_checkout()
adopt(checkout)
import mlflow, numpy as np
from mlflow import MlflowClient
from tasks.core.session import open_session, score
from tasks.core.tables import read_fingerprint, read_split
client = MlflowClient()
version = client.get_model_version_by_alias("digits-candidates", "candidate")
model = mlflow.pyfunc.load_model("models:/digits-candidates@candidate")
images = read_split("test", read_fingerprint().data).images[:64].astype(np.float32)
said = model.predict(images)
logits, valid = score(open_session(checkout.root / "ship/student/model.onnx"), images)
experiment = client.get_experiment_by_name("digits")
runs = client.search_runs([experiment.experiment_id], max_results=1000)
teach = next(r.info.run_id for r in runs if r.data.tags.get("stillhouse.stage") == "teach")
stages = sorted(r.data.tags.get("stillhouse.stage", "") for r in runs)
print(json.dumps({
    "version": int(version.version),
    "tags": version.tags,
    "equal": bool(np.array_equal(said["logits"], logits) and np.array_equal(said["valid"], valid)),
    "stages": [s for s in stages if s],
    "curves": len(client.get_metric_history(teach, "loss")),
}))
"""


def recorded(folder: Path, command: Command) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(
        command(folder, "python", "-c", RECORDED).stdout.splitlines()[-1]
    )
    return said


@pytest.mark.slow
def test_tracking_and_registry_hold_the_run_once_and_can_be_rebuilt(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    first = recorded(pipeline, command)
    assert first["equal"], "what is registered answers as what ships, bit for bit"
    assert first["version"] == 1
    assert len(first["stages"]) == len(set(first["stages"])) == 15
    assert first["curves"] == 16, "the teacher's epochs"

    folder = copied(pipeline, tmp_path)
    command(folder, "stillhouse", "run")
    again = recorded(folder, command)
    assert again["stages"] == first["stages"], "a second run doubles nothing"
    assert again["version"] == 1

    (folder / ".stillhouse" / "mlflow.db").unlink()
    command(folder, "stillhouse", "run")
    rebuilt = recorded(folder, command)
    assert rebuilt["stages"] == first["stages"]
    assert rebuilt["curves"] == first["curves"]
    assert rebuilt["tags"]["stillhouse.subject"] == first["tags"]["stillhouse.subject"]


MOVED = """
import json, shutil
from pathlib import Path
from flows.state import adopt, find_checkout
checkout = find_checkout()
adopt(checkout)
from flows.seal import seal
path = Path("reports/student/verdict.json")
verdict = json.loads(path.read_text())
verdict["measured"]["cpu"]["model"] = "another CPU"
path.unlink()
path.write_text(json.dumps(verdict))
shutil.rmtree(checkout.bundles)
print(seal(checkout, "student") / "manifest.json")
"""


def test_latency_is_measured_again_where_the_cpu_differs(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    folder = copied(pipeline, tmp_path)
    manifest = json.loads(Path(command(folder, "python", "-c", MOVED).stdout.strip()).read_text())
    circumstances = manifest["circumstances"]
    assert circumstances["measured"]["cpu"]["model"] == "another CPU"
    assert circumstances["measured_again"]["cpu"] == circumstances["cpu"]
    assert set(circumstances["measured_again"]["latency_ms"]) == {
        "teacher",
        "float_student",
        "student",
    }


def test_a_changed_byte_of_a_sealed_bundle_is_found(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    folder = copied(pipeline, tmp_path)
    assert command(folder, "stillhouse", "verify").returncode == 0
    bundle = next((folder / ".stillhouse" / "bundles").iterdir())
    model = bytearray((bundle / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(bytes(model))
    done = command(folder, "stillhouse", "verify", check=False)
    assert done.returncode == 1
    assert "model.onnx: its SHA-256 is not the sealed one" in done.stderr


def test_the_consumer_of_a_few_lines_reads_what_ships(
    pipeline: Path, tmp_path: Path, command: Command
) -> None:
    data = read_fingerprint(pipeline / "data" / "fingerprint.json").data
    test = read_split("test", data, pipeline / "data")
    np.save(tmp_path / "images.npy", test.images)
    consumer = str(pipeline / "examples" / "consumer.py")
    done = command(tmp_path, "python", consumer, str(pipeline / STUDENT), "images.npy")
    answers = np.array(done.stdout.split())
    right = answers == np.array(data.classes)[test.labels]
    chain = verdict(pipeline)["chain"]
    assert isinstance(chain, list)
    assert right.mean() == pytest.approx(chain[-1]["accuracy"]["value"], abs=1e-6)
