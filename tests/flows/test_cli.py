"""The command line: exit codes, one-line errors, and what each command says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.running import hold, write_record
from flows.show import headline
from tasks.judge.verdict import Verdict, as_json


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--set", "quantize.calibration.row=64"], "did you mean 'rows'?"),
        (["run", "--preset", "nothing"], "no such preset; there is digits"),
        (["show", "nobody"], "'nobody' does not ship; distill.ship names student"),
        (["show"], "no verdict yet; run `stillhouse run`"),
        (["verify"], "no bundle here; run `stillhouse run`"),
        (["verify", "nowhere"], "nowhere: no bundle here"),
        (["plan", "--seeds", "1"], "--seeds 1: one seed knows no spread; give 2 or more"),
        (["plan"], "models/teacher: no teacher with a bank yet"),
        (["plan", "--write"], "distill.plan: null leaves distill.rungs as written"),
        (["brew"], "No such command 'brew'"),
        (["run", "--colour"], "No such option: --colour"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny: Any, arguments: list[str], said: str) -> None:
    done = tiny.cli(*arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tiny.root / "runs").exists()


def test_outside_a_checkout_the_error_says_where_to_go(tmp_path: Path) -> None:
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "flows.cli", "status"]
    done = subprocess.run(
        command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr.endswith("cd into a checkout\n")


def test_debug_adds_the_trace(tiny: Any) -> None:
    done = tiny.cli("--debug", "show", "nobody")

    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "'nobody' does not ship" in done.stderr.splitlines()[-1]


def test_status_says_what_is_stale_and_why(tiny: Any) -> None:
    tiny.change("left", value=2)

    lines = tiny.cli("status").stdout.splitlines()

    assert lines == [
        "alone: fresh",
        "grow: fresh",
        "left: stale: left modified",
        "right: fresh",
        "join: stale: follows left",
        "`stillhouse run` brings them up to date",
    ]


def test_status_mends_first_and_says_so(tiny: Any) -> None:
    (tiny.root / ".dvc/tmp/rwlock").write_text("{")

    done = tiny.cli("status")

    assert done.returncode == 0
    assert done.stderr == "removed DVC's lock table, which a crash had torn\n"
    assert done.stdout.endswith("nothing to do\n")


def test_while_a_run_is_alive_status_says_what_it_does_and_run_says_who_it_is(tiny: Any) -> None:
    with hold(tiny.checkout):
        write_record(tiny.checkout, "left", os.getpid(), ("out/left.txt",))
        status, run = tiny.cli("status"), tiny.cli("run")

    assert f"a run is at work (process {os.getpid()} since" in status.stdout
    assert status.stdout.endswith(": left\n")
    assert run.returncode == 2
    assert f"another run works here (process {os.getpid()} since" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_doctor_names_what_is_missing_and_how_to_mend_it(tiny: Any) -> None:
    (tiny.root / "constraints.txt").write_text(
        "numpy==0.0.1\nno-such-package==1.0\nno-such-tool==2.0\n"
    )
    (tiny.root / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=2", "no-such-package<2"]\n'
    )

    done = tiny.cli("doctor")

    assert done.returncode == 2
    assert "numpy " in done.stdout
    assert ", not 0.0.1; no-such-package missing, not 1.0" in done.stdout
    assert "no-such-tool" not in done.stdout, "a tool of the tests alone may be missing"
    assert "-> pip install -c constraints.txt" in done.stdout
    assert "ok    params: every section is valid" in done.stdout
    assert "ok    outs: all that dvc.lock names are there" in done.stdout
    assert "mend  data/raw: missing" in done.stdout


def test_a_healthy_fresh_clone_is_not_ill(fresh: Any) -> None:
    (fresh.root / "constraints.txt").touch()
    (fresh.root / "pyproject.toml").write_text("[project]\ndependencies = []\n")

    done = fresh.cli("doctor")

    assert done.returncode == 0, done.stdout
    emulator = shutil.which("qemu-x86_64") or "no qemu-x86_64 (Debian's qemu-user): what ships is"
    assert f"ok    emulator: {emulator}" in done.stdout
    assert "ok    data/raw: not there yet; `stillhouse run` takes it" in done.stdout
    assert "ok    outs: nothing has run here yet; `stillhouse run` does" in done.stdout


def verdict(passed: bool) -> dict[str, Any]:
    """A verdict on `student` with one gate that passed or did not, and one measured."""
    rate = {"value": 0.95, "low": 0.93, "high": 0.97}
    link = {"accuracy": rate, "parameters": 1000, "flops": 5000, "bytes": 4000}
    against = {"retention": 1.0, "compression": 1.0, "step": 1.0}
    roles = (
        ("teacher", "teacher", "test"),
        ("assistant", "rung", "val"),
        ("student", "student", "test"),
    )
    gate = {
        "name": "non_inferiority",
        "value": 0.01 if passed else 0.09,
        "bound": 0.02,
        "passed": passed,
        "why": "It loses at most this many points to its teacher.",
    }
    measured = {
        "cpu": {"model": "any"},
        "latency_ms": {"teacher": 2.0, "float_student": 0.5, "student": 0.25},
        "cpu_seconds": {},
        "gates": [gate | {"name": "latency", "passed": True}],
        "costs": {
            "steps": [],
            "below_teacher": {"name": "below", "cpu_seconds": 41.2, "watt_hours": 0.1144},
            "per_1000_predictions": {},
            "break_even": {"predictions": 98123, "why": "paid back after about 98,000 predictions"},
            "elsewhere": [],
            "method": "by hand",
        },
    }
    content = {
        "approved": passed,
        "gates": [gate],
        "student": {"name": "student", "path": "ship/student/model.onnx", "sha256": "a" * 64}
        | {"bytes": 4000, "parameters": 1000, "flops": 5000},
        "teacher": {"sha256": "b" * 64, "bytes": 400000, "parameters": 100000},
        "chain": [{"name": n, "role": r, "split": s} | link | against for n, r, s in roles],
        "baseline": {"accuracy": rate, "rows": 1000, "features": 64, "loss_upper": -0.01},
        "retention": 0.99,
        "compression": 100.0,
        "compression_bytes": 100.0,
        "loss_upper": 0.01,
        "margin_resolution": 0.005,
        "confidence": 0.95,
        "rows": 450,
        "weaker": [],
        "measured": measured,
    }
    return as_json(Verdict.model_validate(content))


def write_verdict(tiny: Any, passed: bool) -> dict[str, Any]:
    content = verdict(passed)
    folder = tiny.root / "reports/student"
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps(content))
    return content


def test_show_prints_the_chain_the_verdict_and_what_to_type(tiny: Any) -> None:
    write_verdict(tiny, passed=True)

    done = tiny.cli("show")

    assert done.returncode == 0, done.stderr
    shipped = next(line for line in done.stdout.splitlines() if "(shipped)" in line)
    for cell in ("95.0 [93.0, 97.0]", "1,000", "0.01 M", "4,000", "0.25"):
        assert cell in shipped
    assert "approved: student passed all 2 gates" in done.stdout
    assert (
        "training cost: 41 CPU-seconds (0.11 Wh) below the teacher, paid back after about 98,000 "
        "predictions\n" in done.stdout
    )
    assert "less reports/student/card.md  # the model card" in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///" in done.stdout


def test_the_headline_knows_a_verdict_without_costs_and_costs_without_a_sum() -> None:
    content = verdict(passed=True)
    content["measured"]["costs"]["below_teacher"] = {
        "name": "below",
        "cpu_seconds": None,
        "watt_hours": None,
    }
    unknown = list(headline(Verdict.model_validate(content)))
    del content["measured"]["costs"]
    former = list(headline(Verdict.model_validate(content)))

    assert "training cost: unknown below the teacher; a stage noted no CPU-seconds" in unknown
    assert not [line for line in former if "training cost" in line]


def test_show_gives_the_sentence_of_every_gate_that_refused(tiny: Any) -> None:
    write_verdict(tiny, passed=False)

    done = tiny.cli("show", "student")

    assert "refused: student failed 1 of 2 gates" in done.stdout
    assert "  non_inferiority: It loses at most this many points to its teacher." in done.stdout
    assert "stillhouse run --set section.key=value" in done.stdout


def test_show_json_is_the_verdict_as_it_is(tiny: Any) -> None:
    content = write_verdict(tiny, passed=False)

    assert json.loads(tiny.cli("show", "--json").stdout) == content


def test_a_verdict_changed_by_hand_is_refused(tiny: Any) -> None:
    content = write_verdict(tiny, passed=False)
    path = tiny.root / "reports/student/verdict.json"
    path.write_text(json.dumps(content | {"approved": True}))

    done = tiny.cli("show")

    assert done.returncode == 2
    assert "'approved' contradicts the gates" in done.stderr
