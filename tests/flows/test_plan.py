"""`stillhouse plan`: what it writes, what it leaves alone, and how its training ends."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.comparison import NAME, _lines, show_plan
from flows.params import checked, with_rungs
from flows.plan import check_steps, settle, write_plan
from flows.running import lives, record_path, records
from flows.slots import slots
from flows.state import Checkout, Servers
from flows.stopping import STOPPING
from tasks.core.errors import DataError, GateError, ParamsError
from tasks.core.files import read_json, write_json

ROOT = Path(__file__).parents[2]
RUNGS: dict[str, Any] = {
    "student": {
        "from": "teacher",
        "architecture": {"widths": [4, 9]},
        "training": {"epochs": 3, "learning_rate": 0.01},
        "losses": {"kd": 1.0},
    }
}


@pytest.mark.parametrize("file", sorted([ROOT / "params.yaml", *ROOT.glob("presets/*.yaml")]))
def test_new_rungs_leave_every_other_line_as_it_was(file: Path) -> None:
    text = file.read_text()
    changed = with_rungs(text, RUNGS)
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    lines = text.splitlines()
    start = lines.index("  rungs:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("    "))

    assert after["distill"]["rungs"] == RUNGS
    assert changed.splitlines()[: start + 1] == lines[: start + 1]
    assert changed.splitlines()[-len(lines[end:]) :] == lines[end:]
    assert len(changed.splitlines()) == start + 1 + 5 + len(lines[end:])
    after["distill"]["rungs"] = before["distill"]["rungs"]
    assert after == before


def test_rungs_on_one_line_are_replaced_too() -> None:
    text = "a: 1\ndistill: {rungs: {x: {from: teacher}}, ship: [x]}  # why\n"

    changed = with_rungs(text, RUNGS)

    assert yaml.safe_load(changed) == {"a": 1, "distill": {"rungs": RUNGS, "ship": ["x"]}}
    assert changed.endswith("ship: [x]}  # why\n")


def automatic(root: Path, **budget: float) -> dict[str, Any]:
    """Ask for a plan in `root/params.yaml`, by hand."""
    path = root / "params.yaml"
    line = f"  plan: auto\n  budget: {budget}\n".replace("'", "")
    path.write_text(path.read_text().replace("distill:\n", f"distill:\n{line}"))
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.fixture(scope="module")
def planned(seedling: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data were taken and whose rungs are the plan's; copied for each test."""
    root = tmp_path_factory.mktemp("planned") / "tiny"
    shutil.copytree(seedling, root, symlinks=True)
    automatic(root, parameters=7_000)
    list(write_plan(Checkout(root, root, Servers())))
    return root


@pytest.fixture
def planning(planned: Path, tmp_path: Path) -> Checkout:
    root = tmp_path / "tiny"
    shutil.copytree(planned, root, symlinks=True)
    return Checkout(root, root, Servers())


def params(root: Path) -> Any:
    return checked(yaml.safe_load((root / "params.yaml").read_text()), "params.yaml")


def test_a_plan_is_written_and_then_a_run_is_content_with_it(fresh: Any) -> None:
    automatic(fresh.root, parameters=7_000)
    done = fresh.cli("plan", "--write")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "params.yaml: distill.rungs is now the proposal for distill.budget",
        "  assistant from teacher: 44,014 parameters (7.0:1), widths 12 24 48, 32 epochs",
        "  student from assistant: 6,325 parameters (7.0:1), widths 4 9 18, 32 epochs",
    ]
    assert settle(fresh.checkout, params(fresh.root)) is None
    text = (fresh.root / "params.yaml").read_text()
    list(write_plan(fresh.checkout))
    assert (fresh.root / "params.yaml").read_text() == text


def test_rungs_that_are_not_the_plans_stop_a_run_with_what_to_type(planning: Checkout) -> None:
    path = planning.root / "params.yaml"
    written = path.read_text()
    path.write_text(written.replace("[4, 9, 18]", "[4, 9, 17]"))
    with pytest.raises(ParamsError) as error:
        settle(planning, params(planning.root))

    assert str(error.value) == (
        "params.yaml: distill.rungs: are not what plan: auto proposes for distill.budget; "
        "type `stillhouse plan --write`"
    )
    path.write_text(written.replace("parameters: 7000", "parameters: 9000"))
    with pytest.raises(ParamsError, match="type `stillhouse plan --write`"):
        settle(planning, params(planning.root))


