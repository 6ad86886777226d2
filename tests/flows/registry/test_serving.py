"""Whoever loads the student gets the same bits: plain ONNX Runtime, the NumPy scorer, MLflow."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from flows.registry import register
from flows.seal import seal
from flows.state import Servers
from flows.tracking import project

ROOT = Path(__file__).parents[3]
CONSUMER = ROOT / "examples" / "consumer.py"
BIN = Path(sys.executable).parent
MODEL = "models:/trees-candidates@candidate"

ALONE = """
import runpy, sys, sysconfig
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
site = sysconfig.get_paths()["purelib"]
for module in list(sys.modules.values()):
    if (getattr(module, "__file__", None) or "").startswith(site):
        print("import", module.__name__.split(".")[0])
"""


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.random.default_rng(5).uniform(0, 16, size=(7, 3, 4, 5)).astype(np.float32)


@pytest.fixture
def registered(trees: Any) -> Any:
    """The project with its student as the candidate."""
    run_id = project(trees.checkout)
    assert register(trees.checkout, "student", seal(trees.checkout, "student"), run_id) == 1
    return trees


@pytest.fixture
def session(trees: Any) -> onnxruntime.InferenceSession:
    path = str(trees.root / "ship/student/model.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@contextmanager
def process(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Path]:
    """A server in a process group of its own; yields its log and ends the group."""
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield log
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def post(url: str, content: Any) -> Any:
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
        return json.load(reply)


@pytest.mark.usefixtures("registered")
def test_the_scorer_and_mlflow_give_the_bits_of_plain_onnx_runtime(
    session: onnxruntime.InferenceSession, images: NDArray[np.float32]
) -> None:
    import mlflow

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    images[3, 0, 0, 0] = np.nan
    images[4, 0, 0, 0] = 255
    logits, valid = session.run(None, {"input": images})

    found = mlflow.pyfunc.load_model(MODEL).predict(images)
    good = [0, 1, 2, 5, 6]
    scored = runpy.run_path(str(CONSUMER))["score"](session, images[good])

    np.testing.assert_array_equal(found["logits"], logits, strict=True)
    np.testing.assert_array_equal(found["valid"], valid, strict=True)
    assert valid.tolist() == [True, True, True, False, False, True, True]
    np.testing.assert_array_equal(scored, logits[good], strict=True)


@pytest.mark.slow
def test_a_model_server_gives_the_bits_of_plain_onnx_runtime(
    registered: Any,
    session: onnxruntime.InferenceSession,
    images: NDArray[np.float32],
    free_port: int,
    tmp_path: Path,
    until: Callable[..., Any],
) -> None:
    images[4, 0, 0, 0] = 255
    logits, valid = session.run(None, {"input": images})
    command = [
        str(BIN / "mlflow"),
        "models",
        "serve",
        "-m",
        MODEL,
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(free_port),
    ]
    url = f"http://127.0.0.1:{free_port}"

    with process(command, registered.checkout.environment(), tmp_path) as log:
        until(lambda: answers(f"{url}/ping"), 120)
        found = post(f"{url}/invocations", {"inputs": {"input": images.tolist()}})["predictions"]
        bare = post(f"{url}/invocations", {"inputs": images.tolist()})["predictions"]

    served = np.array(found["logits"], np.float32)
    np.testing.assert_array_equal(served, logits, strict=True)
    assert found["valid"] == valid.tolist()
    assert bare == found, log.read_text()


@pytest.mark.slow
def test_a_server_of_the_team_takes_the_same_projection(
    trees: Any,
    session: onnxruntime.InferenceSession,
    images: NDArray[np.float32],
    free_port: int,
    tmp_path: Path,
    until: Callable[..., Any],
) -> None:
    database = f"sqlite:///{trees.checkout.state / 'mlflow.db'}"
    command = [
        str(BIN / "mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(free_port),
        "--workers",
        "1",
        "--backend-store-uri",
        database,
        "--artifacts-destination",
        str(tmp_path / "artifacts"),
    ]
    url = f"http://127.0.0.1:{free_port}"
    team = replace(trees.checkout, servers=Servers(mlflow=url))
    no_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # or it starts four more processes

    with process(command, trees.checkout.environment() | no_jobs, tmp_path):
        until(lambda: answers(f"{url}/health"), 120)
        run_id = project(team)
        assert register(team, "student", seal(team, "student"), run_id) == 1
        before = trees.rows()
        assert project(team) == run_id
        assert register(team, "student", seal(team, "student"), run_id) == 1
        assert trees.rows() == before
        import mlflow

        found = mlflow.pyfunc.load_model(MODEL).predict(images)

    np.testing.assert_array_equal(found["logits"], session.run(["logits"], {"input": images})[0])
    assert list((tmp_path / "artifacts").rglob("model.onnx"))


def test_the_scorer_names_the_rows_that_are_not_valid(
    session: onnxruntime.InferenceSession, images: NDArray[np.float32]
) -> None:
    images[2, 1, 1, 1] = np.inf
    images[5, 0, 0, 0] = -1

    with pytest.raises(ValueError, match=r"not finite or out of range: rows \[2, 5\]"):
        runpy.run_path(str(CONSUMER))["score"](session, images)


def test_the_consumer_needs_onnx_runtime_and_numpy_alone(
    trees: Any,
    session: onnxruntime.InferenceSession,
    images: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "images.npy", images)
    model = str(trees.root / "ship/student/model.onnx")
    expected = session.run(["logits"], {"input": images})[0].argmax(axis=1)

    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(CONSUMER), model, str(tmp_path / "images.npy")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    said = done.stdout.splitlines()
    imported = {line.split()[1] for line in said if line.startswith("import ")}
    imported = {name for name in imported if not name.startswith("__editable__")}  # site's own
    assert said[:7] == [("ash", "birch", "cedar")[i] for i in expected]
    assert {"numpy", "onnxruntime"} <= imported
    assert imported <= {"numpy", "onnxruntime", "_distutils_hack", "sitecustomize"}


@pytest.mark.slow
def test_the_consumer_runs_where_only_onnx_runtime_and_numpy_are_installed(
    trees: Any,
    session: onnxruntime.InferenceSession,
    images: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "images.npy", images)
    model = str(trees.root / "ship/student/model.onnx")
    expected = session.run(["logits"], {"input": images})[0].argmax(axis=1)
    clean = tmp_path / "clean"
    python = str(clean / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-input",
            "--root-user-action=ignore",
            "-c",
            str(ROOT / "constraints.txt"),
            "onnxruntime",
            "numpy",
        ],
        check=True,
    )

    done = subprocess.run(
        [python, "-I", str(CONSUMER), model, str(tmp_path / "images.npy")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == [("ash", "birch", "cedar")[i] for i in expected]
