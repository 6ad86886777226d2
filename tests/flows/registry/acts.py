"""Promotions and rollbacks in a test project, and what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flows import ledger
from flows.promote import promote, rollback
from flows.registry import versions_of
from flows.store import opened
from tests.flows.registry.project import Project


def up(trees: Project, number: int, by: str = "Ada", reason: str = "better") -> ledger.Line:
    return promote(trees.checkout, number, by, reason, print)


def back(trees: Project, by: str = "Grace", reason: str = "drift") -> ledger.Line:
    return rollback(trees.checkout, by, reason, print)


def standing(trees: Project) -> dict[str, int]:
    """Alias -> candidate version of the model that it points to."""
    with opened(trees.checkout) as store:
        model = store.client.get_registered_model("trees")
        found = {}
        for alias, version in model.aliases.items():
            tags = store.client.get_model_version("trees", version).tags
            subject = tags["stillhouse.subject"]
            found[alias] = int(versions_of(store, "trees-candidates", subject)[0].version)
        return found


def steps(trees: Project) -> list[str]:
    return [f"{line.act} {line.step}" for line in ledger.read(trees.checkout)]


def in_a_process(trees: Project, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own that stands in the project."""
    script = trees.root.parent / "script.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=trees.root,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