def test_what_a_stage_would_refuse_after_its_teacher_is_refused_before_it(
    planning: Checkout,
) -> None:
    path = planning.root / "params.yaml"
    written = path.read_text()
    check_steps(planning, params(planning.root))

    path.write_text(written.replace("[4, 9, 18]", "[3, 6, 12]"))
    with pytest.raises(GateError, match=r"rungs.student: 44,014 parameters \(assistant\) to 2,9"):
        check_steps(planning, params(planning.root))
    path.write_text(written.replace("[12, 24, 48]", "[9, 18, 36]"))
    with pytest.raises(GateError, match=r"rungs.assistant: 308,074 parameters \(teacher\) to 24"):
        check_steps(planning, params(planning.root))

    changed = yaml.safe_load(written)
    rows = read_json(planning.root / "data/raw/snapshot.json")["rows"]
    student = changed["distill"]["rungs"]["student"]["training"]
    for batch, refused in ((rows, False), (rows + 1, True)):
        student["batch"] = batch
        path.write_text(yaml.safe_dump(changed))
        with pytest.raises(ParamsError) if refused else nullcontext() as error:
            check_steps(planning, params(planning.root))
    assert str(error.value) == (
        f"params.yaml: distill.rungs.student.training.batch: {rows + 1} is larger than all {rows} "
        "rows of the data; lower it"
    )


def test_a_workspace_gets_the_rungs_written(planning: Checkout) -> None:
    path = planning.root / "params.yaml"
    path.write_text(path.read_text().replace("parameters: 7000", "parameters: 100000"))
    workspace = Checkout(planning.root, planning.root.parent, Servers())
    note = settle(workspace, params(planning.root))

    assert note == (
        "plan: auto: student from teacher: 99,881 parameters (3.1:1), widths 18 36 73, 32 epochs"
    )
    assert list(params(planning.root).distill.rungs) == ["student"]
    assert settle(workspace, params(planning.root)) is None


