"""The frame: which way the arrows run, and that `dvc.yaml` lists what each stage imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = ("ingest", "validate", "teach", "evaluate", "distill", "quantize", "stress", "judge")
FORBIDDEN = (
    "prefect",
    "mlflow",
    "dvc",
    "git",
    "socket",
    "subprocess",
    "pickle",
    "joblib",
    "time",
    "datetime",
)
CHILDREN = ("tasks/judge/runtime.py", "tasks/judge/trial.py")  # of a model, alone or emulated
CLOCKS = ("tasks/core/cost.py", "tasks/core/progress.py")  # measured figures and display, no result


def imports(file: Path) -> set[str]:
    """Dotted names that `file` imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files(name: str) -> set[Path]:
    """The file of ours that a dotted name stands for, if it is one."""
    path = ROOT.joinpath(*name.split("."))
    return {p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()}


def closure(start: set[Path]) -> set[Path]:
    """`start` and every file of ours that it imports, directly or not."""
    seen: set[Path] = set()
    todo = set(start)
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= {p for name in imports(file) for p in files(name)} - seen
    return seen


def room(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).parts[:2])


SOURCES = sorted([*ROOT.joinpath("tasks").rglob("*.py"), *ROOT.joinpath("flows").rglob("*.py")])


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_arrows_run_one_way(file: Path) -> None:
    ours = {
        name for name in imports(file) if name.split(".")[0] in ("tasks", "flows") and files(name)
    }
    rooms = {".".join(name.split(".")[:2]) for name in ours}
    here = room(file)
    if here.startswith("flows"):
        return
    allowed = {"tasks.core", here}
    if here != "tasks.core":
        allowed.add("tasks.modalities")
    assert rooms <= allowed, f"{here} imports {rooms - allowed}"


@pytest.mark.parametrize(
    "file",
    [f for f in SOURCES if f.is_relative_to(ROOT / "tasks")],
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_a_stage_has_no_clock_no_socket_no_tracker_and_no_pickle(file: Path) -> None:
    if str(file.relative_to(ROOT)) in CLOCKS:
        return
    roots = {name.split(".")[0] for name in imports(file)}
    allowed = {"subprocess"} if str(file.relative_to(ROOT)) in CHILDREN else set()
    assert not roots & set(FORBIDDEN) - allowed


def stage_deps(stage: str) -> list[str]:
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps: list[str] = body.get("do", body)["deps"]
    return deps


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_imports_is_its_dep(stage: str) -> None:
    listed = [ROOT / dep for dep in stage_deps(stage) if "$" not in dep]
    missing = [
        str(file.relative_to(ROOT))
        for file in closure(set((ROOT / "tasks" / stage).rglob("*.py")))
        if file.stat().st_size and not any(file == d or file.is_relative_to(d) for d in listed)
    ]
    assert not missing, f"dvc.yaml: {stage} lacks deps {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_no_code_that_it_does_not_import(stage: str) -> None:
    used = closure(set((ROOT / "tasks" / stage).rglob("*.py")))
    idle = [
        dep
        for dep in stage_deps(stage)
        if dep.startswith("tasks/")
        and not any(f == ROOT / dep or f.is_relative_to(ROOT / dep) for f in used)
    ]
    assert not idle, f"dvc.yaml: {stage} would go stale for {idle}, which it does not use"


def test_every_package_that_we_name_is_pinned() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in named:
        name = requirement.split(">")[0].split("<")[0].lower().replace("_", "-")
        assert name in pinned, f"constraints.txt does not pin {name}"


def test_pinned_versions_can_be_installed_by_anyone() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "+cpu" not in text, "a local version suffix installs nowhere else"
    assert "file:" not in text
    assert "://" not in text
