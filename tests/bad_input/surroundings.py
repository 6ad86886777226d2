"""What lies around the parameters and data: configuration, git, DVC, databases, disks, rights."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from flows.running import hold
from flows.state import Checkout, Servers
from tests.bad_input.case import Case, Place, params, untouched, written

DATABASE = ".stillhouse/mlflow.db"


def team(content: str) -> Callable[[Path], None]:
    """A stillhouse.toml."""
    return written("stillhouse.toml", content.encode())


def no_git(root: Path) -> None:
    shutil.rmtree(root / ".git")


def _no_commit(root: Path) -> None:
    no_git(root)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)


def _no_dvc(root: Path) -> None:
    shutil.rmtree(root / ".dvc")


@contextmanager
def alone(root: Path) -> Iterator[Place]:
    """Whatever repository may lie around the test's own folder, git does not look for it."""
    yield Place(root, ("env", f"GIT_CEILING_DIRECTORIES={root.parent}"))


@contextmanager
def without_git(root: Path) -> Iterator[Place]:
    """A PATH with our environment alone."""
    yield Place(root, ("env", f"PATH={Path(sys.executable).parent}"))


@contextmanager
def elsewhere(root: Path) -> Iterator[Place]:
    """The command begins in a folder that is no checkout; its code is the checkout's."""
    (root.parent / "elsewhere").mkdir()
    away = ("env", f"--chdir={root.parent / 'elsewhere'}", f"PYTHONPATH={root}")
    yield Place(root, away)


@contextmanager
def at_work(root: Path) -> Iterator[Place]:
    """A run is alive in the checkout: this process."""
    with hold(Checkout(root, root, Servers())):
        yield Place(root)


LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(root: Path) -> Iterator[Place]:
    """Somebody else writes to MLflow's database and does not end."""
    pipe = subprocess.PIPE
    program = [sys.executable, "-c", LOCK, str(root / DATABASE)]
    with subprocess.Popen(program, stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"locked\n"
        try:
            yield Place(root)
        finally:
            writer.kill()


def _newer(root: Path) -> None:
    """What a later MLflow would write into the database."""
    with closing(sqlite3.connect(root / DATABASE)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'f00dfeedbeef'")


def _cut_checkpoint(root: Path) -> None:
    """What a disk that lost its last bytes leaves of a training that is to be resumed."""
    params({"distill.rungs.student.training.epochs": 41})(root)
    (root / "checkpoints/student").mkdir(parents=True)
    (root / "checkpoints/student/checkpoint.json").write_text('{"epoch": 3, "k')


@contextmanager
def powerless(root: Path) -> Iterator[Place]:
    """Permission bits bind: they do not bind root, unless it gives that power away."""
    power = "--bounding-set=-dac_override,-dac_read_search"
    yield Place(root, () if os.geteuid() else ("setpriv", power))


def forbidden(name: str, mode: int) -> Callable[[Path], None]:
    """Take a right away."""
    return lambda root: (root / name).chmod(mode)


FULL = """
import os, shutil, subprocess, sys
from pathlib import Path
folder, free = Path(sys.argv[1]), int(sys.argv[2])
aside = folder.with_name(folder.name + ".aside")
shutil.copytree(folder, aside, symlinks=True)
size = sum(8192 + path.lstat().st_size for path in aside.rglob("*"))
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + 2**20}", "tmpfs", folder], check=True)
shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
shutil.rmtree(aside)
space = os.statvfs(folder)
with (folder / "filling").open("wb") as filling:
    filling.write(bytes(space.f_bavail * space.f_frsize - free))
print("full", flush=True)
sys.stdin.read()
"""


def full(name: str, free: int) -> Callable[[Path], AbstractContextManager[Place]]:
    """`name` lies on a disk of its own with `free` bytes left: a tmpfs in a mount namespace."""

    @contextmanager
    def around(root: Path) -> Iterator[Place]:
        program = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FULL]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*program, str(root / name), str(free)], stdin=pipe, stdout=pipe, stderr=pipe
        ) as disk:
            assert disk.stdout is not None
            assert disk.stderr is not None
            try:
                if disk.stdout.readline() != b"full\n":
                    pytest.skip(f"no tmpfs can be mounted here: {disk.stderr.read().decode()}")
                own = ("nsenter", f"--target={disk.pid}", "--user", "--mount")
                seen = Path(f"/proc/{disk.pid}/root") / root.relative_to("/")
                yield Place(seen, (*own, "--preserve-credentials", f"--wdns={root}"))
            finally:
                disk.kill()

    return around


