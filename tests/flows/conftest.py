"""A small project of five stages that take no time, for what the flow does with a DAG."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import server
from flows.state import Checkout, Servers

ROOT = Path(__file__).parents[2]
PARENTS = {"alone": [], "grow": [], "left": ["grow"], "right": ["grow"], "join": ["left", "right"]}
STEP = '''\
"""A stage that writes its value, once it need not wait; or refuses, or crashes."""
import pathlib, sys, time, yaml
from tasks.core.errors import GateError
from tasks.core.stage import main


def run(arguments):
    name = arguments[0]
    params = yaml.safe_load(pathlib.Path("steps.yaml").read_text())[name]
    out = pathlib.Path("out", f"{name}.txt")
    out.parent.mkdir(exist_ok=True)
    out.write_text("half")
    pathlib.Path(f"began-{name}").touch()
    print(f"{name} works", flush=True)
    while params["wait"] and not pathlib.Path(params["wait"]).exists():
        time.sleep(0.02)
    if params["refuse"]:
        raise GateError(params["refuse"])
    if params["crash"]:
        raise RuntimeError(params["crash"])
    out.write_text(str(params["value"]))


main(run)
'''
DRIVER = '''\
"""The flow over this project's DAG, on a Prefect server that is there already."""
import json, os, sys
import flows.slots
from flows.dag import read_graph
from flows.recovery import mend
from flows.retrain import retrain
from flows.runner import Runner
from flows.running import hold
from flows.state import adopt, find_checkout
from flows.stopping import in_thread, stoppable

flows.slots.cores = lambda: 2
checkout = find_checkout()
adopt(checkout)
os.environ["PREFECT_API_URL"] = sys.argv[1]
with hold(checkout):
    mend(checkout)
    runner = Runner(checkout)
    graph = read_graph(checkout.root)
    one = lambda stage: runner.run(stage, say=lambda line: None, began=lambda: None)
    due = []
    def tell(names):
        due.append(sorted(names))
        runner.turns.due(names)
    with stoppable(runner):
        results = in_thread(lambda: retrain(graph, one, "tiny", tell), runner)
print(json.dumps({
    "due": due,
    "done": {stage: outcome.how for stage, outcome in results.done.items()},
    "failed": {stage: [error.exit_code, str(error)] for stage, error in results.failed.items()},
    "blocked": results.blocked,
    "prefect": "prefect" in sys.modules,
}))
sys.exit(results.exit_code)
'''


@dataclass(frozen=True)
class Tiny:
    """The project: `grow` -> `left`, `right` -> `join`, and `alone`."""

    root: Path

    @property
    def checkout(self) -> Checkout:
        return Checkout(self.root, self.root, Servers())

    def out(self, stage: str) -> Path:
        return self.root / "out" / f"{stage}.txt"

    def change(self, stage: str, **values: Any) -> None:
        """Set parameters of one stage."""
        path = self.root / "steps.yaml"
        steps = yaml.safe_load(path.read_text())
        steps[stage].update(values)
        path.write_text(yaml.safe_dump(steps))

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project to its end."""
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, "-m", "flows.cli", *arguments)

    def repro(self) -> None:
        """Bring all stages up to date with DVC alone."""
        done = self.call(sys.executable, "-m", "dvc", "repro", "--quiet")
        assert done.returncode == 0, done.stderr

    def start(self, url: str) -> subprocess.Popen[str]:
        """Start the flow and leave it running."""
        command = [sys.executable, str(self.root / "driver.py"), url]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, stdout=pipe, stderr=pipe, text=True)

    def flow(self, url: str) -> dict[str, Any]:
        """Run the flow to its end; what became of each stage, and the exit code."""
        return ended(self.start(url))


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = process.communicate(timeout=120)
    assert said, errors
    content: dict[str, Any] = json.loads(said.splitlines()[-1])
    return content | {"code": process.returncode}


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """`adopt` changes the process's environment; no test sees another's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def result_of() -> Callable[[subprocess.Popen[str]], dict[str, Any]]:
    """What a flow that was started came to."""
    return ended


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, with a deadline."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def seedling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project before it ever ran, committed; copied for each test."""
    root = tmp_path_factory.mktemp("seedling") / "tiny"
    root.mkdir()
    quiet = {"value": 1, "wait": None, "refuse": None, "crash": None}
    (root / "steps.yaml").write_text(yaml.safe_dump({stage: dict(quiet) for stage in PARENTS}))
    stages = {
        stage: {
            "cmd": f"python step.py {stage}",
            "deps": ["step.py", *(f"out/{p}.txt" for p in parents)],
            "params": [{"steps.yaml": [stage]}],
            "outs": [f"out/{stage}.txt"],
        }
        for stage, parents in PARENTS.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "step.py").write_text(STEP)
    (root / "driver.py").write_text(DRIVER)
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    (root / "presets").mkdir()
    shutil.copy(ROOT / "params.yaml", root / "presets" / "digits.yaml")
    (root / ".gitignore").write_text(".stillhouse/\nruns/\nout/\nbegan-*\n__pycache__/\n")
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "--quiet"],
        [*dvc, "init", "--quiet"],
        [*dvc, "config", "core.analytics", "false"],
    ):
        subprocess.run(command, cwd=root, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    commit(root, "The seedling")
    return root


@pytest.fixture(scope="session")
def grown(seedling: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with every stage up to date; copied for each test."""
    root = tmp_path_factory.mktemp("grown") / "tiny"
    shutil.copytree(seedling, root, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        _surround(patch, root.parent)
        Tiny(root).repro()
        commit(root, "The first run")
    return root


def commit(root: Path, message: str) -> None:
    """Commit everything that git does not ignore."""
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["add", "--all"], [*name, "commit", "--quiet", "--message", message]):
        subprocess.run(["git", *command], cwd=root, check=True)


def _surround(patch: pytest.MonkeyPatch, temporary: Path) -> None:
    """An environment in which `python` is ours, and its temporary files the test's own."""
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("TMPDIR", str(temporary))
    patch.setenv("DVC_NO_ANALYTICS", "1")
    patch.setenv("COLUMNS", "200")


@pytest.fixture
def fresh(seedling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A project that never ran."""
    _surround(monkeypatch, tmp_path)
    shutil.copytree(seedling, tmp_path / "tiny", symlinks=True)
    return Tiny(tmp_path / "tiny")


@pytest.fixture
def tiny(grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A project in which everything is up to date."""
    _surround(monkeypatch, tmp_path)
    shutil.copytree(grown, tmp_path / "tiny", symlinks=True)
    return Tiny(tmp_path / "tiny")


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Prefect server for all tests, started as a run starts it."""
    home = tmp_path_factory.mktemp("prefect")
    begun = server.start(Checkout(home, home, Servers()))
    try:
        begun.wait()
        yield begun.url
    finally:
        begun.stop()
