"""What the bank saves, how fast the trainer steps, and how much memory both take.

Random images and weights, since nothing here is about accuracy; everything is measured in turn, on
`THREADS` threads, and compared within each round: ours in this process, a plain loop in its own.
"""

from __future__ import annotations

import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import footprint, plain_loop, reference
from benchmarks.fashion_data import PRESET, table
from benchmarks.table import Row, row
from benchmarks.workload import (
    BATCH,
    DATA,
    LEARNING,
    STUDENTS,
    TEACHER,
    THREADS,
    VIEW,
    VIEWS,
    network,
    random_rows,
)
from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.kd import kd
from tasks.core.live import live_network
from tasks.core.metrics import cosine
from tasks.core.models import Architecture
from tasks.core.params import read
from tasks.core.rows import Rows, View
from tasks.core.seeds import deterministic
from tasks.core.signal import Batch, Outputs, Signal, Student
from tasks.core.trainer import Training, computes_bfloat16, train
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import viewer

COMMAND = "make bench-distill"
ROUNDS = 5
PRECISIONS = ("float32", "bfloat16") if computes_bfloat16() else ("float32",)


@dataclass(frozen=True)
class Setting:
    """What every loop is given: rows, their view, a teacher and what it said."""

    folder: Path
    rows: Rows
    view: View
    teacher: ResidualNetwork
    bank: Bank
    said: Tensor  # the teacher's logits of `VIEW`, in memory
    bank_seconds: float  # of one view of all rows


@dataclass(frozen=True)
class Round:
    """Seconds an image of one student, in each way to train it."""

    plain_live: float
    live: float
    banked: float
    plain: dict[str, float]  # by precision; bfloat16 where the CPU computes in it
    step: dict[str, float]


def run() -> list[Row]:
    """All rows of the table."""
    base = Path(tempfile.mkdtemp(prefix="stillhouse-bench-"))
    try:
        deterministic(0, THREADS)
        setting = prepared(base)
        rounds: dict[Architecture, list[Round]] = {student: [] for student in STUDENTS}
        forwards = []
        with ProcessPoolExecutor(1, get_context("spawn")) as plainly:
            for number in range(ROUNDS):
                print(f"bench-distill: round {number + 1}/{ROUNDS}", flush=True)
                forwards.append(forward(setting))
                for index, student in enumerate(STUDENTS):
                    rounds[student].append(measured(setting, index, plainly))
        return [
            *(r for s in STUDENTS for r in bank_rows(s, rounds[s], forwards)),
            *(r for s in STUDENTS for r in step_rows(s, rounds[s])),
            *cost_rows(setting, rounds[STUDENTS[0]]),
            *footprint.rows(base, COMMAND),
            *rescored(),
        ]
    finally:
        shutil.rmtree(base, ignore_errors=True)


def rescored() -> list[Row]:
    """Rows of the committed references, on the test rows of the preset's own files."""
    return reference.rescored(table(test=True), COMMAND)


def prepared(base: Path) -> Setting:
    """Random rows, a teacher of random weights, and its bank."""
    print("bench-distill: the bank", flush=True)
    rows = random_rows()
    teacher = network(TEACHER).eval()
    view, score = viewer(rows, VIEWS, DATA), network_scorer(teacher)
    start = time.perf_counter()
    write_bank(base / "bank", rows, "m", VIEWS.model_dump(), view, lambda x, _: score(x))
    spent = time.perf_counter() - start
    bank = read_bank(base / "bank", rows, "m", VIEWS.model_dump(), BankForm())
    said = bank.said(torch.arange(len(rows)), VIEW)
    np.save(base / plain_loop.SAID, said.numpy(), allow_pickle=False)
    return Setting(base, rows, view, teacher, bank, said, spent / VIEWS.count)


def forward(setting: Setting) -> float:
    """Seconds an image of the teacher alone, asked as a live signal is."""
    images, signal = setting.rows.images[:].float(), live_network(setting.teacher)
    starts = range(0, len(images), BATCH)
    blocks = [images[i : i + BATCH].to(memory_format=torch.channels_last) for i in starts]
    start = time.perf_counter()
    for block in blocks:
        signal(block, torch.empty(0), VIEW)
    return (time.perf_counter() - start) / len(images)


def measured(setting: Setting, student: int, plainly: Executor) -> Round:
    """One round of one student. The plain loop has a process of its own: our trainer changes how
    the one it runs in keeps freed memory (tasks/core/memory.py), which would speed it up too."""

    def plain(teacher: bool = False, low: bool = False) -> float:
        asked = plainly.submit(plain_loop.seconds, setting.folder, student, teacher, low)
        return asked.result()

    def in_memory_signal(_: Tensor, index: Tensor, _view: int) -> tuple[Outputs, ...]:
        return (Outputs(setting.said[index]),)

    architecture = STUDENTS[student]
    return Round(
        plain_live=plain(teacher=True),
        live=ours(setting, architecture, live_network(setting.teacher)),
        banked=ours(setting, architecture, lambda x, i, _: setting.bank.signal(x, i, VIEW)),
        plain={p: plain(low=p == "bfloat16") for p in PRECISIONS},
        step={p: ours(setting, architecture, in_memory_signal, p) for p in PRECISIONS},
    )


