"""The DAG as `dvc.yaml` writes it: stages, edges, and which of them are stale, in words.

Reads the index and the status of DVC once. Never runs anything and never decides what is fresh:
DVC alone does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.state import one_line
from tasks.core.errors import DataError


@dataclass(frozen=True)
class Stage:
    """One stage: its name in `dvc.yaml`, what it follows, what it writes, and why it is stale.

    `why` holds DVC's reasons as phrases; empty if nothing that the stage reads has changed yet.
    """

    name: str
    parents: tuple[str, ...]
    outs: tuple[str, ...]
    why: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The name in `dvc.yaml` before `foreach` or `matrix` multiplied it.

        >>> Stage("distill@student", (), ()).group
        'distill'
        """
        return self.name.split("@")[0]


@dataclass(frozen=True)
class Graph:
    """Stages by name, parents first."""

    stages: Mapping[str, Stage]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    @property
    def edges(self) -> frozenset[tuple[str, str]]:
        """(parent, child) pairs."""
        return frozenset((p, s.name) for s in self for p in s.parents)

    @property
    def stale(self) -> dict[str, tuple[str, ...]]:
        """Stages that may have to run, and why: changed themselves, or below one that is."""
        found: dict[str, tuple[str, ...]] = {}
        for stage in self:
            above = [p for p in stage.parents if p in found]
            farther = set().union(*(self.ancestors(p) for p in above))
            nearest = [p for p in above if p not in farther]
            follows = (f"follows {', '.join(nearest)}",) if nearest else ()
            if stage.why or above:
                found[stage.name] = (*stage.why, *follows)
        return found

    def ancestors(self, name: str) -> set[str]:
        """Every stage that `name` follows, directly or not."""
        parents = self.stages[name].parents
        return set(parents).union(*(self.ancestors(p) for p in parents))


def read_graph(root: Path) -> Graph:
    """The graph of the checkout at `root`, with the status of each stage.

    Raises `DataError` with DVC's own words if `dvc.yaml` or `dvc.lock` cannot be read, or a stage
    is running at this moment.
    """
    with opened(root) as repo:
        changes = repo.status()
        written = _writers(repo)
        found = {
            stage.name: _stage(stage, changes.get(stage.addressing, []), repo, written)
            for stage in repo.index.stages
            if hasattr(stage, "name")  # a .dvc file is an input, not a stage
        }
    return Graph(_parents_first(found))


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """DVC's view of the checkout at `root`; what it cannot read becomes a `DataError`."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo(str(root)) as repo:
            yield repo
    except SCMError:
        raise DataError(
            f"{root}: not a git repository, which DVC needs; run `git init` and commit"
        ) from None
    except NotDvcRepoError:
        raise DataError(f"{root}: no .dvc folder; run `git checkout .dvc`") from None
    except DvcException as error:
        raise DataError(
            f"{root}: DVC cannot read the DAG ({one_line(error)}); mend that file, or restore it "
            "from git"
        ) from None


def _writers(repo: Any) -> dict[str, str]:
    """Path of each out, relative to the root -> the stage that writes it."""
    return {
        _relative(out.fs_path, repo): stage.name
        for stage in repo.index.stages
        if hasattr(stage, "name")
        for out in stage.outs
    }


def _stage(stage: Any, changes: list[Any], repo: Any, written: Mapping[str, str]) -> Stage:
    parents = {p.name for p in repo.index.graph.successors(stage) if hasattr(p, "name")}
    never = not any(out.hash_info for out in stage.outs)
    why = ("never ran here",) if never and changes else tuple(_reasons(changes, written))
    outs = tuple(sorted(_relative(out.fs_path, repo) for out in stage.outs))
    return Stage(stage.name, tuple(sorted(parents)), outs, why)


def _relative(path: str, repo: Any) -> str:
    return Path(path).relative_to(repo.root_dir).as_posix()


def _reasons(changes: list[Any], written: Mapping[str, str]) -> Iterator[str]:
    """DVC's status of one stage, as phrases."""
    for change in changes:
        if not isinstance(change, dict):
            yield {"changed command": "its command changed"}.get(change, str(change))
            continue
        for path, state in change.get("changed deps", {}).items():
            if isinstance(state, dict):
                yield from (f"{key} {word}" for key, word in state.items())
            elif path in written and state == "deleted":
                yield f"{path} is missing ({written[path]} writes it)"
            else:
                yield f"{path} {state}"
        for path, state in change.get("changed outs", {}).items():
            yield f"its {path} was {'changed by hand' if state == 'modified' else state}"


def _parents_first(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Topological order, by name among equals, so that two readings agree."""
    placed: dict[str, Stage] = {}
    while len(placed) < len(stages):
        ready = [
            s
            for n, s in sorted(stages.items())
            if n not in placed and set(s.parents) <= set(placed)
        ]
        placed.update((s.name, s) for s in ready)
    return placed
