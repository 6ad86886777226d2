"""One real run of the whole pipeline, in a clone of its own, shared by the suite."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def copy_tree(into: Path) -> Path:
    """What git tracks or would track of the working tree, committed in a new repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file() and name != "dvc.lock":  # a clone in which nothing has run
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, into / name)
    shutil.copyfile(ROOT / "presets/digits.yaml", into / "params.yaml")  # whatever a user edits
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "a tree"],
    ):
        subprocess.run(["git", *arguments], cwd=into, check=True)
    return into


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A function that gives a fresh clone of the working tree, each in a folder of its own."""
    source = copy_tree(tmp_path_factory.mktemp("tree"))

    def fresh() -> Path:
        target = tmp_path_factory.mktemp("clone") / "stillhouse"
        subprocess.run(["git", "clone", "-q", str(source), str(target)], check=True)
        return target

    return fresh


@pytest.fixture(scope="session")
def command() -> Command:
    """Run a command of this environment in a folder; a list, never a shell string."""

    def run(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("PREFECT_", "MLFLOW_", "STILLHOUSE_", "PYTHONDONTWRITEBYTECODE"))
        }
        environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
        program = [sys.executable, "-m", "flows.cli"] if words[0] == "stillhouse" else [words[0]]
        if words[0] in ("python", "dvc"):
            program = [str(BIN / words[0])]
        done = subprocess.run(
            [*program, *words[1:]],
            cwd=folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=500,
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    return run


@pytest.fixture(scope="session")
def pipeline(
    clone: Callable[[], Path], command: Command, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A clone in which `stillhouse run` has run once. Treat it as read-only; all workers share it.

    It lies in the base folder of the first worker that asks, whose name the others read.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "pipeline").open("a+", encoding="utf-8") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        if ran := note.read():
            return Path(ran)
        folder = clone()
        done = command(folder, "stillhouse", "run")
        (folder / ".stillhouse" / "said.txt").write_text(done.stdout)
        note.write(str(folder))
        return folder


def pytest_configure() -> None:
    """What the tests start hears every signal, even where they are started as in `nohup make test
    &`, which ignores two: that is inherited, a handler is not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