SURROUNDINGS = (
    Case(
        "a command outside a checkout",
        untouched,
        ("elsewhere: no dvc.yaml and params.yaml here or above", "cd into a checkout"),
        around=elsewhere,
    ),
    Case(
        "stillhouse.toml that is not TOML",
        team("mlflow = http://tracking"),
        ("stillhouse.toml: not valid TOML", "mend it"),
    ),
    Case(
        "stillhouse.toml that is not UTF-8",
        written("stillhouse.toml", b"# caf\xe9\n"),
        ("stillhouse.toml: not valid TOML", "mend it"),
    ),
    Case(
        "a key in stillhouse.toml that does not exist",
        team('mflow = "http://tracking"'),
        ("stillhouse.toml: mflow: unknown key", "did you mean 'mlflow'?"),
    ),
    Case(
        "a server that is no URL",
        team('mlflow = "tracking"'),
        ("stillhouse.toml: mlflow: must be a URL", "http:// or https://"),
    ),
    Case(
        "credentials in stillhouse.toml",
        team('mlflow = "https://ann:secret@tracking"'),
        ("stillhouse.toml: mlflow: a URL may hold no user and password", "set MLFLOW_TRACKING_"),
    ),
    Case(
        "no git repository",
        no_git,
        ("stillhouse: not a git repository, which DVC needs", "run `git init` and commit"),
        around=alone,
    ),
    Case(
        "`--set` without a git repository",
        no_git,
        ("stillhouse: git show failed (not a git repository", "run `git init` and commit"),
        ("run", "--set", "threads=1"),
        around=alone,
    ),
    Case(
        "`--set` before the first commit",
        _no_commit,
        ("stillhouse: git show failed", "run `git init` and commit"),
        ("run", "--set", "threads=1"),
        around=alone,
    ),
    Case(
        "`--set` where git is not installed",
        untouched,
        ("git: not on PATH", "install git"),
        ("run", "--set", "threads=1"),
        around=without_git,
    ),
    Case(
        "dvc.yaml that is not YAML",
        written("dvc.yaml", b"stages: ["),
        ("dvc.yaml: line 1 is not valid YAML", "mend or restore it"),
    ),
    Case(
        "data/raw.dvc that is not YAML",
        written("data/raw.dvc", b"outs: ["),
        ("stillhouse: DVC cannot read the DAG (", "raw.dvc'", "restore it from git"),
    ),
    Case(
        "no .dvc folder",
        _no_dvc,
        ("stillhouse: no .dvc folder", "run `git checkout .dvc`"),
    ),
    Case(
        "MLflow's database locked by another process",
        untouched,
        (f"{DATABASE}: database is locked", "end the process that holds it", "run again"),
        around=locked,
    ),
    Case(
        "MLflow's database of a newer version",
        _newer,
        (f"{DATABASE}: written by another MLflow", "f00dfeedbeef", "install that MLflow"),
    ),
    Case(
        "MLflow's database that is none",
        written(DATABASE, b"not a database" * 100),
        (f"{DATABASE}: file is not a database", "move that file away; the next run rebuilds it"),
    ),
    Case(
        "MLflow's database without the right to write",
        forbidden(DATABASE, 0o444),
        (f"{DATABASE}: Permission denied", "give your user the right to it"),
        around=powerless,
    ),
    Case(
        "no right to write the data",
        forbidden("data", 0o555),
        ("stillhouse/data/raw: Permission denied", "give your user the right to it"),
        around=powerless,
    ),
    Case(
        "no right to read the parameters",
        forbidden("params.yaml", 0o000),
        ("params.yaml: Permission denied", "give your user the right to it"),
        around=powerless,
    ),
    Case(
        "a full disk",
        untouched,
        (".stillhouse/dvc.lock: No space left on device", "free some space and run again"),
        around=full(".", 8192),
    ),
    Case(
        "a full disk, noticed while data are taken",
        untouched,
        ("data/raw: No space left on device", "free some space and run again"),
        around=full("data", 8192),
    ),
    Case(
        "a full disk, noticed by a stage",
        params(
            {
                "teach.architecture.widths": [48, 96, 192],
                "teach.training.epochs": 1,
                "distill.rungs.assistant.architecture.widths": [24, 48, 96],
                "distill.rungs.student.architecture.widths": [12, 24, 48],
            }
        ),
        ("teach: models/teacher/", "No space left on device", "free some space and run again"),
        around=full("models", 8192),
    ),
    Case(
        "a full disk, noticed while a teacher banks its logits",
        params({"teach.views.count": 48, "teach.training.epochs": 1}),
        ("teach: models/teacher/bank/", "No space left on device", "free some space and run again"),
        around=full("models", 8192),
    ),
    Case(
        "a truncated checkpoint",
        _cut_checkpoint,
        (
            "distill@student: checkpoints/student/checkpoint.json: truncated or changed",
            "delete checkpoints/student",
        ),
    ),
    Case(
        "a second run at once",
        untouched,
        ("stillhouse: another run works here (process", "wait for it, or stop it"),
        around=at_work,
    ),
)
