"""What git says of a checkout: commit, branch, what was changed, and whether a commit is known.

Asks only. `dvc.lock` and `data/raw.dvc` change with every run, since measured figures and the data
of the day are in them; both are digested in each manifest, so neither makes a tree "dirty".
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tasks.core.errors import DataError

OF_A_RUN = (":(exclude)dvc.lock", ":(exclude)data/raw.dvc")


def commit(root: Path) -> str | None:
    """The commit that is checked out; None where there is no git, no repository or no commit."""
    return _ask(root, "rev-parse", "--verify", "HEAD")


def branch(root: Path) -> str | None:
    """The branch; None on a detached HEAD or without git."""
    return _ask(root, "branch", "--show-current") or None


def changes(root: Path) -> tuple[str, ...] | None:
    """Files that differ from the commit or are not in it; None where there is no git to tell."""
    asked = ("status", "--porcelain", "--untracked-files=normal", "--", ".", *OF_A_RUN)
    said = _ask(root, "-c", "core.quotePath=false", *asked)
    return None if said is None else tuple(line[3:] for line in said.splitlines())


@dataclass(frozen=True)
class Tree:
    """A working tree at one moment: its commit, and what differs from it."""

    commit: str | None
    changes: tuple[str, ...] | None


def tree(root: Path) -> Tree:
    """The working tree now."""
    return Tree(commit(root), changes(root))


def knows(root: Path, commit: str) -> bool:
    """Whether the repository holds `commit`, so that the code of a student can be found again."""
    return _ask(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def user(root: Path) -> str | None:
    """Who commits here."""
    return _ask(root, "config", "user.name") or None


def require_clean(root: Path) -> str:
    """The commit of a checkout that stands on a branch, unchanged; else a `DataError`."""
    head = commit(root)
    if head is None:
        raise DataError(
            f"{root}: no git repository with a commit here; `git init` and commit the project, "
            "so that a promotion can name its code"
        )
    if branch(root) is None:
        raise DataError(f"{root}: detached HEAD at {head[:12]}; `git switch` to a branch first")
    changed = changes(root)
    if changed is None:
        raise DataError(f"{root}: git cannot tell what has changed; `git status` says why")
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DataError(
            f"{root}: not as committed ({', '.join(changed[:3])}{more}); commit or restore it first"
        )
    return head


def _ask(root: Path, *arguments: str) -> str | None:
    """What git answers; None where it cannot."""
    program = shutil.which("git")
    if program is None:
        return None
    asked = subprocess.run(
        [program, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return asked.stdout.rstrip("\n") if asked.returncode == 0 else None
