"""What this machine measures: median latency of three models, and CPU-seconds spent on the way.

These figures are never reproducible. They stand under `measured` with the CPU they belong to; a
declared budget may veto a student by them, and nothing is ranked by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.core.cost import cpu, latency_ms
from tasks.core.errors import DataError
from tasks.core.files import read_json
from tasks.core.models import MODELS, ModelSpec
from tasks.core.reports import Gate, RungReport, at_most
from tasks.core.session import open_session
from tasks.judge.case import SHIP
from tasks.judge.costs import Noted, measured_costs
from tasks.judge.verdict import Latency, Measured
from tasks.modalities.vision.scorers import load_network, load_scorer

MEASURED = Path("measured")
ROUNDS = 3  # of each model in turn; the quietest one counts
RUNS = 100  # of one model in one round,
BUDGET_MS = 600.0  # unless they would take longer than this

Call = Callable[[], object]


def measure(
    student: str,
    teacher: ModelSpec,
    rung: RungReport,
    row: NDArray[np.generic],
    budget_ms: float,
    watts: float,
) -> Measured:
    """Time teacher, float student and student on one thread; gate the student. `rung`: of the float
    student; `row`: one raw image (1, C, H, W); `watts`: what a busy core is taken to draw."""
    image = row.astype(np.float32)
    folder = SHIP / student
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = medians(
            {
                "teacher": teacher_call(teacher, image),
                "float_student": _session(folder / "float.onnx", image),
                "student": _session(folder / "model.onnx", image),
            }
        )
    finally:
        torch.set_num_threads(before)
    latency = Latency(**times)
    here, above = cpu(), [rung.name for rung in rung.lineage[1:]]
    noted = read_noted(["teacher", *above, rung.name, f"quantize-{rung.name}"])
    return Measured(
        cpu=here,
        latency_ms=latency,
        cpu_seconds={
            name: found.cpu_seconds
            for name, found in noted.items()
            if found.cpu_seconds is not None
        },
        gates=(latency_gate(latency, budget_ms),),
        costs=measured_costs(noted, teacher, rung, latency, here, watts),
    )


def medians(calls: dict[str, Call]) -> dict[str, float]:
    """Median milliseconds of each call: of `ROUNDS` rounds, taken in turn, the quietest."""
    runs = {}
    for name, call in calls.items():
        once = latency_ms(call, runs=3, warm_up=3)["p50"]
        runs[name] = int(min(RUNS, max(5, BUDGET_MS / max(once, 1e-3))))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(latency_ms(call, runs[name], warm_up=2)["p50"])
    return {name: min(values) for name, values in found.items()}


def latency_gate(latency: Latency, budget_ms: float) -> Gate:
    """The student's median against its budget, and what quantization did to speed here."""
    change = latency.float_student / max(latency.student, 1e-6)
    speed = (
        f"{change:.1f} times as fast as its float version"
        if change >= 1
        else f"{1 / max(change, 1e-6):.1f} times as long as its float version takes"
    )
    return at_most(
        "latency_ms",
        latency.student,
        budget_ms,
        f"Median {latency.student:.3f} ms for one row on one thread, {speed}; "
        f"{budget_ms:g} ms are allowed.",
    )


def read_noted(names: list[str], folder: Path = MEASURED) -> dict[str, Noted]:
    """What each stage noted of itself; a figure that is missing or no number is None."""
    found = {}
    for name in names:
        try:
            content = read_json(folder / f"{name}.json")
        except DataError:
            content = None
        facts = content if isinstance(content, dict) else {}
        found[name] = Noted(
            facts.get("cpu"),
            _number(facts.get("cpu_seconds")),
            _number(facts.get("bank_cpu_seconds")),
        )
    return found


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def teacher_call(spec: ModelSpec, row: NDArray[np.float32]) -> Call:
    """One forward pass of the teacher, in torch or, for an ONNX file, in ONNX Runtime."""
    folder = MODELS / "teacher"
    if spec.kind == "onnx":
        return _session(folder / "model.onnx", row)
    if spec.kind != "torch":
        score = load_scorer(folder)
        return lambda: score(row)
    network, image = load_network(folder, spec), torch.from_numpy(row)

    def forward() -> object:
        with torch.inference_mode():
            return network(image)

    return forward


def _session(path: Path, row: NDArray[np.float32]) -> Call:
    session = open_session(path, threads=1)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: row})