def ours(
    setting: Setting, student: Architecture, signal: Signal, precision: str = "float32"
) -> float:
    """Seconds an image of our trainer, all that it does around an epoch included."""

    def loss(student: Student, batch: Batch) -> Tensor:
        guided = kd(student.logits, batch.teacher.logits, 4.0).mean()
        return 0.9 * guided + 0.1 * F.cross_entropy(student.logits, batch.labels)

    net = network(student)
    training: dict[str, Any] = {"epochs": 1, "batch": BATCH, "precision": precision, **LEARNING}
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        train(
            net,
            setting.rows,
            loss,
            Training.model_validate(training),
            view=lambda images, index, _: setting.view(images, index, VIEW),
            validate=lambda: 0.0,
            history=setting.folder / "history.jsonl",
            what="bench",
            signal=signal,
        )
    return (time.perf_counter() - start) / len(setting.rows)


def median(of: Callable[[Round], float], rounds: list[Round]) -> float:
    return statistics.median(of(r) for r in rounds)


def parameters(architecture: Architecture) -> int:
    return sum(p.numel() for p in network(architecture).parameters())


def bank_rows(student: Architecture, rounds: list[Round], forwards: list[float]) -> list[Row]:
    """The bank against a live teacher. Both sides of the share are our trainer, so that the student
    step is the same one; the limit is that of a bank that costs nothing."""
    fraction = f"1/{parameters(TEACHER) / parameters(student):.0f} of its parameters"
    steps = [r.step["float32"] for r in rounds]
    limits = [(t + step) / step for t, step in zip(forwards, steps, strict=True)]
    reached = [r.live / r.banked for r in rounds]
    shares = [a / b for a, b in zip(reached, limits, strict=True)]
    plainly = median(lambda r: r.plain_live / r.banked, rounds)
    named = f"bank vs live teacher, {fraction}"
    return [
        row(f"{named}: share of the limit that is reached", statistics.median(shares), "",
            ">= 0.9", COMMAND, ROUNDS),
        row(f"{named}: the limit, (teacher forward + student step) / student step",
            statistics.median(limits), "x", "", COMMAND, ROUNDS),
        row(f"{named}: speed-up, same trainer", statistics.median(reached), "x", "", COMMAND,
            ROUNDS),
        row(f"{named}: speed-up over a plain PyTorch loop", plainly, "x", "", COMMAND, ROUNDS),
    ]  # fmt: skip


def step_rows(student: Architecture, rounds: list[Round]) -> list[Row]:
    """Our trainer's step against a plain loop's, teacher left out of both: precision by precision,
    and as `precision: auto` trains against the float32 of whoever chooses nothing."""
    size, rows = f"{parameters(student):,} parameters", []
    pairs = {p: (p, p) for p in PRECISIONS}
    if PRECISIONS[-1] != "float32":
        pairs["auto over float32"] = ("float32", PRECISIONS[-1])
    for named, (theirs, our) in pairs.items():
        plainly = statistics.median(1 / r.plain[theirs] for r in rounds)
        fast = statistics.median(1 / r.step[our] for r in rounds)
        ratio = statistics.median(r.plain[theirs] / r.step[our] for r in rounds)
        what = f"student step, {size}, {named}"
        rows += [
            row(f"{what}: over a plain PyTorch loop", ratio, "x", ">= 1.2", COMMAND, ROUNDS),
            row(what, fast, "images/s", "", COMMAND, ROUNDS, baseline=plainly),
        ]
    return rows


def cost_rows(setting: Setting, rounds: list[Round]) -> list[Row]:
    """What a bank costs, and how near it is to the teacher asked anew."""
    count, preset = len(setting.rows), read(PRESET)
    views = preset["teach"]["views"]["count"]
    epochs = preset["distill"]["rungs"]["student"]["training"]["epochs"]
    files = sum(p.stat().st_size for p in (setting.folder / "bank").iterdir())
    index = torch.from_numpy(np.random.default_rng(1).choice(count, 1000, replace=False))
    seen = setting.view(setting.rows.images[index].float(), index.numpy(), VIEW)
    with torch.no_grad():
        truth = setting.teacher(seen.to(memory_format=torch.channels_last)).numpy()
    kept = setting.bank.said(index, VIEW).numpy()
    saved = median(lambda r: r.live - r.banked, rounds)
    pays = views * setting.bank_seconds / count / (epochs * saved)
    agreement = float((truth.argmax(1) == kept.argmax(1)).mean())
    return [
        row("bank: time for a view of 60,000 rows", 60000 * setting.bank_seconds / count, "s", "",
            COMMAND),
        row("bank: on disk, a view of 60,000 rows", files / VIEWS.count / count * 0.06, "MB", "",
            COMMAND),
        row("bank: mean cosine to the live teacher, 1,000 rows", cosine(truth, kept), "",
            ">= 0.9999", COMMAND),
        row("bank: argmax equal to the live teacher's, 1,000 rows", agreement, "", "", COMMAND),
        row(f"bank of {views} views: students of {epochs} epochs after which it pays", pays, "", "",
            COMMAND, ROUNDS),
    ]  # fmt: skip
