"""Workspaces: a git worktree under `runs/` with its own parameters and the checkout's DVC cache.

`--set` and `--preset` work there, so the checkout stays as it is. A workspace is the last commit,
not the working tree: code that is not committed does not take part. The same request finds the same
workspace again and resumes in it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from flows.params import assigned, checked
from flows.running import hold
from flows.state import Checkout
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import write_text


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
    text = assigned(base, assignments)
    checked(yaml.safe_load(text), where)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = [preset, digest if assignments else None] if preset else ["set", digest]
    return "-".join(part for part in parts if part), text


def presets(checkout: Checkout) -> list[str]:
    """Names of the presets of the last commit."""
    listed = _git(checkout.root, "ls-tree", "--name-only", "HEAD", "presets/").splitlines()
    return sorted(Path(line).stem for line in listed if line.endswith(".yaml"))


def prepare(checkout: Checkout, name: str, params: str) -> Path:
    """The workspace `runs/NAME` at the last commit, with `params` as its parameters.

    A `DataError` if a run is alive in it: that one keeps its code and its parameters.
    """
    folder = checkout.home / "runs" / name
    head = _git(checkout.root, "rev-parse", "HEAD")
    if not (folder / ".git").exists():
        _git(checkout.root, "worktree", "prune")
        _git(checkout.root, "worktree", "add", "--quiet", "--force", "--detach", str(folder), head)
    with hold(Checkout(folder, checkout.home, checkout.servers)):
        _git(folder, "checkout", "--quiet", "--force", "--detach", head)
        write_text(folder / ".stillhouse" / "home", f"{checkout.home}\n")
        cache = _cache(checkout)
        write_text(folder / ".dvc" / "config.local", f"[cache]\n    dir = {cache}\n")
        write_text(folder / "params.yaml", params)
    return folder


def _cache(checkout: Checkout) -> Path:
    """The checkout's DVC cache, wherever it is configured to be."""
    from dvc.repo import Repo

    with Repo(str(checkout.home)) as repo:
        return Path(repo.cache.local_cache_dir)


def _committed(checkout: Checkout, path: str) -> str:
    return _git(checkout.root, "show", f"HEAD:./{path}")


def _git(folder: Path, *arguments: str) -> str:
    """Standard output of git; a failure is a `DataError` with git's first line."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = re.sub(r"^(fatal|error): ", "", done.stderr.strip()).splitlines()
        raise DataError(
            f"{folder}: git {arguments[0]} failed ({said[0] if said else 'without a word'}); "
            "a workspace needs a git repository with a commit"
        )
    return done.stdout.rstrip("\n")
