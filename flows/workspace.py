"""Workspaces: a git worktree under `runs/` with its own parameters and the checkout's DVC cache.

`--set`, `--preset` and schedules work there, so the checkout stays as it is. A workspace is a
commit, not the working tree: code that is not committed does not take part. The same request finds
the same workspace again and resumes in it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flows.params import assigned, checked
from flows.running import hold
from flows.state import Checkout
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import write_text
from tasks.core.params import parse


def requested(
    checkout: Checkout, preset: str | None, assignments: Sequence[str]
) -> tuple[str, str]:
    """Name and `params.yaml` of the workspace that `--preset` and `--set` ask for, checked."""
    if preset is None:
        base, where = _committed(checkout, "params.yaml"), "params.yaml"
    else:
        where = f"presets/{preset}.yaml"
        base = _committed(checkout, where) if preset in presets(checkout) else ""
        if not base:
            known = ", ".join(presets(checkout)) or "none"
            raise ParamsError(f"--preset {preset}: no such preset; there is {known}")
    parse(base, where)
    text = assigned(base, assignments)
    checked(parse(text, where), where)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = [preset, digest if assignments else None] if preset else ["set", digest]
    return "-".join(part for part in parts if part), text


def presets(checkout: Checkout) -> list[str]:
    """Names of the presets of the last commit."""
    listed = _git(checkout.root, "ls-tree", "--name-only", "HEAD", "presets/").splitlines()
    return sorted(Path(line).stem for line in listed if line.endswith(".yaml"))


def pinned(checkout: Checkout, commit: str) -> tuple[str, str]:
    """The full name of a commit, and its project's; its parameters are checked as a whole."""
    full = _resolved(checkout, commit)
    where = f"params.yaml at commit {full[:12]}"
    return full, checked(parse(_committed(checkout, "params.yaml", full), where), where).name


def prepare(checkout: Checkout, name: str, params: str | None, commit: str = "HEAD") -> Path:
    """The workspace `runs/NAME` at `commit`, with `params` (None: the commit's) as its parameters.

    A `DataError` if a run is alive in it: that one keeps its code and its parameters.
    """
    folder = checkout.home / "runs" / name
    head = _resolved(checkout, commit)
    if not (folder / ".git").exists():
        _git(checkout.root, "worktree", "prune")
        _git(checkout.root, "worktree", "add", "--quiet", "--force", "--detach", str(folder), head)
    with hold(Checkout(folder, checkout.home, checkout.servers)):
        _git(folder, "checkout", "--quiet", "--force", "--detach", head)
        write_text(folder / ".stillhouse" / "home", f"{checkout.home}\n")
        store = cache(checkout)
        write_text(folder / ".dvc" / "config.local", f"[cache]\n    dir = {store}\n")
        if params is not None:
            write_text(folder / "params.yaml", params)
    return folder


def cache(checkout: Checkout) -> Path:
    """The checkout's DVC cache, wherever it is configured to be."""
    from dvc.repo import Repo

    with Repo(str(checkout.home)) as repo:
        return Path(repo.cache.local_cache_dir)


def _resolved(checkout: Checkout, commit: str) -> str:
    return _git(checkout.root, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")


def _committed(checkout: Checkout, path: str, commit: str = "HEAD") -> str:
    return _git(checkout.root, "show", f"{commit}:./{path}")


def _git(folder: Path, *arguments: str) -> str:
    """Standard output of git; a failure is a `DataError` with git's first line."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError("git: not on PATH; install git, a workspace is a worktree of its") from None
    if done.returncode:
        said = re.sub(r"^(fatal|error): ", "", done.stderr.strip()).splitlines()
        raise DataError(
            f"{folder}: git {arguments[0]} failed ({said[0] if said else 'without a word'}); "
            "a workspace needs a git repository with a commit; run `git init` and commit, or "
            "edit params.yaml and run without --set and --preset"
        )
    return done.stdout.rstrip("\n")
