"""What each model takes to run on this machine, one thread: time to load, latency, rows a second,
memory.

Latency is taken in this process, the models in turn, and the quietest of three rounds counts. Time
to load and memory are taken in a process per model (`tasks.judge.alone`), where nothing else is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.core.cost import latency_ms
from tasks.core.errors import DataError
from tasks.core.models import MODELS, ModelSpec
from tasks.core.session import open_session
from tasks.judge.case import SHIP
from tasks.judge.verdict import Runtime, Times
from tasks.modalities.vision.scorers import load_network, load_scorer

BATCH = 64
ROUNDS = 3  # of each model in turn; the quietest one counts
RUNS = 100  # of one model in one round,
BUDGET_MS = 600.0  # unless they would take longer than this

Call = Callable[[], object]


def runtimes(student: str, teacher: ModelSpec, images: NDArray[np.generic]) -> dict[str, Runtime]:
    """Teacher, float student and student by role. `images`: raw rows (N, C, H, W) to answer."""
    folder = SHIP / student
    files = {
        "teacher": MODELS / "teacher",
        "float_student": folder / "float.onnx",
        "student": folder / "model.onnx",
    }
    block = images[np.arange(BATCH) % len(images)].astype(np.float32)
    calls = {role: asked(path, teacher) for role, path in files.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = quietest({role: call(block[:1]) for role, call in calls.items()})
        many = quietest({role: call(block) for role, call in calls.items()})
    finally:
        torch.set_num_threads(before)
    found = {}
    for role, path in files.items():
        load, memory = alone(path, block)
        size = teacher.bytes if path.is_dir() else path.stat().st_size
        found[role] = Runtime(
            bytes=size,
            load_ms=load,
            one=one[role],
            many=many[role],
            rows_per_second=round(1000 * BATCH / many[role].p50, 1),
            memory_mb=memory,
        )
    return found


def quietest(calls: Mapping[str, Call]) -> dict[str, Times]:
    """Milliseconds of each call: of `ROUNDS` rounds, taken in turn, that of the least median."""
    runs = {}
    for name, call in calls.items():
        once = latency_ms(call, runs=3, warm_up=3)["p50"]
        runs[name] = int(min(RUNS, max(5, BUDGET_MS / max(once, 1e-3))))
    found: dict[str, list[Times]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(Times(**latency_ms(call, runs[name], warm_up=2)))
    return {name: min(times, key=lambda t: t.p50) for name, times in found.items()}


def alone(path: Path, images: NDArray[np.float32]) -> tuple[float, float | None]:
    """Milliseconds to load the model at `path` in a process of its own, and the MB by which that
    process grows at most while it loads and answers `images`; None where the system tells none."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "images.npy"
        np.save(file, images, allow_pickle=False)
        command = [sys.executable, "-m", "tasks.judge.alone", str(path), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise DataError(f"{path}: cannot be loaded by a process of its own ({last})")
    said = json.loads(done.stdout)
    return said["load_ms"], said["memory_mb"]


def asked(path: Path, teacher: ModelSpec) -> Callable[[NDArray[np.float32]], Call]:
    """How the model at `path` is asked: a network in torch, a file in ONNX Runtime."""
    if path.is_dir() and teacher.kind == "onnx":
        path = path / "model.onnx"
    if not path.is_dir():
        session = open_session(path, threads=1)
        name = session.get_inputs()[0].name
        return lambda images: lambda: session.run(None, {name: images})
    if teacher.kind != "torch":
        score = load_scorer(path)
        return lambda images: lambda: score(images)
    network = load_network(path, teacher)

    def in_torch(images: NDArray[np.float32]) -> Call:
        block = torch.from_numpy(images)

        def forward() -> object:
            with torch.inference_mode():
                return network(block)

        return forward

    return in_torch