def test_a_written_latency_is_not_measured_again(
    planning: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planning.root / "params.yaml"
    path.write_text(re.sub(r"parameters: 7000", "latency_ms: 0.001", path.read_text()))

    def measured(*_: object) -> float:
        raise AssertionError

    monkeypatch.setattr("tasks.distill.propose._latency", measured)

    assert settle(planning, params(planning.root)) is None


def recommending(chain: str, root: Path, teacher: str, write: str = "dense") -> None:
    """A report of a comparison of the written rungs, which recommends `chain`."""
    from flows.plan import ground
    from tasks.distill.chains import METHOD, candidates, largest_step, plan
    from tasks.distill.decision import REPORT, Candidate, Gain, PlanReport

    asked = params(root)
    on = ground(Checkout(root, root, Servers()), asked)
    chains = candidates(plan(asked.distill, on), on, asked.teach.views.count)
    found = tuple(
        Candidate(
            name=name,
            links=tuple(rungs),
            rungs=rungs,
            parameters=tuple(range(1, 1 + len(rungs))),
            flops=3_000_000,
            arithmetic="by hand",
            largest_step=largest_step(rungs, on),
            accuracy=(0.9, 0.92),
            gain=None if name == "direct" else Gain(value=0.01, low=0.002, high=0.02),
        )
        for name, rungs in chains.items()
    )
    report = PlanReport(
        student="student", teacher=teacher, fingerprint="0", seeds=2, rows=100, confidence=0.95,
        method=METHOD, chains=found, recommended=chain, write=write, why="it gains.",
    )  # fmt: skip
    write_json(root / REPORT, report.model_dump(mode="json"))


def teacher(root: Path) -> str:
    """A teacher that is no more than its spec; returns the SHA-256 that it names."""
    from tasks.core.models import (
        WEIGHTS,
        Architecture,
        ModelSpec,
        Normalisation,
        write_spec,
        write_weights,
    )

    snapshot = read_json(root / "data/raw/snapshot.json")
    data = snapshot["data"]
    tables = {"digest": "0", "snapshot": snapshot["sha256"]}
    write_json(root / "data/fingerprint.json", tables)
    digest = write_weights(root / "models/teacher" / WEIGHTS, {})
    spec = ModelSpec(
        name="teacher", kind="torch", architecture=Architecture(widths=(32, 64, 128)), data=data,
        normalisation=Normalisation(mean=0, std=1), parameters=308_074, bytes=4, flops=1,
        sha256=digest,
    )  # fmt: skip
    write_spec(root / "models/teacher", spec)
    return digest


def test_the_chain_that_a_comparison_recommends_is_written(planning: Checkout) -> None:
    recommending("dense", planning.root, teacher(planning.root))
    said = next(write_plan(planning))

    assert (
        said == "params.yaml: distill.rungs is now the dense chain, as reports/plan.json recommends"
    )
    assert params(planning.root).distill.rungs["student"].losses["dense"] == 0.9
    assert settle(planning, params(planning.root)) is None


def test_a_recommended_step_that_is_refused_is_not_written(planning: Checkout) -> None:
    recommending("direct", planning.root, teacher(planning.root), write="assistant")

    assert next(write_plan(planning)).endswith(
        "the assistant chain; reports/plan.json recommends direct, which has a step that distill "
        "refuses"
    )
    assert list(params(planning.root).distill.rungs) == ["assistant", "student"]


def test_a_comparison_of_another_teacher_budget_or_data_recommends_nothing(
    planning: Checkout,
) -> None:
    teacher(planning.root)
    recommending("dense", planning.root, "another")
    assert next(write_plan(planning)).endswith("the proposal for distill.budget")

    recommending("dense", planning.root, teacher(planning.root))
    grown = {"digest": "1", "snapshot": "of other data"}
    write_json(planning.root / "data/fingerprint.json", grown)
    assert next(write_plan(planning)).endswith("the proposal for distill.budget")

    recommending("dense", planning.root, teacher(planning.root))
    path = planning.root / "params.yaml"
    path.write_text(path.read_text().replace("parameters: 7000", "parameters: 9000"))
    assert next(write_plan(planning)).endswith("the proposal for distill.budget")


def test_the_table_shows_each_chain_with_its_seeds_and_gain(
    planning: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from flows.comparison import read_report

    recommending("dense", planning.root, "any")
    show_plan(Console(width=120), read_report(planning.root))
    said = capsys.readouterr().out

    dense = next(line for line in said.splitlines() if line.split()[:1] == ["dense"])
    for cell in ("1 > 2", "32 + 32", "3.0", "91.00 [90.00, 92.00]", "+1.00 [+0.20, +2.00]"):
        assert cell in dense
    assert "Equal compute, counted for one training row" in said
    assert said.endswith("recommended: it gains.\n")


WAITING = "import time; print('up', flush=True); time.sleep(60)"
REFUSING = """
from tasks.core.errors import DataError
from tasks.core.stage import main
def run(_):
    raise DataError("the bank is torn; run again")
main(run)
"""


@pytest.fixture
def own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores that no run of this machine holds."""
    monkeypatch.setattr("flows.slots.default_folder", lambda: tmp_path / "slots")


COMPARING = """
import flows.comparison as c, flows.params, flows.slots, pathlib, sys
from flows.state import find_checkout
lines = c._lines
c._require_teacher = flows.params.check_params = lambda _: None
c._lines = lambda checkout, _: lines(checkout, ["-c", sys.argv[2]])
flows.slots.default_folder = lambda: pathlib.Path(sys.argv[1])
try:
    c.compare(find_checkout(), 2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", STOPPING)
def test_whatever_ends_a_comparison_ends_its_training(
    tiny: Any, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", COMPARING, str(tmp_path / "slots"), WAITING]
    with subprocess.Popen(command, cwd=tiny.root, stdout=subprocess.PIPE, text=True) as plan:
        assert plan.stdout is not None
        assert any(line == "up\n" for line in plan.stdout)
        (record,) = records(tiny.checkout)
        training = psutil.Process(record.pid)
        plan.send_signal(number)
    assert plan.returncode == 130
    assert not lives(training)
    assert records(tiny.checkout) == []


@pytest.mark.usefixtures("own_slots")
def test_an_interrupted_comparison_ends_its_process_and_frees_the_cores(tiny: Any) -> None:
    lines = _lines(tiny.checkout, ["-c", WAITING])
    assert next(lines) == "up"
    (record,) = records(tiny.checkout)
    lines.close()

    assert record.name == NAME
    assert not Path(f"/proc/{record.pid}").exists()
    assert not record_path(tiny.checkout, NAME).exists()
    began = time.monotonic()
    with slots("distill", 2, threading.Event()):
        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("own_slots")
def test_a_comparison_that_refuses_says_why_in_its_own_words(tiny: Any) -> None:
    with pytest.raises(DataError, match=r"^the bank is torn; run again$"):
        list(_lines(tiny.checkout, ["-c", REFUSING]))
